"""LimitRanger: what a namespace's LimitRanges give containers that ask for nothing, and what they forbid.

Owns the defaults and the minimum, maximum and ratio checks of Containers, Pods and PersistentVolumeClaims. Everything
but the look-up of the LimitRanges is pure. A Pod is looked at when it is created and when it is resized: in between
its resources cannot change. Called by the admission chain.

Upstream: plugin/pkg/admission/limitranger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.machinery import podresources
from controlplane.machinery.podresources import Amounts
from controlplane.machinery.quantity import Quantity

ANNOTATION = "kubernetes.io/limit-ranger"
Object = dict[str, Any]


class LimitRanger(Plugin):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._ranges: Index[Object] = Index(context.cache, "limitranges", lambda item: item.obj)

    def _concerned(self, attributes: Attributes) -> tuple[Object, ...]:
        name = attributes.resource.name
        if name not in ("pods", "persistentvolumeclaims") or attributes.obj is None:
            return ()
        if not (attributes.concerns("pods", CREATE) or attributes.concerns("persistentvolumeclaims", CREATE, UPDATE)
                or attributes.concerns("pods", UPDATE, subresource="resize")) \
                or attributes.obj["metadata"].get("deletionTimestamp"):
            return ()
        return self._ranges.of(attributes.namespace)

    async def mutate(self, attributes: Attributes) -> None:
        if attributes.resource.name == "pods":
            for limit_range in self._concerned(attributes):
                complete(attributes.obj or {}, limit_range)

    async def validate(self, attributes: Attributes) -> None:
        for limit_range in self._concerned(attributes):
            faults = check(attributes.resource.name, attributes.obj or {}, limit_range)
            if faults:
                raise attributes.forbidden(faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]")


def complete(pod: Object, limit_range: Object) -> None:
    """Give every container the default requests and limits it does not state; note it in an annotation. In place."""
    requests: Object = {}
    limits: Object = {}
    for item in _limits(limit_range, "Container"):
        requests.update(item.get("defaultRequest") or {})
        limits.update(item.get("default") or {})
    if not requests and not limits:
        return
    spec, notes = pod.get("spec") or {}, []
    for field, kind in (("containers", "container"), ("initContainers", "init container")):
        for container in spec.get(field) or []:
            for part, defaults in (("requests", requests), ("limits", limits)):
                resources = container.get("resources") or {}
                stated = resources.get(part) or {}
                missing = sorted(name for name in defaults if name not in stated)
                if missing:
                    resources[part] = {**stated, **{name: defaults[name] for name in missing}}
                    container["resources"] = resources
                    notes.append(f"{', '.join(missing)} {part[:-1]} for {kind} {container.get('name', '')}")
    if notes:
        metadata = pod["metadata"]
        metadata["annotations"] = {**(metadata.get("annotations") or {}),
                                   ANNOTATION: "LimitRanger plugin set: " + "; ".join(notes)}


def check(resource: str, obj: Object, limit_range: Object) -> list[str]:
    """What the LimitRange forbids of a Pod or PersistentVolumeClaim. Pure."""
    spec = obj.get("spec") or {}
    if resource == "persistentvolumeclaims":
        asked = podresources.of_container(spec, "requests")
        return [fault for item in _limits(limit_range, "PersistentVolumeClaim") for fault in (
            *_each(item, "min", lambda n, v: _minimum("PersistentVolumeClaim", n, v, asked, {})),
            *_each(item, "max", lambda n, v: _maximum_request("PersistentVolumeClaim", n, v, asked)))]
    faults: list[str] = []
    for item in _limits(limit_range, "Container"):
        for container in (*(spec.get("containers") or []), *(spec.get("initContainers") or [])):
            faults += _all(item, "Container", podresources.of_container(container, "requests"),
                           podresources.of_container(container, "limits"))
    for item in _limits(limit_range, "Pod"):
        faults += _all(item, "Pod", podresources.requests(obj), podresources.limits(obj))
    return faults


def _limits(limit_range: Object, kind: str) -> list[Object]:
    return [item for item in (limit_range.get("spec") or {}).get("limits") or [] if item.get("type") == kind]


def _each(item: Object, field: str, rule: Any) -> Iterator[str]:
    for name, value in sorted(podresources.parsed(item.get(field)).items()):
        if fault := rule(name, value):
            yield fault


def _all(item: Object, kind: str, requests: Amounts, limits: Amounts) -> list[str]:
    return [*_each(item, "min", lambda n, v: _minimum(kind, n, v, requests, limits)),
            *_each(item, "max", lambda n, v: _maximum(kind, n, v, requests, limits)),
            *_each(item, "maxLimitRequestRatio", lambda n, v: _ratio(kind, n, v, requests, limits))]


def _minimum(kind: str, name: str, least: Quantity, requests: Amounts, limits: Amounts) -> str:
    begin = f"minimum {name} usage per {kind} is {least}"
    if name not in requests:
        return begin + ".  No request is specified"
    if requests[name] < least:
        return begin + f", but request is {requests[name]}"
    if name in limits and limits[name] < least:
        return begin + f", but limit is {limits[name]}"
    return ""


def _maximum(kind: str, name: str, most: Quantity, requests: Amounts, limits: Amounts) -> str:
    begin = f"maximum {name} usage per {kind} is {most}"
    if name not in limits:
        return begin + ".  No limit is specified"
    if limits[name] > most:
        return begin + f", but limit is {limits[name]}"
    if name in requests and requests[name] > most:
        return begin + f", but request is {requests[name]}"
    return ""


def _maximum_request(kind: str, name: str, most: Quantity, requests: Mapping[str, Quantity]) -> str:
    begin = f"maximum {name} usage per {kind} is {most}"
    if name not in requests:
        return begin + ".  No request is specified"
    return begin + f", but request is {requests[name]}" if requests[name] > most else ""


def _ratio(kind: str, name: str, most: Quantity, requests: Amounts, limits: Amounts) -> str:
    begin = f"{name} max limit to request ratio per {kind} is {most}"
    if not requests.get(name):
        return begin + ", but no request is specified or request is 0"
    if not limits.get(name):
        return begin + ", but no limit is specified or limit is 0"
    ratio = limits[name].nano / requests[name].nano
    return begin + f", but provided ratio is {ratio:f}" if ratio * 10**9 > most.nano else ""

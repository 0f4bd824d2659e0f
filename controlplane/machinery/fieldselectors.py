"""Field selectors: their grammar, and which fields of which kind may be asked for.

A selector is parsed and checked once per request (`field_matcher` binds both) and then tested per object; values
compare as texts, an absent field is "", a bool is `true` or `false`. A path that a kind does not offer raises
upstream's BadRequest. `selectors` offers all of this beside the label selectors.

Upstream: k8s.io/apimachinery/pkg/fields and each kind's field label conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.errors import BadRequest
from controlplane.machinery.resources import Resource

_META = ("metadata.name", "metadata.namespace")
_REFERENCE = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
# (group, plural) -> the paths it offers; a kind that is not here offers its name and namespace.
_PATHS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): (*_META, "spec.nodeName", "spec.host", "spec.restartPolicy", "spec.schedulerName",
                   "spec.serviceAccountName", "spec.hostNetwork", "status.phase", "status.podIP", "status.podIPs",
                   "status.nominatedNodeName"),
    ("", "nodes"): ("metadata.name", "spec.unschedulable"),
    ("", "replicationcontrollers"): (*_META, "status.replicas"),
    ("", "services"): (*_META, "spec.clusterIP", "spec.type"),
    ("", "events"): (*_META, *(f"involvedObject.{p}" for p in _REFERENCE), "reason", "reportingComponent", "source",
                     "type"),
    ("events.k8s.io", "events"): (*_META, *(f"regarding.{p}" for p in _REFERENCE), "reason", "reportingController",
                                  "type"),
    ("", "secrets"): (*_META, "type"),
    ("", "namespaces"): ("metadata.name", "status.phase"),
    ("batch", "jobs"): (*_META, "status.successful"),
    ("certificates.k8s.io", "certificatesigningrequests"): ("metadata.name", "spec.signerName"),
    ("certificates.k8s.io", "clustertrustbundles"): ("metadata.name", "spec.signerName"),
    ("certificates.k8s.io", "podcertificaterequests"): (*_META, "spec.signerName", "spec.podName", "spec.nodeName"),
    ("resource.k8s.io", "resourceslices"): ("metadata.name", "spec.nodeName", "spec.driver"),
}
_ALIASES = {"spec.host": "spec.nodeName", "status.successful": "status.succeeded"}
_BOOLS = frozenset(("spec.hostNetwork", "spec.unschedulable"))
_NUMBERS = frozenset(("status.replicas", "status.successful"))


@dataclass(frozen=True, slots=True)
class FieldRequirement:
    """`operator` is `=` or `!=`."""

    path: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """All of its requirements together; without any it matches everything."""

    requirements: tuple[FieldRequirement, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.requirements

    def matches(self, get: Callable[[str], str]) -> bool:
        """`get` answers the text at a path: `fields_of(resource, obj).__getitem__`."""
        return all((get(r.path) == r.value) == (r.operator == "=") for r in self.requirements)

    def exact(self, path: str) -> str | None:
        """The value the selector demands of this path, None when it leaves it open."""
        return next((r.value for r in self.requirements if r.path == path and r.operator == "="), None)

    def __str__(self) -> str:
        return ",".join(f"{r.path}{r.operator}{_escaped(r.value)}" for r in self.requirements)


def _escaped(value: str) -> str:
    for c in "\\,=":
        value = value.replace(c, "\\" + c)
    return value


def _unescaped(value: str) -> str:
    if not set(value) & set("\\,="):
        return value
    out: list[str] = []
    rest = iter(value)
    for c in rest:
        if c == "\\":
            after = next(rest, "")
            if after not in ("\\", ",", "="):
                raise BadRequest(f"invalid field selector: invalid escape sequence: {c}{after}")
            out.append(after)
        elif c in ",=":
            raise BadRequest(f"invalid field selector: unescaped character in value: {ord(c)}")
        else:
            out.append(c)
    return "".join(out)


def _terms(text: str) -> list[str]:
    """The text cut at its commas, but not at escaped ones."""
    terms, start, at = [], 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == ",":
            terms.append(text[start:at])
            start = at + 1
        at += 1
    return [*terms, text[start:]]


def parse_fields(text: str) -> FieldSelector:
    """The selector of a `fieldSelector=` parameter. Raises BadRequest."""
    found: list[FieldRequirement] = []
    for term in _terms(text):
        if not term:
            continue
        cut = next((i for i, c in enumerate(term) if c == "=" or term.startswith("!=", i)), -1)
        if cut < 0:
            raise BadRequest(f"invalid selector: '{text}'; can't understand '{term}'")
        operator = next(o for o in ("!=", "==", "=") if term.startswith(o, cut))
        value = _unescaped(term[cut + len(operator):])
        found.append(FieldRequirement(term[:cut], "!=" if operator == "!=" else "=", value))
    return FieldSelector(tuple(found))


def supported(resource: Resource) -> tuple[str, ...]:
    """The paths this resource can be selected by."""
    more = resource.extra.get("selectable_fields") if resource.custom else None  # paths such as spec.color
    if isinstance(more, list | tuple):
        return (*_META, *(str(p).removeprefix(".") for p in more))
    return _PATHS.get((resource.group, resource.plural), _META)


def _unknown(resource: Resource, path: str) -> BadRequest:
    if resource.custom or (resource.group, resource.plural) in _PATHS:
        return BadRequest(f"field label not supported: {path}")
    return BadRequest(f'"{path}" is not a known field selector: only "metadata.name", "metadata.namespace"')


def check_fields(resource: Resource, selector: FieldSelector) -> None:
    """Raises BadRequest when the selector asks for a path this resource does not offer."""
    offered = supported(resource)
    for requirement in selector.requirements:
        if requirement.path not in offered:
            raise _unknown(resource, requirement.path)


def _read(obj: dict[str, Any], path: str) -> str:
    """The text of a selectable field."""
    if path == "source":
        return (obj.get("source") or {}).get("component") or obj.get("reportingComponent") or ""
    if path == "status.podIPs":
        return ",".join(p.get("ip", "") for p in (obj.get("status") or {}).get("podIPs") or ())
    found: Any = obj
    for step in _ALIASES.get(path, path).split("."):
        found = found.get(step) if isinstance(found, dict) else None
    if path in _BOOLS:
        return "true" if found else "false"
    if path in _NUMBERS:
        return str(found or 0)
    if isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)


class Fields(dict[str, str]):
    """The selectable fields of one object, read when asked for; another path raises BadRequest."""

    __slots__ = ("_obj", "_resource")

    def __init__(self, resource: Resource, obj: dict[str, Any]) -> None:
        super().__init__()
        self._resource, self._obj = resource, obj

    def __missing__(self, path: str) -> str:
        if path not in supported(self._resource):
            raise _unknown(self._resource, path)
        value = self[path] = _read(self._obj, path)
        return value

    def everything(self) -> dict[str, str]:
        """All of them, as a plain dict."""
        return {path: self[path] for path in supported(self._resource)}


def fields_of(resource: Resource, obj: dict[str, Any]) -> Fields:
    """The selectable fields of an object; `fields_of(...)[path]` raises upstream's BadRequest for another path."""
    return Fields(resource, obj)


def field_matcher(resource: Resource, selector: FieldSelector) -> Callable[[dict[str, Any]], bool]:
    """The selector bound to a resource: a fast test of one object. Raises BadRequest for a path it does not offer."""
    check_fields(resource, selector)
    wanted = tuple((r.path, r.operator == "=", r.value) for r in selector.requirements)

    def matches(obj: dict[str, Any]) -> bool:
        return all((_read(obj, path) == value) == equal for path, equal, value in wanted)

    return matches

"""PodSecurity: a namespace's labels say how much its Pods may ask of the node.

Owns when Pods and templates are looked at and what happens then: Pods are refused by the `enforce` level, warnings and
audit annotations are given of Pods and templates alike, and a namespace whose level is raised is told which of its Pods
would no longer be let in. What offends is decided by `machinery.podsecurity`. A namespace without labels costs two
look-ups. Called by the admission chain.

Upstream: k8s.io/pod-security-admission/admission.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.reading.lists import collection_prefix, object_key
from controlplane.machinery import podsecurity
from controlplane.machinery.errors import Cause, Invalid
from controlplane.machinery.podsecurity import Level, Policy
from controlplane.machinery.resources import named

MAX_PODS = 3000  # existing Pods checked when a namespace's level is raised; upstream's bound
AUDIT = "pod-security.kubernetes.io/"
_QUIET = ("exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status")
_TEMPLATES = ("replicationcontrollers", "podtemplates", "replicasets.apps", "deployments.apps", "statefulsets.apps",
              "daemonsets.apps", "jobs.batch", "cronjobs.batch")
Object = dict[str, Any]
_UNLABELLED: tuple[Policy, list[Cause]] = (Policy(), [])


class PodSecurity(Plugin):
    def _policy(self, namespace: str) -> tuple[Policy, list[Cause]]:
        item = self.context.cache.get(object_key(named("namespaces"), "", namespace))
        labels = item.labels if item is not None else {}
        if not any(key.startswith(podsecurity.PREFIX) for key in labels):
            return _UNLABELLED
        return podsecurity.policy(labels)

    async def validate(self, attributes: Attributes) -> None:
        if attributes.operation not in (CREATE, UPDATE) or attributes.obj is None:
            return
        name = attributes.resource.name
        if name == "pods":
            if attributes.subresource not in _QUIET:
                self._pod(attributes, attributes.obj)
        elif name in _TEMPLATES:
            if not attributes.subresource:
                self._template(attributes, attributes.obj)
        elif name == "namespaces" and not attributes.subresource:
            self._namespace(attributes, attributes.obj)

    def _pod(self, attributes: Attributes, pod: Object) -> None:
        policy, causes = self._policy(attributes.namespace)
        if policy.enforce.name == "privileged" and not policy.watches and not causes:
            return
        if attributes.operation == UPDATE and not significant(pod, attributes.old or {}):
            return
        attributes.note(AUDIT + "enforce-policy", str(policy.enforce))
        faults = podsecurity.offences(policy.enforce, pod["metadata"], pod.get("spec") or {})
        self._watch(attributes, policy, pod["metadata"], pod.get("spec") or {}, warn=not faults)
        if faults:
            raise attributes.forbidden(f'violates PodSecurity "{policy.enforce}": {podsecurity.told(faults)}')

    def _template(self, attributes: Attributes, obj: Object) -> None:
        policy, causes = self._policy(attributes.namespace)
        if not policy.watches and not causes:
            return
        spec = obj.get("spec") or {}
        if attributes.resource.plural == "cronjobs":
            spec = (spec.get("jobTemplate") or {}).get("spec") or {}
        template = obj.get("template") if attributes.resource.plural == "podtemplates" else spec.get("template")
        if template:
            self._watch(attributes, policy, template.get("metadata") or {}, template.get("spec") or {}, warn=True)

    def _watch(self, attributes: Attributes, policy: Policy, metadata: Object, spec: Object, warn: bool) -> None:
        """Note what the audit level forbids; warn of what the warn level forbids."""
        if faults := podsecurity.offences(policy.audit, metadata, spec):
            attributes.note(AUDIT + "audit-violations",
                            f'would violate PodSecurity "{policy.audit}": {podsecurity.told(faults)}')
        if warn and (faults := podsecurity.offences(policy.warn, metadata, spec)):
            attributes.warn(f'would violate PodSecurity "{policy.warn}": {podsecurity.told(faults)}')

    def _namespace(self, attributes: Attributes, space: Object) -> None:
        new, causes = podsecurity.policy(space["metadata"].get("labels") or {})
        old, before = podsecurity.policy(((attributes.old or {}).get("metadata") or {}).get("labels") or {})
        if causes and (attributes.operation == CREATE or causes != before):
            raise Invalid.of("Namespace", attributes.name, causes)
        if attributes.operation == CREATE or raised(old.enforce, new.enforce) is False:
            return
        pods = [item.obj for item in self.context.cache.list(
            collection_prefix(named("pods"), attributes.name), limit=MAX_PODS + 1)]
        for text in existing(attributes.name, new.enforce, pods):
            attributes.warn(text)


def raised(old: Level, new: Level) -> bool:
    """Whether Pods that were let in before may not be now. Pure."""
    if new == old or new.name == "privileged":
        return False
    return new.minor != old.minor or podsecurity.LEVELS.index(new.name) > podsecurity.LEVELS.index(old.name)


def existing(namespace: str, level: Level, pods: list[Object]) -> list[str]:
    """The warnings about Pods that the raised level would not let in. Pure."""
    found: dict[str, list[str]] = {}
    for pod in pods[:MAX_PODS]:
        if faults := podsecurity.offences(level, pod["metadata"], pod.get("spec") or {}):
            found.setdefault(podsecurity.reasons(faults), []).append(pod["metadata"]["name"])
    texts = []
    if len(pods) > MAX_PODS:
        texts.append(f"new PodSecurity enforce level only checked against the first {MAX_PODS} of {len(pods)} "
                     "existing pods")
    if found:
        texts.append(f'existing pods in namespace "{namespace}" violate the new PodSecurity enforce level "{level}"')
    more = {1: "", 2: " (and 1 other pod)"}
    return texts + sorted(f"{min(names)}{more.get(len(names), f' (and {len(names) - 1} other pods)')}: {reason}"
                          for reason, names in found.items())


def significant(new: Object, old: Object) -> bool:
    """Whether an update of a Pod changes anything the checks look at. Pure."""
    def seen(pod: Object) -> Any:
        spec, notes = pod.get("spec") or {}, (pod.get("metadata") or {}).get("annotations") or {}
        return ({key: value for key, value in notes.items() if "seccomp" in key},
                [[(c.get("name"), c.get("image")) for c in spec.get(field) or []]
                 for field in ("containers", "initContainers", "ephemeralContainers")])
    return bool(seen(new) != seen(old))

"""What a kind does when it is written: defaults, what create and update prepare, what is valid, how it is deleted.

One `Strategy` per resource, found by `of`. All of it is pure and in place: no clock, no allocation of addresses, no
other object; the apiserver's handlers call it in the order default, (admission), prepare, validate. A kind that needs
nothing special gets the general one, custom resources too; what differs per kind is said in the tables here and in
the small `prepare` functions, which get (new, old) with `old` None at a create. `old` is shared: never changed.

Upstream: the strategy.go of each k8s.io/kubernetes/pkg/registry package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from controlplane.machinery import customdefinitions, validate
from controlplane.machinery.defaults import defaults
from controlplane.machinery.errors import Cause
from controlplane.machinery.resources import Resource
from controlplane.machinery.serviceupdate import prepare_service
from controlplane.machinery.tidy import tidy
from controlplane.machinery.warnings import deprecation, warnings_of
from controlplane.machinery.workloadupdate import prepare_daemon_set, prepare_job

Object = dict[str, Any]
Prepare = Callable[[Object, Object | None], None]
_CACHED = 512  # strategies remembered; one per resource, custom ones too

_SPEC_GENERATION = frozenset((
    "Pod", "ReplicationController", "Deployment", "ReplicaSet", "DaemonSet", "StatefulSet", "Job", "CronJob",
    "PodDisruptionBudget", "Ingress", "IngressClass", "NetworkPolicy", "FlowSchema", "PriorityLevelConfiguration",
    "CustomResourceDefinition"))
# No spec: everything outside metadata counts.
_BODY_GENERATION = frozenset((
    "EndpointSlice", "PriorityClass", "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration",
    "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding"))
_CREATE_ON_UPDATE = frozenset(("Lease", "Endpoints", "Event", "LimitRange", "Service", "RuntimeClass", "Role",
                               "ClusterRole", "RoleBinding", "ClusterRoleBinding"))
_VERSION_REQUIRED = frozenset((
    "Lease", "LeaseCandidate", "RuntimeClass", "PodDisruptionBudget", "CSIDriver", "CSINode", "CSIStorageCapacity",
    "VolumeAttachment", "CustomResourceDefinition", "APIService", "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding",
    "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"))
_RETURNS_DELETED = frozenset((
    "Pod", "Service", "ServiceAccount", "PersistentVolume", "PersistentVolumeClaim", "ResourceQuota", "PodTemplate",
    "CSIDriver", "CSINode", "StorageClass", "VolumeAttachment", "VolumeAttributesClass", "DeviceClass",
    "ResourceClaim", "ResourceClaimTemplate", "ResourceSlice"))
_OWN_STATUS = frozenset(("Node",))  # its creator, the kubelet, writes the status along


def _namespace(new: Object, old: Object | None) -> None:
    """The `kubernetes` finalizer comes with a create and goes by /finalize alone."""
    spec = new["spec"] = new.get("spec") or {}
    if old is not None:
        spec["finalizers"] = list((old.get("spec") or {}).get("finalizers") or [])
    elif "kubernetes" not in (spec.get("finalizers") or ()):
        spec["finalizers"] = [*(spec.get("finalizers") or ()), "kubernetes"]


def _pod(new: Object, old: Object | None) -> None:
    if old is None:
        return
    grace = new["spec"].get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        new["spec"]["terminationGracePeriodSeconds"] = 1


_PREPARE: dict[tuple[str, str], Prepare] = {("batch", "Job"): prepare_job, ("apps", "DaemonSet"): prepare_daemon_set,
                                            ("", "Namespace"): _namespace, ("", "Pod"): _pod,
                                            ("", "Service"): prepare_service,
                                            ("apiextensions.k8s.io", "CustomResourceDefinition"):
                                                customdefinitions.prepare}


class Strategy:
    """How objects of one resource are written and deleted."""

    def __init__(self, resource: Resource) -> None:
        kind, builtin = resource.kind, not resource.custom
        self._resource = resource
        self._default = defaults.of(resource.group, kind, resource.version) if builtin else None
        self._validators = validate.of(resource.group, kind, resource.version) if builtin else validate.GENERAL
        self._prepare = _PREPARE.get((resource.group, kind)) if builtin else None
        self._definition = resource.definition if builtin else ""
        self._keeps_status = resource.has_status and not (builtin and kind in _OWN_STATUS)
        self._generation = ("body" if resource.custom or kind in _BODY_GENERATION
                            else "spec" if kind in _SPEC_GENERATION else "")
        self.graceful = builtin and (resource.group, kind) == ("", "Pod")
        self.create_on_update = builtin and kind in _CREATE_ON_UPDATE
        self.unconditional_update = builtin and kind not in _VERSION_REQUIRED
        self.returns_deleted = builtin and kind in _RETURNS_DELETED
        self.deprecated = deprecation(resource)

    def default(self, obj: Object) -> None:
        """Bring it to its one form (nulls and meaningless zeros go), then fill in what was left out. Idempotent."""
        if self._definition:
            tidy(self._definition, obj)
        if self._default is not None:
            self._default(obj)

    def prepare_create(self, obj: Object) -> None:
        """Drop what a create cannot set (status), begin the generation."""
        metadata = obj["metadata"]
        if self._keeps_status:
            obj.pop("status", None)
            if self._default is not None:  # some statuses start with a value
                self._default(obj)
        if self._generation:
            metadata["generation"] = 1
        else:
            metadata.pop("generation", None)
        if self._prepare is not None:
            self._prepare(obj, None)

    def prepare_update(self, new: Object, old: Object) -> None:
        """Restore what the main endpoint cannot change (status), count a new generation when the intent changed."""
        if self._resource.has_status:
            _restore(new, old, "status")
        if self._prepare is not None:
            self._prepare(new, old)
        if self._generation:
            before = (old.get("metadata") or {}).get("generation") or 0
            changed = self._intent(new) != self._intent(old)
            if changed or not before:
                new["metadata"]["generation"] = before + 1
            else:
                new["metadata"]["generation"] = before

    def _intent(self, obj: Object) -> Any:
        """The part of an object whose change is a new generation."""
        if self._generation == "spec":
            if self._resource.kind == "Deployment":  # upstream counts its annotations too
                return obj.get("spec"), (obj.get("metadata") or {}).get("annotations") or {}
            return obj.get("spec")
        ignored = {"metadata", "apiVersion", "kind"} | ({"status"} if self._resource.has_status else set())
        return {k: v for k, v in obj.items() if k not in ignored and v is not None}

    def prepare_status(self, new: Object, old: Object) -> None:
        """Restore what /status cannot change: all but the status, and of the metadata what upstream guards."""
        for field in {*new, *old} - {"apiVersion", "kind", "metadata", "status"}:
            _restore(new, old, field)
        meta, before = new["metadata"], old.get("metadata") or {}
        if self._resource.custom:
            managed = meta.get("managedFields")
            meta = new["metadata"] = dict(before)
            if managed is not None:
                meta["managedFields"] = managed
        elif self._resource.kind == "Deployment":
            _restore(meta, before, "labels")
        elif self.graceful:
            _restore(meta, before, "ownerReferences")
            quality = (old.get("status") or {}).get("qosClass")
            if quality:
                new["status"] = {**(new.get("status") or {}), "qosClass": quality}
        _restore(meta, before, "generation")

    def validate(self, obj: Object) -> list[Cause]:
        """What is wrong with a prepared object, worded as upstream words it."""
        return self._validators.create(self._resource, obj)

    def validate_update(self, new: Object, old: Object) -> list[Cause]:
        """What an update may not do; `validate` is asked besides."""
        return self._validators.update(new, old)

    def changes(self, new: Object, old: Object) -> list[Cause]:
        """What is wrong with a prepared object that takes the place of `old`."""
        return [*self.validate(new), *self.validate_update(new, old)]

    def warnings(self, obj: Object, old: Object | None) -> list[str]:
        """What the writer should know although it is valid."""
        found = [self.deprecated] if self.deprecated else []
        return found if self._resource.custom else found + warnings_of(self._resource, obj, old)


def _restore(new: Object, old: Object, field: str) -> None:
    if field in old:
        new[field] = old[field]
    else:
        new.pop(field, None)


@lru_cache(_CACHED)
def _builtin(resource: Resource) -> Strategy:
    return Strategy(resource)


def of(resource: Resource) -> Strategy:
    """The strategy of a resource; a custom kind brings its own."""
    own: Any = resource.extra.get("strategy") if resource.custom else None
    return _builtin(resource) if own is None else own  # type: ignore[no-any-return]

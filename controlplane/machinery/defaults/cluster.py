"""Defaults of what a cluster offers its pods: volumes and classes, networking, policies, hooks, flow control, devices.

In place, pure, idempotent, as `defaults` promises for all kinds; that module finds these by kind.

Upstream: the defaults.go of core, storage, networking, admissionregistration, flowcontrol, scheduling and resource.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import apiservices, quantity
from controlplane.machinery.defaults import pods
from controlplane.machinery.defaults.pods import absent, unset

Object = dict[str, Any]
WEBHOOK_SECONDS = 10
WEBHOOK_PORT = 443
PRECEDENCE = 1000  # of a flow schema that names none
SHARES = 30  # concurrency shares of a priority level that names none
QUEUES, HAND, QUEUE_LENGTH = 64, 8, 50


def _spec(obj: Object) -> Object:
    spec: Object = obj.get("spec") or {}
    obj["spec"] = spec
    return spec


def persistent_volume(obj: Object) -> None:
    spec = _spec(obj)
    unset(spec, "persistentVolumeReclaimPolicy", "Retain")
    absent(spec, "volumeMode", "Filesystem")
    pods.quantities(spec, "capacity")
    pods.persistent_source(spec)
    status = obj["status"] = obj.get("status") or {}
    unset(status, "phase", "Pending")


def limit_range(obj: Object) -> None:
    for item in _spec(obj).get("limits") or ():
        for field in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio"):
            pods.quantities(item, field)
        if item.get("type") != "Container":
            continue
        limits = dict(item.get("default") or {})
        for name, value in (item.get("max") or {}).items():
            limits.setdefault(name, value)
        requests = dict(item.get("defaultRequest") or {})
        for name, value in {**(item.get("min") or {}), **limits}.items():
            requests.setdefault(name, value)
        if limits:
            item["default"] = limits
        if requests:
            item["defaultRequest"] = requests


def resource_quota(obj: Object) -> None:
    pods.quantities(_spec(obj), "hard")
    status = obj["status"] = obj.get("status") or {}
    for field in ("hard", "used"):
        pods.quantities(status, field)


def storage_class(obj: Object) -> None:
    absent(obj, "reclaimPolicy", "Delete")
    absent(obj, "volumeBindingMode", "Immediate")


def csi_driver(obj: Object) -> None:
    spec = _spec(obj)
    absent(spec, "attachRequired", True)
    for field in ("podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"):
        absent(spec, field, False)
    absent(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType")
    unset(spec, "volumeLifecycleModes", ["Persistent"])


def storage_capacity(obj: Object) -> None:
    for field in ("capacity", "maximumVolumeSize"):
        if obj.get(field) is not None:
            obj[field] = quantity.canonical(obj[field])


def volume_attachment(obj: Object) -> None:
    _spec(obj)
    status = obj["status"] = obj.get("status") or {}
    status.setdefault("attached", False)


def ingress(obj: Object) -> None:
    _spec(obj)
    status = obj["status"] = obj.get("status") or {}
    status.setdefault("loadBalancer", {})


def ingress_class(obj: Object) -> None:
    parameters = _spec(obj).get("parameters")
    if parameters is not None:
        absent(parameters, "scope", "Cluster")


def network_policy(obj: Object) -> None:
    spec = _spec(obj)
    spec.setdefault("podSelector", {})
    for rule in (*(spec.get("ingress") or ()), *(spec.get("egress") or ())):
        for port in rule.get("ports") or ():
            absent(port, "protocol", "TCP")
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]


def service_cidr(obj: Object) -> None:
    _spec(obj)
    obj["status"] = obj.get("status") or {}


def disruption_budget(obj: Object) -> None:
    _spec(obj)
    status = obj["status"] = obj.get("status") or {}
    for field in ("currentHealthy", "desiredHealthy", "disruptionsAllowed", "expectedPods"):
        status.setdefault(field, 0)


def priority_class(obj: Object) -> None:
    obj.setdefault("value", 0)
    absent(obj, "preemptionPolicy", "PreemptLowerPriority")


def runtime_class(obj: Object) -> None:
    if obj.get("overhead"):
        pods.quantities(obj["overhead"], "podFixed")


def _rules(rules: Any) -> None:
    for rule in rules or ():
        absent(rule, "scope", "*")


def webhooks(mutating: bool) -> Any:
    """The defaults of a webhook configuration of either kind."""
    def default(obj: Object) -> None:
        for hook in obj.get("webhooks") or ():
            absent(hook, "failurePolicy", "Fail")
            absent(hook, "matchPolicy", "Equivalent")
            absent(hook, "namespaceSelector", {})
            absent(hook, "objectSelector", {})
            absent(hook, "timeoutSeconds", WEBHOOK_SECONDS)
            if mutating:
                absent(hook, "reinvocationPolicy", "Never")
            _rules(hook.get("rules"))
            service = (hook.get("clientConfig") or {}).get("service")
            if service is not None:
                absent(service, "port", WEBHOOK_PORT)
    return default


def _matching(resources: Object | None) -> None:
    if resources is None:
        return
    absent(resources, "matchPolicy", "Equivalent")
    absent(resources, "namespaceSelector", {})
    absent(resources, "objectSelector", {})
    for field in ("resourceRules", "excludeResourceRules"):
        _rules(resources.get(field))


def policy(obj: Object) -> None:
    """An admission policy of either kind."""
    spec = _spec(obj)
    absent(spec, "failurePolicy", "Fail")
    _matching(spec.get("matchConstraints"))
    if obj.get("kind") == "ValidatingAdmissionPolicy":
        obj["status"] = obj.get("status") or {}


def policy_binding(obj: Object) -> None:
    spec = _spec(obj)
    _matching(spec.get("matchResources"))


def flow_schema(obj: Object) -> None:
    spec = _spec(obj)
    unset(spec, "matchingPrecedence", PRECEDENCE)
    obj["status"] = obj.get("status") or {}


def priority_level(obj: Object) -> None:
    spec = _spec(obj)
    limited = spec.get("limited")
    if spec.get("type") == "Exempt":
        exempt = spec["exempt"] = spec.get("exempt") or {}
        for field in ("nominalConcurrencyShares", "lendablePercent"):
            absent(exempt, field, 0)
    elif limited is not None:
        absent(limited, "nominalConcurrencyShares", SHARES)
        absent(limited, "lendablePercent", 0)
        response = limited["limitResponse"] = limited.get("limitResponse") or {}
        if response.get("type") == "Queue":
            queuing = response["queuing"] = response.get("queuing") or {}
            for field, value in (("queues", QUEUES), ("handSize", HAND), ("queueLengthLimit", QUEUE_LENGTH)):
                unset(queuing, field, value)
    obj["status"] = obj.get("status") or {}


def _claim(spec: Object) -> None:
    for request in (spec.get("devices") or {}).get("requests") or ():
        for part in (request.get("exactly"), *(request.get("firstAvailable") or ())):
            if part is None:
                continue
            unset(part, "allocationMode", "ExactCount")
            if part["allocationMode"] == "ExactCount":
                unset(part, "count", 1)
            for toleration in part.get("tolerations") or ():
                unset(toleration, "operator", "Equal")


def resource_claim(obj: Object) -> None:
    _claim(_spec(obj))
    obj["status"] = obj.get("status") or {}


def resource_claim_template(obj: Object) -> None:
    template = _spec(obj)
    template["metadata"] = template.get("metadata") or {}
    _claim(_spec(template))


def _spec_only(obj: Object) -> None:
    _spec(obj)


_ADMISSION, _STORAGE, _NETWORK = "admissionregistration.k8s.io", "storage.k8s.io", "networking.k8s.io"
_FLOW, _DEVICES = "flowcontrol.apiserver.k8s.io", "resource.k8s.io"
BY_KIND = {
    ("", "PersistentVolume"): persistent_volume, ("", "LimitRange"): limit_range,
    ("", "ResourceQuota"): resource_quota, (_STORAGE, "StorageClass"): storage_class,
    (_STORAGE, "CSIDriver"): csi_driver, (_STORAGE, "CSINode"): _spec_only,
    (_STORAGE, "CSIStorageCapacity"): storage_capacity, (_STORAGE, "VolumeAttachment"): volume_attachment,
    (_NETWORK, "Ingress"): ingress, (_NETWORK, "IngressClass"): ingress_class,
    (_NETWORK, "NetworkPolicy"): network_policy, (_NETWORK, "ServiceCIDR"): service_cidr,
    (_NETWORK, "IPAddress"): _spec_only, ("policy", "PodDisruptionBudget"): disruption_budget,
    ("scheduling.k8s.io", "PriorityClass"): priority_class, ("node.k8s.io", "RuntimeClass"): runtime_class,
    (_ADMISSION, "MutatingWebhookConfiguration"): webhooks(mutating=True),
    (_ADMISSION, "ValidatingWebhookConfiguration"): webhooks(mutating=False),
    (_ADMISSION, "ValidatingAdmissionPolicy"): policy, (_ADMISSION, "MutatingAdmissionPolicy"): policy,
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): policy_binding,
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): policy_binding,
    (_FLOW, "FlowSchema"): flow_schema, (_FLOW, "PriorityLevelConfiguration"): priority_level,
    (_DEVICES, "ResourceClaim"): resource_claim, (_DEVICES, "ResourceClaimTemplate"): resource_claim_template,
    (apiservices.GROUP, "APIService"): apiservices.default,
    (_DEVICES, "DeviceClass"): _spec_only, (_DEVICES, "ResourceSlice"): _spec_only,
}

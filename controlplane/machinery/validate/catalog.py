"""Which functions validate which kind, for all kinds beyond the first few: rows of (rule, changes, name rule).

Owns that table only; the package makes its `Validators` of the rows. A row may be cut short.

Upstream: the validation.go of each group under k8s.io/kubernetes/pkg/apis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.validate import (
    autoscaling,
    batch,
    claims,
    devices,
    flowcontrol,
    hooks,
    networking,
    policies,
    sets,
    storage,
    workloads,
)

Function = Callable[..., Any]
_ADMISSION, _FLOW, _NETWORK = "admissionregistration.k8s.io", "flowcontrol.apiserver.k8s.io", "networking.k8s.io"
_STORAGE, _DEVICES = "storage.k8s.io", "resource.k8s.io"

ROWS: dict[tuple[str, str], tuple[Function, ...]] = {
    ("", "PersistentVolume"): (claims.persistent_volume, claims.volume_changes),
    ("", "PersistentVolumeClaim"): (claims.claim, claims.claim_changes),
    ("", "LimitRange"): (policies.limit_range,),
    ("", "ResourceQuota"): (policies.resource_quota, policies.quota_changes),
    ("", "PodTemplate"): (sets.pod_template,),
    ("apps", "DaemonSet"): (sets.daemon_set, workloads.selector_changes),
    ("apps", "StatefulSet"): (sets.stateful_set, sets.stateful_changes, names.dns_label),
    ("apps", "ControllerRevision"): (sets.controller_revision, sets.revision_changes),
    ("batch", "Job"): (batch.job, batch.job_changes),
    ("batch", "CronJob"): (batch.cron_job,),
    ("policy", "PodDisruptionBudget"): (sets.disruption_budget,),
    ("autoscaling", "HorizontalPodAutoscaler"): (autoscaling.autoscaler,),
    (_NETWORK, "Ingress"): (networking.ingress, networking.points),
    (_NETWORK, "IngressClass"): (networking.ingress_class, networking.ingress_class_changes),
    (_NETWORK, "NetworkPolicy"): (networking.network_policy,),
    (_NETWORK, "ServiceCIDR"): (networking.service_cidr, networking.service_cidr_changes),
    (_NETWORK, "IPAddress"): (networking.ip_address, networking.ip_address_changes, networking.ip_name),
    (_STORAGE, "StorageClass"): (storage.storage_class, storage.storage_class_changes),
    (_STORAGE, "CSIDriver"): (storage.csi_driver, storage.csi_driver_changes),
    (_STORAGE, "CSINode"): (storage.csi_node, storage.csi_node_changes),
    (_STORAGE, "CSIStorageCapacity"): (storage.storage_capacity, storage.storage_capacity_changes),
    (_STORAGE, "VolumeAttachment"): (storage.volume_attachment, storage.volume_attachment_changes),
    (_STORAGE, "VolumeAttributesClass"): (storage.attributes_class, storage.attributes_class_changes),
    ("scheduling.k8s.io", "PriorityClass"): (policies.priority_class, policies.priority_class_changes),
    ("node.k8s.io", "RuntimeClass"): (policies.runtime_class, policies.runtime_class_changes),
    (_ADMISSION, "MutatingWebhookConfiguration"): (hooks.webhooks,),
    (_ADMISSION, "ValidatingWebhookConfiguration"): (hooks.webhooks,),
    (_ADMISSION, "ValidatingAdmissionPolicy"): (hooks.policy,),
    (_ADMISSION, "MutatingAdmissionPolicy"): (hooks.policy,),
    (_ADMISSION, "ValidatingAdmissionPolicyBinding"): (hooks.binding,),
    (_ADMISSION, "MutatingAdmissionPolicyBinding"): (hooks.binding,),
    (_FLOW, "FlowSchema"): (flowcontrol.flow_schema,),
    (_FLOW, "PriorityLevelConfiguration"): (flowcontrol.priority_level,),
    (_DEVICES, "DeviceClass"): (devices.device_class,),
    (_DEVICES, "ResourceClaim"): (devices.claim, devices.spec_changes),
    (_DEVICES, "ResourceClaimTemplate"): (devices.claim_template, devices.spec_changes),
    (_DEVICES, "ResourceSlice"): (devices.resource_slice, devices.slice_changes),
}

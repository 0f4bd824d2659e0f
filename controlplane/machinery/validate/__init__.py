"""Validation: what makes an object of each kind wrong, in upstream's words, as a list of causes with field paths.

Pure, read-only and defensive about nothing but absence: types were checked when the body was decoded. `of` finds a
kind's `Validators`; each kind's functions live in the module of its noun. Every kind's metadata is checked; a kind
without rules of its own is checked for that alone (`GENERAL`). Called by `strategy`.

Upstream: k8s.io/kubernetes/pkg/apis/*/validation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import apiservices, conversion, names
from controlplane.machinery.errors import Cause
from controlplane.machinery.resources import Resource
from controlplane.machinery.validate import (
    catalog,
    certificates,
    config,
    customdefinitions,
    endpoints,
    metadata,
    nodes,
    podcertificates,
    pods,
    podupdates,
    roles,
    services,
    workloads,
)

Object = dict[str, Any]
Rule = Callable[[Object], list[Cause]]
Update = Callable[[Object, Object], list[Cause]]
_EXTENDING = frozenset(("admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"))


def _no_rule(_: Object) -> list[Cause]:
    return []


def _no_update(_: Object, __: Object) -> list[Cause]:
    return []


@dataclass(frozen=True, slots=True)
class Validators:
    """`rule` looks at the body, `changes` at what an update does, `name` at `metadata.name`."""

    rule: Rule = _no_rule
    changes: Update = _no_update
    name: names.Validator = names.dns_subdomain

    def create(self, resource: Resource, obj: Object) -> list[Cause]:
        found = metadata.check(obj, resource.namespaced, self.name)
        if not resource.custom and resource.group not in _EXTENDING:
            found += metadata.short_finalizers(obj)
        return found + self.rule(obj)

    def update(self, new: Object, old: Object) -> list[Cause]:
        return metadata.changes(new, old) + self.changes(new, old)


GENERAL = Validators()
_BY_KIND: dict[tuple[str, str], Validators] = {
    ("", "Namespace"): Validators(name=names.dns_label),
    ("", "Node"): Validators(nodes.node, nodes.node_changes),
    ("", "Event"): Validators(nodes.event),
    ("events.k8s.io", "Event"): Validators(nodes.event_v1, nodes.event_v1_changes),
    ("coordination.k8s.io", "Lease"): Validators(nodes.lease),
    ("", "ServiceAccount"): Validators(),
    ("", "Pod"): Validators(pods.pod, podupdates.changes),
    ("", "Service"): Validators(services.service, services.changes, names.dns_label),
    ("", "Endpoints"): Validators(endpoints.endpoints),
    ("discovery.k8s.io", "EndpointSlice"): Validators(endpoints.endpoint_slice, endpoints.slice_changes),
    ("", "ConfigMap"): Validators(config.config_map, config.config_map_changes),
    ("", "Secret"): Validators(config.secret, config.secret_changes),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): Validators(customdefinitions.definition,
                                                                     customdefinitions.changes),
    (apiservices.GROUP, "APIService"): Validators(apiservices.validate, name=names.path_segment),
    ("apps", "Deployment"): Validators(workloads.deployment, workloads.selector_changes),
    ("apps", "ReplicaSet"): Validators(workloads.replica_set, workloads.selector_changes),
    ("", "ReplicationController"): Validators(workloads.replication_controller),
    ("certificates.k8s.io", "CertificateSigningRequest"): Validators(certificates.request, certificates.changes),
    ("certificates.k8s.io", "ClusterTrustBundle"): Validators(certificates.bundle, certificates.bundle_changes,
                                                              certificates.any_name),
    ("certificates.k8s.io", "PodCertificateRequest"): Validators(podcertificates.request, podcertificates.changes),
    ("rbac.authorization.k8s.io", "Role"): Validators(roles.role, name=names.path_segment),
    ("rbac.authorization.k8s.io", "ClusterRole"): Validators(roles.cluster_role, name=names.path_segment),
    ("rbac.authorization.k8s.io", "RoleBinding"): Validators(
        roles.binding("Role", "ClusterRole"), roles.binding_changes, names.path_segment),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"): Validators(
        roles.binding("ClusterRole"), roles.binding_changes, names.path_segment),
    **{kind: Validators(*row) for kind, row in catalog.ROWS.items()},
}


_AUTOSCALER_V1 = Validators(lambda obj: catalog.autoscaling.autoscaler(
    conversion.to_storage("autoscaling/v1", obj)))


def of(group: str, kind: str, version: str = "") -> Validators:
    """The validators of a built-in kind, in the form one of its versions has where they differ."""
    if (group, version, kind) == ("autoscaling", "v1", "HorizontalPodAutoscaler"):
        return _AUTOSCALER_V1
    return _BY_KIND.get((group, kind), GENERAL)

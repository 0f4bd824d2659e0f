"""Objects every cluster begins with beside namespaces and the server's own Service.

Owns the two system priority classes, the ServiceCIDR `kubernetes` and the ConfigMap that tells other API servers whom
to believe. `wanted` is pure but for `authentication`, which reads the certificates named in the options. Called by
`bootstrap`, which makes and keeps them.

Upstream: pkg/registry/scheduling/rest, pkg/controlplane/controller/{defaultservicecidr,clusterauthenticationtrust}.
"""

from __future__ import annotations

import json
from typing import Any

from controlplane.apiserver.config import Options
from controlplane.machinery.resources import Resource, named
from controlplane.machinery.validate.policies import SYSTEM_PRIORITIES

Object = dict[str, Any]
_USES = {"system-node-critical": "Used for system critical pods that must not be moved from their current node.",
         "system-cluster-critical": "Used for system critical pods that must run in the cluster, but can be moved to "
                                    "another node if necessary."}


def wanted(options: Options, now: str) -> list[tuple[Resource, Object]]:
    """The objects, without identity; `now` is when what they report began."""
    made: list[tuple[Resource, Object]] = []
    for name, value in SYSTEM_PRIORITIES.items():
        made.append((named("priorityclasses.scheduling.k8s.io"), {
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": _USES[name], "preemptionPolicy": "PreemptLowerPriority"}))
    made.append((named("servicecidrs.networking.k8s.io"), {
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": options.service_cluster_ip_range.split(",")},
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now, "reason": "",
                                   "message": "Kubernetes Service CIDR is ready"}]}}))
    data = authentication(options)
    if data:
        made.append((named("configmaps"), {
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"}, "data": data}))
    return made


def authentication(options: Options) -> dict[str, str]:
    """How this server authenticates clients and front proxies, for servers of aggregated APIs to do the same."""
    data: dict[str, str] = {}
    if options.client_ca_file is not None:
        data["client-ca-file"] = options.client_ca_file.read_text()
    if options.requestheader_client_ca_file is not None:
        data["requestheader-client-ca-file"] = options.requestheader_client_ca_file.read_text()
        for name in ("allowed_names", "username_headers", "uid_headers", "group_headers", "extra_headers_prefix"):
            listed: tuple[str, ...] = getattr(options, f"requestheader_{name}")
            data["requestheader-" + name.replace("_", "-")] = json.dumps(list(listed), separators=(",", ":"))
    return data

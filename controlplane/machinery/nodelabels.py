"""Which labels a node may give itself: those of kubelets, and any outside Kubernetes' own domains.

Pure. Called by the API server, which holds nodes to it, and by the agent, whose flags are refused before it asks.

Upstream: k8s.io/kubelet/pkg/apis (well_known_labels.go).
"""

from __future__ import annotations

ALLOWED = frozenset((
    "kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region", "topology.kubernetes.io/zone"))
PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_OURS = ("kubernetes.io", "k8s.io")


def may_label(key: str) -> bool:
    """Whether a node may set this label on itself."""
    domain = key.partition("/")[0] if "/" in key else ""
    return key in ALLOWED or _within(domain, PREFIXES) or not _within(domain, _OURS)


def _within(domain: str, those: tuple[str, ...]) -> bool:
    return any(domain == one or domain.endswith("." + one) for one in those)

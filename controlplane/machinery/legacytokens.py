"""What tells of the use of tokens in Secrets: the labels and the ConfigMap, and the days that stand in them.

Pure. Read by who writes them, `apiserver.legacytokens`, and by who acts on them, `controllers.legacytokens`.

Upstream: pkg/serviceaccount/legacy.go.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from controlplane.machinery.clock import rfc3339

TYPE = "kubernetes.io/service-account-token"
LAST_USED, INVALID_SINCE = "kubernetes.io/legacy-token-last-used", "kubernetes.io/legacy-token-invalid-since"
TRACKING = "kube-system", "kube-apiserver-legacy-service-account-token-tracking"  # the ConfigMap's namespace and name


def day_of(seconds: float) -> str:
    """The UTC day of a wall time."""
    return rfc3339(seconds)[:10]


def day(text: Any) -> date | None:
    """The day such a text says, None when it says none."""
    try:
        return date.fromisoformat(text) if len(text) == 10 else None
    except (TypeError, ValueError):
        return None

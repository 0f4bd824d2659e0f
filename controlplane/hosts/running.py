"""What runs of a node under systemd, in the form `status` prints: the same as the small supervisor's.

Reads only. Called by the command `status`, by `doctor` and by `support`.
"""

from __future__ import annotations

from typing import Any

from controlplane.cli import settings
from controlplane.hosts import install
from controlplane.hosts.layout import Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery.clock import SYSTEM


def rows(layout: Layout, services: Services) -> list[dict[str, Any]] | None:
    """One dict per component (name, state, pid, restarts, seconds, reason, log); None when nothing is installed."""
    kept = settings.load(layout.settings) if layout.installed else None
    if kept is None:
        return None
    found = []
    for component in install.components(layout, kept):
        state = services.state(unit(component.name))
        running = state.active == "active"
        reason = "" if running else f"{state.active} ({state.detail}), {state.result}"
        found.append({"name": component.name, "state": "running" if running else state.active or "absent",
                      "pid": state.pid, "restarts": state.restarts, "reason": reason,
                      "seconds": max(0.0, SYSTEM.monotonic() - state.since), "log": f"journalctl -u {state.unit}"})
    return found

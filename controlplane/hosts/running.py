"""What runs of a node under systemd: its processes as data, and how they are, in the form `status` prints.

Reads only. `processes` looks at whoever runs them, systemd or the small supervisor of `up`. Called by `install` and
`upgrade`, which wait for them, by the command `status`, by `doctor` and by `support`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from controlplane.cli import control, node, patience, settings
from controlplane.cli.components import Component
from controlplane.cli.settings import Settings
from controlplane.hosts.layout import Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.paths import Paths

COMPILED = {"PYTHONDONTWRITEBYTECODE": "1"}  # an install compiles all of it


def components(layout: Layout, wanted: Settings) -> list[Component]:
    """The node's processes as their units run them."""
    env = {"PYTHONPATH": str(layout.folder), **COMPILED}
    return node.components(layout.paths, replace(wanted, node_ip="${NODE_IP}"), str(layout.python), env)


def rows(layout: Layout, services: Services) -> list[dict[str, Any]] | None:
    """One dict per component (name, state, pid, restarts, seconds, reason, log); None when nothing is installed."""
    kept = settings.load(layout.settings) if layout.installed else None
    if kept is None:
        return None
    found = []
    for component in components(layout, kept):
        state = services.state(unit(component.name))
        running = state.active == "active"
        reason = "" if running else f"{state.active} ({state.detail}), {state.result}"
        found.append({"name": component.name, "state": "running" if running else state.active or "absent",
                      "pid": state.pid, "restarts": state.restarts, "reason": reason,
                      "seconds": max(0.0, SYSTEM.monotonic() - state.since), "log": f"journalctl -u {state.unit}"})
    return found


def processes(paths: Paths) -> list[dict[str, Any]] | None:
    """The same of the processes of `up`, or else of systemd; None when neither has any."""
    found = control.status(paths)
    if found is None and (installed := Layout(paths).installed):
        return rows(Layout(paths, installed), Services())
    return found


def wait(layout: Layout, services: Services) -> None:
    """Every service must run. Raises Finding with what is told of one that does not."""
    asyncio.run(patience.processes_run(lambda: rows(layout, services)))

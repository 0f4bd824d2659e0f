"""What has to be right before the services of a node start: its address, its certificates, its runtime's configuration.

systemd runs it before each start and once a day. Promises to change nothing when nothing changed, and that a host whose
address changed, or whose certificates are in the last third of their life, comes back by itself: the services that
need to see the change are started anew, and no container is. Called by `pelamis prepare` and `install`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from controlplane.cli import preflight, settings
from controlplane.cli.settings import Settings
from controlplane.hosts.layout import Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

Say = Callable[[str], None]


def address(kept: Settings, own: list[str], default: str) -> str:
    """The address of this node now: the kept one while the host has it, else that of the default route. Pure."""
    return kept.node_ip if kept.node_ip in own else default


def prepare(layout: Layout, services: Services, say: Say = print) -> Settings:
    """Bring everything up to date; the settings as they are now. Raises Finding."""
    from controlplane.cli import node
    kept = settings.load(layout.settings)
    if kept is None:
        raise Finding(f"{layout.settings} is missing", "this host is no node", "pelamis install server")
    now = kept
    if kept.node_ip not in preflight.addresses(kept.family):
        now = replace(kept, node_ip=preflight.node_ip("", kept.family))
        say(f"the address changed from {kept.node_ip} to {now.node_ip}")
    changed = node.prepare(layout.paths, now, Ledger(layout.paths.ledger))
    if now != kept:
        settings.save(layout.settings, now)
    _write(layout.environment, f"NODE_IP={now.node_ip}\n")
    if changed or now != kept:
        names = ("agent",) if now.server else ("apiserver", "controllers", "agent")
        # Only those that run: at a start they are about to, and see the change anyway.
        services.control("try-restart", "--no-block", *map(unit, names), check=False)
    return now


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)

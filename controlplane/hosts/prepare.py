"""What has to be right before the services of a node start: its address, its certificates, its runtime's configuration.

systemd runs it before each start and once a day. Promises to change nothing when nothing changed; that certificates in
the last third of their life are renewed, which services take while they run; and that a host whose address changed
comes back by itself: its services are started anew, and no container is. Called by `pelamis prepare`, `install` and
`certs`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from controlplane.cli import preflight, settings
from controlplane.cli.settings import Settings
from controlplane.hosts import units
from controlplane.hosts.layout import USERS, Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery import files
from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

Say = Callable[[str], None]


def address(kept: str, own: Collection[str], default: Callable[[], str]) -> str:
    """The address of this node now: the kept one while the host has it, else the default. Raises Finding where that is
    one nobody reaches: a card that comes up late must not make a node give up its address for it. Pure."""
    if kept in own:
        return kept
    found = default()
    if found.startswith(preflight.VIRTUALBOX_NAT):
        raise Finding(f"this host does not have {kept} any more, only {found}, VirtualBox's NAT",
                      "nobody else reaches that", "ip address; systemctl start pelamis-prepare when the card is up")
    return found


def prepare(layout: Layout, services: Services, say: Say = print) -> Settings:
    """Bring everything up to date; the settings as they are now. Raises Finding."""
    from controlplane.cli import node
    kept = settings.load(layout.settings)
    if kept is None:
        raise Finding(f"{layout.settings} is missing", "this host is no node", "pelamis install server")
    now = replace(kept, node_ip=address(kept.node_ip, preflight.addresses(kept.family),
                                        lambda: preflight.node_ip("", kept.family)))
    if now != kept:
        say(f"the address changed from {kept.node_ip} to {now.node_ip}" + (
            "" if kept.server else f"; agents that know the old one are told: pelamis prepare --server {now.url}"))
    prepared = node.prepare(layout.paths, now, Ledger(layout.paths.ledger))
    if now != kept:
        settings.save(layout.settings, now)
    files.write(layout.environment, f"NODE_IP={now.node_ip}\n".encode(), files.PUBLIC)
    lent = lend(layout, now, services)
    if prepared.configured or now != kept:
        # Only those that run: at a start they are about to, and see the change anyway.
        services.control("try-restart", "--no-block", *map(unit, _processes(now)), check=False)
    elif prepared.issued or lent:
        reload(layout, now, services)
    return now


def lend(layout: Layout, now: Settings, services: Services) -> bool:
    """Give the processes without root copies of what they read; whether anything was new."""
    from controlplane.cli import node
    changed = False
    for component in node.components(layout.paths, now, str(layout.python), {}):
        if user := USERS.get(component.name):
            for copy, original in units.credentials(layout, component)[1].items():
                data = original.read_bytes()
                if not copy.exists() or copy.read_bytes() != data:
                    services.lend(copy, data, user)
                    changed = True
    return changed


def reload(layout: Layout, now: Settings, services: Services) -> None:
    """Have the processes that run take renewed certificates; no connection ends."""
    services.control("try-reload-or-restart", "--no-block", *map(unit, _processes(now)), check=False)


def _processes(now: Settings) -> tuple[str, ...]:
    return ("agent",) if now.server else ("apiserver", "controllers", "agent")

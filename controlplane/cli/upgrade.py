"""`pelamis upgrade`: this checkout's version in the place of the installed one; back to the old one when it fails."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from controlplane.cli.output import good, say, step

if TYPE_CHECKING:
    from collections.abc import Callable

    from controlplane.cli.settings import Settings
    from controlplane.hosts.layout import Layout


TIMEOUT = "10m"  # grace periods and budgets of a full node
EXAMPLES = ("upgrade", "upgrade --drain --drain-timeout 30m", "upgrade --back")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("upgrade", help="run this version on this host from now on: the server first")
    parser.add_argument("--back", action="store_true", help="go back to the version before")
    parser.add_argument("--drain", action="store_true", help="move pods to other nodes first; they may come back after")
    parser.add_argument("--drain-timeout", default=TIMEOUT, metavar="TIME",
                        help=f"how long pods may take to leave: 90s, 30m (default {TIMEOUT})")
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    from controlplane.cli import preflight, settings
    from controlplane.cli.token import seconds
    from controlplane.hosts import commands, upgrade
    from controlplane.hosts.services import Services, required
    required()
    limit = seconds(args.drain_timeout)
    installed, services = commands.layout(), Services()
    commands.needs_install(installed)
    kept = settings.load(installed.settings)
    assert kept is not None
    new = upgrade.previous(installed) if args.back else commands.fresh_layout()
    if new.version == installed.version:
        say(f"{new.version} runs here already")
        return 0
    preflight.check_disk(installed.paths)
    if kept.server:
        upgrade.allowed(new, asyncio.run(upgrade.server_version(installed, kept)))

    def work() -> None:
        if args.back:
            upgrade.switch(installed, new, kept, services, step)
        else:
            upgrade.upgrade(new, kept, services, step)
    if args.drain:
        asyncio.run(_drained(work, new, kept, limit))
    else:
        work()
    if not kept.server:
        asyncio.run(_tell(new.version, kept))
    say(good(f"{new.version} runs here.") + f" {installed.version} is kept: pelamis upgrade --back")
    return 0


async def _drained(work: Callable[[], None], layout: Layout, kept: Settings, limit: float) -> None:
    from controlplane.hosts import drain
    say(f"moving pods away from {kept.node_name}")
    async with drain.drained(layout.paths, kept.node_name, lambda line: say(f"  {line}"), limit) as gone:
        say(f"{gone} pods left; those of DaemonSets run on")
        await asyncio.to_thread(work)


async def _tell(version: str, kept: Settings) -> None:
    """The cluster says from now on that it runs this version: agents may follow."""
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    from controlplane.hosts import membership
    from controlplane.machinery.paths import Paths
    paths = Paths.from_environment()
    async with Client(load(paths.admin_kubeconfig), user_agent="pelamis-upgrade") as client:
        await membership.welcome(client, paths, kept, version)

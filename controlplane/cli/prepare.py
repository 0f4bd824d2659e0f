"""`pelamis prepare`: what systemd runs before a node's services: address, certificates, configuration."""

from __future__ import annotations

import argparse

from controlplane.cli.output import say

EXAMPLES = ("prepare", "prepare --server https://192.168.56.20:6443")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="bring address, certificates and configuration up to date")
    parser.add_argument("--server", default="", metavar="URL",
                        help="on an agent: the server has this address from now on")
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    from controlplane.hosts import commands, prepare
    from controlplane.hosts.services import Services
    layout = commands.layout()
    commands.needs_install(layout)
    services = Services()
    if args.server:
        import asyncio

        from controlplane.cli import settings
        from controlplane.hosts import moving
        kept = settings.load(layout.settings)
        assert kept is not None
        now = asyncio.run(moving.follow(layout, kept, args.server, services))
        say(f"{now.node_name} follows its server to {now.server}")
    prepare.prepare(layout, services, say)
    return 0

"""`pelamis prepare`: what systemd runs before a node's services: address, certificates, configuration."""

from __future__ import annotations

import argparse

from controlplane.cli.output import say


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("prepare", help="bring address, certificates and configuration up to date")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from controlplane.cli.preflight import check_root
    from controlplane.hosts import commands, prepare
    from controlplane.hosts.services import Services
    check_root()
    layout = commands.layout()
    commands.needs_install(layout)
    prepare.prepare(layout, Services(), say)
    return 0

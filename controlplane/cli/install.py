"""`pelamis install server|agent`: a node run by systemd, with everything on the host written to the ledger first."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from controlplane.cli.output import good, say, step
from controlplane.cli.settings import check_ranges

if TYPE_CHECKING:
    from controlplane.cli.settings import Settings
    from controlplane.hosts.layout import Layout

EXAMPLES = ("install server --node-ip 192.168.56.10",
            "install agent --server https://192.168.56.10:6443 --token … --ca-cert-hash sha256:…",
            "install server --bundle bundle")


def register(commands: argparse._SubParsersAction) -> None:
    from controlplane.hosts import commands as flags
    parser = commands.add_parser("install", help="make this host a server or an agent of a cluster, run by systemd")
    roles = parser.add_subparsers(dest="role", metavar="server|agent", required=True)
    server = roles.add_parser("server", help="a cluster of its own, which others can join")
    flags.node_flags(server)
    flags.server_flags(server)
    flags.bundle_flag(server)
    server.set_defaults(run=run_server, root=True)
    agent = roles.add_parser("agent", help="a node of a cluster that is there")
    flags.node_flags(agent)
    flags.join_flags(agent)
    flags.bundle_flag(agent)
    agent.set_defaults(run=run_agent, root=True)


def run_server(args: argparse.Namespace) -> int:
    from controlplane.hosts import commands, install
    from controlplane.hosts.services import Services, required
    required()
    layout, services = commands.fresh_layout(), Services()
    wanted = replace(commands.node_settings(args), service_range=args.service_cidr, cluster_range=args.cluster_cidr,
                     cluster_domain=args.cluster_domain, proxy_mode=args.proxy_mode,
                     cloud_provider=args.cloud_provider)
    check_ranges(wanted)
    kept = install.look(layout.paths, wanted)
    install.not_an_upgrade(layout, services)
    _check_bundle(args)
    _check_runtime((kept or wanted).runtime, layout)
    with install.whole(layout, services, say):
        if args.scheduler_config is not None:
            from controlplane.cli.node import take_scheduler_config
            from netsetup.ledger import Ledger
            install.note(layout)
            take_scheduler_config(layout.paths, args.scheduler_config, Ledger(layout.paths.ledger))
        install.put(layout, kept or wanted, services, step, bundled=args.bundle)
    now = install.start(layout, services, step, say)
    _bundled_images(args, layout, now)
    asyncio.run(_finish(layout, now))
    say()
    say(good("This server is ready.") + " Go on with:")
    say(f"  export KUBECONFIG={layout.paths.admin_kubeconfig}")
    say("  pelamis token create        prints the command that lets another host join")
    say("  pelamis doctor; pelamis status")
    return 0


def _check_bundle(args: argparse.Namespace) -> None:
    if args.bundle is not None:
        from controlplane.hosts import bundle
        with step(f"checking {args.bundle}"):
            bundle.check(args.bundle)


def _check_runtime(runtime: str, layout: Layout) -> None:
    if runtime:
        from pathlib import Path

        from controlplane.hosts import foreign
        with step(f"looking at the container runtime at {runtime}"):
            asyncio.run(foreign.look(Path(runtime), layout.paths))


def _bundled_images(args: argparse.Namespace, layout: Layout, now: Settings) -> None:
    if args.bundle is not None:
        from pathlib import Path

        from controlplane.hosts import bundle
        socket = Path(now.runtime) if now.runtime else layout.paths.containerd_socket
        with step("importing the bundle's images"):
            asyncio.run(bundle.import_images(args.bundle, socket))


async def _finish(layout: Layout, now: Settings) -> None:
    from controlplane.cli import addons
    from controlplane.cli.patience import node_takes_pods
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    from controlplane.hosts import membership
    async with Client(load(layout.paths.admin_kubeconfig), user_agent="pelamis-install") as client:
        with step(f"waiting for node {now.node_name} to be ready"):
            await node_takes_pods(client, now.node_name)
        with step("making what belongs to every cluster: DNS, and how others join"):
            await addons.ensure(client, now)
            await membership.welcome(client, layout.paths, now, layout.version)


def run_agent(args: argparse.Namespace) -> int:
    from controlplane.hosts import commands, install, joining
    from controlplane.hosts.layout import unit
    from controlplane.hosts.services import Services, required
    required()
    layout, services = commands.fresh_layout(), Services()
    kept = install.look(layout.paths, joining.asked(args))
    install.not_an_upgrade(layout, services)
    _check_bundle(args)
    _check_runtime(kept.runtime if kept else args.container_runtime_endpoint.removeprefix("unix://"), layout)
    joined, again = None, kept is not None
    if kept is None or not joining.believed(layout.paths):
        with step(f"asking {args.server} to be a node"):
            joined = asyncio.run(joining.join(args, kept))
        kept = joined.settings
    with install.whole(layout, services, say):
        if joined is not None:
            install.note(layout)
            joining.keep(layout.paths, joined)
        install.put(layout, kept, services, step, bundled=args.bundle)
    now = install.start(layout, services, step, say)
    if joined is not None and again:
        services.restart(unit("agent"))  # it may run, and show what nobody believes any more
    _bundled_images(args, layout, now)
    with step(f"waiting for node {now.node_name} to be ready"):
        asyncio.run(joining.ready(layout.paths, now.node_name))
    say()
    say(good(f"{now.node_name} is a node of {now.server}."))
    return 0

"""`pelamis up [--demo]`: from a bare machine to a running one-node cluster; run again, it changes nothing.

The order: look (preflight) before anything is touched, then packages, files, processes, last the proof. Each step may
be interrupted; the next `up` continues. Everything on the host is written to the ledger before it is made.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli import components, control, patience, preflight
from controlplane.cli.output import columns, good, say, step
from controlplane.cli.settings import Settings, check_ranges, default_node_name, family_of, load, save
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.ledger import Ledger

if TYPE_CHECKING:
    from controlplane.client.rest import Client

EXAMPLES = ("up --demo",
            "up --node-ip 192.168.56.10",
            "up --service-cidr 10.96.0.0/16,fd00:96::/112 --cluster-cidr 10.244.0.0/16,fd00:10::/56")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("up", help="install what is missing and start a one-node cluster")
    parser.add_argument("--demo", action="store_true", help="prove it: a Deployment, a Service, curl by cluster IP")
    parser.add_argument("--node-ip", default="", help="the address this node is known by")
    parser.add_argument("--node-name", default="", help="the node's name (default: the host name)")
    parser.add_argument("--proxy-mode", choices=("iptables", "nftables"), help="how Services are put into the kernel "
                        "(default: iptables)")
    parser.add_argument("--cloud-provider", choices=("external",), default="", help="external: a "
                        "cloud-controller-manager of yours tells what machine this is (default: nobody does)")
    parser.add_argument("--service-cidr", default="", metavar="CIDR[,CIDR]",
                        help="range of Service addresses (default: 10.96.0.0/16); two for IPv4 and IPv6")
    parser.add_argument("--cluster-cidr", default="", metavar="CIDR[,CIDR]",
                        help="range of pod addresses (default: 10.244.0.0/16); two for IPv4 and IPv6")
    parser.add_argument("--scheduler-config", type=Path, metavar="FILE", help="a KubeSchedulerConfiguration, kept as "
                        "/etc/pelamis/scheduler.yaml")
    parser.set_defaults(run=run, root=True)


def decide(paths: Paths, args: argparse.Namespace) -> Settings:
    """The node's settings: those kept from the first `up`, or new ones from the machine and the flags."""
    kept = load(paths.etc / "node.json")
    given = {"service_range": args.service_cidr, "cluster_range": args.cluster_cidr}
    asked = {field: text for field, text in given.items() if text}
    ways = {field: text for field in ("proxy_mode", "cloud_provider") if (text := getattr(args, field))}
    if kept is None:
        address = preflight.node_ip(args.node_ip, family_of(args.cluster_cidr))
        made = Settings(args.node_name or default_node_name(), address, **asked, **ways)
        check_ranges(made)
        return made
    if args.node_name and args.node_name != kept.node_name:
        raise Finding(f"this node is called {kept.node_name}", "a node cannot be renamed, only made anew",
                      f"./pelamis down --purge, then ./pelamis up --node-name {args.node_name}")
    if any(getattr(kept, field) != text for field, text in asked.items()):
        raise Finding(f"this cluster has services in {kept.service_range} and pods in {kept.cluster_range}",
                      "Services and pods hold addresses of these ranges, so they cannot be changed",
                      "./pelamis down --purge, then ./pelamis up with the new ranges")
    return replace(kept, node_ip=preflight.node_ip(args.node_ip or kept.node_ip, kept.family), **ways)


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    preflight.check_all(paths)
    settings = decide(paths, args)
    running = control.status(paths) is not None
    if not running and not control.survivors(paths):  # survivors hold our ports; the supervisor adopts them
        preflight.check_ports()
    ledger = Ledger(paths.ledger)
    _packages(ledger)
    _start(paths, settings, ledger, running, args.scheduler_config)
    asyncio.run(_finish(paths, settings, args.demo))
    return 0


def _packages(ledger: Ledger) -> None:
    from controlplane.cli import packages
    lacking = packages.missing(new=not ledger.entries())
    if lacking:
        with step(f"installing {', '.join(lacking)} from Debian"), packages.as_welcome(lacking):
            packages.install(lacking, ledger)


def _start(paths: Paths, settings: Settings, ledger: Ledger, running: bool, scheduler: Path | None) -> None:
    from controlplane.cli import node
    with step("preparing certificates and configuration"):
        changed = scheduler is not None and node.take_scheduler_config(paths, scheduler, ledger)
        prepared = node.prepare(paths, settings, ledger)
        changed = prepared.configured or changed
        save(paths.etc / "node.json", settings)
    wanted, file = node.components(paths, settings), paths.etc / "components.json"
    if running and (changed or not file.exists() or file.read_text() != components.render(wanted)):
        with step("stopping the processes: their configuration changed"):
            control.stop(paths)
        running = False
    components.write(file, wanted)
    if running and prepared.issued:
        control.reload(paths)
    if not running:
        with step("starting " + ", ".join(c.name for c in wanted)):
            control.start(paths, file)
            asyncio.run(patience.processes_run(lambda: control.status(paths)))


async def _finish(paths: Paths, settings: Settings, demo: bool) -> None:
    from controlplane.cli import addons
    from controlplane.client.config import load as kubeconfig
    from controlplane.client.rest import Client
    async with Client(kubeconfig(paths.admin_kubeconfig), user_agent="pelamis-up") as client:
        with step(f"waiting for node {settings.node_name} to be ready"):
            await patience.node_takes_pods(client, settings.node_name)
        with step("making what belongs to every cluster: DNS"):
            await addons.ensure(client, settings)
        address = ""
        if demo:
            from agent.image import demo as images
            from controlplane.cli import demo as proof
            from cri_proto.client import Connection
            with step("building and importing the demo's images"):
                async with Connection(paths.containerd_socket) as connection:
                    await images.install(connection, paths, (images.DEMO, images.BUSYBOX, images.NGINX))
            address = await proof.prove(client, images.DEMO)
        await _show(client)
    say()
    say(good("The cluster is ready.") + " Go on with:")
    say(f"  export KUBECONFIG={paths.admin_kubeconfig}")
    if shutil.which("kubectl") is None:
        say("  apt-get install kubernetes-client      Debian's kubectl; upstream's does as well")
    say("  kubectl get pods -A")
    if address:
        say(f"  curl http://{address}/")
    say("  ./pelamis status; ./pelamis why; ./pelamis down")


async def _show(client: Client) -> None:
    """Nodes, pods and services as kubectl would print them: the server makes the tables."""
    import json

    from controlplane.machinery import resources
    for name in ("nodes", "pods", "services"):
        path = resources.named(name).path()
        answer = json.loads(await client.raw("GET", path, headers={
            "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}))
        wide = [i for i, column in enumerate(answer["columnDefinitions"]) if column.get("priority", 0) == 0]
        rows = [[answer["columnDefinitions"][i]["name"].upper() for i in wide]]
        rows += [[str(row["cells"][i]) for i in wide] for row in answer["rows"] or []]
        if name != "nodes":
            spaces = ["NAMESPACE"] + [row["object"]["metadata"]["namespace"] for row in answer["rows"] or []]
            rows = [[space, *row] for space, row in zip(spaces, rows)]
        say()
        say(columns(rows))

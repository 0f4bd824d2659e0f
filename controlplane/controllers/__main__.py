"""The process of the controllers, and of the scheduler when it is given a kubeconfig of its own.

Owns flags, signals, readiness and leadership. Promises to wait for the API server for ever, to tell readiness when all
informers are filled, to stop cleanly on SIGTERM or SIGINT, and to end with an error when leadership is lost, so that
whoever supervises it starts it afresh.

Upstream: cmd/kube-controller-manager.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.client import config, identity
from controlplane.client.events import Recorder
from controlplane.client.informer import Informer, Informers
from controlplane.client.leader import Elector, Lost
from controlplane.client.rest import Client
from controlplane.controllers.manager import Manager, Settings
from controlplane.controllers.runtime import NODES, PODS, keep_for
from controlplane.machinery import logs, tlsbuffer
from controlplane.machinery.errors import Finding
from controlplane.machinery.notify import READY, STOPPING, live, notify
from controlplane.machinery.paths import Paths

if TYPE_CHECKING:
    from controlplane.scheduler.configuration import Configuration
    from controlplane.scheduler.world import World

log = logging.getLogger("controllers")
LEASE = "kube-controller-manager"


def parser(paths: Paths) -> argparse.ArgumentParser:
    """Every flag, for the command line and for the file that explains them."""
    parser = argparse.ArgumentParser(prog="controllers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kubeconfig", type=Path, default=paths.kubeconfig("controller-manager"))
    parser.add_argument("--scheduler-kubeconfig", type=Path, help="also run the scheduler, as this identity")
    parser.add_argument("--scheduler-config", type=Path, metavar="FILE", help="a KubeSchedulerConfiguration")
    parser.add_argument("--leader-elect", type=_truth, nargs="?", const=True, default=True, metavar="true|false")
    parser.add_argument("--cluster-cidr", default=Settings().cluster_cidr, help="the range of all pod addresses")
    parser.add_argument("--root-ca-file", type=Path, help="CA certificates to publish in every namespace")
    parser.add_argument("--cluster-signing-cert-file", type=Path, help="the authority that signs requests")
    parser.add_argument("--cluster-signing-key-file", type=Path, help="its key; without both nothing is signed")
    parser.add_argument("--service-account-private-key-file", type=Path,
                        help="taken for upstream's sake: tokens are asked of the API server, which alone needs the key")
    parser.add_argument("--cloud-provider", default="", metavar="external|MODULE:NAME",
                        help="who answers for machines, routes and load balancers (default: pools of addresses)")
    parser.add_argument("-v", "--verbosity", type=int, default=0, help="5 and more: debug")
    return parser


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither true nor false")
    return text.lower() == "true"


async def run(options: argparse.Namespace) -> None:
    """Run until a signal comes; raises Lost when another leads, Finding when the flags cannot be used."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        root_ca = options.root_ca_file.read_text() if options.root_ca_file else ""
    except OSError as error:
        raise Finding(f"cannot read {options.root_ca_file}", error.strerror or "",
                      "give the cluster's CA certificates with --root-ca-file") from error
    scheduling = _configuration(options.scheduler_config)
    async with Client(config.load(options.kubeconfig), user_agent="kube-controller-manager") as client:
        informers = Informers(client)
        world = _world(informers) if options.scheduler_kubeconfig else None
        manager = Manager(client, Settings(options.cluster_cidr, root_ca, options.cluster_signing_cert_file,
                                           options.cluster_signing_key_file, options.cloud_provider),
                          informers=informers)
        main = asyncio.ensure_future(_together(client, manager, options, scheduling, world))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if main.done():
                await main
        finally:
            notify(STOPPING)
            stopping.cancel()
            main.cancel()
            await asyncio.gather(main, stopping, return_exceptions=True)


def _world(informers: Informers) -> World:
    """What the scheduler looks up, asked for before the controllers are made."""
    from controlplane.scheduler.world import World
    return World(informers, keep_for)


async def _together(client: Client, manager: Manager, options: argparse.Namespace, scheduling: Configuration,
                    world: World | None) -> None:
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        group.create_task(live(), name="watchdog")
        work, clients = manager.work, {options.kubeconfig: client}
        group.create_task(identity.follow(clients), name="certificates")
        if world is not None:
            other = await stack.enter_async_context(
                Client(config.load(options.scheduler_kubeconfig), user_agent="kube-scheduler"))
            clients[options.scheduler_kubeconfig] = other
            work = partial(_with_scheduler, manager, other, scheduling, world)
        group.create_task(manager.follow(lambda: notify(READY)), name="informers")
        group.create_task(Elector(client, LEASE).lead(work) if options.leader_elect else work(), name="controllers")


def _configuration(file: Path | None) -> Configuration:
    """Raises Finding when the file cannot be used."""
    from controlplane.scheduler import configuration
    return configuration.Configuration() if file is None else configuration.read(file)


async def _with_scheduler(manager: Manager, client: Client, configuration: Configuration, world: World) -> None:
    """The controllers and, with a client of its own but the same informers, the scheduler."""
    from controlplane.scheduler.loop import NAME, Scheduler
    recorder = Recorder(client, NAME)
    nodes = Informer(client, NODES)  # its own, few and small: the API sees by this watch that the scheduler lives
    scheduler = Scheduler(client, manager.informers.of(PODS), nodes, world, recorder, configuration=configuration)
    async with asyncio.TaskGroup() as group:
        group.create_task(manager.work(), name="controllers")
        group.create_task(nodes.run(), name="scheduler nodes")
        group.create_task(recorder.run(), name="scheduler events")
        group.create_task(scheduler.run(), name="scheduler")


def main() -> int:
    tlsbuffer.shrink()
    options = parser(Paths.from_environment()).parse_args()
    logs.setup(logging.DEBUG if options.verbosity >= 5 else logging.INFO)
    try:
        asyncio.run(run(options))
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1
    except BaseExceptionGroup as failures:
        lost, others = failures.split(Lost)
        if others is not None:
            raise
        log.error("leadership lost: %s", lost)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

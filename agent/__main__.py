"""`python -m agent`: the node agent. Kubelet, pod network, the kubelet's API and the service proxy in one process.

Owns the process: flags, logging, signals, readiness and the exit code (0 after a clean stop; containers, rules and
routes stay). Promises to wait, and to say so once, while the API server or the container runtime is away. Everything
else belongs to the parts it puts together.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.kubelet import config
from agent.kubelet.config import Options
from controlplane.machinery import logs, tlsbuffer
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import Finding
from controlplane.machinery.notify import READY, STOPPING, live, notify
from controlplane.machinery.paths import Paths

log = logging.getLogger("agent")
RUNTIME_RETRY_SECONDS = 1.0  # while the container runtime is away


class Agent:
    """The parts of one node, put together. `run` works until cancelled."""

    def __init__(self, options: Options, paths: Paths) -> None:
        self.options, self.paths = options, paths
        self.ready = asyncio.Event()
        self._clients: dict[Path, Any] = {}  # by the kubeconfig that says who they are
        self._keeping: Any = None

    async def run(self) -> None:
        from controlplane.client import config as kubeconfig
        from controlplane.client.rest import Client
        from cri_proto.client import Connection
        self.options.root.mkdir(parents=True, exist_ok=True, mode=0o750)
        async with Connection(self.options.socket) as connection, \
                Client(kubeconfig.load(self.options.kubeconfig), user_agent="kubelet") as client:
            self._clients[self.options.kubeconfig] = client
            await self._parts(connection, client)

    async def end_pods(self) -> None:
        """The host goes down: end every pod, where SIGTERM says so."""
        if self._keeping is not None and self.options.keeping.shutdown_on_sigterm:
            await self._keeping.shutdown.end()

    async def _parts(self, connection: Any, client: Any) -> None:
        """Build everything and run it in one group: if one part fails, all end and the supervisor starts anew."""
        from agent.conflists import Conflists
        from agent.image.demo import install
        from agent.image.pause import NAME as PAUSE
        from agent.kubelet.cri.runtime import Runtime
        from agent.kubelet.host.node import NodeAgent, describe_host
        from agent.kubelet.images.images import Images
        from agent.kubelet.images.pulls import FILE as PULLS
        from agent.kubelet.images.pulls import Pulls
        from agent.kubelet.kubelet import Kubelet
        from agent.kubelet.pressure.housekeeping import Housekeeping
        from agent.kubelet.registry import home
        from agent.kubelet.serving.logrotate import Rotator
        from agent.kubelet.volumes.build import build
        from agent.kubelet.volumes.objects import Objects
        from controlplane.client.events import Recorder
        from controlplane.client.informer import Informer
        from controlplane.machinery.resources import named
        from netsetup.cni.daemon import Daemon
        from netsetup.ledger import Ledger
        options, clock = self.options, SYSTEM
        runtime, images = Runtime(connection), Images(connection, pulls=Pulls(options.root / PULLS, clock))
        version, self._features = await self._told_by(runtime)
        await install(connection, self.paths, (PAUSE,))
        host = describe_host(options.name, options.node_ips, options.root, version, options.port, options.keeping,
                             self._features, options.cloud, options.registration)
        pods = Informer(client, named("pods"), fields=f"spec.nodeName={options.name}")
        services = Informer(client, named("services"))
        nodes = Informer(client, named("nodes"), fields=f"metadata.name={options.name}")
        recorder = Recorder(client, "kubelet", options.name)
        ledger = Ledger(self.paths.ledger)
        network, conflists = Daemon(self.paths, ledger), Conflists(self.paths)
        kubelet: Kubelet
        objects = Objects(client, lambda uids: kubelet.changed(uids))
        volumes, drivers = build(options.root, options.name, client, clock, objects, lambda: node.place,
                                 lambda: node.owner, connection if version.startswith("containerd://") else None,
                                 home(options.root, self.paths.root / "var/lib/kubelet", ledger))
        context = self._context(runtime, images, client, recorder, services, volumes, host)
        self._cpus(context)
        kubelet = Kubelet(context, pods, options.manifests, lambda: node.owner)

        node: NodeAgent
        context.place = lambda: replace(node.place, apparmor=context.node.apparmor,
                                        strict_groups=context.node.strict_groups)
        assigned = functools.partial(self._assigned, network=network, ledger=ledger, kubelet=kubelet, runtime=runtime)
        node = NodeAgent(host, client, runtime, images, clock, nodes, assigned, options.pod_cidr,
                         options.sysctls)
        conflists.subscribe(node.reassign)
        kubelet.interrupted = node.check
        keeping = self._keeping = Housekeeping(context, kubelet, node, ledger)
        server = self._server(runtime, kubelet, client, context, keeping)
        rotator = Rotator(runtime.reopen_log, kubelet.running_logs)
        parts = (pods, services, nodes, recorder, objects, network, conflists, node, server, rotator, keeping, kubelet,
                 *self._devices(context, kubelet, node, drivers), *self._rotation(client, server),
                 *self._services(context, network, conflists, ledger))
        try:
            await self._run_together(parts, server, (kubelet.relisted, network.listening, server.listening))
        finally:
            await context.checks.close()

    async def _run_together(self, parts: Iterable[Any], server: Any, begun: Iterable[asyncio.Event]) -> None:
        """Run the parts; the agent is ready when all of `begun` have."""
        from controlplane.client import identity
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part.run(), name=type(part).__name__)
            group.create_task(identity.follow(self._clients, server.reload), name="certificates")
            await asyncio.gather(*(event.wait() for event in begun))
            gc.collect()
            gc.freeze()  # what is built by now lives as long as the process
            self.ready.set()

    async def _assigned(self, pod_cidr: str, network: Any, ledger: Any, kubelet: Any, runtime: Any) -> None:
        """The node knows where its pods' addresses come from: pods that waited for a network get it."""
        for problem in await network.configure(pod_cidr, self.options.cluster_cidr):
            log.warning("%s", problem)
        await asyncio.to_thread(self._ways_to_services, ledger)
        await kubelet.relisted.wait()
        await network.collect({s.id for pod in (await runtime.observe()).values() for s in pod.sandboxes})
        kubelet.retry()

    def _ways_to_services(self, ledger: Any) -> None:
        from netsetup import routes
        for cidr in self.options.service_cidr.split(","):
            own = next((ip for ip in self.options.node_ips if (":" in ip) == (":" in cidr)), "")
            if own and routes.ensure_way(ledger, cidr, own):
                log.info("no route leads to the Services %s: added one", cidr)

    async def _told_by(self, runtime: Any) -> tuple[str, Any]:
        """`containerd://1.6.20` and what it can do, as soon as the runtime answers both: one that has just begun may
        know its version and nothing else yet."""
        from agent.kubelet.cri.runtime import CallError
        told = False
        while True:
            try:
                name, version = await runtime.version()
                return f"{name}://{version}", await runtime.features()
            except CallError as error:
                log.log(logging.DEBUG if told else logging.WARNING, "waiting for the container runtime at %s: %s",
                        self.options.socket, error)
                told = True
                await SYSTEM.sleep(RUNTIME_RETRY_SECONDS)

    def _context(self, runtime: Any, images: Any, client: Any, recorder: Any, services: Any, volumes: Any,
                 host: Any) -> Any:
        from agent.kubelet.compute.cgroups import Cgroups
        from agent.kubelet.compute.userns import delegated
        from agent.kubelet.context import Context
        from agent.kubelet.cri.containerd import systemd_cgroups
        from agent.kubelet.images.credentials import Credentials, read
        from agent.kubelet.probing.checks import Checks
        from agent.kubelet.specs import SUBORDINATE, Node
        options = self.options
        known = (options.systemd, self._features.systemd)
        systemd = next((k for k in known if k is not None), systemd_cgroups())
        cgroups = Cgroups(options.cgroup_root, systemd=systemd, pids=options.keeping.pod_pids)
        node = Node(name=options.name, ips=options.node_ips, root=options.root, logs=self.paths.pod_logs,
                    cluster_dns=options.cluster_dns, cluster_domain=options.cluster_domain,
                    cpu=host.cpus * 1000, memory=host.memory, apparmor=config.apparmor(),
                    strict_groups=self._features.strict_groups, recursive="" in self._features.recursive,
                    user_namespaces=self._features.user_namespaces, subordinate=delegated() or SUBORDINATE,
                    unified=cgroups.unified(), pages=cgroups.pages, cdi=self._features.cdi,
                    runtime=host.runtime_version.partition("://")[0])
        credentials = Credentials(SYSTEM, read(options.providers) if options.providers else [], options.provider_folder,
                                  [options.root, Path.home() / ".docker", Path("/.docker")])
        return Context(node=node, runtime=runtime, images=images, client=client, recorder=recorder, clock=SYSTEM,
                       volumes=volumes, services=services, cgroups=cgroups, checks=Checks(runtime),
                       resolvers=config.resolvers, credentials=credentials)

    def _cpus(self, context: Any) -> None:
        """CPUs for containers alone, where this node gives them. Raises Finding."""
        if not self.options.keeping.static_cpus:
            return
        from agent.kubelet.compute.cpumanager import CpuManager, topology
        context.cpus = CpuManager(self.options.root, topology(), self.options.keeping.reserved_cpus, SYSTEM)
        context.cgroups.unbounded = context.cpus.exclusive

    def _devices(self, context: Any, kubelet: Any, node: Any, drivers: Any) -> tuple[Any, ...]:
        """Where plugins come to, and where monitoring asks who has what."""
        from agent.kubelet.devices import registrar
        from agent.kubelet.devices.drivers import KIND as CLAIMS
        from agent.kubelet.devices.podresources import PodResources
        from agent.kubelet.registry import Registry
        from agent.kubelet.volumes.csidrivers import KIND as STORAGE

        def changed(uids: set[str]) -> None:
            node.check()
            kubelet.wake(uids)

        devices, node.devices = context.devices, context.devices.amounts
        devices.changed, plugins = changed, registrar.Registrar(devices)
        kinds = {STORAGE: drivers, CLAIMS: devices.drivers, registrar.KIND: plugins}
        return plugins, Registry(self.options.root, kinds), PodResources(context, kubelet.pods)

    def _server(self, runtime: Any, kubelet: Any, client: Any, context: Any, house: Any) -> Any:
        from agent.kubelet.pressure.keeping import settings as shown
        from agent.kubelet.serving.access import Access
        from agent.kubelet.serving.metrics import Metrics
        from agent.kubelet.serving.serve import Server, Settings
        from agent.kubelet.serving.stats import Stats
        from agent.kubelet.volumes.localvolumes import LocalVolumes
        options, cgroups = self.options, context.cgroups
        config = shown(options.keeping, driver="systemd" if cgroups.systemd else "cgroupfs", port=options.port,
                       domain=options.cluster_domain, dns=options.cluster_dns, logs=str(self.paths.pod_logs),
                       manifests=str(options.manifests or ""), endpoint=f"unix://{options.socket}")
        settings = Settings(options.certificate, options.key, options.client_ca, port=options.port,
                            logs=self.paths.log.parent, config=config,
                            read_only=(options.keeping.read_only_address, options.keeping.read_only_port))
        stats = Stats(options.name, kubelet.seen, cgroups, accounting=house.accounting, root=options.root,
                      images=lambda: (house.collector.place, house.collector.size), volumes=context.volumes.stats)
        metrics = Metrics(options.name, kubelet.seen, cgroups, evictions=lambda: house.evictions.count,
                          probes=lambda: [(w.pod, w.probed) for w in kubelet.workers()], calls=runtime.tally,
                          ends=context.ends)
        return Server(runtime, kubelet.pods, settings, Access(client, options.name), stats,
                      volumes=LocalVolumes(self.paths.volumes), metrics=metrics)

    def _rotation(self, client: Any, server: Any) -> tuple[Any, ...]:
        if not self.options.rotate:
            return ()
        from agent.kubelet.host.rotation import Rotation
        return (Rotation(self.paths, self.options.name, self.options.node_ip, client, self._clients, server.reload),)

    def _services(self, context: Any, network: Any, conflists: Any, ledger: Any) -> tuple[Any, ...]:
        if self.options.proxy_kubeconfig is None:
            return ()
        from agent.services import Services
        made = Services(self.options, self.options.proxy_kubeconfig, network, conflists, ledger, self._clients)
        context.isolated = made.isolated
        return (made,)


async def run(options: Options, paths: Paths) -> int:
    """Work until a signal. Returns the exit code; an error that ends a part is logged and ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    agent = Agent(options, paths)
    work = asyncio.create_task(agent.run(), name="agent")
    watchdog = asyncio.create_task(live(), name="watchdog")
    stopped, ready = asyncio.create_task(stop.wait()), asyncio.create_task(agent.ready.wait())
    await asyncio.wait((work, stopped, ready), return_when=asyncio.FIRST_COMPLETED)
    if ready.done() and not work.done():
        log.info("ready: node %s, %s", options.name, options.node_ip)
        notify(READY)
        await asyncio.wait((work, stopped), return_when=asyncio.FIRST_COMPLETED)
    notify(STOPPING)
    if not work.done():
        await agent.end_pods()
    for task in (stopped, ready, work, watchdog):
        task.cancel()
    await asyncio.gather(stopped, ready, work, watchdog, return_exceptions=True)
    if work.cancelled():
        return 0
    return _explain(work.exception())


def _explain(error: BaseException | None) -> int:
    """Say why the agent ended by itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Finding):
        print(error, file=sys.stderr)
    elif error is not None:
        log.error("the agent failed", exc_info=error)
    return 1


def main() -> int:
    tlsbuffer.shrink()
    paths = Paths.from_environment()
    try:
        options = config.parse(sys.argv[1:], paths)
        logs.setup(logging.DEBUG if options.verbose else logging.INFO)
        for noisy in ("asyncio", "grpc", "aiohttp"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        Path(paths.run).mkdir(parents=True, exist_ok=True)
        return asyncio.run(run(options, paths))
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""`pelamis down`: stops the pods and every process. `down --purge` also undoes every change to the machine.

Stopping goes against the order of starting: the agent first, then the pods it would otherwise start again, then the
rest. The store stays, so `up` brings everything back. A purge undoes the ledger newest first and proves that nothing of
ours is left; interrupted, it can be run again.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli import control
from controlplane.cli.output import bad, say, step
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.ledger import Ledger

if TYPE_CHECKING:
    from agent.kubelet.compute.cgroups import Cgroups
    from agent.kubelet.cri.runtime import Runtime
    from agent.kubelet.model import ObservedPod

POD_SECONDS = 10.0  # what a pod gets to end by itself when the whole node stops
GONE_SECONDS = 10.0  # for a killed process to leave


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("down", help="stop the cluster; with --purge leave the machine as it was")
    parser.add_argument("--purge", action="store_true", help="undo every change to the machine, the store "
                        "included; what is yours is kept")
    parser.add_argument("--keep-packages", action="store_true", help="with --purge: leave Debian packages installed")
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    _not_installed(paths)
    if control.status(paths) is None and control.survivors(paths):
        control.start(paths, paths.etc / "components.json")  # it adopts them, so that they end in order
    if control.status(paths) is None:
        say("nothing runs here")
    else:
        _stop(paths, by_force=args.purge)
    if args.purge:
        kill_shims(paths)
        return _undo(paths, args.keep_packages)
    return 0


def _not_installed(paths: Paths) -> None:
    """What systemd runs is not ours to stop here."""
    from controlplane.hosts.layout import TARGET, Layout
    if Layout(paths).installed:
        raise Finding("this node was made by `pelamis install`", "systemd runs it",
                      f"systemctl stop {TARGET} stops it, pelamis reset undoes the install")


def _stop(paths: Paths, by_force: bool) -> None:
    with step("stopping the agent"):
        control.stop_component(paths, "agent")
    with step("stopping the pods"):
        left = asyncio.run(stop_pods(paths))
    if left and not by_force:
        raise Finding("not every pod could be stopped", "; ".join(left),
                      "./pelamis status says whether containerd runs; ./pelamis down --purge ends them by force")
    with step("stopping the processes"):
        control.stop(paths)
    with step("removing the service rules"):
        from agent.proxy.cleanup import cleanup
        cleanup()


async def stop_pods(paths: Paths, socket: str = "") -> list[str]:
    """Stop every pod, all at once; why those that are left could not be. `socket` is that of a runtime not our own."""
    from agent.kubelet.compute.cgroups import Cgroups
    from agent.kubelet.cri.containerd import systemd_cgroups
    from agent.kubelet.cri.runtime import CallError, Runtime
    from cri_proto.client import Connection
    from netsetup.cni.daemon import Daemon
    network = Daemon(paths, Ledger(paths.ledger))  # the agent is gone: containerd asks us to take networks down
    groups = Cgroups(systemd=systemd_cgroups())
    try:
        async with Connection(Path(socket or paths.containerd_socket)) as connection, network.serving():
            runtime = Runtime(connection)
            pods = (await runtime.observe()).values()
            ends = await asyncio.gather(*(_stop_pod(runtime, groups, pod) for pod in pods), return_exceptions=True)
        await groups.clear()
    except (OSError, CallError) as error:
        return [f"containerd does not answer: {error}"]
    return [f"{pod.namespace}/{pod.name}: {end}" for pod, end in zip(pods, ends) if end is not None]


async def _stop_pod(runtime: Runtime, groups: Cgroups, pod: ObservedPod) -> None:
    """Its containers get POD_SECONDS to end by themselves; then sandbox, network and control groups go."""
    await asyncio.gather(*(runtime.stop_container(container.id, POD_SECONDS) for container in pod.containers
                           if container.state == "running"))
    for sandbox in pod.sandboxes:
        await runtime.stop_sandbox(sandbox.id)
        await runtime.remove_sandbox(sandbox.id)
    await groups.remove(pod.uid)


def kill_shims(paths: Paths) -> None:
    """End what a containerd that died left behind: shims of our own socket, and the processes below them; and the
    container of a trial that was killed."""
    import psutil

    from agent.kubelet.cri import containerd
    containerd.clear(paths)
    ours: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "-address" in line and str(paths.containerd_socket) in line:
            ours += [process, *process.children(recursive=True)]
    for process in ours:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(ours, timeout=GONE_SECONDS)


def _undo(paths: Paths, keep_packages: bool) -> int:
    """Replay the ledger backwards. Exit code 1 when something could not be undone, with the reason of each."""
    from controlplane.hosts import belongings
    ledger, kept = Ledger(paths.ledger), belongings.found(paths)
    done = ledger.undo(keep=("package",) if keep_packages else (), say=lambda line: say(f"  {line}"),
                       spare=[thing.path for thing in kept])
    for finding in ledger.findings:
        say(f"  {bad('not undone')}: {finding}")
    if ledger.findings:
        say("run the same command again when that is mended")
        return 1
    for thing in kept:
        say(f"kept: {thing.path}, {thing.told}")
    but = ", but for what was kept" if kept else ""
    say(f"{len(done)} changes undone: this machine is as it was{but}" if done else "there was nothing to undo")
    return 0

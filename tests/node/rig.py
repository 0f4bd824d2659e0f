"""A host of its own for a test: network namespace, mount namespace, containerd, all under one folder.

`Host()` makes them, `close()` leaves nothing behind, also after a failure: sandboxes, containerd, its shims, the holder
process, the namespace, the cgroups and the folder are ended or removed by their ids. The namespace is entered with
nsenter and never by `ip netns exec`, which would remount /sys and hide the cgroups.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.image import debian, demo, pause
from agent.kubelet.cri import containerd
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.images.images import Images
from agent.kubelet.images.pulls import FILE, Pulls
from agent.kubelet.model import ContainerSpec, SandboxSpec
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.paths import Paths
from cri_proto.client import Connection
from tests.node import releases

CLONE_NEWNET, CLONE_NEWNS, CLONE_FS = 0x40000000, 0x20000, 0x200
STOP_SECONDS = 15
SOCKET_LIMIT = 100  # of a Unix socket's path
KEPT = Path("/var/tmp/pelamis-test-images")  # built once for all runs on this machine
_LIBC = ctypes.CDLL(None, use_errno=True)


def processes_of(namespace: str) -> list[int]:
    """The processes in the network namespace `namespace` (a readlink of /proc/<pid>/ns/net) and all their descendants:
    containers have namespaces of their own, but their shims do not."""
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if os.readlink(entry / "ns/net") == namespace:
                    found.add(int(entry.name))
            except OSError:
                pass  # ended meanwhile
    grown = True
    while grown:
        below = {pid for pid, parent in parents.items() if parent in found} - found
        found |= below
        grown = bool(below)
    return sorted(found)


class Host:
    """One test host. `run_containerd=False` leaves containerd to the code under test; `version` is the containerd to
    run where it is not the host's own; `spreading=False` leaves mounts private, as in most containers."""

    def __init__(self, run_containerd: bool = True, version: str = "", spreading: bool = True) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.netns = f"pelamis-{self.id}"
        self.root = Path("/tmp") / self.netns
        self.paths = Paths(self.root)
        self.cgroup = f"/pelamis-test-{self.id}"
        self.programs = f"{releases.programs(version, KEPT)}:{containerd.PROGRAMS}" if version else containerd.PROGRAMS
        self.containerd: subprocess.Popen[bytes] | None = None
        self.holder: subprocess.Popen[bytes] | None = None
        self._attempts = 0
        try:
            self._open(spreading)
            if run_containerd:
                self.serve()
        except BaseException:
            self.close()
            raise

    def _open(self, spreading: bool) -> None:
        self.root.mkdir()
        self.paths.lib.mkdir(parents=True)
        KEPT.mkdir(exist_ok=True)
        (self.paths.lib / "images").symlink_to(KEPT)
        subprocess.run(["ip", "netns", "add", self.netns], check=True)
        subprocess.run(["ip", "-n", self.netns, "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "-n", self.netns, "address", "add", "10.0.0.1/32", "dev", "lo"], check=True)
        # A tmpfs each: the names of pods' namespaces, the shims' sockets and the plugins' notes stay on this host, and
        # vanish with the holder.
        script = ("for folder in /run/netns /run/containerd /var/lib/cni; do mkdir -p $folder && "
                  "mount -t tmpfs tmpfs $folder || exit 1; done; "
                  f"mount --make-r{'shared' if spreading else 'private'} / && echo ready && exec sleep infinity")
        self.holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "-m", "--propagation", "private", "sh", "-c",
             script], stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"

    def serve(self) -> None:
        """Run containerd, with a network for pods and the images that most tests use."""
        self.network()
        self.start_containerd()
        asyncio.run(self.install(pause.NAME, demo.BUSYBOX))

    def enter(self, *command: str) -> list[str]:
        """`command` as run on this host: in its network and mount namespaces."""
        assert self.holder is not None
        return ["nsenter", "--target", str(self.holder.pid), "--net", "--mount", "--", *command]

    def call(self, *command: str) -> str:
        """Run `command` on this host; what it prints."""
        return subprocess.run(self.enter(*command), check=True, capture_output=True, text=True).stdout

    def network(self) -> None:
        """What pods are connected to."""
        self.bridge("10-test.conflist", "10.244.7.0/24")

    def bridge(self, name: str, subnet: str) -> Path:
        """The configuration of a bridge network by the reference plugins, from Debian's package."""
        plugins = KEPT / "plugins/usr/lib/cni"
        if not plugins.is_dir():
            package = debian.fetch("containernetworking-plugins", KEPT / "packages")
            subprocess.run(["dpkg-deb", "-x", package, KEPT / "plugins"], check=True)
        self.paths.cni_bin.mkdir(parents=True, exist_ok=True)
        self.paths.cni_conf.mkdir(parents=True, exist_ok=True)
        for plugin in ("bridge", "host-local", "loopback", "portmap"):
            if not (self.paths.cni_bin / plugin).exists():
                (self.paths.cni_bin / plugin).symlink_to(plugins / plugin)
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True,
                  "ipam": {"type": "host-local", "dataDir": str(self.root / "cni"),
                           "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}}
        written = self.paths.cni_conf / name
        written.write_text(json.dumps({"cniVersion": "0.4.0", "name": self.netns, "plugins": [bridge]}))
        return written

    def start_containerd(self) -> None:
        assert len(str(self.paths.containerd_socket)) < SOCKET_LIMIT

        command: list[str] = []

        async def prepare() -> None:
            containerd.prepare(self.paths, self.programs)
            command.extend(self.enter(*containerd.command(self.paths, self.programs)))
        self.inside(prepare)
        env = {**os.environ, **containerd.environment(self.paths), "PATH": self.programs}
        with open(self.root / "containerd.log", "ab") as log:
            self.containerd = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        asyncio.run(containerd.ready(self.paths))

    def stop_containerd(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self.containerd is not None:
            self.containerd.send_signal(how)
            self.containerd.wait(STOP_SECONDS)
            self.containerd = None

    async def install(self, *names: str) -> None:
        """Have our own images called `names` in containerd."""
        async with Connection(self.paths.containerd_socket) as connection:
            await demo.install(connection, self.paths, names)

    # --- pods by hand
    def sandbox(self, name: str, **more: Any) -> SandboxSpec:
        """A SandboxSpec whose uid, logs and cgroup belong to this host."""
        self._attempts += 1
        uid = f"{name}-{self.id}-{self._attempts}"
        return SandboxSpec(**{"uid": uid, "namespace": "default", "name": name, "hostname": name,
                              "log_directory": str(self.paths.pod_logs / f"default_{name}_{uid}"),
                              "cgroup_parent": f"{self.cgroup}/pod{uid}", **more})

    @staticmethod
    def shell(script: str, name: str = "main", **more: Any) -> ContainerSpec:
        """A busybox container running `script`."""
        return ContainerSpec(**{"name": name, "image": demo.BUSYBOX, "command": ("sh", "-c", script),
                                "log_path": f"{name}/0.log", **more})

    def run(self, body: Callable[[Runtime, Images], Coroutine[Any, Any, None]]) -> None:
        """Run `body` with a runtime and images connected to this host, in its network namespace."""
        async def connected() -> None:
            async with Connection(self.paths.containerd_socket) as connection:
                pulls = Pulls(self.paths.kubelet / FILE, SYSTEM)
                await body(Runtime(connection), Images(connection, pulls=pulls))
        self.inside(connected)

    def inside(self, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the coroutine in a thread that is in this host's network and mount namespaces, so its sockets and
        mounts are too; threads it starts inherit both."""
        failures: list[BaseException] = []

        def thread() -> None:
            try:
                assert self.holder is not None
                own = f"/proc/{self.holder.pid}/ns"  # good also for a caller that is inside
                with open(f"{own}/net") as network, open(f"{own}/mnt") as mounts:
                    # The kernel lets a thread change its mounts only when it shares its root with no other.
                    if _LIBC.unshare(CLONE_FS) or _LIBC.setns(network.fileno(), CLONE_NEWNET) \
                            or _LIBC.setns(mounts.fileno(), CLONE_NEWNS):
                        raise OSError(ctypes.get_errno(), "setns")
                asyncio.run(body())
            except BaseException as error:
                failures.append(error)

        worker = threading.Thread(target=thread)
        worker.start()
        worker.join()
        if failures:
            raise failures[0]

    # --- the end
    async def _remove_pods(self) -> None:
        async with Connection(self.paths.containerd_socket) as connection:
            runtime = Runtime(connection)
            for pod in (await runtime.observe()).values():
                for sandbox in pod.sandboxes:
                    await runtime.stop_sandbox(sandbox.id)
                    await runtime.remove_sandbox(sandbox.id)

    def close(self) -> None:
        """Every step is taken, whatever the ones before it met; the first failure is raised at the end."""
        failures: list[BaseException] = []
        for step in (self._end_pods, self._end_processes, self._end_holder, self._remove_groups, self._remove_folder):
            try:
                step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _end_pods(self) -> None:
        if self.containerd is not None:
            try:
                asyncio.run(asyncio.wait_for(self._remove_pods(), STOP_SECONDS * 4))
            finally:
                self.stop_containerd()

    def _end_processes(self) -> None:
        limit = time.monotonic() + STOP_SECONDS
        while left := self._left():
            if time.monotonic() > limit:
                raise AssertionError(f"processes {left} of the test host do not end")
            for pid in left:
                _signal(pid)
            time.sleep(0.02)  # the kernel takes a moment to end them; each round looks anew

    def _left(self) -> set[int]:
        """Processes of the host, and those of containers whose shim was killed, which no runtime knows of any more."""
        found: set[int] = set()
        for file in (file for top in self._groups() for file in top.rglob("cgroup.procs")):
            with contextlib.suppress(OSError):  # the group went meanwhile
                found.update(map(int, file.read_text().split()))
        found.discard(0)  # of no process this one can see
        if self.holder is not None and self.holder.poll() is None:
            mine = os.readlink(f"/proc/{self.holder.pid}/ns/net")
            if mine != os.readlink("/proc/self/ns/net"):
                found |= {*processes_of(mine)} - {self.holder.pid}
        return found

    def _end_holder(self) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()
            if self.holder.stdout is not None:
                self.holder.stdout.close()
        subprocess.run(["ip", "netns", "del", self.netns], stderr=subprocess.DEVNULL)

    def _groups(self) -> list[Path]:
        """Only our own, named by our id, in every hierarchy."""
        return [Path("/sys/fs/cgroup", hierarchy, self.cgroup.strip("/"))
                for hierarchy in ("", *os.listdir("/sys/fs/cgroup"))]

    def _remove_groups(self) -> None:
        for top in self._groups():
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass

    def _remove_folder(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

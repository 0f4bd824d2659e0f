"""A whole cluster for a test, as a user starts it: `./pelamis up` on a host of its own, then kubectl against it.

The host is a network and mount namespace (tests/node/rig.py) with an address, its own PELAMIS_ROOT and nothing else.
All commands run inside it, so no traffic and no rule leaves it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from agent.image import demo
from tests.node import releases
from tests.node.rig import KEPT, Host

CHECKOUT = Path(__file__).resolve().parents[2]
NODE_IP = "192.168.77.10"
COMMAND_SECONDS = 240
EVENTUALLY_SECONDS = 60.0


@cache
def kubectls() -> list[str]:
    """The kubectls tests drive, the one on PATH first: `kubectl`, then `kubectl.1.27` or the like beside it and those
    of other Debian releases (fetched when the first client test runs), the oldest first and no release twice."""
    first = shutil.which("kubectl")
    if first is None:
        return []
    beside = {v: str(releases.kubectl_place(v, KEPT)) for v in releases.KUBECTLS}
    for folder in (Path(first).resolve().parent, *map(Path, _extra())):
        beside |= {p.name.removeprefix("kubectl."): str(p) for p in folder.glob("kubectl.1.*")}
    told = subprocess.run([first, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    version = json.loads(told.stdout)["clientVersion"]
    beside.pop(f"{version['major']}.{version['minor'].rstrip('+')}", None)
    return [first, *(beside[v] for v in sorted(beside))]


def fetch_kubectls() -> None:
    """See that all of `kubectls` are there. Raises AssertionError when one cannot be fetched."""
    for version in releases.KUBECTLS:
        if str(releases.kubectl_place(version, KEPT)) in kubectls():
            releases.fetch_kubectl(version, KEPT)


def _extra() -> list[str]:
    return [f for f in os.environ.get("PELAMIS_KUBECTL_DIRS", "").split(":") if f]


class Cluster:
    def __init__(self) -> None:
        self.host = Host(run_containerd=False)
        try:
            for name in demo.BUILDERS:  # the host has no way to Debian's mirror
                demo.built(name, self.host.paths)
            self._network()
        except BaseException:
            self.host.close()
            raise
        self.root = self.host.root
        self.kubeconfig = self.host.paths.admin_kubeconfig
        self.env = {**os.environ, "PELAMIS_ROOT": str(self.root), "KUBECONFIG": str(self.kubeconfig),
                    "HOME": str(self.root), "NO_COLOR": "1", "PELAMIS_VENV": os.environ.get(
                        "PELAMIS_VENV", str(Path(os.sys.executable).parents[1]))}

    def _network(self) -> None:
        """A network card with an address and a way out: one end of a veth whose other end stays on this host."""
        for line in ("link add uplink type veth peer name wire", f"addr add {NODE_IP}/24 dev uplink",
                     "link set uplink up", "link set wire up", "route add default via 192.168.77.1"):
            subprocess.run(["ip", "-n", self.host.netns, *line.split()], check=True)

    def run(self, *command: str, check: bool = True, input: str | None = None, seconds: float = COMMAND_SECONDS,
            env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the host; with `check` a failure shows what it printed."""
        done = subprocess.run(self.host.enter(*command), env={**self.env, **(env or {})}, text=True, input=input,
                              capture_output=True, timeout=seconds, cwd=CHECKOUT)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def pelamis(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.run(str(CHECKOUT / "pelamis"), *arguments, **more)

    def kubectl(self, *arguments: str, binary: str = "kubectl", **more: Any) -> str:
        """kubectl's standard output."""
        return self.run(binary, *arguments, **more).stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def fails(self, *arguments: str, **more: Any) -> str:
        """kubectl must fail; what it says on standard error."""
        done = self.run("kubectl", *arguments, check=False, **more)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def close(self) -> None:
        try:
            self.pelamis("down", "--purge", "--keep-packages", check=False)
        finally:
            self.host.close()


def eventually(check: Callable[[], Any], seconds: float = EVENTUALLY_SECONDS, why: str = "") -> Any:
    """The first true answer of `check`; an AssertionError counts as not yet. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        trouble = why
        try:
            found = check()
            if found:
                return found
        except (AssertionError, KeyError, IndexError) as error:
            trouble = f"{why} {error}"
        assert time.monotonic() < deadline, f"never became true: {trouble}"
        time.sleep(0.1)  # a poll of another process, bounded by the deadline

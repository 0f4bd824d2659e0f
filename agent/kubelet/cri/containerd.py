"""Our own instance of the distribution's containerd: its configuration, its command line, and whether it answers.

Owns config.toml (both dialects: version 2 for containerd 1.x, version 3 for 2.x) and every choice in it. The instance
has its own root, state and socket, so one that docker uses is never touched. Promises that it runs on when the agent
stops: it is a process of its own, and containers survive its restart too. Never starts or stops it; whoever supervises
processes does, with `prepare` and `command`. Called by `pelamis up`, the agent's unit and the tests' rig.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agent.image.pause import NAME as PAUSE
from agent.kubelet.cri import crun, trial
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

CAP_SYS_RESOURCE = 24
PROGRAMS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOST_REGISTRIES = Path("/etc/containerd/certs.d")
VERSION_SECONDS = 10
READY_SECONDS = 30.0  # it reads its whole store first; a cold disk with many images takes seconds
READY_PAUSE = 0.02
ANSWER_SECONDS = 2.0

# Snapshotters we never use; each would be probed at start and some log an error on most hosts.
_DISABLED = tuple(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs"))
_HUGE_PAGES = "disable_hugetlb_controller = false"  # each container is held to its own limit, not its pod alone


@dataclass(frozen=True, slots=True)
class Facts:
    """What the configuration depends on: containerd's major version and properties of the host."""

    major: int
    systemd_cgroups: bool
    may_lower_oom_score: bool
    crun: str = ""  # its program, when it is installed and works: then it runs the pods that choose no other
    crun_fault: str = ""  # why not, when it is installed and does not


def systemd_cgroups(root: Path = Path("/")) -> bool:
    """Whether systemd runs here and owns a pure cgroup v2 tree: then it must be asked for cgroups, not bypassed."""
    return (root / "run/systemd/system").is_dir() and (root / "sys/fs/cgroup/cgroup.controllers").exists()


def may_lower_oom_score(status: str) -> bool:
    """Whether the process of this /proc/<pid>/status has CAP_SYS_RESOURCE, without which a negative oom_score_adj is
    refused and no sandbox would start."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> CAP_SYS_RESOURCE & 1)


def own_status() -> str:
    """What the kernel says of this process, for `may_lower_oom_score`."""
    return Path("/proc/self/status").read_text()


def binary(programs: str = PROGRAMS) -> str:
    """containerd's path. Raises Finding when it or runc is missing."""
    for name in ("containerd", "runc"):
        if shutil.which(name, path=programs) is None:
            raise Finding(f"{name} is not installed", "pods run in it", "apt-get install containerd runc")
    return str(shutil.which("containerd", path=programs))


def facts(paths: Paths, programs: str = PROGRAMS) -> Facts:
    """The facts of this host. Raises Finding when containerd is missing or does not tell its version."""
    output = subprocess.run([binary(programs), "--version"], capture_output=True, text=True,
                            timeout=VERSION_SECONDS).stdout
    match = re.search(r"\bv?(\d+)\.\d+\.\d+", output)
    if match is None:
        raise Finding("containerd does not tell its version", f"it said {output.strip()!r}",
                      "install the distribution's containerd, 1.6 or newer")
    major, systemd, found = int(match[1]), systemd_cgroups(), crun.find(paths, programs)
    # containerd 2 asks what it can do: an old one would cost pods what runc tells, such as users of their own.
    fault = trial.fault(paths.run, *found.command, systemd=systemd, features=major >= 2) if found.path else ""
    return Facts(major, systemd, may_lower_oom_score(own_status()), "" if fault else found.program, fault)


def config_path(paths: Paths) -> Path:
    return paths.etc / "containerd.toml"


def registries(paths: Paths) -> Path:
    """Where containerd looks for mirrors and authorities of registries, a folder for each: one place, as containerd 2.1
    pulls with no more than one."""
    return paths.etc / "certs.d"


def adopt_registries(ours: Path, theirs: Path) -> None:
    """Have what containerd's own users wrote for registries count here too, by a link to each that we lack."""
    for entry in ours.iterdir():
        if entry.is_symlink() and not entry.exists():
            entry.unlink()
    for entry in sorted(theirs.iterdir()) if theirs.is_dir() else ():
        if not (ours / entry.name).exists():
            (ours / entry.name).symlink_to(entry)


def config(paths: Paths, known: Facts) -> str:
    """The text of config.toml."""
    disabled = ", ".join(f'"{name}"' for name in _DISABLED)
    version = 2 if known.major < 2 else 3
    head = f"""\
# Written by Pelamis at every start; changes are lost. Registries: <host>/hosts.toml in {registries(paths)}
version = {version}
root = "{paths.containerd}"
state = "{paths.run / "containerd/state"}"
disabled_plugins = [{disabled}]
[grpc]
  address = "{paths.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{paths.containerd / "opt"}"
"""
    return head + (_version_2(paths, known) if version == 2 else _version_3(paths, known))


def _runtime(plugin: str, known: Facts) -> str:
    """The part that both dialects share below their runtime plugin's name. crun starts a container in half the time
    that runc takes."""
    said = f"# crun is installed and cannot be used: {known.crun_fault}\n" if known.crun_fault else ""
    return said + f"""\
  [plugins."{plugin}".containerd]
    default_runtime_name = "{"crun" if known.crun else "runc"}"
""" + _handler(plugin, known, "runc") + (_handler(plugin, known, "crun", known.crun) if known.crun else "")


def _handler(plugin: str, known: Facts, name: str, program: str = "") -> str:
    """One runtime that a RuntimeClass may name as its handler."""
    named = f'        BinaryName = "{program}"\n' if program else ""
    return f"""\
    [plugins."{plugin}".containerd.runtimes.{name}]
      runtime_type = "io.containerd.runc.v2"
      [plugins."{plugin}".containerd.runtimes.{name}.options]
        SystemdCgroup = {str(known.systemd_cgroups).lower()}
{named}"""


def _cni(plugin: str, paths: Paths) -> str:
    return f"""\
  [plugins."{plugin}".cni]
    bin_dir = "{paths.cni_bin}"
    conf_dir = "{paths.cni_conf}"
"""


def _version_2(paths: Paths, known: Facts) -> str:
    plugin = "io.containerd.grpc.v1.cri"
    return f"""\
[plugins."{plugin}"]
  sandbox_image = "{PAUSE}"
  enable_cdi = true
  {_HUGE_PAGES}
  restrict_oom_score_adj = {str(not known.may_lower_oom_score).lower()}
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."{plugin}".registry]
    config_path = "{registries(paths)}"
""" + _cni(plugin, paths) + _runtime(plugin, known)


def _version_3(paths: Paths, known: Facts) -> str:
    images, runtime, server = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"
    return f"""\
[plugins."{server}"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."{images}".pinned_images]
  sandbox = "{PAUSE}"
[plugins."{images}".registry]
  config_path = "{registries(paths)}"
[plugins."{runtime}"]
  {_HUGE_PAGES}
  restrict_oom_score_adj = {str(not known.may_lower_oom_score).lower()}
""" + _cni(runtime, paths) + _runtime(runtime, known)


def prepare(paths: Paths, programs: str = PROGRAMS) -> Path:
    """Write the configuration and make the folders it names; the configuration's path. `programs` is where containerd
    and the runtimes are looked for, as in PATH. Raises Finding."""
    text = config(paths, facts(paths, programs))
    for folder in (registries(paths), paths.cni_conf, paths.cni_bin, paths.containerd, paths.containerd_socket.parent):
        folder.mkdir(parents=True, exist_ok=True)
    adopt_registries(registries(paths), HOST_REGISTRIES)
    crun.find(paths, programs).write()
    path = config_path(paths)
    path.write_text(text)
    return path


def clear(paths: Paths, programs: str = PROGRAMS) -> None:
    """End what a `prepare` that was killed had running."""
    found = crun.find(paths, programs)
    if found.path:
        trial.clear(paths.run, *found.command, systemd=systemd_cgroups())


def command(paths: Paths, programs: str = PROGRAMS) -> list[str]:
    """What to run, after `prepare`. It logs to stderr and stops on SIGTERM; containers run on."""
    before = crun.find(paths, programs).before
    return [*before, binary(programs), "--config", str(config_path(paths)), "--log-level", "warn"]


def environment(paths: Paths) -> dict[str, str]:
    """What the process has in its environment besides. A low-level runtime mounts its own program there for a moment;
    one that is killed then leaves the mount, which goes with the folder."""
    return {"_LIBCONTAINER_STATEDIR": str(paths.containerd_socket.parent)}


async def ready(paths: Paths, clock: Clock = SYSTEM, seconds: float = READY_SECONDS) -> tuple[str, str]:
    """Wait until it answers over CRI; its name and version. Raises Finding after `seconds`."""
    import grpc.aio

    from cri_proto.client import Connection, describe
    from cri_proto.messages import cri

    deadline = clock.monotonic() + seconds
    async with Connection(paths.containerd_socket) as connection:
        while True:
            try:
                answer = await connection.runtime.Version(cri.VersionRequest(version="v1"), timeout=ANSWER_SECONDS)
                return answer.runtime_name, answer.runtime_version
            except grpc.aio.AioRpcError as error:
                if clock.monotonic() > deadline:
                    raise Finding("containerd does not answer", describe(error),
                                  f"see its log, and try: {' '.join(command(paths))}") from error
            await clock.sleep(READY_PAUSE)

"""A container runtime that was there before us: looked at, told what it lacks, never changed.

Owns what its configuration must say for our pods. `faults` is pure over what the runtime tells of itself: containerd
by CRI's verbose status, CRI-O by its own `/config` on the same socket; what is not told is not judged. Called by
`install` when `--container-runtime-endpoint` is given.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

ASK_SECONDS = 10.0
LEAST = {"containerd": (1, 6), "cri-o": (1, 26)}
CRIO = "cri-o"


@dataclass(frozen=True, slots=True)
class Told:
    """What of a configuration matters to us, and how the runtime would have it written. None and "" are not told."""

    networks: str = ""  # the folder with the configuration of the pods' network
    plugins: tuple[str, ...] = ()  # the folders with its programs
    systemd: bool | None = None  # has systemd make control groups
    keeps_scores: bool | None = None  # leaves a process the protection from the out-of-memory killer that it has
    network_lines: str = ""
    systemd_lines: tuple[str, str] = ("", "")  # for no, and for yes


def of_containerd(text: str, paths: Paths) -> Told:
    """Of the configuration in CRI's status, as JSON."""
    config: dict[str, Any] = json.loads(text)
    cni, runtimes = config.get("cni") or {}, config.get("containerd") or {}
    default = runtimes.get("defaultRuntimeName") or "runc"
    options = ((runtimes.get("runtimes") or {}).get(default) or {}).get("options") or {}
    folders = cni.get("binDirs") or filter(None, [cni.get("binDir")])
    return Told(cni.get("confDir") or "", tuple(folders),
                bool(options.get("SystemdCgroup")), bool(config.get("restrictOOMScoreAdj")),
                f'below [plugins.….cni]:\n    conf_dir = "{paths.cni_conf}"\n    bin_dir = "{paths.cni_bin}"',
                (f"below runtimes.{default}.options: SystemdCgroup = false",
                 f"below runtimes.{default}.options: SystemdCgroup = true"))


def of_crio(text: str, paths: Paths) -> Told:
    """Of its whole configuration, as TOML."""
    config: dict[str, Any] = tomllib.loads(text).get("crio") or {}
    network, manager = config.get("network") or {}, (config.get("runtime") or {}).get("cgroup_manager")
    return Told((network.get("network_dir") or "").rstrip("/"),
                tuple(folder.rstrip("/") for folder in network.get("plugin_dirs") or ()),
                None if manager is None else manager == "systemd", None,
                f'below [crio.network]:\n    network_dir = "{paths.cni_conf}"\n    plugin_dirs = ["{paths.cni_bin}"]',
                ('below [crio.runtime]: cgroup_manager = "cgroupfs" and conmon_cgroup = "pod"',
                 'below [crio.runtime]: cgroup_manager = "systemd" and conmon_cgroup = "pod"'))


def faults(name: str, version: str, config: str, paths: Paths, systemd: bool,
           may_lower_oom_score: bool = True) -> list[Finding]:
    """What of the runtime does not fit, each with the lines to write. `config` is what it tells, "" for nothing;
    `systemd` says who makes control groups here, and `may_lower_oom_score` whether root may protect a process from the
    out-of-memory killer, as on every real machine."""
    found = []
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2] if part.isdigit())
    least = LEAST.get(name)
    if least and len(numbers) == 2 and numbers < least:
        found.append(Finding(f"{name} is {version}", f"the oldest that works is {least[0]}.{least[1]}",
                             f"upgrade {name}"))
    told = Told() if not config else (of_crio if name == CRIO else of_containerd)(config, paths)
    strange = ""
    if told.networks not in ("", str(paths.cni_conf)):
        strange = f"pod networks in {told.networks}"
    elif told.plugins and str(paths.cni_bin) not in told.plugins:
        strange = f"network plugins in {', '.join(told.plugins)}"
    if strange:
        found.append(Finding(f"{name} looks for {strange}",
                             "its pods would be on another network than the cluster's",
                             f"in its configuration, {told.network_lines}\n  then restart it"))
    if told.systemd not in (None, systemd):
        found.append(Finding(f"{name} makes control groups {'itself' if systemd else 'by systemd'}",
                             "two masters of one tree lose pods' limits",
                             f"in its configuration, {told.systemd_lines[systemd]}, then restart it"))
    if not may_lower_oom_score and told.keeps_scores is False:
        found.append(Finding(f"{name} may not lower an oom_score_adj on this host",
                             "root has no CAP_SYS_RESOURCE here, as in a container, and no pod would start",
                             "in its configuration, below the CRI plugin: restrict_oom_score_adj = true, "
                             "then restart it"))
    return found


async def crio_config(socket: Path) -> str:
    """What CRI-O tells of its configuration; "" when it does not."""
    import aiohttp
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket)),
                                         timeout=aiohttp.ClientTimeout(ASK_SECONDS)) as session, \
                session.get("http://localhost/config") as answer:
            return await answer.text() if answer.ok else ""
    except (aiohttp.ClientError, TimeoutError):
        return ""


async def look(socket: Path, paths: Paths) -> None:
    """Raises the first Finding about the runtime at `socket`."""
    import grpc.aio

    from agent.kubelet.cri.containerd import may_lower_oom_score, own_status, systemd_cgroups
    from cri_proto.client import Connection, describe
    from cri_proto.messages import cri
    try:
        async with Connection(socket) as connection:
            version = await connection.runtime.Version(cri.VersionRequest(version="v1"), timeout=ASK_SECONDS)
            status = await connection.runtime.Status(cri.StatusRequest(verbose=True), timeout=ASK_SECONDS)
    except (OSError, grpc.aio.AioRpcError) as error:
        said = describe(error) if isinstance(error, grpc.aio.AioRpcError) else str(error)
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise Finding(f"what answers at {socket} runs no pods", said, "in its configuration take \"cri\" out of "
                          "disabled_plugins, where Docker's package has it, then restart it") from None
        raise Finding(f"no container runtime answers at {socket}", said,
                      "start it, or leave --container-runtime-endpoint out") from None
    config = await crio_config(socket) if version.runtime_name == CRIO else dict(status.info).get("config", "")
    for finding in faults(version.runtime_name, version.runtime_version, config, paths, systemd_cgroups(),
                          may_lower_oom_score(own_status())):
        raise finding

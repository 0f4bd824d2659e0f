"""A container runtime that was there before us: looked at, told what it lacks, never changed.

Owns what its configuration must say for our pods. `faults` is pure over what the runtime tells of itself (CRI's
verbose status); containerd tells its whole configuration, CRI-O little, and what is not told is not judged. Called by
`install` when `--container-runtime-endpoint` is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

ASK_SECONDS = 10.0
LEAST = {"containerd": (1, 6), "cri-o": (1, 26)}


def faults(name: str, version: str, info: dict[str, str], paths: Paths, systemd: bool,
           may_lower_oom_score: bool = True) -> list[Finding]:
    """What of the runtime does not fit, each with the lines to write. `systemd` says who makes control groups here, and
    `may_lower_oom_score` whether root may protect a process from the out-of-memory killer, as on every real machine."""
    found = []
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2] if part.isdigit())
    least = LEAST.get(name)
    if least and len(numbers) == 2 and numbers < least:
        found.append(Finding(f"{name} is {version}", f"the oldest that works is {least[0]}.{least[1]}",
                             f"upgrade {name}"))
    config: dict[str, Any] = json.loads(info.get("config") or "{}")
    if not config:
        return found
    cni = config.get("cni") or {}
    wanted = {"conf_dir": str(paths.cni_conf), "bin_dir": str(paths.cni_bin)}
    has = {"conf_dir": cni.get("confDir", wanted["conf_dir"]),
           "bin_dir": (cni.get("binDirs") or [cni.get("binDir", wanted["bin_dir"])])[0]}
    wrong = [key for key in wanted if has[key] != wanted[key]]
    if wrong:
        lines = "\n".join(f'    {key} = "{wanted[key]}"' for key in wanted)
        found.append(Finding(f"{name} looks for pod networks in {has['conf_dir']}",
                             "its pods would be on another network than the cluster's",
                             f"in its configuration, below [plugins.….cni]:\n{lines}\n  then restart it"))
    runtimes = config.get("containerd") or {}
    default = runtimes.get("defaultRuntimeName") or "runc"
    options = ((runtimes.get("runtimes") or {}).get(default) or {}).get("options") or {}
    if bool(options.get("SystemdCgroup")) != systemd:
        found.append(Finding(f"{name} makes control groups {'itself' if systemd else 'by systemd'}",
                             "two masters of one tree lose pods' limits", f"below runtimes.{default}.options: "
                             f"SystemdCgroup = {str(systemd).lower()}, then restart it"))
    if not may_lower_oom_score and not config.get("restrictOOMScoreAdj"):
        found.append(Finding(f"{name} may not lower an oom_score_adj on this host",
                             "root has no CAP_SYS_RESOURCE here, as in a container, and no pod would start",
                             "in its configuration, below the CRI plugin: restrict_oom_score_adj = true, "
                             "then restart it"))
    return found


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
    for finding in faults(version.runtime_name, version.runtime_version, dict(status.info), paths, systemd_cgroups(),
                          may_lower_oom_score(own_status())):
        raise finding

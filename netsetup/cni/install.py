"""Put the CNI plugin and its configuration where containerd looks.

Owns the two files in the plugin folder (`pelamis`, and `loopback`, which containerd always runs: the same program) and
the configuration list. The configuration is written only when the node knows its pod CIDR, and atomically: containerd
reports NetworkReady as soon as the file is there. A configuration that somebody else put into the folder, which is
ours alone, is meant: pods get their network from there, and ours is taken away.

Also takes away what a power cut left of runtimes' own memory of networks.

Called before a host's services start (`install`, `forget_cut_off`) and by the CNI daemon when it is configured
(`write_configuration`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
from pathlib import Path

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.cni.wire import VERSION
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
PLUGIN = "pelamis"
CONFIGURATION = "10-pelamis.conflist"
PLACEHOLDER = b"@PELAMIS-CNI-SOCKET@"
SOCKET_PATH_LIMIT = 107  # sun_path less its final zero
RESULTS = Path("/var/lib/cni/results")  # libcni's, whatever a runtime's configuration says: what each network answered


def program(socket: str, machine: str = "") -> bytes:
    """The plugin's bytes for this machine, the socket's path written into it. Raises Finding for too long a path."""
    path = socket.encode()
    if len(path) > SOCKET_PATH_LIMIT:
        raise Finding(f"the path of the CNI socket is too long: {socket}",
                      f"a socket's path has at most {SOCKET_PATH_LIMIT} bytes", "choose a shorter PELAMIS_ROOT")
    if (machine or platform.machine()) == "x86_64":
        code = (HERE / "shim.amd64").read_bytes()
        at = code.index(PLACEHOLDER)
        return code[:at] + path.ljust(SOCKET_PATH_LIMIT + 1, b"\0") + code[at + SOCKET_PATH_LIMIT + 1:]
    text = (HERE / "shim.py").read_bytes()
    return text.replace(b"@INTERPRETER@", os.path.realpath(sys.executable).encode()).replace(PLACEHOLDER, path)


def install(paths: Paths, ledger: Ledger) -> None:
    """Write the plugins, and take an old configuration of ours away until the pod CIDR is known again."""
    ledger.share_directory(paths.cni_bin)
    ledger.share_directory(paths.cni_conf)
    code = program(str(paths.cni_socket))
    for name in (PLUGIN, "loopback"):
        _write(paths.cni_bin / name, code, 0o755)


def forget_cut_off(booted: float, results: Path = RESULTS) -> None:
    """Remove answers of networks that cannot be read: nobody waits until they are on the disk, and with one that a
    power cut left empty libcni would never let its pod go; without it, it does. `booted`: wall seconds; what is
    younger somebody may be writing."""
    for path in results.glob("*"):
        try:
            if path.stat().st_mtime >= booted or _readable(path):
                continue
            path.unlink()
            log.warning("%s was cut off by the end of the machine, and is forgotten", path)
        except OSError as error:
            log.warning("%s may keep a pod from being removed: %s", path, error)


def _readable(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def configuration(mtu: int) -> bytes:
    plugin = {"type": PLUGIN, "mtu": mtu, "capabilities": {"portMappings": True, "bandwidth": True}}
    return json.dumps({"cniVersion": VERSION, "name": PLUGIN, "plugins": [plugin]}, indent=2).encode() + b"\n"


def write_configuration(paths: Paths, ledger: Ledger, mtu: int) -> None:
    """From now on containerd calls the network ready."""
    ledger.make_directory(paths.cni_conf)
    _write(paths.cni_conf / CONFIGURATION, configuration(mtu), 0o644)


def withdraw_configuration(paths: Paths) -> None:
    """The opposite: new pods get their network from whoever else has a configuration there."""
    (paths.cni_conf / CONFIGURATION).unlink(missing_ok=True)


def foreign(paths: Paths) -> Path | None:
    """The configuration that somebody else put there; of several the first, which containerd uses."""
    return min((path for path in paths.cni_conf.glob("*")
                if path.suffix in (".conf", ".conflist", ".json") and path.name != CONFIGURATION), default=None)


def _write(path: Path, data: bytes, mode: int) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    staged = path.with_name(f".{path.name}.new")
    staged.write_bytes(data)
    staged.chmod(mode)
    os.replace(staged, path)

"""Put the CNI plugin and its configuration where containerd looks.

Owns the two files in the plugin folder (`pelamis`, and `loopback`, which containerd always runs: the same program) and
the configuration list. The configuration is written only when the node knows its pod CIDR, and atomically: containerd
reports NetworkReady as soon as the file is there. A configuration of somebody else that sorts before ours would win
silently; that is a Finding.

Called by the agent at start (`install`) and by the CNI daemon when it is configured (`write_configuration`).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.cni.wire import VERSION
from netsetup.ledger import Ledger

HERE = Path(__file__).parent
PLUGIN = "pelamis"
CONFIGURATION = "10-pelamis.conflist"
PLACEHOLDER = b"@PELAMIS-CNI-SOCKET@"
SOCKET_PATH_LIMIT = 107  # sun_path less its final zero


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


def configuration(mtu: int) -> bytes:
    plugin = {"type": PLUGIN, "mtu": mtu, "capabilities": {"portMappings": True, "bandwidth": True}}
    return json.dumps({"cniVersion": VERSION, "name": PLUGIN, "plugins": [plugin]}, indent=2).encode() + b"\n"


def write_configuration(paths: Paths, ledger: Ledger, mtu: int) -> Finding | None:
    """From now on containerd calls the network ready. A foreign configuration before ours is named, not touched."""
    ledger.make_directory(paths.cni_conf)
    _write(paths.cni_conf / CONFIGURATION, configuration(mtu), 0o644)
    before = sorted(p.name for p in paths.cni_conf.iterdir()
                    if p.suffix in (".conf", ".conflist", ".json") and p.name < CONFIGURATION)
    if before:
        return Finding(f"{paths.cni_conf / before[0]} comes before {CONFIGURATION}",
                       "containerd uses the first one, so pods get their network from there",
                       f"remove {paths.cni_conf / before[0]} if Pelamis shall give pods their network")
    return None


def _write(path: Path, data: bytes, mode: int) -> None:
    if path.exists() and path.read_bytes() == data:
        return
    staged = path.with_name(f".{path.name}.new")
    staged.write_bytes(data)
    staged.chmod(mode)
    os.replace(staged, path)

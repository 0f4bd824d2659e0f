"""One CNI call as it travels between the shim and the agent: parsed, checked and answered.

Owns the framing (variables ended by zero bytes, an empty one, then the configuration; the answer's first byte is the
exit code) and the shapes of the CNI specification: `Call`, `CniError` with its well-known codes, the result of an ADD
in the version the runtime asked for. Pure.

Upstream: CNI specification 1.1.0.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
VERSION = "1.0.0"  # of our own configuration list
REQUEST_LIMIT = 1 << 20  # bytes of one call: the shim's own buffer
COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
NEEDS_CONTAINER = ("ADD", "DEL", "CHECK")
INCOMPATIBLE, UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT = 1, 2, 3, 4
IO_FAILURE, BAD_CONTENT, INVALID_CONFIG, TRY_LATER = 5, 6, 7, 11
NOT_AVAILABLE = 50  # STATUS: the plugin cannot serve ADD now
BROKEN = 100  # the first code of a plugin's own


class CniError(Exception):
    """A failure as CNI tells it. Codes below 100 are the specification's."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


@dataclass(frozen=True, slots=True)
class Call:
    command: str
    container: str = ""
    netns: str = ""
    interface: str = ""
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def plugin(self) -> str:
        return str(self.config.get("type", ""))

    @property
    def version(self) -> str:
        return str(self.config.get("cniVersion") or "0.3.0")

    @property
    def port_mappings(self) -> list[dict[str, Any]]:
        given = (self.config.get("runtimeConfig") or {}).get("portMappings") or []
        return [m for m in (_spelled(m) for m in given) if m.get("hostPort")]

    @property
    def bandwidth(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rate, burst) in bits per second and bits of what the pod receives, and of what it sends; rate 0: any."""
        given = _spelled((self.config.get("runtimeConfig") or {}).get("bandwidth") or {})
        return ((int(given.get("ingressRate") or 0), int(given.get("ingressBurst") or 0)),
                (int(given.get("egressRate") or 0), int(given.get("egressBurst") or 0)))


_NAMES = {name.lower(): name for name in ("hostPort", "containerPort", "protocol", "hostIP", "ingressRate",
                                          "ingressBurst", "egressRate", "egressBurst")}


def _spelled(given: dict[str, Any]) -> dict[str, Any]:
    """Names as the conventions spell them: containerd capitalizes them, and Go programs do not mind."""
    return {_NAMES.get(key.lower(), key): value for key, value in given.items()}


def parse(data: bytes) -> Call:
    """Raises CniError for anything that is no CNI call."""
    head, separator, body = data.partition(b"\0\0")
    if not separator:
        head, body = (b"", data[1:]) if data.startswith(b"\0") else (data, b"")
    pairs = dict(item.decode(errors="replace").partition("=")[::2] for item in head.split(b"\0") if item)
    try:
        config = json.loads(body) if body.strip() else {}
    except ValueError as error:
        raise CniError(BAD_CONTENT, f"failed to decode the network configuration: {error}") from error
    if not isinstance(config, dict):
        raise CniError(BAD_CONTENT, "the network configuration is no object")
    call = Call(pairs.get("CNI_COMMAND", ""), pairs.get("CNI_CONTAINERID", ""), pairs.get("CNI_NETNS", ""),
                pairs.get("CNI_IFNAME", ""), config)
    if call.command not in COMMANDS:
        raise CniError(INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {call.command}")
    if call.command != "VERSION" and call.version not in VERSIONS:
        raise CniError(INCOMPATIBLE, f'incompatible CNI versions; config is "{call.version}", plugin supports '
                                     f"[{' '.join(VERSIONS)}]")
    if call.command in NEEDS_CONTAINER and not (call.container and call.interface):
        raise CniError(INVALID_ENVIRONMENT, "required env variables [CNI_CONTAINERID CNI_IFNAME] missing")
    if call.command in ("ADD", "CHECK") and not call.netns:
        raise CniError(INVALID_ENVIRONMENT, "required env variables [CNI_NETNS] missing")
    return call


def answer(result: dict[str, Any] | None) -> bytes:
    return b"\0" + (json.dumps(result, separators=(",", ":")).encode() if result is not None else b"")


def failure(error: CniError, version: str = VERSION) -> bytes:
    body = {"cniVersion": version, "code": error.code, "msg": error.message}
    if error.details:
        body["details"] = error.details
    return b"\1" + json.dumps(body, separators=(",", ":")).encode()


def versions(asked: str) -> dict[str, Any]:
    return {"cniVersion": asked if asked in VERSIONS else VERSION, "supportedVersions": list(VERSIONS)}


def added(call: Call, addresses: list[tuple[str, str, str]], host: str, mac: str, host_mac: str) -> dict[str, Any]:
    """The result of an ADD: the host end, the pod's end, its addresses (with gateway and range) and default routes."""
    entries: list[dict[str, Any]] = []
    for address, gateway, _ in addresses:
        version = {"version": "6" if ":" in address else "4"} if call.version.startswith("0.") else {}
        entries.append({**version, "interface": 1, "address": address, "gateway": gateway})
    return {"cniVersion": call.version,
            "interfaces": [{"name": host, "mac": host_mac},
                           {"name": call.interface, "mac": mac, "sandbox": call.netns}],
            "ips": entries, "routes": [{"dst": everything, "gw": gateway} for _, gateway, everything in addresses],
            "dns": {}}


def loopback(call: Call) -> dict[str, Any]:
    """The result of an ADD of the loopback plugin."""
    address: dict[str, Any] = {"interface": 0, "address": "127.0.0.1/8"}
    if call.version.startswith("0."):
        address = {"version": "4", **address}
    return {"cniVersion": call.version, "ips": [address], "dns": {},
            "interfaces": [{"name": call.interface, "mac": "00:00:00:00:00:00", "sandbox": call.netns}]}


def valid_attachments(call: Call) -> set[str]:
    """The container ids a GC call names as alive. Raises CniError when the key is missing: then nothing may go."""
    given = call.config.get("cni.dev/valid-attachments")
    if not isinstance(given, list):
        raise CniError(INVALID_CONFIG, "GC without cni.dev/valid-attachments")
    return {str(a.get("containerID")) for a in given}

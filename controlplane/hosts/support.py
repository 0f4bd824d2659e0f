"""One file that tells others what a host and its cluster are like, and nothing they must not know.

Owns what is collected and how it is redacted: by the schema of each kind, so that a secret is gone wherever its kind
keeps it, and by pattern in logs. Promises that a part that cannot be read is told instead of failing the rest, that no
key, token or kubeconfig is in the file, and that no part is larger than MOST_BYTES. `redact`, `scrub` and `within` are
pure. Called by the command `support`.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from controlplane.doctor import checks, cluster, gather
from controlplane.hosts.layout import Layout
from controlplane.machinery.clock import SYSTEM, rfc3339
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.objects import deep_copy
from controlplane.machinery.paths import Paths
from controlplane.machinery.resources import named
from netsetup.ledger import Ledger

Obj = dict[str, Any]
GONE = "(redacted)"
MOST_BYTES = 8 << 20  # of one part: what is older is cut off, so that the file can be sent
MOST_OBJECTS = 2000  # of one kind, in the order of their names
LOG_LINES = "2000"  # of each unit: hours of a quiet node, the beginning of a storm
ASK_SECONDS = 30.0
KINDS = ("nodes", "pods", "services", "events", "persistentvolumes", "persistentvolumeclaims", "namespaces",
         "deployments.apps", "daemonsets.apps", "statefulsets.apps", "endpointslices.discovery.k8s.io",
         "networkpolicies.networking.k8s.io", "certificatesigningrequests.certificates.k8s.io", "configmaps", "secrets",
         "validatingwebhookconfigurations.admissionregistration.k8s.io",
         "mutatingwebhookconfigurations.admissionregistration.k8s.io", "customresourcedefinitions.apiextensions.k8s.io",
         "apiservices.apiregistration.k8s.io")
COMMANDS = {"addresses": ("ip", "-d", "address"), "routes": ("ip", "route", "show", "table", "all"),
            "rules": ("ip", "rule"), "nftables": ("nft", "list", "ruleset"), "iptables": ("iptables-save",),
            "iptables-legacy": ("iptables-legacy-save",), "mounts": ("findmnt", "-l"), "sockets": ("ss", "-lntup"),
            "processes": ("ps", "-eo", "pid,ppid,user,rss,etime,comm"), "packages": ("dpkg-query", "-W"),
            "units": ("systemctl", "list-units", "--all", "--no-pager", "pelamis*"), "kernel": ("uname", "-a"),
            "memory": ("free", "-m"), "disks": ("df", "-h"), "inodes": ("df", "-i")}
# Where a kind keeps what is nobody's business: fields whose values go, by the last name in a path.
_MAPS = {"Secret": ("data", "stringData"), "ConfigMap": ("data", "binaryData")}
_FIELDS = {"caBundle", "request", "certificate", "token", "password", "client-key-data", "client-certificate-data",
           "dockerconfigjson", "secret", "secretKey", "accessKey"}
_LAST = "kubectl.kubernetes.io/last-applied-configuration"
# What looks like a credential in a line of a log.
_SECRETS = re.compile(r"(eyJ[\w-]{8,}\.[\w-]+\.[\w-]+|\b[a-z0-9]{6}\.[a-z0-9]{16}\b|"
                      r"(?i:(?<=bearer )|(?<=token=)|(?<=password=))[^\s\"',;]+|"
                      r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----)", re.DOTALL)


def redact(obj: Any, kind: str = "") -> Any:
    """A copy without values that are secret by the object's kind, without environment values and without noise."""
    made = deep_copy(obj)
    kind = kind or (made.get("kind", "") if isinstance(made, dict) else "")
    for field in _MAPS.get(kind, ()):
        if isinstance(made.get(field), dict):
            made[field] = {key: f"{GONE} {len(str(value))} characters" for key, value in made[field].items()}
    if isinstance(made, dict):
        metadata = made.get("metadata") or {}
        metadata.pop("managedFields", None)
        (metadata.get("annotations") or {}).pop(_LAST, None)
    _walk(made)
    return made


def _walk(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _walk(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in _FIELDS and isinstance(inner, str):
                value[key] = GONE
            elif key == "env" and isinstance(inner, list):
                for variable in inner:
                    if isinstance(variable, dict) and "value" in variable:
                        variable["value"] = GONE
            else:
                _walk(inner)


def scrub(text: str) -> str:
    """A log without what looks like a credential."""
    return _SECRETS.sub(GONE, text)


def collect(paths: Paths) -> dict[str, bytes]:
    """File name in the bundle → content."""
    found: dict[str, bytes] = {}

    def put(name: str, make: Callable[[], str]) -> None:
        try:
            found[name] = within(make()).encode()
        except (OSError, ValueError, Finding, ApiError, TimeoutError) as error:
            found[name + ".missing"] = f"{type(error).__name__}: {error}\n".encode()
    put("doctor.json", lambda: _doctor(paths))
    put("ledger.json", lambda: json.dumps(Ledger(paths.ledger).entries(), indent=1))
    put("node.json", lambda: (paths.etc / "node.json").read_text())
    for file in sorted(paths.etc.glob("*.conf")):
        put(f"etc/{file.name}", lambda file=file: scrub(file.read_text()))  # type: ignore[misc]
    put("version", lambda: Layout(paths).installed or "not installed")
    for name, command in COMMANDS.items():
        put(f"host/{name}.txt", lambda command=command: _said(command))  # type: ignore[misc]
    for unit in ("apiserver", "controllers", "agent", "containerd", "prepare", "snapshot"):
        put(f"logs/{unit}.log", lambda unit=unit: scrub(_said(  # type: ignore[misc]
            ("journalctl", "--no-pager", "-o", "short-precise", "-n", LOG_LINES, "-u", f"pelamis-{unit}"))))
    for log in sorted(paths.log.glob("*.log")):
        put(f"logs/{log.name}", lambda log=log: scrub(_tail(log)))  # type: ignore[misc]
    try:
        for name, objects in asyncio.run(_objects(paths)):
            found[f"cluster/{name}.json"] = within(json.dumps(objects, indent=1)).encode()
    except (ApiError, Finding, TimeoutError, OSError) as error:
        found["cluster.missing"] = f"{error}\n".encode()
    return found


def within(text: str, most: int = MOST_BYTES) -> str:
    """A text's end, when all of it would be too much. Pure."""
    return text if len(text) <= most else f"(the first {len(text) - most} characters are left out)\n{text[-most:]}"


def write(output: Path, files: dict[str, bytes]) -> None:
    """The files as one tar.gz that only its owner reads."""
    name = output.name.removesuffix(".tar.gz")
    with tarfile.open(output, "w:gz", compresslevel=6) as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{name}/{path}")
            entry.size, entry.mtime, entry.mode = len(content), int(SYSTEM.now()), 0o600
            tar.addfile(entry, io.BytesIO(content))
    output.chmod(0o600)


def default_name() -> str:
    return f"pelamis-support-{rfc3339(SYSTEM.now()).replace(':', '')}.tar.gz"


def _said(command: Iterable[str]) -> str:
    said = gather.output(*command)
    if said is None:
        raise Finding(f"{' '.join(command)} failed or is not there")
    return said


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-int(LOG_LINES):]) + "\n"


def _doctor(paths: Paths) -> str:
    host, node = gather.host(paths), cluster.node(paths)
    return json.dumps({"findings": [asdict(d) for d in checks.examine(host, node)], "host": asdict(host),
                       "node": asdict(node)}, indent=1)


async def _objects(paths: Paths) -> list[tuple[str, list[Obj]]]:
    from controlplane.client.config import load
    from controlplane.client.rest import Client
    kubeconfig = paths.admin_kubeconfig if paths.admin_kubeconfig.exists() else paths.kubeconfig("node")
    found = []
    async with asyncio.timeout(ASK_SECONDS), Client(load(kubeconfig), user_agent="pelamis-support") as client:
        for name in KINDS:
            try:
                listed, _ = await client.list(named(name))
                found.append((name, [redact(o) for o in listed[:MOST_OBJECTS]]))
            except ApiError as error:
                found.append((name, [{"missing": str(error)}]))
    return found

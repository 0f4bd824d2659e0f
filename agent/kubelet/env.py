"""A container's environment, command and arguments: every reference resolved, every $(VAR) expanded.

Pure: config maps and secrets are fetched beforehand (`references` says which) and handed in as a `Sources`. Owns field
and resource references, service variables and expansion, with upstream's order and messages. Raises `ConfigError`,
which becomes the waiting reason CreateContainerConfigError. Called by `specs` and by the downward API volume.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.compute import resources
from agent.kubelet.restarts import lasting
from controlplane.machinery import quantity

_KEYED = re.compile(r"^metadata\.(labels|annotations)\['(.*)'\]$")
_SYNTAX = re.compile(r"\$(?:\$|\(([^()]*)\))")
UNLIMITED = {"cpu": 1, "memory": 1000, "ephemeral-storage": 1000}  # an absent limit of these is all the node has
ENV_NAME = re.compile(r"[ -<>-~]+")  # printable ASCII but "="; what the API accepts


class ConfigError(Exception):
    """The pod's definition cannot be turned into a container; the text goes to the user."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What references may point to. `objects` maps (kind, name) in the pod's namespace, kind `configmaps` or `secrets`,
    to the object, or None when it does not exist."""

    objects: Mapping[tuple[str, str], dict[str, Any] | None] = field(default_factory=dict)
    services: tuple[dict[str, Any], ...] = ()  # of the pod's namespace, and default/kubernetes
    pod_ips: tuple[str, ...] = ()
    host_ips: tuple[str, ...] = ()
    allocatable: Mapping[str, int] = field(default_factory=dict)  # of the node, in the units of `admit.amounts`
    files: Mapping[tuple[str, str], Mapping[str, str] | None] = field(default_factory=dict)  # by volume and path


_FROM = (("configMapRef", "configmaps"), ("secretRef", "secrets"))
_KEYS = (("configMapKeyRef", "configmaps", "ConfigMap"), ("secretKeyRef", "secrets", "Secret"))


def references(container: dict[str, Any]) -> set[tuple[str, str]]:
    """(kind, name) of every config map and secret the environment needs."""
    found = set()
    for source in container.get("envFrom") or ():
        found |= {(kind, source[key].get("name", "")) for key, kind in _FROM if source.get(key)}
    for entry in container.get("env") or ():
        origin = entry.get("valueFrom") or {}
        found |= {(kind, origin[key].get("name", "")) for key, kind, _ in _KEYS if origin.get(key)}
    return found


def of_files(container: dict[str, Any]) -> list[dict[str, Any]]:
    """The `fileKeyRef` of every variable that has one."""
    origins = [entry.get("valueFrom") or {} for entry in container.get("env") or ()]
    return [origin["fileKeyRef"] for origin in origins if origin.get("fileKeyRef")]


def data_of(kind: str, obj: dict[str, Any]) -> dict[str, bytes]:
    """The payload of a ConfigMap or Secret."""
    if kind == "secrets":
        return {k: base64.b64decode(v or "") for k, v in (obj.get("data") or {}).items()}
    data = {k: v.encode() for k, v in (obj.get("data") or {}).items()}
    return data | {k: base64.b64decode(v or "") for k, v in (obj.get("binaryData") or {}).items()}


def build(pod: dict[str, Any], container: dict[str, Any], sources: Sources) -> dict[str, str]:
    """The environment in the order it is passed to the runtime. Raises ConfigError."""
    made: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        made.update(_from(pod, source, sources))
    expanding = service_variables(pod, sources.services) | made
    for entry in container.get("env") or ():
        name = entry["name"]
        if entry.get("valueFrom"):
            value = _value_from(pod, container, entry["valueFrom"], sources)
            if value is None:
                continue
        else:
            value = expand(entry.get("value") or "", expanding)
        made[name] = expanding[name] = value
    return {k: v for k, v in expanding.items() if k not in made} | made


def _from(pod: dict[str, Any], source: dict[str, Any], sources: Sources) -> dict[str, str]:
    for key, kind in _FROM:
        ref = source.get(key)
        if not ref:
            continue
        obj = sources.objects.get((kind, ref.get("name", "")))
        if obj is None:
            if ref.get("optional"):
                return {}
            raise ConfigError(f'{kind[:-1]} "{ref.get("name", "")}" not found')
        prefix = source.get("prefix") or ""
        return {prefix + k: v.decode(errors="replace") for k, v in sorted(data_of(kind, obj).items())
                if ENV_NAME.fullmatch(prefix + k)}
    return {}


def _value_from(pod: dict[str, Any], container: dict[str, Any], origin: dict[str, Any],
                sources: Sources) -> str | None:
    if origin.get("fieldRef"):
        return field_value(pod, origin["fieldRef"]["fieldPath"], sources)
    if origin.get("resourceFieldRef"):
        return resource_value(pod, origin["resourceFieldRef"], sources, container)
    if origin.get("fileKeyRef"):
        return _of_file(origin["fileKeyRef"], sources)
    for key, kind, shown in _KEYS:
        ref = origin.get(key)
        if not ref:
            continue
        name = ref.get("name", "")
        obj = sources.objects.get((kind, name))
        if obj is None:
            if ref.get("optional"):
                return None
            raise ConfigError(f'{kind[:-1]} "{name}" not found')
        data = data_of(kind, obj)
        if ref["key"] in data:
            return data[ref["key"]].decode(errors="replace")
        if ref.get("optional"):
            return None
        raise ConfigError(f"couldn't find key {ref['key']} in {shown} {pod['metadata'].get('namespace', '')}/{name}")
    raise ConfigError("unsupported valueFrom source")


def _of_file(ref: dict[str, Any], sources: Sources) -> str | None:
    """A variable that a container has written into a file of a volume; None for an optional one that is not there."""
    key, path = ref.get("key", ""), ref.get("path", "")
    value = (sources.files.get((ref.get("volumeName", ""), path)) or {}).get(key)
    if value is None and not ref.get("optional"):
        raise ConfigError(f'environment variable key "{key}" not found in file "{path}"')
    return value


def field_value(pod: dict[str, Any], path: str, sources: Sources) -> str:
    """What a downward API `fieldPath` stands for. Raises ConfigError for an unknown path."""
    meta, spec = pod["metadata"], pod["spec"]
    keyed = _KEYED.match(path)
    if keyed:
        return str((meta.get(keyed[1]) or {}).get(keyed[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries = meta.get(path.partition(".")[2]) or {}
        return "\n".join(f"{k}={_quoted(v)}" for k, v in sorted(entries.items()))
    simple = {"metadata.name": meta["name"], "metadata.namespace": meta.get("namespace", ""),
              "metadata.uid": meta["uid"], "spec.nodeName": spec.get("nodeName", ""),
              "spec.serviceAccountName": spec.get("serviceAccountName", ""),
              "spec.restartPolicy": spec.get("restartPolicy", "Always"),
              "spec.schedulerName": spec.get("schedulerName", ""),
              "status.hostIP": next(iter(sources.host_ips), ""), "status.hostIPs": ",".join(sources.host_ips),
              "status.podIP": next(iter(sources.pod_ips), ""), "status.podIPs": ",".join(sources.pod_ips)}
    if path not in simple:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(simple[path])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def resource_value(pod: dict[str, Any], ref: dict[str, Any], sources: Sources,
                   container: dict[str, Any] | None = None) -> str:
    """A `resourceFieldRef`: the value in units of its divisor, rounded up; an absent limit is that of the pod as a
    whole, or else the node's own."""
    wanted = ref.get("containerName")
    if wanted:
        container = next((c for c in lasting(pod) if c["name"] == wanted), None)
    if container is None:
        raise ConfigError(f"container {wanted} not found")
    kind, _, name = ref["resource"].partition(".")
    value = resources.milli(container.get("resources"), kind, name)
    if not value and kind == "limits":
        value = resources.milli(pod["spec"].get("resources"), kind, name)
    if not value and kind == "limits":
        value = sources.allocatable.get(name, 0) * UNLIMITED.get(name, 0)
    divisor = quantity.parse(str(ref.get("divisor") or "1")).milli() or 1000
    return str(-(-(value or 0) // divisor))


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace $(NAME); an unknown name stays as written, `$$` is one `$`."""
    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])
    return _SYNTAX.sub(one, text)


def expand_all(texts: Iterable[str] | None, variables: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(expand(t, variables) for t in texts or ())


def service_variables(pod: dict[str, Any], services: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Docker-link style variables: of default/kubernetes always, of the pod's namespace with enableServiceLinks."""
    own = pod["metadata"].get("namespace", "")
    links = pod["spec"].get("enableServiceLinks", True)
    chosen: dict[str, dict[str, Any]] = {}
    for service in services:
        meta = service["metadata"]
        master = (meta.get("namespace"), meta["name"]) == ("default", "kubernetes")
        if service["spec"].get("clusterIP") in (None, "", "None") or not service["spec"].get("ports"):
            continue
        if (meta.get("namespace") == own and (links or master)) or (master and meta["name"] not in chosen):
            chosen[meta["name"]] = service
    made: dict[str, str] = {}
    for name in sorted(chosen):
        made.update(_links(name, chosen[name]["spec"]))
    return made


def _links(name: str, spec: dict[str, Any]) -> dict[str, str]:
    prefix, ip, ports = name.upper().replace("-", "_"), spec["clusterIP"], spec["ports"]
    host = f"[{ip}]" if ":" in ip else ip
    made = {f"{prefix}_SERVICE_HOST": ip, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
    for port in ports:
        if port.get("name"):
            made[f"{prefix}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    for i, port in enumerate(ports):
        protocol = port.get("protocol") or "TCP"
        url = f"{protocol.lower()}://{host}:{port['port']}"
        if i == 0:
            made[f"{prefix}_PORT"] = url
        stem = f"{prefix}_PORT_{port['port']}_{protocol.upper()}"
        made.update({stem: url, f"{stem}_PROTO": protocol.lower(), f"{stem}_PORT": str(port["port"]),
                     f"{stem}_ADDR": ip})
    return made

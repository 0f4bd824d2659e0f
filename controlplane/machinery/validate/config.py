"""Validation of ConfigMaps and Secrets: keys, sizes, types, and what `immutable` locks.

Upstream: ValidateConfigMap, ValidateSecret and their updates in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import orjson

from controlplane.machinery import names
from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, required, too_long

Object = dict[str, Any]
MAX_SIZE = 1 << 20  # bytes of all values together: what etcd takes in one piece, and clients expect
_LOCKED = "field is immutable when `immutable` is set"
_TLS = ("tls.crt", "tls.key")
_DOCKER = {"kubernetes.io/dockercfg": ".dockercfg", "kubernetes.io/dockerconfigjson": ".dockerconfigjson"}
_ACCOUNT = "kubernetes.io/service-account.name"


def config_map(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    size = 0
    for key, value in data.items():
        found += [invalid(f"data[{key}]", key, m) for m in names.config_key(key)]
        if key in binary:
            found.append(invalid(f"data[{key}]", key, "duplicate of key present in binaryData"))
        size += len(value) if value.isascii() else len(value.encode())
    for key, value in binary.items():
        found += [invalid(f"binaryData[{key}]", key, m) for m in names.config_key(key)]
        size += _decoded(value)
    if size > MAX_SIZE:
        found.append(too_long("", MAX_SIZE))
    return found


def config_map_changes(new: Object, old: Object) -> list[Cause]:
    return _locked(new, old, ("data", "binaryData"))


def _locked(new: Object, old: Object, fields: tuple[str, ...]) -> list[Cause]:
    if not old.get("immutable"):
        return []
    found = [] if new.get("immutable") else [forbidden("immutable", _LOCKED)]
    return found + [forbidden(field, _LOCKED) for field in fields if (new.get(field) or {}) != (old.get(field) or {})]


def _decoded(text: str) -> int:
    """The number of bytes a base64 text stands for."""
    return len(text) * 3 // 4 - text[-2:].count("=")


def secret(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    data, kind = obj.get("data") or {}, obj.get("type") or ""
    for key in data:
        found += [invalid(f"data[{key}]", key, m) for m in names.config_key(key)]
    if sum(_decoded(v) for v in data.values()) > MAX_SIZE:
        found.append(too_long("data", MAX_SIZE))
    if kind == "kubernetes.io/service-account-token":
        if not ((obj.get("metadata") or {}).get("annotations") or {}).get(_ACCOUNT):
            found.append(required(f"metadata.annotations[{_ACCOUNT}]"))
    elif kind in _DOCKER:
        found += _docker(data, _DOCKER[kind])
    elif kind == "kubernetes.io/basic-auth":
        if "username" not in data and "password" not in data:
            found += [required(f"data[{k}]") for k in ("username", "password")]
    elif kind == "kubernetes.io/tls":
        found += [required(f"data[{k}]") for k in _TLS if k not in data]
    elif kind == "kubernetes.io/ssh-auth" and not data.get("ssh-privatekey"):
        found.append(required("data[ssh-privatekey]"))
    return found


def _docker(data: dict[str, str], key: str) -> list[Cause]:
    if key not in data:
        return [required(f"data[{key}]")]
    try:
        found = orjson.loads(base64.b64decode(data[key]))
    except (ValueError, binascii.Error):
        return [invalid(f"data[{key}]", "<secret contents redacted>", "invalid character in JSON")]
    return [] if isinstance(found, dict | None) else [invalid(
        f"data[{key}]", "<secret contents redacted>", "json: cannot unmarshal into map[string]interface {}")]


def secret_changes(new: Object, old: Object) -> list[Cause]:
    found = _locked(new, old, ("data",))
    if (new.get("type") or "") != (old.get("type") or ""):
        found.append(invalid("type", new.get("type") or "", IMMUTABLE))
    return found

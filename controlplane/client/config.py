"""Where the API server is and who we are: a kubeconfig, read once.

Owns the reading of kubeconfig files and the making of the TLS context. Promises that no private key is written to disk
(keys given inline reach OpenSSL through an anonymous memory file) and that nothing secret appears in `repr`. Never
talks to the network. Called by every process at start-up; `rest.Client` takes the result.

Upstream: k8s.io/client-go/tools/clientcmd; exec plugins and auth providers are not offered, they run foreign programs.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding

DEFAULT_SERVER = "https://127.0.0.1:6443"


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A server and an identity. `ca`, `certificate` and `key` are PEM bytes; empty means absent."""

    server: str = DEFAULT_SERVER
    ca: bytes = b""
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""
    insecure: bool = False
    server_name: str = ""
    namespace: str = "default"

    def ssl_context(self) -> ssl.SSLContext | None:
        """The TLS context for this identity, None for a plain http:// server. Costly: make it once per process."""
        if self.server.startswith("http://"):
            return None
        context = ssl.create_default_context(cadata=self.ca.decode() if self.ca else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.certificate and self.key:
            with _memory_file(self.certificate) as certificate, _memory_file(self.key) as key:
                context.load_cert_chain(certificate, key)
        return context


@contextmanager
def _memory_file(data: bytes) -> Iterator[str]:
    """A path that holds `data` without touching a disk: OpenSSL takes certificates by file name only."""
    descriptor = os.memfd_create("pelamis-tls", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def load(path: str | Path, context: str = "") -> ClientConfig:
    """The `ClientConfig` of a kubeconfig's current (or the named) context. Raises Finding when it cannot be used."""
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Finding(f"cannot read the kubeconfig {path}", error.strerror or str(error),
                      "give a readable file with --kubeconfig") from error
    return parse(_decode(text, path), path.parent, context)


def _decode(text: bytes, path: Path) -> dict[str, Any]:
    import yaml
    try:
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise Finding(f"the kubeconfig {path} is not YAML", str(error).splitlines()[0]) from error
    if not isinstance(document, dict):
        raise Finding(f"the kubeconfig {path} is empty", "a client needs a server and an identity")
    return document


def parse(document: dict[str, Any], folder: Path, context: str = "") -> ClientConfig:
    """The configuration a decoded kubeconfig stands for; file names in it are relative to `folder`."""
    wanted = context or document.get("current-context") or ""
    if not wanted and len(document.get("contexts") or []) == 1:
        wanted = document["contexts"][0].get("name", "")
    chosen = _named(document, "contexts", "context", wanted)
    cluster = _named(document, "clusters", "cluster", chosen.get("cluster", ""))
    user = _named(document, "users", "user", chosen["user"]) if chosen.get("user") else {}
    token_file = user.get("tokenFile") or ""
    return ClientConfig(
        server=(cluster.get("server") or DEFAULT_SERVER).rstrip("/"),
        ca=_material(cluster, "certificate-authority", folder),
        certificate=_material(user, "client-certificate", folder),
        key=_material(user, "client-key", folder),
        token=user.get("token") or "",
        token_file=str(folder / token_file) if token_file else "",
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=cluster.get("tls-server-name") or "",
        namespace=chosen.get("namespace") or "default")


def _named(document: dict[str, Any], section: str, inner: str, name: str) -> dict[str, Any]:
    for entry in document.get(section) or []:
        if entry.get("name") == name:
            return entry.get(inner) or {}
    raise Finding(f'the kubeconfig has no {inner} named "{name}"', "", f"add it under {section}")


def _material(section: dict[str, Any], name: str, folder: Path) -> bytes:
    """PEM bytes given inline (`<name>-data`, which wins) or by file name."""
    if inline := section.get(f"{name}-data"):
        try:
            return base64.b64decode(inline, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Finding(f"{name}-data in the kubeconfig is not base64", str(error)) from error
    if not section.get(name):
        return b""
    try:
        return (folder / section[name]).read_bytes()
    except OSError as error:
        raise Finding(f"cannot read {name} {section[name]}", error.strerror or str(error)) from error

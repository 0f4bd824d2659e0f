"""Static pods: manifests in a folder of this node, run whether or not there is an API server.

Owns the reading of the folder: YAML or JSON files, one Pod each, hidden files passed over. Promises that a file nobody
can read or understand is reported with its name and reason while all others run, that the same content has the same uid
after a restart, and that nothing is read again before the folder changes. Called by `kubelet`.

Upstream: pkg/kubelet/config/{file.go,common.go}.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.kubelet.directory import Directory
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)
SOURCE, HASH, MIRROR, SEEN = (f"kubernetes.io/config.{k}" for k in ("source", "hash", "mirror", "seen"))
MANIFEST_LIMIT = 1 << 20  # bytes; no API object may be larger
REREAD_SECONDS = 3600.0  # the safety net under inotify, which knows nothing of some network file systems


def is_mirror(pod: dict[str, Any]) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


def parse(text: bytes, file: str, node: str, now: str) -> dict[str, Any]:
    """The pod a manifest describes, with defaults, name and uid of this node. Raises ValueError."""
    import yaml

    from controlplane.machinery import schema, strategy
    try:
        pod = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is neither YAML nor JSON: {str(error).splitlines()[0]}") from error
    if not isinstance(pod, dict) or (pod.get("apiVersion"), pod.get("kind")) != ("v1", "Pod"):
        raise ValueError("it does not describe a Pod of apiVersion v1")
    pods = named("pods")
    problems = schema.load().check(pods.definition, pod)
    if problems.errors:
        raise ValueError("; ".join(problems.errors))
    meta, spec = pod.setdefault("metadata", {}), pod.setdefault("spec", {})
    uid = hashlib.md5(node.encode() + b"\0" + file.encode() + b"\0" + text, usedforsecurity=False).hexdigest()
    meta["uid"] = str(meta.get("uid") or uid)
    meta["name"] = f"{meta.get('name', '')}-{node}"
    meta["namespace"] = meta.get("namespace") or "default"
    meta["annotations"] = {**(meta.get("annotations") or {}), SOURCE: "file", HASH: meta["uid"], SEEN: now}
    spec["nodeName"] = node
    spec["tolerations"] = [*(spec.get("tolerations") or ()), {"operator": "Exists", "effect": "NoExecute"}]
    pod["status"] = {}
    for key in ("serviceAccountName", "serviceAccount"):
        if spec.get(key):
            raise ValueError("static pods may not use a service account")
    if any(kind in v for v in spec.get("volumes") or () for kind in ("secret", "configMap", "persistentVolumeClaim")):
        raise ValueError("static pods may not reference objects of the API")
    rules = strategy.of(pods)
    rules.default(pod)
    causes = rules.validate(pod)
    if causes:
        raise ValueError("; ".join(f"{c.field}: {c.message}" for c in causes))
    pod["status"] = {"phase": "Pending"}
    return dict(pod)


class Manifests:
    """`changed(pods)` gets all pods of the folder after each change of it; `report(finding)` what cannot be run."""

    def __init__(self, folder: Path, node: str, clock: Clock, changed: Callable[[list[dict[str, Any]]], None],
                 report: Callable[[Finding], None]) -> None:
        self._folder, self._node, self._clock = folder, node, clock
        self._changed, self._report = changed, report
        self._known: dict[Path, tuple[bytes, dict[str, Any] | None]] = {}

    def read(self) -> list[dict[str, Any]]:
        """The pods of the folder now."""
        pods: dict[str, dict[str, Any]] = {}
        fresh: dict[Path, tuple[bytes, dict[str, Any] | None]] = {}
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if path.name.startswith(".") or path.suffix in (".swp", ".tmp") or path.name.endswith("~"):
                continue
            text, pod = self._one(path)
            fresh[path] = (text, pod)
            if pod is None:
                continue
            key = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
            if key in pods:
                self._complain(path, f"another file already describes pod {key}")
            else:
                pods[key] = pod
        self._known = fresh
        return list(pods.values())

    def _one(self, path: Path) -> tuple[bytes, dict[str, Any] | None]:
        """The content of a file and its pod; None for what is none, reported once per content."""
        try:
            with path.open("rb") as file:
                text = file.read(MANIFEST_LIMIT + 1)
            known = self._known.get(path)
            if known is not None and known[0] == text:
                return known
            if len(text) > MANIFEST_LIMIT:
                raise ValueError(f"it is larger than {MANIFEST_LIMIT} bytes")
            return text, parse(text, str(path), self._node, self._clock.timestamp())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = b"" if isinstance(error, OSError) else text
            self._complain(path, str(error) or type(error).__name__)
            return text, None

    def _complain(self, path: Path, reason: str) -> None:
        self._report(Finding(f"the static pod in {path} cannot be run", reason,
                             "correct the file or remove it; the other static pods run"))

    async def run(self) -> None:
        """Follow the folder until cancelled."""
        with Directory(self._folder) as changes:
            while True:
                self._changed(self.read())
                await changes.wait(REREAD_SECONDS)

"""Termination messages: what a container wrote before it ended, or the tail of its log when it failed silently.

Owns a small cache, since an ended container's words no longer change; an empty log is looked at again, for the runtime
may still be writing its last lines when it tells of the end. Reads files of the host only. Called by `worker`.
"""

from __future__ import annotations

import os
from typing import Any

from agent.kubelet.model import ObservedContainer, ObservedPod
from agent.kubelet.plan import named, of_pod
from agent.kubelet.specs import Node

FILE_LIMIT = 4096  # bytes of a termination message: upstream's limit
POD_LIMIT = 12 * 1024  # bytes for all containers of a pod, each of which has the same part: upstream's limit
LOG_LIMIT, LOG_LINES = 2048, 80  # of a log's tail instead of a message: upstream's limits


class LastWords:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._known: dict[str, str] = {}

    def of(self, pod: dict[str, Any], seen: ObservedPod) -> dict[str, str]:
        """Messages by container id."""
        alive = set()
        for container in seen.containers:
            if container.state != "exited":
                continue
            alive.add(container.id)
            if container.id not in self._known or self._awaited(pod, container):
                self._known[container.id] = self._read(pod, container)
        self._known = {k: v for k, v in self._known.items() if k in alive}
        return self._known

    def _awaited(self, pod: dict[str, Any], container: ObservedContainer) -> bool:
        """Whether its log may have more to say than was read."""
        return not self._known[container.id] and _falls_back(pod, container)

    def _read(self, pod: dict[str, Any], container: ObservedContainer) -> str:
        path = self._node.termination_file(pod["metadata"]["uid"], container.name, container.attempt)
        text = ""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            with os.fdopen(descriptor, "rb") as file:
                text = file.read(FILE_LIMIT).decode(errors="replace")
        except OSError:
            pass
        text = text or (tail(container.log_path) if _falls_back(pod, container) else "")
        return text.encode()[:POD_LIMIT // len(list(of_pod(pod)))].decode(errors="ignore")


def _falls_back(pod: dict[str, Any], container: ObservedContainer) -> bool:
    spec = named(pod, container.name) or {}
    return bool(container.exit_code) and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError"


def tail(path: str) -> str:
    """The end of a CRI log file without its time stamps."""
    if not path:
        return ""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * LOG_LIMIT))
            lines = file.read().splitlines()
    except OSError:
        return ""
    if size > 4 * LOG_LIMIT:
        lines = lines[1:]  # it begins in the middle
    out = ""
    for line in lines[-LOG_LINES:]:
        parts = line.split(b" ", 3)
        if len(parts) == 4:
            out += parts[3].decode(errors="replace") + ("\n" if parts[2] == b"F" else "")
    return out.encode()[-LOG_LIMIT:].decode(errors="ignore")

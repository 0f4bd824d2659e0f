"""From the names in a request to what the runtime has: which container or sandbox, and where its log is.

Owns the refusals' wording, which kubectl shows as it is. Promises the newest attempt, or with `previous` the one before
that has ended. Never changes anything. Called by `serve`; the pods come from whoever watches them.

Upstream: pkg/kubelet/kubelet_pods.go (validateContainerLogStatus, GetKubeletContainerLogs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.model import ObservedContainer, ObservedPod
from controlplane.machinery.errors import BadRequest, NotFound


@dataclass(frozen=True, slots=True)
class Found:
    uid: str  # of its pod, as the runtime knows it
    container_id: str
    sandbox_id: str
    log: Path
    running: bool


def waiting_reason(pod: dict[str, Any], container: str) -> str:
    """The reason the pod's status gives for a container that does not run, or "ContainerCreating"."""
    status = pod.get("status") or {}
    for field in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        for entry in status.get(field) or []:
            if entry.get("name") == container:
                waiting = (entry.get("state") or {}).get("waiting") or {}
                return waiting.get("reason") or "ContainerCreating"
    return "ContainerCreating"


def choose(pod: dict[str, Any], observed: ObservedPod | None, container: str, previous: bool) -> ObservedContainer:
    """The container meant. Raises BadRequest with upstream's sentence when there is none to show."""
    name = pod["metadata"]["name"]
    spec = pod.get("spec") or {}
    known = [c["name"] for field in ("initContainers", "containers", "ephemeralContainers")
             for c in spec.get(field) or []]
    if container not in known:
        raise BadRequest(f"container {container} is not valid for pod {name}")
    attempts = [c for c in observed.containers if c.name == container] if observed is not None else []
    if previous:
        ended = attempts[1:]
        if not ended:
            raise BadRequest(f'previous terminated container "{container}" in pod "{name}" not found')
        return ended[0]
    started = [c for c in attempts if c.state != "created"]
    if not started:
        raise BadRequest(f'container "{container}" in pod "{name}" is waiting to start: '
                         f"{waiting_reason(pod, container)}")
    return started[0]


class Locator:
    """Finds containers of the `pods` that this node runs."""

    def __init__(self, runtime: Runtime, pods: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self._runtime, self._pods = runtime, pods

    async def _pod(self, namespace: str, name: str) -> tuple[dict[str, Any], ObservedPod | None]:
        for pod in self._pods():
            meta = pod["metadata"]
            if meta["name"] == name and meta["namespace"] == namespace:
                # A pod from a file on the node is known to the runtime by another uid than to the API.
                uid = (meta.get("annotations") or {}).get("kubernetes.io/config.hash") or meta["uid"]
                return pod, (await self._runtime.observe(uid)).get(uid)
        raise NotFound(f'pod "{name}" does not exist')

    async def container(self, namespace: str, pod: str, container: str, previous: bool = False) -> Found:
        """Raises NotFound for the pod, BadRequest for the container."""
        found, observed = await self._pod(namespace, pod)
        seen = choose(found, observed, container, previous)
        return Found(observed.uid if observed is not None else "", seen.id, seen.sandbox_id, Path(seen.log_path),
                     seen.state == "running")

    async def running(self, namespace: str, pod: str, container: str) -> Found:
        """The container, which must be running: for exec and attach."""
        found = await self.container(namespace, pod, container)
        if not found.running:
            raise BadRequest(f"container not found (\"{container}\")")
        return found

    async def sandbox(self, namespace: str, pod: str) -> str:
        """The id of the pod's ready sandbox: for port-forward."""
        _, observed = await self._pod(namespace, pod)
        box = observed.sandbox if observed is not None else None
        if box is None or not box.ready:
            raise NotFound(f'not found ("{pod}_{namespace}")')
        return box.id

    async def alive(self, found: Found) -> bool:
        """Whether the container found earlier may still write."""
        pod = (await self._runtime.observe(found.uid)).get(found.uid)
        return pod is not None and any(c.id == found.container_id and c.state in ("created", "running")
                                       for c in pod.containers)

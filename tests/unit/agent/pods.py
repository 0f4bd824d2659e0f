"""Small builders for tests of the kubelet's decisions: pods as the API has them, and what the runtime shows of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from agent.kubelet.model import ObservedContainer, ObservedPod, ObservedSandbox
from agent.kubelet.restarts import container_hash

NOW = 1_700_000_000.0


def pod(*containers: Any, init: tuple[Any, ...] = (), policy: str = "Always", **meta: Any) -> dict[str, Any]:
    """A pod `default/p` with uid `u`; a container is a name or a dict."""
    def made(c: Any) -> dict[str, Any]:
        return {"name": c, "image": "busybox"} if isinstance(c, str) else {"image": "busybox", **c}
    spec: dict[str, Any] = {"containers": [made(c) for c in containers or ("c",)], "restartPolicy": policy,
                            "terminationGracePeriodSeconds": 30}
    if init:
        spec["initContainers"] = [made(c) for c in init]
    return {"metadata": {"name": "p", "namespace": "default", "uid": "u", "resourceVersion": "1", **meta},
            "spec": spec, "status": {"phase": "Pending"}}


def box(attempt: int = 0, ready: bool = True) -> ObservedSandbox:
    return ObservedSandbox(f"box{attempt}", attempt, ready, NOW, ("10.244.1.5",) if ready else ())


def up(name: str, attempt: int = 0, box: str = "box0", image: str = "busybox", **more: Any) -> ObservedContainer:
    return replace(ObservedContainer(
        f"{name}{attempt}", name, attempt, "running", box, NOW, NOW, restart_count=attempt,
        hash=container_hash({"name": name, "image": image}), image=image, image_id="sha256:1"), **more)


def down(name: str, code: int = 0, attempt: int = 0, at: float = NOW, box: str = "box0",
         **more: Any) -> ObservedContainer:
    return up(name, attempt, box, state="exited", exit_code=code, finished_at=at, **more)


def seen(*parts: Any) -> ObservedPod:
    """Newest first, as the runtime module gives them."""
    boxes = tuple(sorted((p for p in parts if isinstance(p, ObservedSandbox)), key=lambda s: -s.attempt))
    found = tuple(sorted((p for p in parts if isinstance(p, ObservedContainer)), key=lambda c: -c.attempt))
    return ObservedPod("u", "default", "p", boxes, found)

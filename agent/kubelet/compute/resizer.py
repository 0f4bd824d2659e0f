"""Carries out the in-place resize of one pod: grants, cgroups, the runtime's update, and the conditions that tell.

Owns what the node has granted the pod and what its containers run with, kept in `resources.json` in the pod's folder so
that a restart forgets neither. Promises that a pod's own cgroup is never narrower than its containers', that memory is
not lowered under what is used, and that a failed update is tried again. Called by `worker`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from agent.kubelet.compute import resize, resources
from agent.kubelet.context import Context
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.model import ObservedPod
from agent.kubelet.restarts import lasting
from controlplane.machinery import files

FILE = "resources.json"


class Resizer:
    def __init__(self, context: Context, pod: dict[str, Any]) -> None:
        self._context = context
        self._file: Path = context.node.pod_folder(pod["metadata"]["uid"]) / FILE
        self.allocated: dict[str, dict[str, Any]] = resize.wished(pod)
        self.actual: dict[str, dict[str, Any]] = dict(self.allocated)
        self._recall(pod)
        self._pending: tuple[str, str] | None = None
        self._error = ""
        self._active = False
        self._load()

    def _recall(self, pod: dict[str, Any]) -> None:
        """What the API was told of running containers: their spec may have changed while nobody looked."""
        status = pod.get("status") or {}
        whole = None
        if status.get("resources") and resize.WHOLE in self.allocated:
            whole = self.allocated[resize.WHOLE] = self.actual[resize.WHOLE] = resize.recalled(pod)
        for entry in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
            if entry["name"] in self.allocated and "running" in (entry.get("state") or {}):
                has = resize.entry(entry.get("resources"), whole)
                self.allocated[entry["name"]] = self.actual[entry["name"]] = has

    def _load(self) -> None:
        try:
            kept = orjson.loads(self._file.read_bytes())
            self.allocated |= kept["allocated"]
            self.actual |= kept["actual"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # nothing was ever resized

    def _save(self) -> None:
        files.write(self._file, orjson.dumps({"allocated": self.allocated, "actual": self.actual}))

    @property
    def deferred(self) -> bool:
        return self._pending is not None and self._pending[0] == "Deferred"

    def view(self, pod: dict[str, Any]) -> dict[str, Any]:
        """The pod with what is granted in place of what it wishes."""
        return resize.with_resources(pod, self.allocated)

    def consider(self, pod: dict[str, Any], seen: ObservedPod) -> list[resize.Change]:
        """Grant the spec's wish if the node can, and say what is to be done for it."""
        wish = resize.wished(pod)
        if any(not resize.same(wish[n], self.allocated.get(n, {})) for n in wish):
            self._grant(pod, wish)
        else:
            self._pending = None
        made = resize.changes(pod, self.allocated, self.actual,
                              [c.name for c in seen.running])
        if self._active and not made:
            self._context.tell(pod, "Normal", "ResizeCompleted", f"Pod resize completed: {self._summary(pod)}")
        self._active = bool(made)
        return made

    def _summary(self, pod: dict[str, Any], **more: str) -> str:
        """What is granted, and whatever else, as upstream's events tell it."""
        told: dict[str, Any] = {"resources": self.allocated[resize.WHOLE]} if resize.WHOLE in self.allocated else {}
        for key in ("initContainers", "containers"):
            entries = [{"name": c["name"], "resources": resize.told(self.allocated[c["name"]])}
                       for c in pod["spec"].get(key) or () if c["name"] in self.allocated]
            if entries:
                told[key] = entries
        return orjson.dumps(told | {"generation": pod["metadata"].get("generation", 0)} | more).decode()

    def _grant(self, pod: dict[str, Any], wish: dict[str, dict[str, Any]]) -> None:
        uid, cpus = pod["metadata"]["uid"], self._context.cpus
        reason, message = resize.verdict(pod, self._context.others(uid), self._context.place())
        if cpus is not None and cpus.exclusive(uid):
            reason = "Infeasible"
            message = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy"
        fresh = (reason, message) if reason else None
        if fresh != self._pending and fresh is not None:
            self._context.tell(pod, "Warning", f"Resize{reason}", message)
        self._pending = fresh
        if fresh is None:
            self.allocated = wish
            self._save()
            self._context.tell(pod, "Normal", "ResizeStarted", f"Pod resize started: {self._summary(pod)}")

    def started(self, name: str, pod: dict[str, Any]) -> None:
        """A new process of `name` has been made with what `pod`, a `view`, asks for: more may be granted since."""
        has = resize.wished(pod).get(name)
        if has is not None and self.actual.get(name) != has:
            self.actual[name] = has
            self._save()

    async def actuate(self, pod: dict[str, Any], seen: ObservedPod, changes: list[resize.Change]) -> None:
        """Bring cgroups and running containers to what is granted now; what is granted meanwhile is the next call's.
        Raises CallError or OSError to be tried again."""
        context, granted = self._context, self.allocated
        old, new = resize.with_resources(pod, self.actual), self.view(pod)
        try:
            self._room(old, new, seen, changes)
            await context.cgroups.make(new, resize.wider(resources.pod_resources(old), resources.pod_resources(new)))
            for change in (c for c in changes if c.name):
                spec = next(c for c in lasting(new) if c["name"] == change.name)
                found = seen.container(change.name)
                if change.restart or found is None:
                    continue
                await context.runtime.update_container(
                    found.id, resources.linux_resources(new, spec, context.node.memory, context.node.pages))
                self.actual[change.name] = granted[change.name]
                self._save()
            if all(not c.restart for c in changes):
                await context.cgroups.make(new)
                if resize.WHOLE in granted:
                    self.actual[resize.WHOLE] = granted[resize.WHOLE]
                    self._save()
            self._error = ""
        except (CallError, OSError) as error:
            text = getattr(error, "details", "") or str(error)
            if text != self._error:
                context.tell(pod, "Warning", "ResizeError", f"Pod resize error: {self._summary(pod, error=text)}")
            self._error = text
            raise

    def _room(self, old: dict[str, Any], new: dict[str, Any], seen: ObservedPod, changes: list[resize.Change]) -> None:
        """Memory is never lowered under what is in use: the kernel would kill for it. Raises OSError."""
        wanted = [("pod", "", resources.pod_resources(new).memory_limit)]
        for change in changes:
            found, has = seen.container(change.name), self.allocated[change.name]
            limit = resources.whole(has, "limits", "memory") or resources.whole(has, "inherited", "memory") or 0
            if found is not None and not change.restart:
                wanted.append((f'container "{change.name}"', found.id, limit))
        short = [f"attempting to set {whose} memory limit ({limit}) below current usage ({used})"
                 for whose, id, limit in wanted if limit and (used := self._context.cgroups.memory_of(old, id)) > limit]
        if short:
            raise OSError("cannot decrease memory limits: " + (f"[{', '.join(short)}]" if len(short) > 1 else short[0]))

    def conditions(self) -> list[tuple[str, str, str, str]]:
        """(type, status, reason, message) of what is to be told."""
        told = []
        if self._pending is not None:
            told.append((resize.PENDING, "True", *self._pending))
        if self._active:
            told.append((resize.IN_PROGRESS, "True", "Error" if self._error else "", self._error))
        return told

"""The actions of a plan, performed for one pod: the only place where a pod's decisions become calls.

Owns the order of calls within one action and the events that tell of them. Promises that image, volumes and sandbox are
prepared at the same time, that a failure is raised as `StepFailed` with the waiting reason users know, and that
`finish` leaves nothing of the pod on the host. Decides nothing: what and when comes from `plan`. Called by `worker`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from agent.image.reference import ImageError, normalise
from agent.kubelet import admit, env, hosts, plan, specs
from agent.kubelet.context import Context
from agent.kubelet.cri import turns
from agent.kubelet.cri.runtime import CallError
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.images import pullsecrets
from agent.kubelet.images.images import Image
from agent.kubelet.model import ContainerSpec, ObservedPod, ObservedSandbox, SandboxSpec
from agent.kubelet.probing.checks import Failed
from agent.kubelet.staticpods import SOURCE
from agent.kubelet.volumes import envfiles
from agent.kubelet.volumes.patience import within
from controlplane.machinery.errors import ApiError

log = logging.getLogger(__name__)
MIN_GRACE = 2.0  # seconds a container gets after its preStop hook used up the grace period; upstream's
# The event that tells why an image is not to be had, by the waiting reason.
TOLD = {"ErrImagePull": "Failed", "ErrImageNeverPull": "ErrImageNeverPull", "InvalidImageName": "InspectFailed",
        "ImageInspectError": "InspectFailed"}
RUNTIME_CLASSES = "runtimeclasses.node.k8s.io"


class StepFailed(Exception):  # noqa: N818 - reads as what happened
    """An action did not succeed: `reason` is a waiting reason, or "" when only an event tells."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


class Steps:
    """Actions on one pod. `pod` is kept current by the worker, `seen` by `look`."""

    def __init__(self, context: Context, pod: dict[str, Any], seen: ObservedPod) -> None:
        self.context, self.pod, self.seen = context, pod, seen
        # Told of every container that was made, and of the pod it was made for.
        self.made: Callable[[str, dict[str, Any]], None] = lambda name, pod: None
        self.renew_at = 0.0  # when a mounted token wants renewal
        self.images: dict[str, str] = {}  # volume name -> the image it was made of
        self.making: set[str] = set()  # containers the runtime is at: to break that off would leave a half one
        self._prepared: dict[str, asyncio.Task[Any]] = {}
        self._sandbox_spec: SandboxSpec | None = None
        self._hosts_text = ""
        self._news = asyncio.Event()  # of the pass after this one

    def look(self, seen: ObservedPod) -> None:
        """The worker has made a pass: what the runtime has of the pod now."""
        self.seen = seen
        self._news.set()
        self._news = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Sleep until it holds after a pass."""
        while not holds():
            await self._news.wait()

    def _tell(self, kind: str, reason: str, message: str, container: str = "") -> None:
        self.context.tell(self.pod, kind, reason, message, container)

    # --- preparation, at the same time as the sandbox

    def prepare(self, group: asyncio.TaskGroup) -> None:
        """Begin with what the first containers will need."""
        first = (self.pod["spec"].get("initContainers") or self.pod["spec"]["containers"])
        for spec in first:
            if spec["name"] not in self._prepared:
                self._prepared[spec["name"]] = group.create_task(_outcome(self._image(spec)))
        self._prepared["/volumes"] = group.create_task(_outcome(self.set_up_volumes()))

    async def _taken(self, key: str, otherwise: Coroutine[Any, Any, Any]) -> Any:
        """The prepared outcome, used once; or the work done now."""
        task = self._prepared.pop(key, None)
        if task is None:
            return await otherwise
        otherwise.close()
        value, error = await task
        if error is not None:
            raise error
        return value

    def drop(self) -> None:
        """The pod is ending: nothing prepared is wanted any more."""
        for task in self._prepared.values():
            task.cancel()
        self._prepared.clear()

    async def set_up_volumes(self) -> dict[str, str]:
        """Host paths of the pod's volumes, their content brought up to date. Raises StepFailed."""
        if not self.pod["spec"].get("volumes"):
            return {}
        try:
            images = {v["name"]: (await self._image({"name": "", "image": v["image"].get("reference", ""),
                                                     "imagePullPolicy": v["image"].get("pullPolicy")})).id
                      for v in self.context.volumes.unpulled(self.pod)}
            self.images |= images
            paths, self.renew_at = await self.context.volumes.set_up(self.pod, self._sources(), images)
            return paths
        except (ConfigError, ApiError, OSError) as error:
            self._tell("Warning", "FailedMount", str(error))
            raise StepFailed("", str(error)) from error

    async def refresh_volumes(self) -> None:
        """Bring mounted content up to date. Raises StepFailed."""
        await self.set_up_volumes()

    def _sources(self, objects: dict[tuple[str, str], dict[str, Any] | None] | None = None) -> Sources:
        context = self.context
        return Sources(objects or {}, tuple(context.services.items()), self._ips(), context.node.ips,
                       admit.capacity(context.place()))

    def _ips(self) -> tuple[str, ...]:
        """The pod's addresses, as far as it has them."""
        if self.pod["spec"].get("hostNetwork"):
            return self.context.node.ips
        return self.seen.sandbox.ips if self.seen.sandbox else ()

    async def _image(self, spec: dict[str, Any]) -> Image:
        """The container's image, which this node has from then on. Raises StepFailed."""
        context, image, name = self.context, spec.get("image", ""), spec["name"]
        policy = spec.get("imagePullPolicy") or "IfNotPresent"
        started = context.clock.monotonic()
        try:
            full = normalise(image)
            found = await context.images.find(image) if policy != "Always" else None
            auths = await pullsecrets.of(self.pod, context.volumes.objects, lambda *why: self._tell("Warning", *why))
            if found is not None and context.images.may_use(found.id, full, auths):
                self._tell("Normal", "Pulled", f'Container image "{image}" already present on machine and can be '
                                               "accessed by the pod", name)
                return found
            own = await context.credentials.of(full) if context.credentials is not None and policy != "Never" else []
            if policy != "Never":
                self._tell("Normal", "Pulling", f'Pulling image "{image}"', name)
            reference = await context.images.ensure(image, policy, auths, own)
            made = await context.images.find(reference)
            if made is None:
                raise ImageError("ImageInspectError", f'Failed to inspect image "{image}": it has gone again')
        except ImageError as error:
            reason, message = TOLD.get(error.reason, ""), error.message
            if error.reason == "ErrImagePull":
                message = f'Failed to pull image "{image}": {message}'
            if reason:
                self._tell("Warning", reason, message, name)
            self._tell("Warning", "Failed", f"Error: {error.reason}", name)
            raise StepFailed(error.reason, error.message) from error
        took = context.clock.monotonic() - started
        self._tell("Normal", "Pulled", f'Successfully pulled image "{image}" in {took:.3f}s ({took:.3f}s including '
                                       f"waiting). Image size: {made.size} bytes.", name)
        return made

    # --- sandboxes

    async def _sandbox(self, attempt: int) -> SandboxSpec:
        parent = self.context.cgroups.parent(self.pod)
        handler, node, users = await self._handler(), self.context.node, 0
        if self.context.resolvers is not None:
            node = replace(node, resolv=self.context.resolvers())
        if specs.own_users(self.pod, node, handler):
            users = self.context.users.of(self.pod["metadata"]["uid"])
        return specs.sandbox(self.pod, node, attempt, parent, handler, users)

    async def _handler(self) -> str:
        """What the pod's RuntimeClass calls the runtime's handler. Raises ConfigError or ApiError."""
        name = self.pod["spec"].get("runtimeClassName")
        if not name:
            return ""
        found = await self.context.volumes.objects.get(RUNTIME_CLASSES, "", name, self.pod["metadata"]["uid"])
        if found is None:
            raise ConfigError(f'runtimeclass.node.k8s.io "{name}" not found')
        return str(found.get("handler") or "")

    async def run_sandbox(self, action: plan.RunSandbox) -> None:
        """Make the sandbox and its folders. Raises StepFailed."""
        node, uid = self.context.node, self.pod["metadata"]["uid"]
        if action.changed:
            self._tell("Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.")
        try:
            specs.check_bandwidth(self.pod)
            node.pod_folder(uid).mkdir(parents=True, exist_ok=True, mode=0o750)
            await self.context.cgroups.make(self.pod)
            self._sandbox_spec = await self._sandbox(action.attempt)
            async with self.context.turns.turn(turns.SANDBOX):
                await self.context.runtime.run_sandbox(self._sandbox_spec)
        except (ConfigError, CallError, ApiError, OSError) as error:
            self._tell("Warning", "FailedCreatePodSandBox", f"Failed to create pod sandbox: {error}")
            raise StepFailed("", str(error)) from error

    # --- containers

    async def start(self, action: plan.StartContainer) -> None:
        """Create and start one container. Raises StepFailed."""
        pod, sandbox = self.pod, self.seen.sandbox  # as it is now: a pull may take long
        spec = plan.named(pod, action.name)
        if spec is None or sandbox is None:
            return
        name = action.name
        image = await self._taken(name, self._image(spec))
        paths = await self._taken("/volumes", self.set_up_volumes())
        made = await self._resolved(spec, image, action.attempt, paths)
        async with self.context.turns.turn(turns.CONTAINER):
            self.making.add(name)
            try:
                id = await self._launched(pod, spec, sandbox, made)
            finally:
                self.making.discard(name)
        self._tell("Normal", "Started", f"Started container {name}", name)
        await self._post_start(spec, id)

    async def _launched(self, pod: dict[str, Any], spec: dict[str, Any], sandbox: ObservedSandbox,
                        made: ContainerSpec) -> str:
        """The id of the container made and started. Raises StepFailed."""
        name, runtime = spec["name"], self.context.runtime
        try:
            box = self._sandbox_spec = self._sandbox_spec or await self._sandbox(sandbox.attempt)
            self._write_files(spec, made.attempt)
            id = await runtime.create_container(sandbox.id, box, made)
        except (CallError, ConfigError, ApiError, OSError) as error:
            message = getattr(error, "details", "") or str(error)
            self._tell("Warning", "Failed", f"Error: {message}", name)
            raise StepFailed("CreateContainerError", str(message)) from error
        self.made(name, pod)
        self._tell("Normal", "Created", f"Created container: {name}", name)
        try:
            await runtime.start_container(id)
        except CallError as error:
            self._tell("Warning", "Failed", f"Error: {error.details}", name)
            raise StepFailed("RunContainerError", error.details) from error
        return id

    async def _resolved(self, spec: dict[str, Any], image: Image, attempt: int, paths: dict[str, str]) -> ContainerSpec:
        """The ContainerSpec. Raises StepFailed CreateContainerConfigError."""
        meta, context = self.pod["metadata"], self.context
        try:
            if SOURCE not in (meta.get("annotations") or {}):  # a static pod must not wait for the API
                await context.services.synced()
                if context.isolated and not self.pod["spec"].get("hostNetwork"):
                    await context.isolated(self.pod, self._ips())
            wanted = sorted(env.references(spec))
            found = await asyncio.gather(*(context.volumes.objects.get(kind, meta.get("namespace", ""), name,
                                                                       meta["uid"]) for kind, name in wanted))
            sources = replace(self._sources(dict(zip(wanted, found))), files=await within(
                "a volume with variables", envfiles.read, spec, paths) if env.of_files(spec) else {})
            mounts = context.volumes.mounts_for(self.pod, spec, paths, env.build(self.pod, spec, sources)
                                                if any(m.get("subPathExpr") for m in spec.get("volumeMounts") or ())
                                                else {})
            made = specs.container(self.pod, spec, context.node, sources, image=image.id, image_user=image.user,
                                   attempt=attempt, volumes=mounts, target=self._target(spec))
            if context.cpus is not None:
                made = replace(made, resources=replace(made.resources, **context.cpus.fit(
                    made.resources, meta["uid"], spec["name"])))
            return await context.devices.fitted(made, self.pod, spec)
        except (ConfigError, ApiError, OSError) as error:
            self._tell("Warning", "Failed", f"Error: {error}", spec["name"])
            raise StepFailed("CreateContainerConfigError", str(error)) from error

    def _target(self, spec: dict[str, Any]) -> str:
        """The id of the container an ephemeral one looks into. Raises ConfigError."""
        name = spec.get("targetContainerName")
        if not name:
            return ""
        found = self.seen.container(name)
        if found is None or found.state != "running":
            raise ConfigError(f'unable to find target container "{name}"')
        return found.id

    def _write_files(self, spec: dict[str, Any], attempt: int) -> None:
        node, uid = self.context.node, self.pod["metadata"]["uid"]
        text = hosts.render(self.pod, self._ips(), node.name, node.cluster_domain,
                            _read("/etc/hosts") if self.pod["spec"].get("hostNetwork") else "")
        if text != self._hosts_text:
            node.hosts_file(uid).write_text(text)
            os.chmod(node.hosts_file(uid), 0o644)
            self._hosts_text = text
        message = node.termination_file(uid, spec["name"], attempt)
        message.parent.mkdir(parents=True, exist_ok=True)
        message.write_bytes(b"")
        os.chmod(message, 0o666)  # whatever user the container has may write its last words

    # --- hooks and ends

    def _pod_ip(self) -> str:
        return next(iter(self._ips()), "127.0.0.1")

    async def _post_start(self, spec: dict[str, Any], id: str) -> None:
        hook = (spec.get("lifecycle") or {}).get("postStart")
        if not hook:
            return
        try:
            await self.context.checks.run(hook, spec, id, self._pod_ip(), plan.grace_of(self.pod) + MIN_GRACE,
                                          hook=True)
        except Failed as error:
            self._tell("Warning", "FailedPostStartHook", f"PostStartHook failed: {error}", spec["name"])
            await self.context.runtime.stop_container(id, plan.grace_of(self.pod))

    async def kill(self, action: plan.KillContainer) -> None:
        """preStop hook, the ends of those that come before it, stop signal, and the end within the grace period."""
        clock, began = self.context.clock, self.context.clock.monotonic()
        self._tell("Normal", "Killing", action.message, action.name)
        spec = plan.named(self.pod, action.name) or {}
        hook = (spec.get("lifecycle") or {}).get("preStop")
        grace = action.grace
        if hook and grace > 0:
            try:
                async with asyncio.timeout(grace):
                    await self.context.checks.run(hook, spec, action.id, self._pod_ip(), grace, hook=True)
            except TimeoutError:
                self._tell("Warning", "FailedPreStopHook", "PreStopHook did not end within the grace period",
                           action.name)
            except Failed as error:
                self._tell("Warning", "FailedPreStopHook", f"PreStopHook failed: {error}", action.name)
        if action.after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace - (clock.monotonic() - began)):
                    await self.until(lambda: not any(c.id in action.after for c in self.seen.running))
        if grace > 0 and (hook or action.after):
            grace = max(grace - (clock.monotonic() - began), MIN_GRACE)
        own = (spec.get("lifecycle") or {}).get("stopSignal")
        if own:
            await self.context.runtime.signal_container(action.id, own, grace)
            grace = 0.0
        await self.context.runtime.stop_container(action.id, grace)

    async def remove_container(self, id: str) -> None:
        found = next((c for c in self.seen.containers if c.id == id), None)
        await self.context.runtime.remove_container(id)
        if found and found.log_path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(found.log_path)

    async def reset(self, ids: tuple[str, ...]) -> None:
        """Remove these containers in this order: a pod half reset is recognized by the last of them."""
        for id in ids:
            await self.remove_container(id)

    async def finish(self) -> None:
        """Remove every trace of the pod from this host. Raises CallError or OSError; may be repeated."""
        context, uid = self.context, self.pod["metadata"]["uid"]
        self.drop()
        for sandbox in self.seen.sandboxes:
            await context.runtime.remove_sandbox(sandbox.id)
        for container in self.seen.containers:
            if not self.seen.sandboxes:
                await context.runtime.remove_container(container.id)
        await self.give_back(whole=True)
        await context.cgroups.remove(uid)
        shutil.rmtree(context.node.log_folder(self.pod), ignore_errors=True)

    async def give_back(self, *, whole: bool = False) -> None:
        """Give back the volumes of a pod that runs no more, and with `whole` all its files. Raises StepFailed."""
        uid = self.pod["metadata"]["uid"]
        self.context.volumes.release(uid)
        reason = "FailedUnprepareDynamicResources"
        try:
            await self.context.devices.release(uid)
            reason = "FailedUnMount"
            await self.context.volumes.tear_down(uid, whole=whole)
        except (ConfigError, OSError) as error:
            self._tell("Warning", reason, str(error))
            raise StepFailed("", str(error)) from error


async def _outcome(work: Coroutine[Any, Any, Any]) -> tuple[Any, Exception | None]:
    """Work whose failure is kept for whoever asks for the result."""
    try:
        return await work, None
    except Exception as error:
        return None, error


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

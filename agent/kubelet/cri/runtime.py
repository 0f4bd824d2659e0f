"""The container runtime as the kubelet uses it: sandboxes and containers made, started, stopped, removed and observed.

Owns the translation of CRI calls and errors into the kubelet's vocabulary. Promises that stopping and removing are
idempotent (what is gone is gone), that a stop is never cut short by its own deadline, that making something whose name
an interrupted attempt still holds succeeds, and that `observe` never contradicts an event already delivered. Never
decides what should run (`plan` does) and holds no state that a restart would lose. Called by the pod workers and
`serve`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio

from agent.kubelet import model
from agent.kubelet.cri import observe, translate
from controlplane.machinery.clock import SYSTEM, Clock
from cri_proto.client import Connection, describe, metadata
from cri_proto.messages import containerd, cri

CALL_SECONDS = 120.0  # upstream's runtimeRequestTimeout: a busy disk may take a minute, a hung runtime must not hold us
STATUS_SECONDS = 30.0  # a runtime that does not say how it is for so long is down; upstream's
SANDBOX_SECONDS = 240.0  # a sandbox also waits for the network plugin
NAME_ATTEMPTS = 8  # how often a name still held by an interrupted attempt is waited for
NAME_PAUSE = 0.25  # the runtime lets go of such a name within a few hundred milliseconds
END_ATTEMPTS = 40  # how often a stop or removal is asked for that fails for a moment only: ten seconds on a busy host
END_PAUSE = 0.25  # the runtime notices a dead shim, and ends what it held, within a few hundred milliseconds if it can

_UNENDED = re.compile(r"cannot delete running task ([0-9a-f]{12,64})")
_PASSING = re.compile(r"ttrpc: closed|container is still running, to stop first|container is already in removing state"
                      r"|container is in starting state, can't be removed")
_RESERVED = re.compile(r'is reserved for "?([0-9a-f]{12,64})')


class CallError(Exception):
    """The runtime refused or failed. `str()` is Go's form with the code, `details` the runtime's own sentence."""

    def __init__(self, message: str, details: str = "", code: str = "Unknown") -> None:
        super().__init__(message)
        self.details = details or message
        self.code = code


class Missing(CallError):  # noqa: N818 - reads as what happened
    """The sandbox or container does not exist (any more)."""


class Unreachable(CallError):  # noqa: N818
    """Nobody answers on the runtime's socket; containers run on, and the call may be repeated when it is back."""


class TimedOut(CallError):  # noqa: N818
    """The call took longer than its limit; for `exec_sync`, the command did."""


_KINDS = {grpc.StatusCode.NOT_FOUND: Missing, grpc.StatusCode.UNAVAILABLE: Unreachable,
          grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut}


def signal_value(name: str) -> int:
    """The kernel's number of `SIGUSR1`, `SIGRTMIN+3`, …"""
    base, plus, more = name.partition("+")
    if not plus:
        base, plus, more = name.partition("-")
    return int(signal.Signals[base]) + int(plus + more if plus else 0)


def failure(error: grpc.aio.AioRpcError) -> CallError:
    """The exception that stands for a failed call."""
    kind = _KINDS.get(error.code(), CallError)
    return kind(describe(error), error.details() or "", error.code().name)


def injects_devices(config: str) -> bool:
    """Whether a runtime whose status tells its configuration in JSON puts CDI devices into containers. containerd began
    to with 1.7, where it may be switched off; CRI-O, which tells no such thing, always did."""
    try:
        told = json.loads(config)
        return "containerd" not in told or bool(told.get("enableCDI"))
    except (ValueError, TypeError):
        return True


def asks_systemd(config: str) -> bool | None:
    """Whether containerd's configuration, as its status tells it in JSON, has runc ask systemd for control groups; None
    for any other text."""
    try:
        return bool(json.loads(config)["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"])
    except (ValueError, KeyError, TypeError):
        return None


class Runtime:
    """Sandboxes and containers over one `Connection`, which the caller opens and closes.

    Ids are the runtime's. Every method raises CallError or one of its kinds."""

    def __init__(self, connection: Connection, clock: Clock = SYSTEM) -> None:
        self._connection = connection
        self._calls = connection.runtime
        self.tally = connection.tally
        self._clock = clock
        self._observer = observe.Observer(connection, clock)

    async def _call(self, method: str, request: Any, timeout: float = CALL_SECONDS) -> Any:
        try:
            return await getattr(self._calls, method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    # --- the runtime
    async def version(self) -> tuple[str, str]:
        """Name and version: `("containerd", "1.6.20")`."""
        answer = await self._call("Version", cri.VersionRequest(version="v1"))
        return answer.runtime_name, answer.runtime_version

    async def status(self) -> dict[str, tuple[bool, str, str]]:
        """Conditions by type (`RuntimeReady`, `NetworkReady`): whether they hold, reason and message."""
        answer = await self._call("Status", cri.StatusRequest(), STATUS_SECONDS)
        return {c.type: (c.status, c.reason, c.message) for c in answer.status.conditions}

    async def features(self) -> model.Features:
        """What this runtime can do beyond what all can; releases that do not say so can nothing of it."""
        answer = await self._call("Status", cri.StatusRequest(verbose=True))
        handlers = answer.runtime_handlers
        try:
            driver = (await self._call("RuntimeConfig", cri.RuntimeConfigRequest())).linux.cgroup_driver
            systemd: bool | None = driver == cri.SYSTEMD
        except CallError:  # before containerd 2.0; its status tells its configuration
            systemd = asks_systemd(answer.info.get("config", ""))
        return model.Features(cdi=injects_devices(answer.info.get("config", "")),
                              strict_groups=answer.features.supplemental_groups_policy, systemd=systemd,
                              handlers=frozenset(h.name for h in handlers),
                              recursive=frozenset(h.name for h in handlers if h.features.recursive_read_only_mounts),
                              user_namespaces=frozenset(h.name for h in handlers if h.features.user_namespaces))

    # --- sandboxes
    async def run_sandbox(self, spec: model.SandboxSpec) -> str:
        """Make and start the sandbox, its network included; its id."""
        request = cri.RunPodSandboxRequest(config=translate.sandbox_config(spec), runtime_handler=spec.runtime_handler)
        for attempt in range(NAME_ATTEMPTS):
            try:
                return (await self._call("RunPodSandbox", request, SANDBOX_SECONDS)).pod_sandbox_id
            except CallError as error:
                holder = _RESERVED.search(error.details)
                if holder is None or attempt == NAME_ATTEMPTS - 1:
                    raise
                if await self._ready(holder[1]):
                    return holder[1]  # an earlier call of ours got through although its answer was lost
                await self.remove_sandbox(holder[1])
                await self._clock.sleep(NAME_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    async def _ready(self, sandbox_id: str) -> bool:
        try:
            answer = await self._call("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id))
        except Missing:
            return False
        return answer.status.state == cri.SANDBOX_READY

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """End everything in it at once and take its network down."""
        await self._end("StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id), SANDBOX_SECONDS)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove it with its containers; their logs stay."""
        await self._remove("RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id), SANDBOX_SECONDS)

    async def _remove(self, method: str, request: Any, timeout: float = CALL_SECONDS) -> None:
        """Remove; what is gone is gone. A containerd that was killed in the middle of a start may hold a container for
        ended whose process runs: that is ended by containerd's own service, as nothing else can."""
        try:
            await self._end(method, request, timeout)
        except CallError as error:
            running = _UNENDED.search(error.details)
            if running is None:
                raise
            await self._end_task(running[1])
            await self._end(method, request, timeout)

    async def _end(self, method: str, request: Any, timeout: float) -> None:
        """Call what stops or removes; what is gone is gone. A shim that dies meanwhile fails the call until the runtime
        has noticed, and another call that removes the same fails it until that is done."""
        for attempt in range(END_ATTEMPTS):
            try:
                await self._call(method, request, timeout)
                return
            except Missing:
                return
            except CallError as error:
                if attempt == END_ATTEMPTS - 1 or not _PASSING.search(error.details):
                    raise
                await self._clock.sleep(END_PAUSE)

    async def _end_task(self, container_id: str) -> None:
        tasks = self._connection.containerd("Tasks")
        one = containerd.ProcessRequest(container_id=container_id)
        try:
            await tasks.Kill(containerd.KillRequest(container_id=container_id, signal=signal.SIGKILL, all=True),
                             metadata=metadata(), timeout=CALL_SECONDS)
            await tasks.Wait(one, metadata=metadata(), timeout=CALL_SECONDS)
            await tasks.Delete(one, metadata=metadata(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.NOT_FOUND:
                raise failure(error) from error

    # --- containers
    async def create_container(self, sandbox_id: str, sandbox: model.SandboxSpec, spec: model.ContainerSpec) -> str:
        """Make the container, not started; its id. Its log directory is made by the runtime."""
        request = cri.CreateContainerRequest(
            pod_sandbox_id=sandbox_id, config=translate.container_config(sandbox, spec),
            sandbox_config=translate.sandbox_config(sandbox))
        for attempt in range(NAME_ATTEMPTS):
            try:
                created = (await self._call("CreateContainer", request)).container_id
                self._observer.learn(created, sandbox.uid)
                return created
            except CallError as error:
                holder = _RESERVED.search(error.details)
                if holder is None or attempt == NAME_ATTEMPTS - 1:
                    raise
                await self.remove_container(holder[1])
                await self._clock.sleep(NAME_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    async def start_container(self, container_id: str) -> None:
        """Run its process. On failure the container is left exited with code 128 and reason StartError."""
        await self._call("StartContainer", cri.StartContainerRequest(container_id=container_id))

    async def stop_container(self, container_id: str, grace_seconds: float) -> None:
        """Send its stop signal, and SIGKILL after `grace_seconds`; returns when it has ended."""
        grace = max(0, int(-(-grace_seconds // 1)))
        # The runtime gives up the stop when its caller does, so our limit lies well behind the grace period.
        await self._end("StopContainer", cri.StopContainerRequest(container_id=container_id, timeout=grace),
                        grace + CALL_SECONDS)

    async def signal_container(self, container_id: str, name: str, limit: float) -> None:
        """Send the signal called `name` to its first process and wait at most `limit` seconds for the end. For runtimes
        that know no stop signal but the image's."""
        answer = await self._call("ContainerStatus", cri.ContainerStatusRequest(container_id=container_id,
                                                                                verbose=True))
        pid = json.loads(answer.info.get("info") or "{}").get("pid") or 0
        if answer.status.state != cri.CONTAINER_RUNNING or not pid:
            return
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        loop.add_reader(process, ended.set)
        try:
            signal.pidfd_send_signal(process, signal_value(name))
            async with asyncio.timeout(limit):
                await ended.wait()
        except (TimeoutError, ProcessLookupError):
            pass
        finally:
            loop.remove_reader(process)
            os.close(process)

    async def remove_container(self, container_id: str) -> None:
        """Remove it, by force if it runs."""
        await self._remove("RemoveContainer", cri.RemoveContainerRequest(container_id=container_id))

    async def update_container(self, container_id: str, wanted: model.LinuxResources) -> None:
        """Change the cgroup limits of a running container."""
        await self._call("UpdateContainerResources", cri.UpdateContainerResourcesRequest(
            container_id=container_id, linux=translate.resources(wanted)))

    async def exec_sync(self, container_id: str, command: Sequence[str], timeout: float) -> tuple[int, bytes, bytes]:
        """Run `command` inside: exit code, stdout, stderr. Raises TimedOut after `timeout` seconds; 0 = no limit of
        its own. The runtime counts whole seconds."""
        seconds = max(0, int(-(-timeout // 1)))
        answer = await self._call("ExecSync", cri.ExecSyncRequest(container_id=container_id, cmd=command,
                                                                  timeout=seconds), seconds + CALL_SECONDS)
        return answer.exit_code, answer.stdout, answer.stderr

    async def reopen_log(self, container_id: str) -> None:
        """Have the runtime open the log file anew, after the old one was renamed."""
        await self._call("ReopenContainerLog", cri.ReopenContainerLogRequest(container_id=container_id))

    # --- streams: where to connect for one exec, attach or port-forward
    async def exec_url(self, container_id: str, command: Sequence[str], *, stdin: bool, stdout: bool, stderr: bool,
                       tty: bool) -> str:
        answer = await self._call("Exec", cri.ExecRequest(container_id=container_id, cmd=command, stdin=stdin,
                                                          stdout=stdout, stderr=stderr and not tty, tty=tty))
        return answer.url

    async def attach_url(self, container_id: str, *, stdin: bool, stdout: bool, stderr: bool, tty: bool) -> str:
        answer = await self._call("Attach", cri.AttachRequest(container_id=container_id, stdin=stdin, stdout=stdout,
                                                              stderr=stderr and not tty, tty=tty))
        return answer.url

    async def forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        answer = await self._call("PortForward", cri.PortForwardRequest(pod_sandbox_id=sandbox_id, port=ports))
        return answer.url

    # --- what there is
    async def observe(self, uid: str | None = None) -> dict[str, model.ObservedPod]:
        """Every pod the runtime knows, or only the one with `uid` (then {} when it has nothing of it)."""
        try:
            return await self._observer.observe(uid)
        except grpc.aio.AioRpcError as error:
            raise failure(error) from error

    async def layers(self) -> dict[str, tuple[int, int]]:
        """Bytes and inodes of the writable layer of each container by its id, as the runtime last looked (some ten
        seconds)."""
        answer = await self._call("ListContainerStats", cri.ListContainerStatsRequest())
        return {one.attributes.id: (one.writable_layer.used_bytes.value, one.writable_layer.inodes_used.value)
                for one in answer.stats}

    def events(self) -> AsyncIterator[model.RuntimeEvent]:
        """What happens from now on, for ever: a `relist` event first and after every interruption, a `lost` event when
        the stream breaks."""
        return self._observer.events()

"""What the runtime has, and what happens in it: listings and the event stream as the kubelet's values.

Owns the reading side of the runtime. Promises one listing of sandboxes and one of containers per observation, a status
call only for what is new or has changed, and consistency: the runtime's status lags some tens of milliseconds behind
its events, so an exit already delivered is laid over a listing that still says "running". Never polls; a stream that
breaks is a `lost` event, and a `relist` event once it stands again, since the runtime replays nothing. Called by
`runtime` only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from agent.kubelet import model
from controlplane.machinery import stopsignals
from controlplane.machinery.clock import Clock
from cri_proto.client import NAMESPACE, Connection, metadata
from cri_proto.messages import containerd, cri

LIST_SECONDS = 60.0  # a listing of a full node takes milliseconds; more means a hung runtime
RETRY_SECONDS, RETRY_LIMIT = 0.1, 5.0  # pauses between attempts to subscribe again, doubling up to the limit
KNOCK_SECONDS = 0.05  # pause before the first repeated knock
SETTLE_SECONDS, SETTLE_PAUSE = 1.0, 0.02  # how long the last lines of a failed container are waited for
LOGS = "FallbackToLogsOnError"
KNOWN_LIMIT = 20_000  # ids remembered for events: some hundred pods with many restarts each

# Exits of execs are told apart below; creations, starts and deletions are what the kubelet itself asked for.
TOPICS = ("/tasks/exit", "/tasks/oom")
OWN = (cri.CONTAINER_CREATED_EVENT, cri.CONTAINER_STARTED_EVENT, cri.CONTAINER_DELETED_EVENT)
FILTERS = tuple(f'namespace=={NAMESPACE},topic=="{topic}"' for topic in TOPICS)
_STATES = ("created", "running", "exited", "unknown")


@dataclass(frozen=True, slots=True)
class Exit:
    code: int
    finished_at: float


def container_from(listed: Any, status: Any | None) -> model.ObservedContainer:
    """A listed container with its status (None while it is only created) as an observation."""
    annotations = listed.annotations
    seen = model.ObservedContainer(
        id=listed.id, name=listed.labels.get(model.CONTAINER_NAME) or listed.metadata.name,
        attempt=listed.metadata.attempt, state=_STATES[listed.state], sandbox_id=listed.pod_sandbox_id,
        created_at=listed.created_at / 1e9, image=listed.image.image, image_id=listed.image_ref,
        hash=annotations.get(model.CONTAINER_HASH, ""),
        restart_count=int(annotations.get(model.RESTART_COUNT) or listed.metadata.attempt),
        grace=_seconds(annotations.get(model.TERMINATION_GRACE, "")))
    if status is None:
        return seen
    return replace(
        seen, state=_STATES[status.state], started_at=_since(status.started_at), finished_at=_since(status.finished_at),
        exit_code=status.exit_code, reason=status.reason, message=status.message,
        image=status.image.image or seen.image, image_id=status.image_ref or seen.image_id, log_path=status.log_path,
        user=_user(status.user), stop_signal=stopsignals.NAMES.get(status.stop_signal, ""))


def _user(told: Any) -> tuple[int, int, tuple[int, ...]] | None:
    if not told.HasField("linux"):
        return None
    return told.linux.uid, told.linux.gid, tuple(told.linux.supplemental_groups)


def _since(nanoseconds: int) -> float:
    """Seconds since the epoch; a container that was killed before it started is told as of the year 1."""
    return max(0, nanoseconds) / 1e9


def _seconds(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def overlay(seen: model.ObservedContainer, exit: Exit | None, oom: bool) -> model.ObservedContainer:
    """What events have already told and the listing may not know yet. An exit is final: an id never runs again."""
    if seen.state in ("created", "running") and exit is not None:
        reason = "Completed" if exit.code == 0 else "Error"
        seen = replace(seen, state="exited", exit_code=exit.code, finished_at=exit.finished_at, reason=reason)
    if oom and seen.state == "exited" and seen.reason in ("", "Completed", "Error"):
        seen = replace(seen, reason="OOMKilled")
    return seen


def sandbox_from(listed: Any, status: Any | None) -> model.ObservedSandbox:
    ips: tuple[str, ...] = ()
    host = False
    if status is not None:
        ips = tuple(ip for ip in (status.network.ip, *(p.ip for p in status.network.additional_ips)) if ip)
        host = status.linux.namespaces.options.network == cri.NODE
    return model.ObservedSandbox(id=listed.id, attempt=listed.metadata.attempt,
                                 ready=listed.state == cri.SANDBOX_READY, created_at=listed.created_at / 1e9,
                                 ips=ips, host_network=host)


def assemble(sandboxes: list[tuple[str, str, str, model.ObservedSandbox]],
             containers: list[tuple[str, str, str, model.ObservedContainer]]) -> dict[str, model.ObservedPod]:
    """Pods from their parts, each given as (uid, namespace, name, part): newest sandbox and newest attempt first."""
    names: dict[str, tuple[str, str]] = {}
    for uid, namespace, name, _ in (*containers, *sandboxes):
        names[uid] = (namespace, name)
    pods = {}
    for uid, (namespace, name) in names.items():
        boxes = sorted((s for u, _, _, s in sandboxes if u == uid), key=lambda s: (s.attempt, s.created_at))
        parts = sorted((c for u, _, _, c in containers if u == uid), key=lambda c: (c.created_at, c.attempt))
        pods[uid] = model.ObservedPod(uid, namespace, name, tuple(reversed(boxes)), tuple(reversed(parts)))
    return pods


class Observer:
    """Listings and events of one runtime. Keeps what cannot change (statuses of ended containers, addresses)."""

    def __init__(self, connection: Connection, clock: Clock) -> None:
        self._connection = connection
        self._calls = connection.runtime
        self._clock = clock
        self._owners: dict[str, tuple[str, bool]] = {}  # id -> pod uid, and whether it is a sandbox's
        self._boxes: dict[str, Any] = {}  # sandbox id -> status, while ready
        self._ended: dict[str, Any] = {}  # container id -> status, running or exited
        self._exits: dict[str, Exit] = {}
        self._ooms: set[str] = set()

    def learn(self, id: str, uid: str, is_sandbox: bool = False) -> None:
        """Remember whose `id` is, so that its events need no question."""
        if len(self._owners) >= KNOWN_LIMIT:
            self._owners.clear()  # only a shortcut: an unknown id is asked for
        self._owners[id] = (uid, is_sandbox)

    async def observe(self, uid: str | None) -> dict[str, model.ObservedPod]:
        labels = {model.POD_UID: uid} if uid else {}
        known = {*self._owners, *self._exits, *self._ooms}
        boxes = (await self._calls.ListPodSandbox(cri.ListPodSandboxRequest(
            filter=cri.PodSandboxFilter(label_selector=labels)), timeout=LIST_SECONDS)).items
        listed = (await self._calls.ListContainers(cri.ListContainersRequest(
            filter=cri.ContainerFilter(label_selector=labels)), timeout=LIST_SECONDS)).containers
        if uid is None:
            # Only what was known before the listing: an event may just have told of something newer.
            self._forget(known - {b.id for b in boxes} - {c.id for c in listed})
        sandboxes = []
        for box in boxes:
            self.learn(box.id, box.metadata.uid, True)
            meta = box.metadata
            part = sandbox_from(box, await self._box(box))
            if box.id in self._exits:  # its pause process has ended, which the listing learns later
                part = replace(part, ready=False)
            sandboxes.append((meta.uid, meta.namespace, meta.name, part))
        containers = []
        for item in listed:
            owner = item.labels.get(model.POD_UID, "")
            if not owner:
                continue  # made by someone else on this runtime
            self.learn(item.id, owner)
            exit = self._exits.get(item.id)
            status = await self._settled(item) if exit and exit.code and item.annotations.get(
                model.TERMINATION_POLICY) == LOGS else await self._status(item)
            seen = overlay(container_from(item, status), exit, item.id in self._ooms)
            containers.append((owner, item.labels.get(model.POD_NAMESPACE, ""), item.labels.get(model.POD_NAME, ""),
                               seen))
        return assemble(sandboxes, containers)

    def _forget(self, gone: set[str]) -> None:
        for id in gone:
            for table in (self._owners, self._boxes, self._ended, self._exits):
                table.pop(id, None)  # type: ignore[attr-defined]
        self._ooms -= gone

    async def _box(self, box: Any) -> Any | None:
        """The status of a sandbox, asked for once while it is ready: its addresses do not change."""
        if box.state != cri.SANDBOX_READY:
            self._boxes.pop(box.id, None)
        elif box.id in self._boxes:
            return self._boxes[box.id]
        try:
            answer = await self._calls.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=box.id),
                                                        timeout=LIST_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        if box.state == cri.SANDBOX_READY:
            self._boxes[box.id] = answer.status
        return answer.status

    async def _status(self, item: Any) -> Any | None:
        """The status of a container that has run, asked for again only when its state has changed."""
        if item.state == cri.CONTAINER_CREATED:
            return None
        known = self._ended.get(item.id)
        if known is not None and known.state == item.state:
            return known
        try:
            answer = await self._calls.ContainerStatus(cri.ContainerStatusRequest(container_id=item.id),
                                                       timeout=LIST_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                return None
            raise
        self._ended[item.id] = answer.status
        return answer.status

    async def _settled(self, item: Any) -> Any | None:
        """The status of a container known to have ended whose log matters: the runtime calls it exited when all of its
        output is written, some tens of milliseconds after the event."""
        status = await self._status(item)
        limit = self._clock.monotonic() + SETTLE_SECONDS
        while status is not None and status.state == cri.CONTAINER_RUNNING and self._clock.monotonic() < limit:
            await self._clock.sleep(SETTLE_PAUSE)
            self._ended.pop(item.id, None)
            status = await self._status(item)
        return status

    # --- events
    async def events(self) -> AsyncIterator[model.RuntimeEvent]:
        """Events for ever; `relist` first and after each interruption, which `lost` tells. Raises nothing but
        cancellation."""
        pause = RETRY_SECONDS
        source = self._from_containerd
        while True:
            try:
                async for event in source():
                    pause = RETRY_SECONDS
                    yield event
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNIMPLEMENTED and source == self._from_containerd:
                    source = self._from_cri  # not containerd: the CRI's own stream, which lacks OOM marks
                    continue
            yield model.RuntimeEvent("", "lost")
            await self._clock.sleep(self._clock.jitter(pause))
            pause = min(pause * 2, RETRY_LIMIT)

    async def _from_containerd(self) -> AsyncIterator[model.RuntimeEvent]:
        """containerd's events. They carry exact exit codes and OOM marks in every release since 1.0."""
        service = self._connection.containerd("Events")
        marker = f"/pelamis/subscribed/{self._clock.uid()}"
        call = service.Subscribe(containerd.SubscribeRequest(filters=[*FILTERS, f'topic=="{marker}"']),
                                 metadata=metadata(), wait_for_ready=True)
        knocking = asyncio.create_task(self._knock(service, marker))
        heard = False
        try:
            async for envelope in call:
                if envelope.topic == marker:
                    knocking.cancel()
                    if not heard:
                        heard = True
                        yield model.RuntimeEvent("", "relist")
                    continue
                event = await self._read(envelope)
                if event is not None:
                    yield event
        finally:
            knocking.cancel()
            call.cancel()
            await asyncio.gather(knocking, return_exceptions=True)

    async def _knock(self, service: Any, marker: str) -> None:
        """Publish `marker` until cancelled. A subscription is not acknowledged, so a relist could come before it and
        miss what happens in between; the marker coming back proves that it stands."""
        pause = KNOCK_SECONDS
        while True:
            try:
                await service.Publish(containerd.PublishRequest(topic=marker, event={"type_url": "pelamis/marker"}),
                                      metadata=metadata(), timeout=LIST_SECONDS)
            except grpc.aio.AioRpcError:
                pass  # the subscription itself fails or recovers by the same cause
            await self._clock.sleep(pause)
            pause = min(pause * 2, RETRY_LIMIT)

    async def _read(self, envelope: Any) -> model.RuntimeEvent | None:
        """One of TOPICS as an event; None for what concerns no pod: execs, and containers that are already gone."""
        value = envelope.event.value
        if envelope.topic == "/tasks/exit":
            told = containerd.TaskExit.FromString(value)
            if told.id and told.id != told.container_id:
                return None  # an exec ended
            when = told.exited_at.seconds * 10**9 + told.exited_at.nanos
            self._exits[told.container_id] = Exit(told.exit_status, _since(when))
        else:
            told = containerd.TaskOOM.FromString(value)
            self._ooms.add(told.container_id)
        id = told.container_id
        owner = await self._owner(id)
        if owner is None:
            self._exits.pop(id, None)
            self._ooms.discard(id)
            return None
        uid, is_sandbox = owner
        if is_sandbox:
            return model.RuntimeEvent(uid, "changed", id)
        if envelope.topic == "/tasks/exit":
            return model.RuntimeEvent(uid, "exited", id, self._exits[id].code, self._exits[id].finished_at)
        return model.RuntimeEvent(uid, "oom", id)

    async def _owner(self, id: str) -> tuple[str, bool] | None:
        """The pod uid of a container or sandbox and whether it is a sandbox; None when the runtime has it no more."""
        if id in self._owners:
            return self._owners[id]
        for method, request, is_sandbox in (
                ("ContainerStatus", cri.ContainerStatusRequest(container_id=id), False),
                ("PodSandboxStatus", cri.PodSandboxStatusRequest(pod_sandbox_id=id), True)):
            try:
                answer = await getattr(self._calls, method)(request, timeout=LIST_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                continue
            uid = answer.status.labels.get(model.POD_UID, "")
            if not uid:
                return None
            self.learn(id, uid, is_sandbox)
            return uid, is_sandbox
        return None

    async def _from_cri(self) -> AsyncIterator[model.RuntimeEvent]:
        """The CRI's own event stream."""
        call = self._calls.GetContainerEvents(cri.GetEventsRequest(), wait_for_ready=True)
        try:
            yield model.RuntimeEvent("", "relist")
            async for message in call:
                if message.container_event_type not in OWN:
                    yield self._from_message(message)
        finally:
            call.cancel()

    def _from_message(self, message: Any) -> model.RuntimeEvent:
        uid, id = message.pod_sandbox_status.metadata.uid, message.container_id
        status = next((s for s in message.containers_statuses if s.id == id), None)
        if id == message.pod_sandbox_status.id or status is None:
            return model.RuntimeEvent(uid, "changed", id)
        if status.state == cri.CONTAINER_EXITED:
            self._exits[id] = Exit(status.exit_code, _since(status.finished_at))
        return model.RuntimeEvent(uid, "exited", id, status.exit_code, _since(status.finished_at))

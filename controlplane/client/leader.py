"""One leader at a time, by a Lease.

Owns the Lease named for a component. Promises that two processes do not lead at once as long as their monotonic clocks
run alike: a leader that could not renew for `RENEW_DEADLINE_SECONDS` stops leading before `LEASE_SECONDS` have passed,
and nobody takes a Lease over earlier. Never does the leader's work itself. Called by the controllers and the scheduler.

A process that was killed leaves a Lease nobody renews; its successor on the same machine sees that the process is gone
and need not wait. Upstream: k8s.io/client-go/tools/leaderelection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from controlplane.client.rest import Client
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)

LEASE_SECONDS = 30  # how long others must wait after the last renewal: twice upstream's, for a third of the writes
RENEW_SECONDS = 10.0  # how often the leader renews
RENEW_DEADLINE_SECONDS = 20.0  # how long the leader leads without a renewal
ATTEMPT_SECONDS = 5.0  # one renewal, so that the deadline and an attempt on the way still fit into the lease
RETRY_SECONDS = 5.0  # how often a candidate looks

LEASES = named("leases.coordination.k8s.io")


class Lost(Exception):  # noqa: N818 - not an error of ours: another leads
    """The Lease went to somebody else, or could not be renewed in time."""


def own_identity() -> str:
    """`host_namespace_pid_start`: which process on which machine, so that its death can be seen from there."""
    pid = os.getpid()
    return f"{socket.gethostname()}_{os.stat('/proc/self/ns/pid').st_ino}_{pid}_{_started(pid)}"


def _started(pid: int) -> str:
    """The process's start in clock ticks since boot; "" when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def is_dead(holder: str, mine: str) -> bool:
    """Whether `holder` is known to be gone: a process of this machine and pid namespace that exists no more."""
    parts, own = holder.rsplit("_", 3), mine.rsplit("_", 3)
    if len(parts) != 4 or parts[:2] != own[:2] or not parts[2].isdigit():
        return False
    return _started(int(parts[2])) != parts[3]


class Elector:
    """Leads as `identity` (one per process) through the Lease `namespace/name`."""

    def __init__(self, client: Client, name: str, namespace: str = "kube-system", identity: str = "") -> None:
        self.client, self.name, self.namespace = client, name, namespace
        self.identity = identity or own_identity()
        self._seen = ("", "")  # holder and renewal time as last read: only a change counts, never another's clock
        self._seen_at = 0.0  # our monotonic time when that change was first seen

    async def lead(self, work: Callable[[], Awaitable[None]]) -> None:
        """Wait for the Lease, then run `work` while holding it. Raises Lost; gives the Lease back on the way out."""
        await self._acquire()
        try:
            async with asyncio.TaskGroup() as group:
                renewing = group.create_task(self._renew(), name=f"lease {self.name}")
                await work()
                renewing.cancel()
        except BaseExceptionGroup as failures:
            lost, others = failures.split(Lost)
            if others is not None:
                raise others from None
            raise Lost(str(lost.exceptions[0]) if lost else "") from None
        finally:
            await self._release()

    async def _acquire(self) -> None:
        clock, told = self.client.clock, ""
        while True:
            try:
                holder = await self._attempt()
                if holder == self.identity:
                    log.info("leading %s", self.name)
                    return
                if holder != told:
                    log.info("%s is led by %s", self.name, holder)
                    told = holder
            except Conflict:
                pass  # somebody was faster; look again at the next turn
            except ApiError as error:
                log.debug("lease %s: %s", self.name, error.message)
            await clock.sleep(clock.jitter(RETRY_SECONDS, 0.2))

    async def _renew(self) -> None:
        clock = self.client.clock
        renewed = clock.monotonic()
        while True:
            await clock.sleep(RENEW_SECONDS if clock.monotonic() - renewed < RENEW_SECONDS else 1.0)
            try:
                holder = await asyncio.wait_for(self._attempt(), ATTEMPT_SECONDS)
                if holder != self.identity:
                    raise Lost(f"{self.name} is led by {holder}")
                renewed = clock.monotonic()
            except (ApiError, TimeoutError) as error:
                log.warning("cannot renew the lease %s: %s", self.name, error)
                if clock.monotonic() - renewed > RENEW_DEADLINE_SECONDS:
                    raise Lost(f"could not renew the lease {self.name}") from error

    async def _attempt(self) -> str:
        """Take or renew the Lease if that is allowed; its holder afterwards."""
        clock = self.client.clock
        try:
            lease = await self.client.get(LEASES, self.name, self.namespace)
        except NotFound:
            spec = claim({}, self.identity, clock.micro_timestamp())
            await self.client.create(LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec,
                                              "metadata": {"name": self.name, "namespace": self.namespace}})
            return self.identity
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        renewal = spec.get("renewTime") or ""
        if (holder, renewal) != self._seen:
            self._seen, self._seen_at = (holder, renewal), clock.monotonic()
        waited = clock.monotonic() - self._seen_at
        free = not holder or is_dead(holder, self.identity) or waited > (spec.get("leaseDurationSeconds") or 0)
        if holder != self.identity and not free:
            return holder
        await self.client.update(LEASES, {**lease, "spec": claim(spec, self.identity, clock.micro_timestamp())})
        return self.identity

    async def _release(self) -> None:
        """Let the next one lead at once; if that fails, the Lease runs out by itself."""
        try:
            async with asyncio.timeout(2):
                lease = await self.client.get(LEASES, self.name, self.namespace)
                if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                    await self.client.update(LEASES, {**lease, "spec": {**lease["spec"], "holderIdentity": "",
                                                                        "leaseDurationSeconds": 1}})
        except (ApiError, TimeoutError, RuntimeError) as error:
            log.debug("the lease %s was not given back: %s", self.name, error)


def claim(spec: dict[str, Any], identity: str, now: str) -> dict[str, Any]:
    """The Lease's spec once `identity` holds it, `now` being a MicroTime."""
    if spec.get("holderIdentity") == identity:
        return {**spec, "renewTime": now, "leaseDurationSeconds": LEASE_SECONDS}
    return {**spec, "holderIdentity": identity, "leaseDurationSeconds": LEASE_SECONDS, "acquireTime": now,
            "renewTime": now, "leaseTransitions": (spec.get("leaseTransitions") or 0) + (1 if spec else 0)}

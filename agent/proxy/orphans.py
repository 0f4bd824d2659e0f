"""Forget connections to endpoints that are no more, on every node that has such connections.

Owns what happens to TCP when an endpoint leaves a Service. It may have left alive (a label was changed): then whoever
is connected stays so. Or its pod is gone, and its own node has forgotten its connections, but here a client would send
into silence until a time-out. So, once the rules are in, each pod that left is looked at: has this node connections to
it at all (a netlink question), and if so, does the API still know the pod? Connections to a pod that is gone are
deleted; the client's next packet reaches another endpoint, which resets the connection. A pod that left alive is looked
at again now and then while connections to it last. Nothing runs while no endpoint leaves. What left while no agent ran
is looked for once, at the start: connections that were translated to a pod's first address at which there is no pod.

Run by `proxy`, which tells of slices that changed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from controlplane.client.informer import Informer
from controlplane.client.rest import Unreachable
from controlplane.machinery import podfacts
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from netsetup import flows

log = logging.getLogger(__name__)
AGAIN = 30.0  # seconds until a pod that left its Service alive, or could not be asked for, is looked at again
STRANGERS = 32  # addresses asked for at the start at most: each costs the API a look at all pods
MOST = 5000  # pods remembered at most: as many as a whole large Service; what is more ends by its own time-outs

Obj = dict[str, Any]


class Pod(NamedTuple):
    """Who stood behind an address."""

    address: str
    namespace: str
    name: str
    uid: str


def pods_of(piece: Obj | None) -> set[Pod]:
    """The pods a slice names; endpoints made by hand are nobody's we could ask for."""
    found = set()
    for entry in (piece or {}).get("endpoints") or ():
        target = entry.get("targetRef") or {}
        if target.get("kind") == "Pod" and entry.get("addresses"):
            found.add(Pod(entry["addresses"][0], target.get("namespace", ""), target["name"], target.get("uid", "")))
    return found


class Orphans:
    """`ranges` are the pods' of the cluster. `do` runs blocking work on the proxy's worker thread."""

    def __init__(self, client: Any, slices: Informer, ranges: list[str], do: Callable[[Callable[[], Any]], Any],
                 clock: Clock = SYSTEM) -> None:
        self._client, self._slices, self._do, self._clock = client, slices, do, clock
        # Of two families pods have IPv4 first: by that address the API finds them.
        self._range = min(map(ipaddress.ip_network, ranges), key=lambda network: network.version)
        self._begun = False
        self._left: set[Pod] = set()  # rules may still lead to them
        self._due: set[Pod] = set()
        self._wake = asyncio.Event()

    def changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A slice changed; called on the loop."""
        gone = pods_of(new) if kind == "DELETED" else pods_of(old) - pods_of(new)
        if gone and len(self._left) < MOST:
            self._left |= gone

    def rules_are_in(self) -> None:
        """No new connection goes to whoever has left until now."""
        if self._left or not self._begun:
            self._due |= self._left
            self._left = set()
            self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._clock.jitter(AGAIN, 0.1) if self._due else None):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._begun:
                self._begun = True
                await self._begin()
            due, self._due = self._due, set()
            for pod in await self._do(partial(_connected, due)):
                if not await self._lives(pod):
                    await self._do(partial(_forget, pod.address))
                elif len(self._due) < MOST:
                    self._due.add(pod)

    async def _begin(self) -> None:
        """Forget connections to pods that went before this process came."""
        known = {address for piece in self._slices.items() for entry in piece.get("endpoints") or ()
                 for address in entry.get("addresses") or ()}
        strangers = {address for address in await self._do(partial(_translated, self._range)) if address not in known}
        for address in sorted(strangers)[:STRANGERS]:
            try:
                pods, _ = await self._client.list(named("pods"), fields=f"status.podIP={address}")
            except (ApiError, Unreachable) as error:
                log.debug("whether there is a pod at %s cannot be asked: %s", address, error)
                continue
            if all(podfacts.finished(pod) for pod in pods):
                await self._do(partial(_forget, address))

    async def _lives(self, pod: Pod) -> bool:
        """Whether the pod, or by now another one, answers at the address; True as well when nobody can say."""
        try:
            known = await self._client.get(named("pods"), pod.name, pod.namespace)
            gone = known["metadata"].get("uid") != pod.uid or podfacts.finished(known)
        except NotFound:
            gone = True
        except (ApiError, Unreachable) as error:
            log.debug("whether pod %s/%s is still there cannot be asked: %s", pod.namespace, pod.name, error)
            return True
        return not gone or any(other.address == pod.address and other.uid != pod.uid
                               for piece in self._slices.items() for other in pods_of(piece))


def _translated(pods: ipaddress.IPv4Network | ipaddress.IPv6Network) -> set[str]:
    """The addresses in the range that connections were translated to."""
    try:
        return {str(one) for one in map(ipaddress.ip_address, flows.translated(pods.version)) if one in pods}
    except OSError as error:
        log.debug("connections of IPv%d cannot be listed: %s", pods.version, error)
        return set()


def _connected(pods: set[Pod]) -> set[Pod]:
    """Those whom this node has connections to."""
    found: set[str] = set()
    for family in (4, 6):
        addresses = {pod.address for pod in pods if (":" in pod.address) == (family == 6)}
        try:
            found |= flows.answering(addresses, family) if addresses else set()
        except OSError as error:
            log.debug("connections of IPv%d cannot be listed: %s", family, error)
    return {pod for pod in pods if pod.address in found}


def _forget(address: str) -> None:
    try:
        flows.forget_address(address)
        log.debug("forgot the connections to %s, whose pod is gone", address)
    except OSError as error:
        log.warning("connections to %s stay until their time-out: %s", address, error)

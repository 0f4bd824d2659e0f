"""The cluster's DNS on this node, put together.

Owns the loop from objects to answers: the proxy's Services and EndpointSlices and the names of namespaces feed the
zone; each change empties the finished replies, so that the next question sees it. Listens on the cluster IPs of the
Service `kube-system/kube-dns` for as long as that Service says by its label that this server answers it: somebody who
replaces the Service by one with a selector gets the service proxy's rules instead, and this server steps aside. The
ConfigMap `kube-system/kube-dns` names stub domains and other resolvers. A port that is taken is told once and tried
again.

The agent creates one, with the proxy's informers, and runs `run()`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from agent.dns import listen, metrics, upstreams
from agent.dns.forward import Forwarder
from agent.dns.responder import Responder
from agent.dns.server import Server
from agent.dns.zone import Obj, Zone
from controlplane.client.informer import Informer
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import named
from netsetup import xtables
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
NAMESPACE, NAME = "kube-system", "kube-dns"  # of the Service and the ConfigMap
LABEL, OURS = "service.kubernetes.io/service-proxy-name", "pelamis-dns"
RETRY_SECONDS = 10.0  # until a port that was taken is tried again: somebody has to stop a server first


class Objects:
    """The zone's view of the informers."""

    def __init__(self, services: Informer, slices: Informer, namespaces: Informer) -> None:
        self._services, self._slices, self._namespaces = services, slices, namespaces
        services.add_index("ip", cluster_ips)
        slices.add_index("ip", endpoint_addresses)

    def service(self, namespace: str, name: str) -> Obj | None:
        return self._services.get(namespace, name)

    def slices(self, namespace: str, name: str) -> Iterable[Obj]:
        return self._slices.by("service", f"{namespace}/{name}")

    def namespace(self, name: str) -> bool:
        return self._namespaces.get("", name) is not None

    def services_at(self, address: str) -> Iterable[Obj]:
        return self._services.by("ip", address)

    def slices_at(self, address: str) -> Iterable[Obj]:
        return self._slices.by("ip", address)


def cluster_ips(service: Obj) -> list[str]:
    spec = service.get("spec") or {}
    return [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip and ip != "None"]


def endpoint_addresses(piece: Obj) -> list[str]:
    return [a for e in piece.get("endpoints") or () for a in e.get("addresses") or ()]


def addresses(service: Obj | None) -> tuple[str, ...]:
    """Where to listen: the cluster IPs of the DNS Service while it is ours to answer."""
    if service is None or (service["metadata"].get("labels") or {}).get(LABEL) != OURS:
        return ()
    return tuple(cluster_ips(service))


class Dns:
    """`networks`: the ranges of services and pods."""

    def __init__(self, client: Any, services: Informer, slices: Informer, domain: str, networks: Iterable[str],
                 ledger: Ledger | None = None, clock: Clock = SYSTEM,
                 files: tuple[str, ...] = upstreams.RESOLV_FILES) -> None:
        self._services, self._slices, self._ledger, self._clock = services, slices, ledger, clock
        self.namespaces = Informer(client, named("namespaces"), metadata=True, clock=clock)
        self._config = Informer(client, named("configmaps"), NAMESPACE, fields=f"metadata.name={NAME}", clock=clock)
        self._upstreams = upstreams.Upstreams(clock.monotonic, lambda: self.listening, files)
        zone = Zone(Objects(services, slices, self.namespaces), domain, networks)
        self.responder = Responder(zone, Forwarder(self._upstreams, clock), clock)
        self._wake = asyncio.Event()
        self.listening: tuple[str, ...] = ()
        self._backends: dict[int, xtables.Backend] = {}
        self.ready = asyncio.Event()  # set while it answers

    async def run(self) -> None:
        """Until cancelled; the address stays, so that questions meanwhile fail at once instead of getting lost."""
        for informer in (self._services, self._slices, self.namespaces):
            informer.subscribe(self._changed)
        self._config.subscribe(self._configured)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.namespaces.run())
            group.create_task(self._config.run())
            for informer in (self._services, self._slices, self.namespaces, self._config):
                await informer.synced()
            await self._follow()

    async def repair(self) -> None:
        """Put back rules that somebody removed. Raises xtables.RestoreError."""
        await asyncio.to_thread(self._admit)

    def _changed(self, _kind: str, _old: Obj | None, new: Obj) -> None:
        self.responder.changed()
        meta = new["metadata"]
        if meta["name"] == NAME and meta.get("namespace") == NAMESPACE:
            self._wake.set()

    def _configured(self, kind: str, _old: Obj | None, new: Obj) -> None:
        config, problems = upstreams.read_config({} if kind == "DELETED" else new.get("data") or {})
        for problem in problems:
            log.warning("ConfigMap %s/%s: %s", NAMESPACE, NAME, problem)
        self._upstreams.config = config

    async def _follow(self) -> None:
        """Listen where the Service says, and move when it changes."""
        while True:
            self._wake.clear()
            self.listening = addresses(self._services.get(NAMESPACE, NAME))
            self.responder.zone.server = next(iter(self.listening), "")
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(self._listen(address)) for address in self.listening]
                if not work:
                    log.info("no Service %s/%s asks for the cluster's DNS here", NAMESPACE, NAME)
                while addresses(self._services.get(NAMESPACE, NAME)) == self.listening:
                    await self._wake.wait()
                    self._wake.clear()
                for task in work:
                    task.cancel()
            self.ready.clear()
            for address in self.listening:
                await asyncio.to_thread(listen.leave, address)

    async def _listen(self, address: str) -> None:
        told = ""
        while True:
            try:
                await asyncio.to_thread(self._take, address)
                server = Server(self.responder, address)
                async with asyncio.TaskGroup() as group:
                    group.create_task(server.run())
                    await server.listening.wait()
                    self.ready.set()
                    log.info("answering for %s on %s", self.responder.zone.domain, address)
                    await metrics.serve(self.responder, address, listen.METRICS_PORT)
            except* (OSError, xtables.RestoreError, Finding) as group_error:
                error = _first(group_error)
                if str(error) != told:
                    log.error("the cluster's DNS cannot answer on %s: %s; tell a DNS server that takes port 53 of "
                              "every address to leave this one out", address, error)
                told = str(error)
            self.ready.clear()
            await self._clock.sleep(RETRY_SECONDS)

    def _take(self, address: str) -> None:
        listen.take(address, self._ledger)
        self._admit()

    def _admit(self) -> None:
        for family in {6 if ":" in a else 4 for a in self.listening}:
            backend = self._backends.get(family) or self._backends.setdefault(family, xtables.detect(family))
            listen.admit(list(self.listening), self._ledger, backend)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""A joined node's certificates, renewed by the cluster's authority while the agent runs.

Owns the moment: in the last third of a certificate's life, months before it ends, or at once when the node's address is
not in it. Promises that an old certificate serves on until its successor is on the disk and in use, that a server that
is away or refuses is asked again, and that no connection is cut: running watches end by themselves. Called by
`agent.__main__` when `--rotate-certificates` is given; on the server `pelamis prepare` does it, beside the authority.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from controlplane.client import certificates
from controlplane.client.config import load
from controlplane.client.rest import Client
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.paths import Paths
from controlplane.pki import leaves

RETRY_SECONDS = 300.0  # there are months left
LOOK_SECONDS = 86400.0  # a clock that was wrong is put right some day: no sleep is longer
log = logging.getLogger("agent")


class Rotation:
    """`client` is the node's own and asks; `clients` are all by their kubeconfig; `reload` lets the kubelet's API take
    its new certificate."""

    def __init__(self, paths: Paths, name: str, address: str, client: Client, clients: Mapping[Path, Client],
                 reload: Callable[[], None], clock: Clock = SYSTEM) -> None:
        self._paths, self._client, self._clients, self._reload, self._clock = paths, client, clients, reload, clock
        self._wanted = certificates.of_node(name, address)

    async def run(self) -> None:
        while True:
            stored = certificates.stored(self._paths, self._wanted)
            late = certificates.due(self._wanted, stored, self._clock.now())
            try:
                for wanted in late:
                    await self._renew(wanted)
            except (ApiError, Finding) as error:
                log.warning("cannot renew certificates yet: %s", error)
                await self._clock.sleep(RETRY_SECONDS)
            if not late:
                await self._clock.sleep(self._pause(stored))

    def _pause(self, stored: Mapping[str, bytes]) -> float:
        first = min(leaves.renewal_time(pem) for pem in stored.values())
        return max(1.0, min(first - self._clock.now(), LOOK_SECONDS))

    async def _renew(self, wanted: certificates.Wanted) -> None:
        pair = await certificates.obtain(self._client, wanted)
        certificates.store(self._paths, self._client.config.server, self._client.config.ca, wanted, pair)
        log.info("renewed the certificate %s", wanted.file)
        file = self._paths.kubeconfig(wanted.file)
        if not wanted.config:
            self._reload()
        elif file in self._clients:
            await self._clients[file].renew(load(file))

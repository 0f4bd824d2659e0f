"""A process takes a renewed identity into use while it runs: on SIGHUP, which whoever renews its files sends.

Owns the signal. Promises that no connection is cut (watches end by themselves), and that files that cannot be used are
told and change nothing: the old identity serves on. Called by the `__main__` of the controllers and of the agent.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from controlplane.client.config import load
from controlplane.client.rest import Client
from controlplane.machinery.errors import Finding

log = logging.getLogger("identity")


async def follow(clients: Mapping[Path, Client], reload: Callable[[], None] = lambda: None) -> None:
    """Until cancelled. `clients` are by their kubeconfig, and may grow; `reload` takes what else was renewed."""
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    while True:
        await asked.wait()
        asked.clear()
        try:
            reload()
            for file, client in list(clients.items()):
                await take(client, file)
        except (Finding, OSError, ssl.SSLError) as error:
            log.warning("cannot take the renewed certificates, the old ones serve on: %s", error)


async def take(client: Client, file: Path) -> None:
    """Be the identity the kubeconfig holds now, unless it is the same. Raises Finding."""
    config = load(file)
    if config != client.config:
        await client.renew(config)
        log.info("took the identity in %s", file)

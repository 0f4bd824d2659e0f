"""What the tests of the apiserver's edge share: a context over a memory log, requests without a connection."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from multidict import CIMultiDict

from controlplane.apiserver.authentication.authn import User
from controlplane.apiserver.config import Options
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request, build
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.resources import builtin
from controlplane.store.cache import Cache, key_of
from controlplane.store.memory import MemoryLog

MODES = ("Node", "RBAC")


def make_context(**options: Any) -> Context:
    options.setdefault("authorization_mode", MODES)
    return Context(Options(**options), Cache(MemoryLog()), builtin(), FakeClock())


async def put(context: Context, plural: str, obj: dict[str, Any]) -> None:
    """Store an object under its key."""
    metadata = obj["metadata"]
    await context.cache.write(key_of(plural, metadata.get("namespace", ""), metadata["name"]), obj, 0)


def request(context: Context, path: str, method: str = "GET", user: User | None = None,
            **headers: str) -> Request:
    """A request as the server builds it; header names are given with underscores."""
    made = build(method, path, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}), context.registry)
    made.user = user
    return made


def signing_key(folder: Path) -> Path:
    from controlplane.machinery import files
    from controlplane.pki.authority import key_pem, new_key
    files.write(folder / "sa.key", key_pem(new_key()))
    return folder / "sa.key"


def running(context: Context, coroutine_of: Any) -> Any:
    """Open the cache, await `coroutine_of()`, close."""
    async def run() -> Any:
        await context.cache.open()
        try:
            return await coroutine_of()
        finally:
            await context.cache.close()
    return asyncio.run(run())

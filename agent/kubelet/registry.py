"""Plugins of this node, heard of by the socket each puts into one folder: storage drivers, drivers of ResourceClaims,
device plugins.

Owns the folder `plugins_registry`. Promises that a plugin is asked who it is before it is listed, that it learns
whether it is registered, and that one whose socket goes is no longer listed. What a plugin is good for, its kind knows.
Sleeps until the folder changes. Run by the agent.

Upstream: pkg/kubelet/pluginmanager.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from agent.kubelet.directory import Directory
from cri_proto.client import Plugin, describe
from cri_proto.messages import registration
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
FOLDER = "plugins_registry"
UNTOLD = -1.0  # in place of the time a socket was made: its plugin does not know yet that it is listed
CALL_SECONDS = 10.0  # a plugin that says nothing for longer is asked again
RETRY_SECONDS = 10.0
QUIET_SECONDS = 3600.0  # the folder is looked at this often without any news, in case some were lost
Spawn = Callable[[Coroutine[Any, Any, None], str], "asyncio.Task[None]"]


class Kind(Protocol):
    """What becomes of plugins of one type."""

    async def take(self, info: Any, endpoint: str, spawn: Spawn) -> str:
        """List the plugin (a PluginInfo) that listens at `endpoint`; why not, "" when it is."""

    async def left(self, name: str, spawn: Spawn) -> None:
        """A listed plugin has gone, or is replaced by one that will be taken."""

    async def tend(self) -> float:
        """Do what is due; how many seconds until something may be again."""


def home(root: Path, usual: Path, ledger: Ledger) -> Path:
    """The kubelet's folder as plugins know it: `usual`, which becomes a link to `root` when nothing is there, for the
    manifests of plugins name it; else `root` itself."""
    try:
        if not os.path.lexists(usual):
            ledger.make_directory(usual.parent)
            ledger.record("symlink", path=usual)
            usual.symlink_to(root)
    except OSError as error:
        log.warning("plugins that look for the kubelet at %s will not find it: %s", usual, error)
    return usual if usual.is_symlink() and usual.resolve() == root.resolve() else root


class Registry:
    """`kinds` are the types of plugins that are wanted here; those of others are left alone."""

    def __init__(self, root: Path, kinds: Mapping[str, Kind]) -> None:
        self._folder, self._kinds = root / FOLDER, kinds
        self._known: dict[Path, tuple[Kind | None, str, float]] = {}  # socket -> kind, name, when it was made
        self._group: asyncio.TaskGroup

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._group.create_task(work, name=name)

    async def run(self) -> None:
        """Until cancelled."""
        with Directory(self._folder) as changes:
            async with asyncio.TaskGroup() as self._group:
                while True:
                    fine = await self._look()
                    pauses = [await kind.tend() for kind in self._kinds.values()]
                    await changes.wait(min([QUIET_SECONDS if fine else RETRY_SECONDS, *pauses]))

    async def _look(self) -> bool:
        """Bring the lists up to the folder; whether everything went well."""
        present = {p: p.lstat().st_mtime for p in self._folder.iterdir()
                   if not p.name.startswith(".") and stat.S_ISSOCK(p.lstat().st_mode)}
        for path in [p for p, (_, _, made) in self._known.items() if present.get(p) != made]:
            kind, name, _ = self._known.pop(path)
            if kind is not None:
                await kind.left(name, self._spawn)
            if path not in present:
                log.info("plugin %s has left", name)
        fine = True
        for path, made in present.items():
            if path not in self._known:
                fine = await self._register(path, made) and fine
        return fine

    async def _register(self, path: Path, made: float) -> bool:
        """Make the acquaintance of the plugin behind a registrar's socket."""
        try:
            async with Plugin(path) as registrar:
                info = await registrar.registration.GetInfo(registration.InfoRequest(), timeout=CALL_SECONDS)
                kind = self._kinds.get(info.type)
                if kind is None:
                    self._known[path] = (None, info.name, made)
                    return True
                problem = await kind.take(info, info.endpoint or str(path), self._spawn)
                if not problem:
                    self._known[path] = (kind, info.name, UNTOLD)
                await registrar.registration.NotifyRegistrationStatus(registration.RegistrationStatus(
                    plugin_registered=not problem, error=problem), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("plugin at %s: %s", path, describe(error))
            return False
        if problem:
            log.warning("plugin %s: %s", info.name, problem)
            return False
        self._known[path] = (kind, info.name, made)
        log.info("plugin %s is registered", info.name)
        return True

"""What pods left on this host that neither the API nor the runtime knows any more: after a crash, or behind our back.

Owns the search for folders, volumes, control groups and logs of such pods. Promises that nothing of a known pod is
touched, that volumes are given back and unmounted before anything is removed, and that what cannot be removed is said
and tried again the next time. Called by `kubelet` once the API has told of every pod, and with each relisting.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from agent.kubelet.context import Context
from agent.kubelet.env import ConfigError

log = logging.getLogger(__name__)
YOUNG_SECONDS = 120.0  # a control group younger than that may be another kubelet's


def _uids(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _logs(folder: Path, known: Callable[[str], bool]) -> list[Path]:
    """Log folders, named namespace_name_uid, of pods nobody knows."""
    found = list(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.name.count("_") == 2 and not known(path.name.rpartition("_")[2])]


async def sweep(context: Context, known: Callable[[str], bool]) -> None:
    """Remove what is left of pods whose uids are not `known`, asked at the last moment: pods come meanwhile."""
    node = context.node
    if context.volumes.images is not None:
        try:
            await context.volumes.images.sweep(known)
        except OSError as error:
            log.warning("%s", error)
    for uid in await asyncio.to_thread(_uids, node.root / "pods"):
        if not known(uid):
            try:
                await context.volumes.tear_down(uid)
            except (ConfigError, OSError) as error:
                log.warning("cannot remove what is left of pod %s: %s", uid, error)
    for uid in await asyncio.to_thread(context.cgroups.orphans, known, context.clock.now() - YOUNG_SECONDS):
        await context.cgroups.remove(uid)
    for path in await asyncio.to_thread(_logs, node.logs, known):
        await asyncio.to_thread(shutil.rmtree, path, True)

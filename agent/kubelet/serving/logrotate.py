"""Keeps container logs small: a log grown too large is renamed and the runtime told to open a new one.

Owns the names of rotated files (`0.log.<time>`) and how many are kept. Promises that no line is lost: until the runtime
reopens, it writes on into the renamed file, and when it cannot, the file gets its name back. Looks at sizes at a slow
beat, one stat per running container. `Rotator` is run by the agent; `logs` reads what it leaves.

Upstream: pkg/kubelet/logs/container_log_manager.go.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

from controlplane.machinery.clock import SYSTEM, Clock

ROTATE_BYTES, ROTATE_FILES = 10 << 20, 5  # upstream's containerLogMaxSize and containerLogMaxFiles
ROTATE_SECONDS = 30.0  # between looks at the sizes: a program that writes faster is bounded by its disk


def rotated(path: Path) -> list[Path]:
    """The older files of the log at `path`, oldest first."""
    return sorted(p for p in path.parent.glob(f"{path.name}.*") if p.suffix != ".tmp")


class Rotator:
    """Keeps logs small. `containers` gives id and log path of each running container."""

    def __init__(self, reopen: Callable[[str], Awaitable[None]],
                 containers: Callable[[], Iterable[tuple[str, str]]], clock: Clock = SYSTEM) -> None:
        self._reopen, self._containers, self._clock = reopen, containers, clock

    async def run(self) -> None:
        """Look at the sizes for ever."""
        while True:
            await self._clock.sleep(ROTATE_SECONDS)
            for container, path in list(self._containers()):
                await self.rotate(container, Path(path))

    async def rotate(self, container: str, path: Path, limit: int = ROTATE_BYTES) -> bool:
        """Rename the log when it is larger than `limit` and have the runtime open a new one; whether that was done."""
        moment = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y%m%d-%H%M%S.%f")
        kept = path.with_name(f"{path.name}.{moment}")
        if not _aside(path, kept, limit):
            return False
        try:
            await self._reopen(container)
        except Exception:
            _back(path, kept)
            return False
        return True


def _aside(path: Path, kept: Path, limit: int) -> bool:
    """Give a log larger than `limit` the name `kept` and drop the oldest ones."""
    try:
        if path.stat().st_size < limit:
            return False
        for old in rotated(path)[:-(ROTATE_FILES - 2)]:
            old.unlink(missing_ok=True)
        path.rename(kept)
    except FileNotFoundError:
        return False
    return True


def _back(path: Path, kept: Path) -> None:
    """Until it opens a new file the runtime writes on into the renamed one: give that its name back."""
    if not path.exists():
        kept.rename(path)

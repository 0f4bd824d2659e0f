"""The log kept in memory: for tests, dry runs and throw-away clusters.

Promises what `log.Log` promises, except that nothing survives the process. Every write is answered at once, so it never
has an accepted write that is not yet visible. Called by the cache alone.
"""

from __future__ import annotations

from bisect import bisect_right

from controlplane.store.log import Change, Compacted, Entry, Follower, Log, Stale


class MemoryLog(Log):
    """A list of changes and the state after the last of them."""

    def __init__(self) -> None:
        self._history: list[Change] = []
        self._base: dict[str, Entry] = {}  # the state at `compacted`
        self._state: dict[str, Entry] = {}
        self._follower: Follower | None = None

    async def open(self, follower: Follower) -> list[Entry]:
        self._follower = follower
        return sorted(self._state.values(), key=lambda entry: entry.key)

    async def close(self) -> None:
        self._follower = None

    async def write(self, key: str, value: bytes | None, expect: int | None) -> Change:
        current = self._state.get(key)
        seen = current.revision if current else 0
        if (expect is not None and expect != seen) or (value is None and current is None):
            raise Stale(key, current)
        self.revision += 1
        change = Change(self.revision, key, value, current)
        entry = change.entry
        if entry is None:
            del self._state[key]
        else:
            self._state[key] = entry
        self._history.append(change)
        if self._follower is not None:
            self._follower([change])
        return change

    def _after(self, revision: int) -> int:
        return bisect_right(self._history, revision, key=lambda change: change.revision)

    def _readable(self, revision: int) -> None:
        if revision < self.compacted:
            raise Compacted(self.compacted)

    @staticmethod
    def _apply(state: dict[str, Entry], changes: list[Change]) -> None:
        for change in changes:
            entry = change.entry
            if entry is None:
                state.pop(change.key, None)
            else:
                state[change.key] = entry

    async def at(self, prefix: str, revision: int) -> list[Entry]:
        self._readable(revision)
        state = dict(self._base)
        self._apply(state, self._history[:self._after(revision)])
        return sorted((e for e in state.values() if e.key.startswith(prefix)), key=lambda entry: entry.key)

    async def since(self, prefix: str, revision: int) -> list[Change]:
        self._readable(revision)
        return [c for c in self._history[self._after(revision):] if c.key.startswith(prefix)]

    async def compact(self, revision: int) -> None:
        revision = min(revision, self.revision)
        if revision <= self.compacted:
            return
        cut = self._after(revision)
        self._apply(self._base, self._history[:cut])
        del self._history[:cut]
        self.compacted = revision

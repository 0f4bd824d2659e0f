"""What has failed for one pod, and when it is tried again: crash back-offs, pull back-offs, pauses of all else.

Owns the pod's memory of failures; a kubelet that starts anew begins without. Promises that every repeated failure waits
longer up to a limit, that success forgets, and that a changed definition is tried at once. Called by `worker`, which
decides nothing of it: `plan` reads `backoffs` and `not_before`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.kubelet.backoff import BackOff
from agent.kubelet.reporting.waiting import PULL_REASONS, Failure
from controlplane.machinery.clock import Clock

RETRY_FIRST, RETRY_LIMIT = 0.5, 60.0  # seconds between attempts at what failed without a back-off of its own


class Failures:
    """Keys are container names, or those of other work of the worker."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.backoffs: dict[str, BackOff] = {}  # of crashes
        self.not_before: dict[str, float] = {}  # seconds since the epoch
        self.known: dict[str, Failure] = {}  # by container name
        self._pulls: dict[str, BackOff] = {}
        self._tries: dict[str, int] = {}

    def restarted(self, name: str, failed_at: float) -> None:
        """A container is started again that had ended at `failed_at`."""
        self.backoffs[name] = self.backoffs.get(name, BackOff()).longer(failed_at, self._clock.now())

    def succeeded(self, key: str) -> None:
        for table in (self.known, self.not_before, self._tries, self._pulls):
            table.pop(key, None)  # type: ignore[attr-defined]

    def add(self, key: str, names: Iterable[str], reason: str, message: str) -> float:
        """Work `key`, which concerns the containers `names`, failed; when it may be tried again, 0.0 = not by time."""
        now = self._clock.now()
        for name in names:
            self.known[name] = (reason, message, now)
        if reason in PULL_REASONS:
            self._pulls[key] = self._pulls.get(key, BackOff()).longer(now, now)
            self.not_before[key] = now + self._pulls[key].delay
        elif reason != "RunContainerError":  # that one has left an exited container: the crash back-off rules
            self.delay(key)
        return self.not_before.get(key, 0.0)

    def delay(self, key: str) -> float:
        """Let `key` wait; until when."""
        self.not_before[key] = self._clock.now() + self.pause(key)
        return self.not_before[key]

    def pause(self, key: str) -> float:
        """Seconds to wait after one more failure of `key`."""
        tries = self._tries[key] = self._tries.get(key, 0) + 1
        return self._clock.jitter(min(RETRY_FIRST * 2 ** (tries - 1), RETRY_LIMIT), 0.1)

    def forgive(self) -> None:
        """Do not wait out what a changed definition may have mended."""
        for name in [n for n, (reason, _, _) in self.known.items() if reason not in PULL_REASONS]:
            self.not_before.pop(name, None)

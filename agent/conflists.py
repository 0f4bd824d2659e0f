"""Who gives this node's pods their network: we, or whoever put a CNI configuration beside ours.

Owns the watch of the folder of configurations: a network that is installed on a running cluster, as by a DaemonSet,
takes over at once, and ours comes back when that one goes. Never reads or changes the files. The agent runs it, and has
the CNI daemon configured anew and the routes looked at.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.kubelet.directory import Directory
from controlplane.machinery.paths import Paths
from netsetup.cni import install

LOOK_SECONDS = 600.0  # every change is told; this is for none


class Conflists:
    """`subscribe`, then `run()`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._known = self.foreign()
        self._callbacks: list[Callable[[], None]] = []

    def foreign(self) -> bool:
        """Whether it is somebody else, as things are now."""
        return install.foreign(self._paths) is not None

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call it whenever it becomes somebody else, or us again."""
        self._callbacks.append(callback)

    async def run(self) -> None:
        """Until cancelled."""
        with Directory(self._paths.cni_conf) as changes:
            while True:
                if self._known != self.foreign():
                    self._known = not self._known
                    for callback in self._callbacks:
                        callback()
                await changes.wait(LOOK_SECONDS)

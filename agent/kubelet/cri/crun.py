"""crun on this host: where it is, and how it is called where both versions of control groups are mounted.

Owns that way: crun takes control groups of version 2 or 1, and refuses a host that mounts version 1 with the tree of
version 2 beside it. There it is shown version 1 alone, from a mount namespace that lacks this one mount and shares all
others: containerd's own, with no process more, if pods' mounts reach that namespace and come out of it; else one for
each call, which takes some milliseconds. Promises that no mount of the host changes, and that nothing is done on other
hosts nor under systemd, whose own the second tree is. `way` is pure. Called by `containerd`.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from controlplane.machinery.paths import Paths

UNIFIED = Path("/sys/fs/cgroup/unified")
SYSTEMD = Path("/run/systemd/system")
# Words before a command that is to see version 1 alone; it becomes the process that is started.
APART = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c",
         f'mount --make-private {UNIFIED.parent} && umount {UNIFIED}; exec "$@"', "sh")


@dataclass(frozen=True, slots=True)
class Crun:
    """`path` is the program's, "" when it is not installed; `script`, once written, calls it apart each time."""

    path: str = ""
    apart: bool = False
    script: Path | None = None

    @property
    def program(self) -> str:
        """What containerd calls."""
        return str(self.script or self.path)

    @property
    def before(self) -> tuple[str, ...]:
        """Words before containerd's own command."""
        return APART if self.apart and self.script is None else ()

    @property
    def command(self) -> tuple[str, ...]:
        """How to call it from here."""
        return (*APART, self.path) if self.apart else (self.path,)

    def write(self) -> None:
        """See that the script is there, when there is to be one."""
        if self.script is not None:
            self.script.write_text(f'#!/bin/sh\nexec {shlex.join(self.command)} "$@"\n')
            self.script.chmod(0o755)


def way(mounts: str, places: Iterable[Path]) -> str:
    """Who needs the namespace by `mounts`, a mountinfo: "" is nobody, "containerd" when all mounts at `places` spread,
    else "crun"."""
    kinds, shared = {}, {}
    for at, words in ((Path(words[4]), words) for words in map(str.split, mounts.splitlines())):
        end = words.index("-")
        kinds[at], shared[at] = words[end + 1], any(word.startswith("shared:") for word in words[6:end])
    if kinds.get(UNIFIED) != "cgroup2":
        return ""
    spread = (next(shared[at] for at in (place, *place.parents) if at in shared) for place in places)
    return "containerd" if all(spread) else "crun"


def find(paths: Paths, programs: str) -> Crun:
    """How it is called on this host, where it is looked for in `programs` as in PATH."""
    path = shutil.which("crun", path=programs)
    if path is None:
        return Crun()
    mounts = "" if SYSTEMD.is_dir() else Path("/proc/thread-self/mountinfo").read_text()
    needs = way(mounts, (paths.lib, paths.run, Path("/"), Path("/run")))
    return Crun(path, bool(needs), paths.lib / "crun" if needs == "crun" else None)

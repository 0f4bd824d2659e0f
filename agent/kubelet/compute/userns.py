"""User namespaces of pods: which users of this host a pod's users are.

Owns the blocks of 65536 ids, one per pod with `hostUsers: false`, kept in the pod's folder as upstream keeps them: a
restart forgets none, and a block is free again when its pod's folder has gone. Promises that no two pods share one.
Called by `steps`; what the runtime makes of it is in `translate`.

Upstream: pkg/kubelet/userns; KEP 127.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from controlplane.machinery import files
from controlplane.machinery.errors import Finding

LENGTH = 65536  # ids of one pod: every id a container may use
FILE = "userns"
USER = "kubelet"  # whose ids in /etc/subuid are for pods
SUBUID, SUBGID = Path("/etc/subuid"), Path("/etc/subgid")


def delegated(users: Path = SUBUID, groups: Path = SUBGID) -> tuple[int, int] | None:
    """The first id and the number of blocks that the host's administrator set aside for pods; None when nobody did.
    Raises Finding for a range that cannot be used."""
    found = [_range(file) for file in (users, groups)]
    if found == [None, None]:
        return None
    first, count = found[0] or (0, 0)
    if found[0] != found[1] or first % LENGTH or not first or count < LENGTH:
        raise Finding(f"the ids of {USER} in {users} and {groups} cannot be used for pods", f"they are {found}",
                      f"give it one range, the same in both files, that begins at a multiple of {LENGTH}")
    return first, count // LENGTH


def _range(file: Path) -> tuple[int, int] | None:
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError:
        return None
    return next(((int(words[1]), int(words[2])) for words in lines if words[0] == USER and len(words) == 3), None)


class UserNamespaces:
    """Blocks for the pods whose folders lie in `pods`: `count` of them from the id `first` on."""

    def __init__(self, pods: Path, first: int = LENGTH, count: int = 0) -> None:
        self._pods, self._first, self._count = pods, first, count

    def of(self, uid: str) -> int:
        """The host's id of the pod's root, the same one at every call. Raises OSError when all blocks are in use."""
        file = self._pods / uid / FILE
        kept = _kept(file)
        if kept is not None:
            return kept
        taken = {_kept(other) for other in self._pods.glob(f"*/{FILE}")}
        block = next((n for n in range(self._count) if self._first + n * LENGTH not in taken), None)
        if block is None:
            raise OSError(f"no ids are left for another pod's users: all {self._count} blocks are in use")
        start = self._first + block * LENGTH
        mapping = [{"hostId": start, "containerId": 0, "length": LENGTH}]
        files.write(file, orjson.dumps({"uidMappings": mapping, "gidMappings": mapping}))
        return start


def _kept(file: Path) -> int | None:
    try:
        return int(orjson.loads(file.read_bytes())["uidMappings"][0]["hostId"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None

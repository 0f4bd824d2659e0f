"""One layer of an image: a tar file that depends on its content alone.

Owns the order, owners, modes and times of the entries, so that the same content gives the same digest on every machine.
Parents are made as needed and Debian's merged /usr is honoured: `/bin`, `/sbin`, `/lib`, `/lib64` are links into
`/usr`. Reads files when told to (`tree`) and otherwise touches nothing. Called by `oci`'s users: `debian`, `demo`,
`pause`, the command line.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

MERGED = ("bin", "sbin", "lib", "lib64", "libx32", "lib32")
MAX_BYTES = 2 << 30  # a layer is held in memory while it is packed


class Layer:
    """Collects entries by path; a later entry replaces an earlier one. `merged_usr` moves /bin, /lib … below /usr."""

    def __init__(self, merged_usr: bool = False) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}
        self._merged = merged_usr
        self._size = 0

    def _path(self, path: str | Path) -> str:
        clean = os.path.normpath("/" + str(path)).strip("/")
        first = clean.partition("/")[0]
        return f"usr/{clean}" if self._merged and first in MERGED else clean

    def _add(self, path: str, kind: bytes, mode: int, owner: tuple[int, int] = (0, 0), data: bytes = b"",
             target: str = "") -> None:
        info = tarfile.TarInfo(path)
        info.type, info.mode, info.linkname, info.size = kind, mode, target, len(data)
        info.uid, info.gid = owner
        self._size += len(data)
        if self._size > MAX_BYTES:
            raise ValueError(f"the layer is larger than {MAX_BYTES} bytes")
        self._entries[path] = (info, data)

    def directory(self, path: str | Path, mode: int = 0o755, owner: tuple[int, int] = (0, 0)) -> None:
        self._add(self._path(path), tarfile.DIRTYPE, mode, owner)

    def file(self, path: str | Path, data: bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
        self._add(self._path(path), tarfile.REGTYPE, mode, owner, data)

    def link(self, path: str | Path, target: str) -> None:
        """A symbolic link."""
        self._add(self._path(path), tarfile.SYMTYPE, 0o777, target=target)

    def tree(self, root: Path, below: str = "") -> None:
        """Everything in `root`, placed below `below`, with its modes but owned by root; devices and sockets are left
        out, since images have no use for them."""
        for folder, folders, files in os.walk(root):
            for name in sorted(folders + files):
                source = Path(folder, name)
                place = Path(below, source.relative_to(root))
                found = source.lstat()
                mode = stat.S_IMODE(found.st_mode)
                if stat.S_ISLNK(found.st_mode):
                    self.link(place, os.readlink(source))
                elif stat.S_ISDIR(found.st_mode):
                    self.directory(place, mode)
                elif stat.S_ISREG(found.st_mode):
                    self.file(place, source.read_bytes(), mode)

    def __contains__(self, path: str) -> bool:
        return self._path(path) in self._entries

    def packed(self) -> bytes:
        """The tar file: sorted by path, times zero, no user names."""
        entries = dict(self._entries)
        for path in list(entries):
            parent = path.rpartition("/")[0]
            while parent and parent not in entries:
                info = tarfile.TarInfo(parent)
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                entries[parent] = (info, b"")
                parent = parent.rpartition("/")[0]
        if self._merged:
            for name in MERGED:
                if f"usr/{name}" in entries and name not in entries:
                    info = tarfile.TarInfo(name)
                    info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, f"usr/{name}"
                    entries[name] = (info, b"")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(entries):
                info, data = entries[path]
                if path:
                    tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()

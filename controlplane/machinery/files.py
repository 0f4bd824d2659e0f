"""Files of state, keys and certificates: replaced whole or not at all, and open to whom they are meant for.

A file is made beside its place, closed to others before its first byte, flushed to the disk and renamed into place, and
the folder is flushed too: at no moment is it half written, and what was written before a power cut is there after it.
Called by whoever keeps something over restarts: `pki`, the kubelet, the installer.
"""

from __future__ import annotations

import os
from pathlib import Path

SECRET = 0o600
PUBLIC = 0o644


def write(path: Path, data: bytes, mode: int = SECRET) -> None:
    """Replace the file at `path` by `data`, atomically and durably; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")  # what a crash leaves of it, the next write takes over
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, SECRET), "wb") as out:
        os.fchmod(out.fileno(), mode)
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(staged, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


def read(path: Path) -> bytes | None:
    """What `path` holds, None when there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None

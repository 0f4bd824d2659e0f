"""Files of keys and certificates: written whole or not at all, and readable by whom they are meant for.

A secret is created with mode 0600 from its first byte, in the folder it will live in, flushed to the disk and renamed
into place: no moment exists at which it is half written or open to others. Called by the modules of this package
alone.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

SECRET = 0o600
PUBLIC = 0o644


def write(path: Path, data: bytes, mode: int = SECRET) -> None:
    """Replace the file at `path` by `data`, atomically and durably."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def read(path: Path) -> bytes | None:
    """What `path` holds, None when there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None

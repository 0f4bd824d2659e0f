"""Backups of the store: taken while it runs, verified, kept by a policy, and put back so that no client is misled.

Owns the form of a snapshot: one SQLite file without free pages, named by time and revision. Promises that a snapshot is
one moment of the store, whole on the disk or absent; that a restore first verifies what it puts back, keeps what was
there, leaves no write-ahead log of the old file behind, and gives no revision anew: whoever watched is told to list
again. `to_forget` is pure. Blocking: called by the commands `snapshot` and `store`, never by the server.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from controlplane.machinery.errors import Finding

NAME = re.compile(r"store-(\d{8}T\d{6}Z)-r(\d+)\.db")
STAMP = "%Y%m%dT%H%M%SZ"
BUSY_SECONDS = 30.0  # the server's commits are short
JUMP = 1000  # revisions skipped by a restore: more than a server could have given that nobody recorded
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Policy:
    """How many snapshots are kept: the newest ones, and the last of each of so many days and weeks."""

    newest: int = 8
    days: int = 7
    weeks: int = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    path: Path
    time: float
    revision: int
    size: int


@dataclass(frozen=True, slots=True)
class Health:
    """What a store's file is like; `problems` is empty when it is sound. Sizes are bytes."""

    problems: tuple[str, ...]
    objects: int
    revision: int
    compacted: int
    size: int
    free: int
    log: int


def save(store: Path, folder: Path, now: float) -> Snapshot:
    """A snapshot of the store as it is, running or not. Raises Finding."""
    if not store.exists():
        raise Finding(f"there is no store at {store}", "", "pelamis status says what runs here")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    staged = folder / ".new.db"
    staged.unlink(missing_ok=True)
    old = os.umask(0o077)  # it holds every Secret of the cluster
    try:
        with _opened(store) as source:
            source.execute("VACUUM INTO ?", (str(staged),))
        found = health(staged)
        if found.problems:
            raise Finding(f"the store {store} is damaged", found.problems[0], _way_out(folder))
        with open(staged, "rb") as file:
            os.fsync(file.fileno())
        stamp = datetime.fromtimestamp(now, UTC).strftime(STAMP)
        target = folder / f"store-{stamp}-r{found.revision}.db"
        os.replace(staged, target)
        _sync(folder)
    except sqlite3.Error as error:
        staged.unlink(missing_ok=True)
        if getattr(error, "sqlite_errorcode", 0) & 0xff in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Finding(f"the store {store} is damaged", str(error), _way_out(folder)) from error
        raise Finding(f"the store {store} cannot be saved", str(error),
                      f"look at the disk: df -h {folder}; pelamis store check says more") from error
    finally:
        os.umask(old)
    return Snapshot(target, now, found.revision, target.stat().st_size)


def listed(folder: Path) -> list[Snapshot]:
    """The snapshots of a folder, newest first."""
    found = []
    for path in folder.glob("store-*.db"):
        match = NAME.fullmatch(path.name)
        if match:
            time = datetime.strptime(match[1], STAMP).replace(tzinfo=UTC).timestamp()
            found.append(Snapshot(path, time, int(match[2]), path.stat().st_size))
    return sorted(found, key=lambda s: (s.time, s.revision), reverse=True)


def to_forget(snapshots: Sequence[Snapshot], policy: Policy) -> list[Snapshot]:
    """Those of the snapshots (newest first) that the policy does not keep."""
    keep = {s.path for s in snapshots[:policy.newest]}
    for length, count in ((DAY, policy.days), (7 * DAY, policy.weeks)):
        newest_of: dict[int, Snapshot] = {}
        for snapshot in snapshots:
            newest_of.setdefault(int(snapshot.time // length), snapshot)
        keep |= {s.path for s in list(newest_of.values())[:count]}
    return [s for s in snapshots if s.path not in keep]


def restore(snapshot: Path, store: Path) -> tuple[Health, Path | None]:
    """Put a snapshot in the place of the store, which must not be in use; what was restored, and where the old store is
    kept. Raises Finding."""
    found = health(snapshot)
    if found.problems:
        raise Finding(f"the snapshot {snapshot} is damaged", found.problems[0], "pelamis snapshot list; take another")
    store.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(store):
        highest = max(found.revision, _revision(store) if store.exists() else 0)
        staged = _staged(snapshot, store, highest + JUMP)
        kept = _set_aside(store) if store.exists() else None
        os.replace(staged, store)
        _sync(store.parent)
    return found, kept


def _staged(snapshot: Path, store: Path, floor: int) -> Path:
    """What is to be the store, whole and beside it."""
    staged = store.with_name(f".{store.name}.new")
    shutil.copyfile(snapshot, staged)
    os.chmod(staged, 0o600)
    owner = store.parent.stat()
    os.chown(staged, owner.st_uid, owner.st_gid)
    with closing(sqlite3.connect(staged, isolation_level=None)) as fresh:
        fresh.execute("UPDATE floor SET compacted = ?", (floor,))
    return staged


def _set_aside(store: Path) -> Path:
    """Keep the old store under another name too, until the new one takes its place: killed at any moment, a restore
    leaves a store, for a server that found none would begin an empty one. Its log goes before it does: beside another
    store it would damage that."""
    kept = store.with_name(f"{store.name}.before-restore")
    for suffix in ("-wal", "-shm", ""):
        part, place = Path(f"{store}{suffix}"), Path(f"{kept}{suffix}")
        place.unlink(missing_ok=True)
        if suffix and part.exists():
            os.replace(part, place)
    os.link(store, kept)
    return kept


def health(store: Path, thorough: bool = True) -> Health:
    """Look at every page of a store or snapshot. Raises Finding when it is none."""
    try:
        with _opened(store) as file:
            check = "integrity_check" if thorough else "quick_check"
            rows = [row[0] for row in file.execute(f"PRAGMA {check}(20)")]
            problems = () if rows == ["ok"] else tuple(rows)
            page, free = (file.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "freelist_count"))
            compacted = file.execute("SELECT compacted FROM floor").fetchone()[0]
            revision = max(file.execute("SELECT max(revision) FROM log").fetchone()[0] or 0, compacted)
            objects = file.execute("SELECT count(*) FROM log l WHERE value IS NOT NULL AND revision = "
                                   "(SELECT max(revision) FROM log WHERE key = l.key)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        return Health((str(error),), 0, 0, 0, store.stat().st_size if store.exists() else 0, 0, 0)
    log = Path(f"{store}-wal")
    return Health(problems, objects, revision, compacted, store.stat().st_size, page * free,
                  log.stat().st_size if log.exists() else 0)


def compact(store: Path) -> tuple[int, int]:
    """Give free pages back to the file system, running or not: the file's size before and after."""
    before = store.stat().st_size
    with _opened(store) as file:
        file.executescript("PRAGMA incremental_vacuum")  # `execute` would free one page only
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return before, store.stat().st_size


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise Finding(f"{path} does not exist", "", "pelamis snapshot list")
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        yield connection


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Hold the lock of the store's server. Raises Finding when one runs."""
    fd = os.open(f"{store}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise Finding(f"the store {store} is in use", "a server would go on with what it remembers",
                      "stop it first: systemctl stop pelamis-apiserver, or ./pelamis down") from None
    finally:
        os.close(fd)
    os.chown(f"{store}.lock", store.parent.stat().st_uid, store.parent.stat().st_gid)


def _revision(store: Path) -> int:
    """The last revision of a store that may be damaged; 0 when it cannot be told."""
    try:
        with _opened(store) as file:
            return int(file.execute("SELECT max(revision) FROM log").fetchone()[0] or 0)
    except sqlite3.Error:
        return 0


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _way_out(folder: Path) -> str:
    return f"pelamis snapshot restore: the newest sound one of {folder} is taken"

"""The log kept in one SQLite file: append-only rows, group commit, nothing acknowledged before it is on disk.

Owns the file. Row = revision, key, the revision that created the key, the revision it replaced, value (NULL = deleted);
the index on (key, revision) is the current state and the history alike. One thread writes: it takes what queued up,
checks `expect` inside the transaction (so accepted writes count), commits with an fsync, and only then are the follower
and the writers told, on the event loop, in revision order. Reads use connections of their own. Promises that kill -9
at any instruction loses no acknowledged write and reuses no revision. An error that leaves the outcome of a commit
unknown ends the log (`on_fault`): the process must start anew from the file rather than go on with a doubtful head.
Called by the cache.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding, TooManyRequests
from controlplane.store.log import Change, Compacted, Entry, Follower, Log, Stale

FORMAT = 1  # PRAGMA user_version: the layout below
MAX_BATCH = 256  # writes per commit: an fsync is shared by many, yet the first of them does not wait for thousands
MAX_BATCH_BYTES = 8 << 20  # a commit of large objects stays short
MAX_QUEUED = 8192  # accepted writes not yet committed: more means the disk is far behind, and clients must back off
COMPACT_CHUNK = 500  # revisions forgotten per transaction: writers get their turn in between
VACUUM_PAGES = 1024  # freed pages given back to the file system after each chunk
CHECK_SECONDS = 2.0  # how long the integrity check may hold up the start
BUSY_MILLISECONDS = 5000  # a reader's checkpoint lock is held for far less

_LAYOUT = """
CREATE TABLE IF NOT EXISTS log (
  revision INTEGER PRIMARY KEY, key TEXT NOT NULL, created INTEGER NOT NULL, previous INTEGER NOT NULL, value BLOB);
CREATE UNIQUE INDEX IF NOT EXISTS log_by_key ON log (key, revision);
CREATE TABLE IF NOT EXISTS floor (one INTEGER PRIMARY KEY CHECK (one = 1), compacted INTEGER NOT NULL);
INSERT OR IGNORE INTO floor VALUES (1, 0);
"""
_HEAD = "SELECT revision, created, value FROM log WHERE key = ? ORDER BY revision DESC LIMIT 1"
_APPEND = "INSERT INTO log (revision, key, created, previous, value) VALUES (?, ?, ?, ?, ?)"
_STATE = """SELECT l.key, l.value, l.revision, l.created FROM log l JOIN
  (SELECT key AS k, max(revision) AS r FROM log WHERE key >= ? AND key < ? AND revision <= ? GROUP BY key) h
  ON l.revision = h.r WHERE l.value IS NOT NULL ORDER BY l.key"""
_SINCE = """SELECT l.revision, l.key, l.value, p.revision, p.created, p.value FROM log l LEFT JOIN log p
  ON p.revision = l.previous AND l.previous > 0 WHERE l.revision > ? AND l.key >= ? AND l.key < ? ORDER BY l.revision"""
_SUPERSEDED = """DELETE FROM log WHERE revision IN
  (SELECT previous FROM log WHERE revision > ? AND revision <= ? AND previous > 0)"""
_TOMBSTONES = "DELETE FROM log WHERE revision > ? AND revision <= ? AND value IS NULL"


@dataclass(slots=True)
class _Write:
    key: str
    value: bytes | None
    expect: int | None
    answer: asyncio.Future[Change]


@dataclass(slots=True)
class _Compaction:
    revision: int
    answer: asyncio.Future[int]


def _bounds(prefix: str) -> tuple[str, str]:
    """The half-open key range of a prefix; code points sort as their UTF-8 bytes do."""
    return (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)) if prefix else ("", "\U0010ffff")


def _finding(path: Path, error: BaseException) -> Finding:
    text = str(error)
    primary = getattr(error, "sqlite_errorcode", None)
    primary = primary & 0xff if primary is not None else None
    if primary == sqlite3.SQLITE_FULL:
        return Finding(f"the disk that holds {path} is full", "nothing can be written", "free some space")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Finding(f"the store {path} is damaged", text,
                       f"pelamis snapshot restore puts the newest backup back; or move {path} away to begin empty")
    return Finding(f"the store {path} cannot be used", text, "check the disk and the permissions, then start again")


class SqliteLog(Log):
    """A durable log in the file `path` (its folder is made, readable by the owner alone)."""

    def __init__(self, path: Path | str, clock: Clock = SYSTEM) -> None:
        self.path = Path(path)
        self._clock = clock
        self._requests: queue.SimpleQueue[_Write | _Compaction | None] = queue.SimpleQueue()
        self._queued = 0
        self._fault: Finding | None = None
        self._closing = False
        self._lock = -1
        self._thread: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None

    async def open(self, follower: Follower) -> list[Entry]:
        self._loop = asyncio.get_running_loop()
        self._follower = follower
        try:
            state, self.revision, self.compacted = await asyncio.to_thread(self._start)
        except (sqlite3.Error, OSError) as error:
            self._release()
            raise _finding(self.path, error) from error
        except Finding:
            self._release()
            raise
        self._head = self.revision  # the writer thread's own: the last revision it gave
        self._readers = ThreadPoolExecutor(1, "store-read")
        self._thread = threading.Thread(target=self._run, name="store-write", daemon=True)
        self._thread.start()
        return state

    def _start(self) -> tuple[list[Entry], int, int]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Finding(f"the store {self.path} is in use by another process", "two writers would fork history",
                          "stop the other apiserver, or give this one its own PELAMIS_ROOT") from None
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # secrets: owner only
        self._writer = self._connect()
        self._check(self._writer)
        self._writer.executescript(_LAYOUT)
        self._writer.execute(f"PRAGMA user_version = {FORMAT}")
        compacted = self._writer.execute("SELECT compacted FROM floor").fetchone()[0]
        newest = self._writer.execute("SELECT max(revision) FROM log").fetchone()[0] or 0
        revision = max(newest, compacted)
        state = [Entry(*row) for row in self._writer.execute(_STATE, (*_bounds(""), revision))]
        return state, revision, compacted

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        if connection.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise Finding(f"the store {self.path} cannot use a write-ahead log", "its file system lacks shared memory",
                          "put it on a local file system")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -2048")  # 2 MiB: the watch cache serves reads, not the page cache
        connection.execute("PRAGMA journal_size_limit = 4194304")
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise Finding(f"the store {self.path} has format {version}", f"this release reads formats up to {FORMAT}",
                          "run the release that wrote it")
        deadline = self._clock.monotonic() + CHECK_SECONDS
        connection.set_progress_handler(lambda: self._clock.monotonic() > deadline, 10_000)
        try:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:  # out of time: what was seen is sound
                raise
            found = "ok"
        finally:
            connection.set_progress_handler(None, 0)
        if found != "ok":
            raise Finding(f"the store {self.path} is damaged", found,
                          f"pelamis snapshot restore puts the newest backup back; or move {self.path} away to begin "
                          "empty")

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def close(self) -> None:
        if self._thread is None:
            return
        self._closing = True
        self._requests.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)  # the thread's last answers are already in the loop's queue
        self._thread = None
        if self._readers is not None:
            await asyncio.to_thread(self._readers.shutdown)
        self._release()

    # --- writing -----------------------------------------------------------------------------------------------

    async def write(self, key: str, value: bytes | None, expect: int | None) -> Change:
        if self._fault or self._closing:
            raise self._fault or Finding("the store is closing")
        if self._queued >= MAX_QUEUED:
            raise TooManyRequests("the store has too many writes waiting; try again", {"retryAfterSeconds": 1})
        key.encode()  # a key that is no text must fail here, not in the transaction of others
        answer: asyncio.Future[Change] = self._loop.create_future()
        self._queued += 1
        self._requests.put(_Write(key, value, expect, answer))
        return await answer

    async def compact(self, revision: int) -> None:
        revision = min(revision, self.revision)
        while self.compacted < revision:
            if self._fault or self._closing:
                raise self._fault or Finding("the store is closing")
            answer: asyncio.Future[int] = self._loop.create_future()
            self._requests.put(_Compaction(min(revision, self.compacted + COMPACT_CHUNK), answer))
            self.compacted = max(self.compacted, await answer)

    def _run(self) -> None:
        """The writer thread: blocks while there is nothing to do, ends at None."""
        ahead: _Write | _Compaction | None = None
        while True:
            first = ahead if ahead is not None else self._requests.get()
            ahead = None
            if first is None:
                break
            if isinstance(first, _Compaction):
                self._guard([first], partial(self._forget, first))
                continue
            batch, ahead, stop = self._gather(first)
            self._guard(batch, partial(self._commit, batch))
            if stop:
                break
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._writer.close()
        except sqlite3.Error:
            pass  # everything acknowledged is in the write-ahead log; the next start reads it

    def _gather(self, first: _Write) -> tuple[list[_Write], _Compaction | None, bool]:
        batch, size = [first], len(first.value or b"")
        while len(batch) < MAX_BATCH and size < MAX_BATCH_BYTES:
            try:
                more = self._requests.get_nowait()
            except queue.Empty:
                break
            if not isinstance(more, _Write):
                return batch, more, more is None
            batch.append(more)
            size += len(more.value or b"")
        return batch, None, False

    def _guard(self, requests: Sequence[_Write | _Compaction], act: Callable[[], Callable[[], None]]) -> None:
        """Run one transaction and hand its outcome to the loop."""
        try:
            if self._fault:
                raise self._fault
            tell = act()
        except BaseException as error:  # whatever it is, the waiting writers must hear of it
            finding = error if isinstance(error, Finding) else _finding(self.path, error)
            tell = self._failure(requests, finding, self._rolled_back(error))
        try:
            self._loop.call_soon_threadsafe(tell)
        except RuntimeError:
            pass  # the loop is gone, and everybody who waited with it

    def _rolled_back(self, error: BaseException) -> bool:
        """True when it is certain that nothing of the transaction was kept: only a full disk is told before the
        commit record is written; after any other error the file may or may not hold the batch."""
        try:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
        except sqlite3.Error:
            return False
        return getattr(error, "sqlite_errorcode", 0) & 0xff == sqlite3.SQLITE_FULL

    def _failure(self, requests: Sequence[_Write | _Compaction], finding: Finding, harmless: bool
                 ) -> Callable[[], None]:
        def tell() -> None:
            self._queued -= sum(isinstance(request, _Write) for request in requests)
            for request in requests:
                if not request.answer.done():
                    request.answer.set_exception(finding)
            if not harmless:
                self._broken(finding)
        if not harmless:
            self._fault = finding
        return tell

    def _broken(self, finding: Finding) -> None:
        self._fault = finding
        if self.on_fault is not None:
            told, self.on_fault = self.on_fault, None
            told(finding)

    def _commit(self, batch: list[_Write]) -> Callable[[], None]:
        execute, revision = self._writer.execute, self._head
        changes: list[Change] = []
        outcome: list[Change | Stale] = []
        execute("BEGIN IMMEDIATE")
        for write in batch:
            row = execute(_HEAD, (write.key,)).fetchone()
            current = Entry(write.key, row[2], row[0], row[1]) if row and row[2] is not None else None
            seen = current.revision if current else 0
            if (write.expect is not None and write.expect != seen) or (write.value is None and current is None):
                outcome.append(Stale(write.key, current))
                continue
            revision += 1
            created = current.created if current else revision
            execute(_APPEND, (revision, write.key, created, seen, write.value))
            change = Change(revision, write.key, write.value, current)
            changes.append(change)
            outcome.append(change)
        execute("COMMIT")
        self._head = revision
        return lambda: self._tell(batch, changes, outcome)

    def _tell(self, batch: list[_Write], changes: list[Change], outcome: list[Change | Stale]) -> None:
        if changes:
            self.revision = changes[-1].revision
            try:
                self._follower(changes)
            except Exception as error:  # the follower's view is now in doubt, and it serves every read
                self._failure(batch, Finding("the cache could not follow the store", repr(error), "start again"),
                              harmless=False)()
                raise
        self._queued -= len(batch)
        for write, result in zip(batch, outcome, strict=True):
            if write.answer.done():
                continue  # the writer was cancelled; its write happened all the same
            if isinstance(result, Stale):
                write.answer.set_exception(result)
            else:
                write.answer.set_result(result)

    def _forget(self, request: _Compaction) -> Callable[[], None]:
        execute = self._writer.execute
        execute("BEGIN IMMEDIATE")
        floor = execute("SELECT compacted FROM floor").fetchone()[0]
        execute(_SUPERSEDED, (floor, request.revision))
        execute(_TOMBSTONES, (floor, request.revision))
        execute("UPDATE floor SET compacted = ?", (request.revision,))
        execute("COMMIT")
        self._writer.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")  # `execute` would free one page only
        return lambda: None if request.answer.done() else request.answer.set_result(request.revision)

    # --- reading -----------------------------------------------------------------------------------------------

    async def at(self, prefix: str, revision: int) -> list[Entry]:
        rows = await self._read(_STATE, (*_bounds(prefix), revision), revision)
        return [Entry(*row) for row in rows]

    async def since(self, prefix: str, revision: int) -> list[Change]:
        rows = await self._read(_SINCE, (revision, *_bounds(prefix)), revision)
        return [Change(number, key, value, Entry(key, old[2], old[0], old[1]) if old[0] is not None else None)
                for number, key, value, *old in rows]

    async def _read(self, query: str, values: tuple[Any, ...], revision: int) -> list[Any]:
        """Rows of `query`, in one transaction with the check that `revision` is still kept."""
        if self._readers is None:
            raise Finding("the store is not open")

        def read() -> list[Any]:
            connection = self._connect()  # opened per read: old history is asked for rarely, and memory is scarce
            try:
                connection.execute("BEGIN")
                floor = connection.execute("SELECT compacted FROM floor").fetchone()[0]
                if revision < floor:
                    raise Compacted(floor)
                return connection.execute(query, values).fetchall()
            finally:
                connection.close()
        try:
            return await self._loop.run_in_executor(self._readers, read)
        except sqlite3.Error as error:
            raise _finding(self.path, error) from error

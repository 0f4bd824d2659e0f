"""What only a file can suffer: death of the process, a second owner, a full disk, damage."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from controlplane.machinery.errors import Finding
from controlplane.store.log import Entry
from controlplane.store.sqlite import SqliteLog

WRITER = """
import asyncio, os, sys
from controlplane.store.sqlite import SqliteLog
async def main():
    log = SqliteLog(sys.argv[1])
    await log.open(lambda changes: None)
    async def write(worker):
        number = 0
        while True:
            number += 1
            change = await log.write(f"w{worker}/{number % 7}", b"v%d" % number * 50, None)
            os.write(1, b"%d %s %d\\n" % (change.revision, change.key.encode(), number))
    async def compact():
        while True:
            await log.write("w/tick", b"", None)
            await log.compact(log.revision - 100)
    async with asyncio.TaskGroup() as group:
        if sys.argv[2] == "compact":
            group.create_task(compact())
        for worker in range(8):
            group.create_task(write(worker))
asyncio.run(main())
"""


def _state_at(path, revision):
    """The state as the rows themselves tell it, without the log's own queries."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT key, value, revision, created FROM log ORDER BY revision").fetchall()
    state = {row[0]: row for row in rows if row[2] <= revision}
    return [state[key] for key in sorted(state) if state[key][1] is not None]


async def _ignore_changes(log: SqliteLog):
    return await log.open(lambda changes: None)


@pytest.mark.parametrize("mode", ["keep", "compact"])
def test_kill_9_loses_no_acknowledged_write_and_reuses_no_revision(tmp_path, mode):
    path = tmp_path / "log.db"
    highest = 0
    for run in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), mode], stdout=subprocess.PIPE)
        acknowledged = [process.stdout.readline() for _ in range(200 + 137 * run)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.readlines()
        process.wait(10)
        told = {}
        for line in acknowledged:
            if line.endswith(b"\n"):
                revision, key, number = line.split()
                assert int(revision) > highest, "a revision was given twice"
                told[int(revision)] = (key.decode(), b"v%d" % int(number) * 50)

        async def check(told=told):
            log = SqliteLog(path)
            state = {entry.key: entry for entry in await _ignore_changes(log)}
            kept = {c.revision: (c.key, c.value) for c in await log.since("", log.compacted)}
            assert {r: kept.get(r) for r in told if r > log.compacted} == {
                r: write for r, write in told.items() if r > log.compacted}
            assert sorted(kept) == list(range(log.compacted + 1, log.revision + 1))
            assert (log.compacted > 0) == (mode == "compact")
            latest = {key: (r, value) for r, (key, value) in sorted((told | kept).items())}
            assert latest.items() <= {k: (e.revision, e.value) for k, e in state.items()}.items()
            assert all(entry == Entry(*row) for entry, row in zip(
                await log.at("", log.compacted), _state_at(path, log.compacted), strict=True))
            await log.close()
            return log.revision
        highest = asyncio.run(check())
        assert highest >= max(told)


def test_a_second_owner_is_refused_until_the_first_lets_go(tmp_path):
    async def scenario():
        first, second = SqliteLog(tmp_path / "log.db"), SqliteLog(tmp_path / "log.db")
        await _ignore_changes(first)
        with pytest.raises(Finding, match="in use by another process"):
            await _ignore_changes(second)
        await first.close()
        await _ignore_changes(second)
        await second.close()
    asyncio.run(scenario())


def test_a_full_disk_fails_writes_only_while_it_is_full(tmp_path):
    async def scenario():
        log = SqliteLog(tmp_path / "log.db")
        await _ignore_changes(log)
        kept = await log.write("a/1", b"x", 0)
        log._writer.execute(f"PRAGMA max_page_count = {log._writer.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(Finding, match="full"):
            await log.write("a/2", b"x" * 100_000, 0)
        assert log.revision == kept.revision
        log._writer.execute("PRAGMA max_page_count = 1000000")
        assert (await log.write("a/2", b"x" * 100_000, 0)).revision == kept.revision + 1
        await log.close()
    asyncio.run(scenario())


def test_a_doubtful_commit_ends_the_log_once_and_for_all(tmp_path):
    class Broken:
        def __init__(self, connection):
            self._connection = connection
            self.in_transaction = False

        def execute(self, statement, values=()):
            if statement == "COMMIT":
                raise sqlite3.OperationalError("disk I/O error")
            return self._connection.execute(statement, values)

        def close(self):
            self._connection.close()

    async def scenario():
        faults, seen = [], []
        log = SqliteLog(tmp_path / "log.db")
        log.on_fault = faults.append
        await log.open(seen.extend)
        log._writer = Broken(log._writer)
        answers = await asyncio.gather(*(log.write(f"a/{i}", b"x", 0) for i in range(5)), return_exceptions=True)
        assert all(isinstance(answer, Finding) and "disk I/O error" in str(answer) for answer in answers)
        with pytest.raises(Finding):
            await log.write("a/9", b"x", 0)
        assert len(faults) == 1 and not seen and log.revision == 0
        await log.close()
    asyncio.run(scenario())


def test_a_follower_that_fails_ends_the_log_and_leaves_no_writer_waiting(tmp_path):
    async def scenario():
        faults = []
        log = SqliteLog(tmp_path / "log.db")
        log.on_fault = faults.append
        await log.open(lambda changes: 1 / 0)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with pytest.raises(Finding, match="could not follow"):
            await asyncio.wait_for(log.write("a/1", b"x", 0), 5)
        assert len(faults) == 1
        with pytest.raises(Finding):
            await log.write("a/2", b"x", 0)
        await log.close()
    asyncio.run(scenario())


@pytest.mark.parametrize("damage", [b"this is no database at all, not by far" * 100, None])
def test_a_damaged_file_is_found_at_the_start(tmp_path, damage):
    path = tmp_path / "log.db"

    async def scenario():
        log = SqliteLog(path)
        await _ignore_changes(log)
        for number in range(300):
            await log.write(f"a/{number}", b"x" * 500, 0)
        await log.close()
        if damage is None:
            whole = bytearray(path.read_bytes())
            whole[8 * 4096:16 * 4096] = os.urandom(8 * 4096)
            path.write_bytes(whole)
        else:
            path.write_bytes(damage)
        with pytest.raises(Finding) as found:
            await _ignore_changes(SqliteLog(path))
        assert "damaged" in found.value.fact and "backup" in found.value.fix
    asyncio.run(scenario())


def test_compaction_gives_space_back_and_keeps_the_revision(tmp_path):
    path = tmp_path / "log.db"

    async def scenario():
        log = SqliteLog(path)
        await _ignore_changes(log)
        for _ in range(40):
            await asyncio.gather(*(log.write(f"a/{i}", b"x" * 2000, None) for i in range(50)))
        await asyncio.gather(*(log.write(f"a/{i}", None, None) for i in range(50)))
        last = log.revision
        await log.close()
        before = path.stat().st_size
        assert path.stat().st_mode & 0o077 == 0
        log = SqliteLog(path)
        await _ignore_changes(log)
        await log.compact(last)
        await log.close()
        assert path.stat().st_size < before / 10
        log = SqliteLog(path)
        assert await _ignore_changes(log) == [] and log.revision == log.compacted == last
        assert (await log.write("a/1", b"x", 0)).revision == last + 1
        await log.close()
    asyncio.run(scenario())

"""Snapshots of a store that is being written, and a restore that misleads nobody."""

import asyncio
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from controlplane.machinery.errors import Finding
from controlplane.store import backup
from controlplane.store.backup import DAY, Policy, Snapshot
from controlplane.store.sqlite import SqliteLog

NOW = 1_700_000_000.0


def test_saved_while_written_and_put_back(tmp_path):
    store, kept = tmp_path / "store/pelamis.db", tmp_path / "snapshots"

    async def write():
        log = SqliteLog(store)
        await log.open(lambda changes: None)
        for number in range(50):
            await log.write(f"configmaps/default/c{number}", b"{}", 0)
        made = await asyncio.to_thread(backup.save, store, kept, NOW)
        for number in range(50, 80):
            await log.write(f"configmaps/default/c{number}", b"{}", 0)
        with pytest.raises(Finding, match="in use"):
            await asyncio.to_thread(backup.restore, made.path, store)
        await log.close()
        return made

    async def read():
        log = SqliteLog(store)
        state = await log.open(lambda changes: None)
        change = await log.write("configmaps/default/new", b"{}", 0)
        await log.close()
        return state, change.revision
    made = asyncio.run(write())
    assert made.revision == 50 and made.path.stat().st_mode & 0o077 == 0
    assert backup.health(made.path).objects == 50 and not backup.health(made.path).problems
    assert backup.listed(kept) == [made]
    found, old = backup.restore(made.path, store)
    assert found.objects == 50 and old is not None and backup.health(old).objects == 80
    state, revision = asyncio.run(read())
    assert len(state) == 50
    assert revision > 80, "a revision somebody may have seen is not given again"


@pytest.mark.parametrize(("name", "of"), [("replace", os), ("link", os), ("copyfile", shutil)])
def test_killed_at_any_moment_a_restore_leaves_a_whole_store(tmp_path, monkeypatch, name, of):
    store = tmp_path / "pelamis.db"

    async def write(*numbers):
        log = SqliteLog(store)
        await log.open(lambda changes: None)
        for number in numbers:
            await log.write(f"configmaps/default/c{number}", b"{}", 0)
        await log.close()
    asyncio.run(write(1, 2))
    made = backup.save(store, tmp_path / "kept", NOW)
    asyncio.run(write(3))

    def killed(*arguments):
        raise KeyboardInterrupt
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(of, name, killed)
        backup.restore(made.path, store)
    assert backup.health(store).objects == 3 and not backup.health(store).problems
    _, kept = backup.restore(made.path, store)
    assert backup.health(store).objects == 2 and backup.health(kept).objects == 3


def test_a_damaged_snapshot_is_refused_and_the_store_stays(tmp_path):
    store = tmp_path / "pelamis.db"

    async def make():
        log = SqliteLog(store)
        await log.open(lambda changes: None)
        for number in range(200):
            await log.write(f"secrets/default/s{number}", b"x" * 500, 0)
        await log.close()
    asyncio.run(make())
    made = backup.save(store, tmp_path / "kept", NOW)
    data = bytearray(made.path.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    made.path.write_bytes(data)
    assert backup.health(made.path).problems
    before = store.read_bytes()
    with pytest.raises(Finding, match="is damaged"):
        backup.restore(made.path, store)
    assert store.read_bytes() == before
    store.write_bytes(bytes(data))
    with pytest.raises(Finding, match="is damaged"):
        backup.save(store, tmp_path / "kept", NOW)
    (tmp_path / "text").write_text("no database")
    assert backup.health(tmp_path / "text").problems


def test_free_pages_go_back(tmp_path):
    store = tmp_path / "pelamis.db"

    async def make():
        log = SqliteLog(store)
        await log.open(lambda changes: None)
        await log.close()
    asyncio.run(make())
    with closing(sqlite3.connect(store, isolation_level=None)) as file:
        rows = [(n, f"a/{n}", n, b"x" * 4000) for n in range(1, 500)]
        file.executemany("INSERT INTO log VALUES (?, ?, ?, 0, ?)", rows)
        file.execute("DELETE FROM log")
    before, after = backup.compact(store)
    assert after < before / 10


def test_what_the_policy_keeps():
    def at(hours):
        return Snapshot(Path(f"{hours}"), NOW - hours * 3600, 1, 1)
    snapshots = [at(hours) for hours in range(0, 24 * 60, 6)]  # sixty days, each six hours
    gone = backup.to_forget(snapshots, Policy())
    kept = [s for s in snapshots if s not in gone]
    assert kept[:8] == snapshots[:8]
    days = {int(s.time // DAY) for s in kept}
    assert len(days) >= 7 and len(kept) <= 8 + 7 + 4
    assert min(s.time for s in kept) < NOW - 19 * DAY
    assert backup.to_forget(kept, Policy()) == [], "what is kept once is kept the next time"

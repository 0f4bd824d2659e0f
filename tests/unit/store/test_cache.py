"""The cache against a model, and what it promises to watchers."""

import asyncio

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery.clock import FakeClock, settle
from controlplane.store import cache as cache_module
from controlplane.store import codec, watch
from controlplane.store.cache import Cache, key_of, prefix_of
from controlplane.store.log import Compacted, Stale
from controlplane.store.memory import MemoryLog


def config_map(name: str, data: str = "", **metadata) -> dict:
    return {"data": {"x": data}, "kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name, **metadata}}


def test_stored_bytes_are_canonical_and_carry_the_revision_only_when_served():
    obj = {"status": {"b": 1, "a": [2]}, "metadata": {"resourceVersion": "7", "name": "n"}, "kind": "K",
           "apiVersion": "v1", "spec": {'"metadata":{': "trap"}}
    value = codec.encode(obj)
    assert value == (b'{"apiVersion":"v1","kind":"K","metadata":{"name":"n"},'
                     b'"spec":{"\\"metadata\\":{":"trap"},"status":{"a":[2],"b":1}}')
    assert value == codec.encode(dict(reversed(obj.items())))
    served = codec.body(value, 12)
    assert codec.decode(served)["metadata"] == {"resourceVersion": "12", "name": "n"}
    assert list(codec.decode(codec.bare(served))) == ["metadata", "spec", "status"]
    empty = codec.body(codec.encode({"kind": 'a"metadata":{', "metadata": {}}), 1)
    assert codec.decode(empty) == {"apiVersion": "", "kind": 'a"metadata":{', "metadata": {"resourceVersion": "1"}}


NAMES = ["cm/a/1", "cm/a/2", "cm/b/1", "no/1"]
WRITES = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["put", "put", "same", "delete"])), max_size=30)


@settings(max_examples=60, deadline=None)
@given(WRITES, st.integers(0, 30), st.sampled_from(["cm/", "cm/a/", "no/"]), st.integers(1, 4), st.integers(0, 3))
def test_lists_and_watches_agree_with_a_model_from_any_revision(writes, since, prefix, ring, live):
    """`ring` events are kept in memory, the rest comes from the log; a watch starts `live` writes before the end."""
    async def main():
        cache_module.RING_EVENTS, before = ring, cache_module.RING_EVENTS
        cache = Cache(MemoryLog())
        await cache.open()
        history: list[tuple[int, str, str, bytes]] = []
        states: list[dict[str, int]] = [{}]
        watcher, start = None, since
        try:
            for number, (key, what) in enumerate(writes):
                if number == len(writes) - live and since <= cache.revision:
                    watcher = cache.watch(prefix, since)
                old = cache.get(key)
                text = old.obj["data"]["x"] if old and what == "same" else str(number)
                try:
                    item = await cache.write(key, None if what == "delete" else config_map(key, text), None)
                except Stale:
                    assert what == "delete" and old is None
                    continue
                if old is not None and item.revision == old.revision:
                    assert what == "same" and item is old
                    continue
                kind = "DELETED" if what == "delete" else "MODIFIED" if old else "ADDED"
                history.append((item.revision, kind, key, item.data))
                states.append({k: r for k, r in states[-1].items() if k != key} |
                              ({} if what == "delete" else {key: item.revision}))
            assert cache.revision == len(history)
            for revision in range(len(states)):
                found = await cache.list_at(prefix, revision)
                want = {k: r for k, r in states[revision].items() if k.startswith(prefix)}
                assert [(i.key, i.revision) for i in found] == sorted(want.items())
            listed = cache.list(prefix)
            assert orjson.loads(b"[" + cache.list_body(prefix) + b"]") == [orjson.loads(i.bare) for i in listed]
            assert cache.list(prefix, after=listed[0].key, limit=1) == listed[1:2] if listed else True
            if watcher is None:
                start = min(since, cache.revision)
                watcher = cache.watch(prefix, start)
            want = [h for h in history if h[0] > start and h[2].startswith(prefix)]
            got = []
            while len(got) < len(want):
                got += await asyncio.wait_for(watcher.take(), 1)
            assert [(e.revision, e.kind, e.item.key, e.item.data) for e in got] == want
            assert all((e.previous is None) == (e.kind == "ADDED") for e in got)
        finally:
            cache_module.RING_EVENTS = before
            await cache.close()
    asyncio.run(main())


def scenario(act, **more):
    async def main():
        cache = Cache(MemoryLog(), **more)
        await cache.open()
        try:
            await asyncio.wait_for(act(cache), 10)
        finally:
            await cache.close()
    asyncio.run(main())


def test_one_encoding_serves_every_watcher():
    async def act(cache):
        watchers = [cache.watch(prefix_of("configmaps", "d"), None) for _ in range(200)]
        await cache.write(key_of("configmaps", "d", "a"), config_map("a"), 0)
        lines = {id(event.data) for watcher in watchers for event in await watcher.take()}
        assert len(lines) == 1
    scenario(act)


def test_a_slow_watcher_is_cut_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(watch, "QUEUE", 3)

    async def act(cache):
        slow, quick = cache.watch("cm/", None), cache.watch("cm/", None)
        for number in range(6):
            await cache.write("cm/a", config_map("a", str(number)), None)
            assert [e.revision for e in await quick.take()] == [number + 1]
        with pytest.raises(watch.Lagged):
            await slow.take()
        quick.close()
        with pytest.raises(watch.Closed):
            await quick.take()
        assert cache._bucket("cm/").watchers == []
    scenario(act)


def test_a_watch_may_begin_in_the_future_and_ends_with_the_cache():
    async def act(cache):
        ahead = cache.watch("cm/", 2)
        for number in range(3):
            await cache.write("cm/a", config_map("a", str(number)), None)
        assert [e.revision for e in await ahead.take()] == [3]
        reader = asyncio.ensure_future(ahead.take())
        await settle()
        await cache.close()
        with pytest.raises(watch.Closed):
            await reader
    scenario(act)


def test_history_is_forgotten_by_age_and_only_after_writes():
    clock = FakeClock()

    async def act(cache):
        for number in range(3):
            await cache.write("cm/a", config_map("a", str(number)), None)
        await settle()
        await clock.advance(cache_module.KEEP_SECONDS - 1)
        assert cache.log.compacted == 0
        await clock.advance(cache_module.MARK_SECONDS + 1)
        assert cache.log.compacted == 3
        assert not clock._sleepers, "an idle cluster must not be woken"
        with pytest.raises(Compacted):
            cache.watch("cm/", 2)
        with pytest.raises(Compacted):
            await cache.list_at("cm/", 2)
        cache.watch("cm/", 3)
    scenario(act, clock=clock)


def test_labels_survive_the_bound_on_decoded_objects(monkeypatch):
    async def act(cache):
        cache._decoded._limit = 1
        item = await cache.write("cm/a", config_map("a", labels={"k": "v"}), 0)
        assert item.labels == {"k": "v"} and item._obj is None and item.obj["metadata"]["name"] == "a"
    scenario(act)


def test_waiting_for_a_revision_ends_with_the_write_that_makes_it():
    async def act(cache):
        waits = [asyncio.ensure_future(cache.reached(revision)) for revision in (1, 2, 2)]
        await settle()
        await cache.write("cm/a", config_map("a"), 0)
        await waits[0]
        assert not waits[1].done()
        waits[2].cancel()
        await cache.write("cm/b", config_map("b"), 0)
        await waits[1]
        await cache.reached(1)
    scenario(act)

import asyncio

from controlplane.apiserver.reading import watch
from tests.unit.apiserver.harness import config_map, serving

CMS = "/api/v1/namespaces/default/configmaps"


def names(events):
    return [(kind, obj["metadata"]["name"]) for kind, obj in events]


def test_a_watch_resumes_without_gap_or_repeat():
    async def main():
        async with serving() as api:
            first = await api.made(CMS, config_map("a"))
            await api.made(CMS, config_map("b"))
            async with api.watching(f"{CMS}?watch=1&resourceVersion={first['metadata']['resourceVersion']}") as seen:
                await api.call("DELETE", CMS + "/a")
                events = await seen.take(2)
                assert names(events) == [("ADDED", "b"), ("DELETED", "a")]
                gone = int(events[1][1]["metadata"]["resourceVersion"])
                assert gone > int(first["metadata"]["resourceVersion"])
    asyncio.run(main())


def test_the_legacy_path_watches_a_collection_or_one_object():
    async def main():
        async with serving() as api:
            for name in ("a", "b"):
                await api.made(CMS, config_map(name))
            path = "/api/v1/watch/namespaces/default/configmaps"
            async with api.watching(path) as seen:
                assert names(await seen.take(2)) == [("ADDED", "a"), ("ADDED", "b")]
            async with api.watching(path + "/b") as seen:
                assert names(await seen.take(1)) == [("ADDED", "b")]
            _, one = await api.call("GET", CMS + "/a?watch=1")
            assert one["kind"] == "ConfigMap"
    asyncio.run(main())


def test_a_selector_turns_changes_into_arrivals_and_departures():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a", {"l": "1"}))
            async with api.watching(CMS + "?watch=true&labelSelector=l%3D1") as seen:
                assert names(await seen.take(1)) == [("ADDED", "a")]
                patch = "application/merge-patch+json"
                await api.call("PATCH", CMS + "/a", {"metadata": {"labels": {"l": "2"}}}, patch)
                kind, obj = await seen.next()
                assert kind == "DELETED" and obj["metadata"]["labels"] == {"l": "1"}
                _, now = await api.call("GET", CMS + "/a")
                assert obj["metadata"]["resourceVersion"] == now["metadata"]["resourceVersion"]
                await api.call("PATCH", CMS + "/a", {"data": {"x": "1"}}, patch)
                await api.call("PATCH", CMS + "/a", {"metadata": {"labels": {"l": "1"}}}, patch)
                await api.call("PATCH", CMS + "/a", {"data": {"x": "2"}}, patch)
                await api.call("DELETE", CMS + "/a")
                assert names(await seen.take(3)) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]
    asyncio.run(main())


def test_initial_events_end_with_a_bookmark():
    async def main():
        async with serving() as api:
            made = await api.made(CMS, config_map("a"))
            query = "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
            async with api.watching(CMS + query) as seen:
                assert names(await seen.take(1)) == [("ADDED", "a")]
                kind, mark = await seen.next()
                assert kind == "BOOKMARK" and mark["kind"] == "ConfigMap"
                assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
                assert int(mark["metadata"]["resourceVersion"]) >= int(made["metadata"]["resourceVersion"])
            status, error = await api.call("GET", CMS + "?watch=1&sendInitialEvents=true")
            assert status == 422 and "sendInitialEvents requires setting resourceVersionMatch" in error["message"]
    asyncio.run(main())


def test_a_compacted_start_is_told_in_the_stream():
    async def main():
        async with serving() as api:
            made = await api.made(CMS, config_map("a"))
            await api.call("PUT", CMS + "/a", config_map("a", x="1"))
            await api.call("PUT", CMS + "/a", config_map("a", x="2"))
            await api.server.cache.log.compact(api.server.cache.revision)
            async with api.watching(f"{CMS}?watch=1&resourceVersion={made['metadata']['resourceVersion']}") as seen:
                kind, status = await seen.next()
                assert kind == "ERROR" and (status["code"], status["reason"]) == (410, "Expired")
    asyncio.run(main())


def test_a_table_watch_names_its_columns_once_and_a_timeout_ends_it_with_a_bookmark():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a"))
            await api.made(CMS, config_map("b"))
            accept = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
            async with api.watching(CMS + "?watch=1&timeoutSeconds=1&allowWatchBookmarks=true", accept) as seen:
                events = []
                try:
                    while True:
                        events.append(await seen.next())
                except EOFError:
                    pass
            assert [kind for kind, _ in events] == ["ADDED", "ADDED", "BOOKMARK", "BOOKMARK"]
            assert events[0][1]["columnDefinitions"] and events[1][1]["columnDefinitions"] is None
            assert events[0][1]["rows"][0]["cells"][0] == "a"
    asyncio.run(main())


def test_stopping_the_server_ends_watches_cleanly():
    async def main():
        async with serving() as api, api.watching(CMS + "?watch=1&resourceVersion=5") as seen:
            stopping = asyncio.ensure_future(api.server.stop())
            events = []
            try:
                while True:
                    events.append(await seen.next())
            except EOFError:
                pass  # a chunked body that ended as it should; a cut one raises ClientPayloadError
            await stopping
    asyncio.run(main())


def test_a_client_that_takes_nothing_is_cut(monkeypatch):
    async def main():
        monkeypatch.setattr(watch, "SEND_SECONDS", 0.2)
        async with serving() as api:
            for number in range(12):  # more than the kernel's buffers hold
                await api.made(CMS, config_map(f"c{number}", x="y" * 900_000))
            cut = asyncio.Event()
            aborted = api.server.handlers.watches._open
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port, limit=1024)
            writer.write(f"GET {CMS}?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert len(aborted) == 1

            class Telling(set):
                def discard(self, item):
                    super().discard(item)
                    cut.set()
            api.server.handlers.watches._open = Telling(aborted)
            async with asyncio.timeout(5):
                await cut.wait()
            writer.close()
    asyncio.run(main())

import asyncio

import pytest

from controlplane.apiserver.reading import bulk
from controlplane.apiserver.reading.listoptions import Token
from controlplane.machinery.errors import BadRequest
from tests.unit.apiserver.harness import config_map, serving

CMS = "/api/v1/namespaces/default/configmaps"


def test_pages_show_one_revision_while_others_write():
    async def main():
        async with serving() as api:
            for name in "abcde":
                await api.made(CMS, config_map(name))
            _, first = await api.call("GET", CMS + "?limit=2")
            assert [i["metadata"]["name"] for i in first["items"]] == ["a", "b"]
            assert first["metadata"]["remainingItemCount"] == 3
            await api.call("DELETE", CMS + "/d")
            await api.made(CMS, config_map("cc"))
            rest, token = [], first["metadata"]["continue"]
            while token:
                _, page = await api.call("GET", f"{CMS}?limit=2&continue={token}")
                assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
                rest += [i["metadata"]["name"] for i in page["items"]]
                token = page["metadata"].get("continue")
            assert rest == ["c", "d", "e"]
            _, exact = await api.call("GET", f"{CMS}?resourceVersionMatch=Exact&resourceVersion="
                                      + first["metadata"]["resourceVersion"])
            assert len(exact["items"]) == 5
            assert exact["kind"] == "ConfigMapList" and "kind" not in exact["items"][0]
    asyncio.run(main())


def test_an_old_page_expires_and_hands_out_a_way_on():
    async def main():
        async with serving() as api:
            for name in "abc":
                await api.made(CMS, config_map(name))
            _, first = await api.call("GET", CMS + "?limit=1")
            await api.made(CMS, config_map("d"))
            await api.server.cache.log.compact(api.server.cache.revision)
            status, error = await api.call("GET", f"{CMS}?limit=1&continue={first['metadata']['continue']}")
            assert (status, error["reason"]) == (410, "Expired")
            status, rest = await api.call("GET", f"{CMS}?continue={error['metadata']['continue']}")
            assert [i["metadata"]["name"] for i in rest["items"]] == ["b", "c", "d"]
    asyncio.run(main())


def test_selectors_and_their_faults():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a", {"l": "1"}))
            await api.made(CMS, config_map("b", {"l": "2"}))
            async def names(query):
                status, got = await api.call("GET", f"{CMS}?{query}")
                assert status == 200, got
                return [i["metadata"]["name"] for i in got["items"]]
            assert await names("labelSelector=l!%3D2") == ["a"]
            assert await names("fieldSelector=metadata.name%3Db") == ["b"]
            assert await names("fieldSelector=metadata.name%3Da&labelSelector=l%3D2") == []
            for query in ("fieldSelector=spec.x%3D1", "labelSelector=%25%25", "limit=x", "continue=zz",
                          "resourceVersion=x", "timeoutSeconds=x"):
                status, error = await api.call("GET", f"{CMS}?{query}")
                assert (status, error["reason"]) == (400, "BadRequest"), query
            for query in ("resourceVersionMatch=Exact", "resourceVersionMatch=Exact&resourceVersion=0"):
                assert (await api.call("GET", f"{CMS}?{query}"))[0] == 422, query
    asyncio.run(main())


def test_shapes_and_media():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a", x="1"))
            table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
            _, got = await api.call("GET", CMS, headers={"Accept": table})
            assert got["kind"] == "Table" and got["rows"][0]["cells"][0] == "a"
            assert got["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
            _, got = await api.call("GET", CMS + "?includeObject=Object", headers={"Accept": table})
            assert got["rows"][0]["object"]["data"] == {"x": "1"}
            _, got = await api.call("GET", CMS + "/a", headers={
                "Accept": "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"})
            assert got["kind"] == "PartialObjectMetadata" and "data" not in got
            _, text = await api.call("GET", CMS + "/a", headers={"Accept": "application/yaml"})
            assert "\nkind: ConfigMap\n" in text
            assert (await api.call("GET", CMS + "/a", headers={"Accept": "image/png"}))[0] == 406
    asyncio.run(main())


def test_a_large_list_is_compressed_only_when_asked():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a", x="y" * 200_000))
            async with api.session.get(api.url + CMS, headers={"Accept-Encoding": "gzip"}) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                assert len((await answer.json())["items"]) == 1
            async with api.session.get(api.url + CMS, headers={"Accept-Encoding": "identity"}) as answer:
                assert "Content-Encoding" not in answer.headers
    asyncio.run(main())


def test_tokens_survive_their_journey_and_stay_in_their_collection():
    token = Token(7, "configmaps/default/a").encode()
    assert Token.decode(token, "configmaps/") == Token(7, "configmaps/default/a")
    with pytest.raises(BadRequest):
        Token.decode(token, "secrets/")


def test_a_long_list_comes_in_pieces_and_is_whole(monkeypatch):
    async def main():
        async with serving() as api:
            for number in range(9):
                await api.made(CMS, config_map(f"m{number}", {"odd": str(number % 2)}, x="y" * 100))
            _, short = await api.call("GET", CMS)
            monkeypatch.setattr(bulk, "ABOVE", 3)
            monkeypatch.setattr(bulk, "BATCH", 2)
            for headers in ({}, {"Accept-Encoding": "gzip"}, {"Accept-Encoding": "identity"}):
                assert await api.call("GET", CMS, headers=headers) == (200, short)
            _, odd = await api.call("GET", CMS + "?labelSelector=odd%3D1")
            assert [i["metadata"]["name"] for i in odd["items"]] == ["m1", "m3", "m5", "m7"]
            _, page = await api.call("GET", CMS + "?limit=5&labelSelector=odd%3D0")
            assert len(page["items"]) == 5 and "continue" not in page["metadata"]
            _, page = await api.call("GET", CMS + "?limit=4")
            assert len(page["items"]) == 4 and page["metadata"]["remainingItemCount"] == 5
    asyncio.run(main())


def test_long_tables_and_metadata_lists_are_streamed_whole():
    async def main():
        async with serving() as api:
            count = bulk.BATCH * 2 + 1
            await asyncio.gather(*(api.made(CMS, config_map(f"m{n:04}", a="b")) for n in range(count)))
            revision = str(api.server.cache.revision)
            table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
            status, made = await api.call("GET", CMS, headers=table)
            assert (status, made["kind"], made["metadata"]) == (200, "Table", {"resourceVersion": revision})
            assert [c["name"] for c in made["columnDefinitions"]] == ["Name", "Data", "Age"]
            assert [r["cells"][0] for r in made["rows"]] == [f"m{n:04}" for n in range(count)]
            assert made["rows"][-1]["object"]["kind"] == "PartialObjectMetadata"
            _, page = await api.call("GET", f"{CMS}?limit=150&includeObject=None", headers=table)
            assert len(page["rows"]) == 150 and "object" not in page["rows"][0]
            assert page["metadata"]["remainingItemCount"] == count - 150
            _, rest = await api.call("GET", f"{CMS}?limit=500&continue={page['metadata']['continue']}", headers=table)
            assert rest["rows"][0]["cells"][0] == "m0150"
            _, listed = await api.call("GET", CMS, headers={
                "Accept": "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"})
            assert (listed["kind"], len(listed["items"])) == ("PartialObjectMetadataList", count)
            assert set(listed["items"][0]) == {"kind", "apiVersion", "metadata"}
    asyncio.run(main())

import asyncio

from controlplane.apiserver.writing.bodies import drop
from tests.unit.apiserver.harness import serving


def test_an_unknown_field_is_dropped_wherever_it_is():
    obj = {"spec": {"containers": [{"name": "a"}, {"name": "b", "x.y": 1, "z": {"q": 2}}]}, "zz": 3}
    for path in ("spec.containers[1].x.y", "spec.containers[1].z.q", "zz"):
        drop(obj, path)
    assert obj == {"spec": {"containers": [{"name": "a"}, {"name": "b", "z": {}}]}}


def test_what_a_patch_says_twice_is_told():
    async def main():
        async with serving() as api:
            where = "/api/v1/namespaces/default/configmaps/m?fieldManager=f&fieldValidation="
            body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  a: one\n  a: two\n"
            status, refused = await api.call("PATCH", where + "Strict", body, "application/apply-patch+yaml")
            assert (status, refused["message"]) == (400, (
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n"
                '  line 6: key "a" already set in map'))
            headers = {"Content-Type": "application/apply-patch+yaml"}
            async with api.session.patch(api.url + where + "Warn", data=body, headers=headers) as answer:
                assert answer.status == 201
                assert answer.headers["Warning"] == '299 - "line 6: key \\"a\\" already set in map"'
            status, refused = await api.call("PATCH", where + "Strict", b'{"data":{"a":"1","a":"2"}}',
                                             "application/merge-patch+json")
            assert status == 422 and 'duplicate field "data.a"' in refused["message"]
    asyncio.run(main())


def test_a_timeout_that_is_none_is_refused():
    async def main():
        async with serving() as api:
            assert (await api.call("GET", "/api/v1/namespaces?timeout=32s"))[0] == 200
            status, refused = await api.call("GET", "/api/v1/namespaces?timeout=invalid")
            assert (status, refused["message"]) == (400, "invalid timeout specified in the request URL")
    asyncio.run(main())

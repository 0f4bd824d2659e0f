import asyncio

from controlplane.apiserver.authentication.authn import ANYBODY
from controlplane.apiserver.request import build
from controlplane.machinery.resources import BUILTIN
from controlplane.store.memory import MemoryLog
from tests.unit.apiserver.harness import config_map, pod, serving

CMS = "/api/v1/namespaces/default/configmaps"
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


def test_a_created_object_gets_its_identity_from_the_server():
    async def main():
        async with serving() as api:
            body = config_map("a")
            body["metadata"] |= {"uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z", "resourceVersion": ""}
            made = await api.made(CMS, body)
            meta = made["metadata"]
            assert meta["uid"] != "mine" and not meta["creationTimestamp"].startswith("2000")
            assert meta["namespace"] == "default" and int(meta["resourceVersion"]) > 0
            status, error = await api.call("POST", CMS, config_map("a"))
            assert (status, error["reason"]) == (409, "AlreadyExists")
            assert error["message"] == 'configmaps "a" already exists'
            made = await api.made(CMS, {"metadata": {"generateName": "g-"}})
            assert made["metadata"]["name"].startswith("g-") and len(made["metadata"]["name"]) == 7
            assert made["kind"] == "ConfigMap"
    asyncio.run(main())


def test_a_body_must_agree_with_its_url():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a"))
            cases = [
                ("POST", CMS, {"kind": "Secret", "metadata": {"name": "x"}}, 400),
                ("POST", CMS, {"apiVersion": "v2", "metadata": {"name": "x"}}, 400),
                ("POST", CMS, {"metadata": {"name": "x", "namespace": "other"}}, 400),
                ("PUT", CMS + "/a", config_map("b"), 400),
                ("POST", CMS, {"metadata": {}}, 422),
                ("POST", CMS, b"{", 400),
                ("POST", CMS, b"[]", 400),
                ("POST", "/api/v1/namespaces/none/configmaps", config_map("a"), 404),
                ("POST", "/api/v1/configmaps", config_map("a"), 405),
                ("PUT", CMS + "/none", config_map("none"), 404),
                ("POST", CMS + "?dryRun=Some", config_map("z"), 422),
                ("POST", CMS + "?fieldValidation=Maybe", config_map("z"), 422),
            ]
            for method, path, body, code in cases:
                status, error = await api.call(method, path, body)
                assert status == code and error["kind"] == "Status", (method, path, body, error)
            status, _ = await api.call("POST", CMS, config_map("y"), "text/plain")
            assert status == 415
    asyncio.run(main())


def test_unknown_fields_are_refused_warned_of_or_ignored_as_asked():
    async def main():
        async with serving() as api:
            body = {**config_map("a"), "zz": 1}
            status, error = await api.call("POST", CMS + "?fieldValidation=Strict", body)
            assert status == 400 and 'strict decoding error: unknown field "zz"' in error["message"]
            assert error["message"].startswith('ConfigMap in version "v1" cannot be handled as a ConfigMap: ')
            twice = '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"k":"1","k":"2"},"zz":1}'
            async with api.session.post(api.url + CMS + "?fieldValidation=Strict", data=twice,
                                        headers={"Content-Type": "application/json"}) as answer:
                assert 'error: unknown field "zz", duplicate field "data.k"' in (await answer.json())["message"]
            async with api.session.post(api.url + CMS, json=body) as answer:
                assert answer.status == 201 and 'unknown field \\"zz\\"' in answer.headers["Warning"]
                assert "zz" not in await answer.json()
            status, error = await api.call("POST", CMS, {"metadata": {"name": "n"}, "data": {"a": 1}})
            assert status == 400 and "json: cannot unmarshal number" in error["message"]
    asyncio.run(main())


def test_the_optimistic_lock():
    async def main():
        async with serving() as api:
            made = await api.made(CMS, config_map("a"))
            stale = {**made, "data": {"x": "1"}}
            status, first = await api.call("PUT", CMS + "/a", stale)
            assert status == 200 and first["data"] == {"x": "1"}
            status, error = await api.call("PUT", CMS + "/a", {**stale, "data": {"x": "2"}})
            assert (status, error["reason"]) == (409, "Conflict") and "please apply your changes" in error["message"]
            status, same = await api.call("PUT", CMS + "/a", first)
            assert same["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
            other = {**first, "metadata": {**first["metadata"], "uid": "other"}}
            status, error = await api.call("PUT", CMS + "/a", other)
            assert status == 409 and "Precondition failed: UID in precondition: other" in error["message"]
            lease = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
            status, made = await api.call("PUT", lease + "/l", {"metadata": {"name": "l"}, "spec": {}})
            assert status == 201, made
            status, error = await api.call("PUT", lease + "/l", {"metadata": {"name": "l"}, "spec": {}})
            assert status == 422 and "metadata.resourceVersion" in error["message"]
    asyncio.run(main())


def test_concurrent_patches_all_land():
    async def main():
        async with serving() as api:
            await api.made(CMS, config_map("a"))
            answers = await asyncio.gather(*(api.call("PATCH", CMS + "/a", {"data": {f"k{i}": "v"}}, MERGE)
                                             for i in range(4)))
            assert [status for status, _ in answers] == [200] * 4
            _, now = await api.call("GET", CMS + "/a")
            assert set(now["data"]) == {"k0", "k1", "k2", "k3"}
    asyncio.run(main())


def test_patches_and_their_faults():
    async def main():
        async with serving() as api:
            made = await api.made(CMS, config_map("a", x="1"))
            _, got = await api.call("PATCH", CMS + "/a", [{"op": "replace", "path": "/data/x", "value": "2"}],
                                    JSON_PATCH)
            assert got["data"] == {"x": "2"}
            _, got = await api.call("PATCH", CMS + "/a", {"data": {"x": None, "y": "3"}}, STRATEGIC)
            assert got["data"] == {"y": "3"}
            old = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "data": {"z": "1"}}
            assert (await api.call("PATCH", CMS + "/a", old, MERGE))[0] == 409
            assert (await api.call("PATCH", CMS + "/a", {}, "application/json"))[0] == 415
            assert (await api.call("PATCH", CMS + "/a", b"{", MERGE))[0] == 400
            assert (await api.call("PATCH", CMS + "/none", {}, MERGE))[0] == 404
            status, error = await api.call("PATCH", CMS + "/a", [{"op": "test", "path": "/data/y", "value": "9"}],
                                           JSON_PATCH)
            assert (status, error["reason"]) == (422, "Invalid")
    asyncio.run(main())


def test_a_dry_run_goes_all_the_way_and_stores_nothing():
    async def main():
        async with serving() as api:
            status, made = await api.call("POST", CMS + "?dryRun=All", config_map("a"))
            assert status == 201 and made["metadata"]["uid"] and "resourceVersion" not in made["metadata"]
            path = "/api/v1/namespaces/default/services"
            service = {"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}}
            status, made = await api.call("POST", path + "?dryRun=All", service)
            assert status == 201 and made["spec"]["clusterIP"], made
            for place in (f"{CMS}/a", f"{path}/s"):
                assert (await api.call("GET", place))[0] == 404
            assert len(api.server.allocator.ports.used) == 0 and len(api.server.allocator.addresses.used) == 0
    asyncio.run(main())


def test_an_object_in_deletion_takes_no_new_finalizer_and_goes_with_its_last():
    async def main():
        async with serving() as api:
            body = config_map("a")
            body["metadata"]["finalizers"] = ["x.io/one"]
            await api.made(CMS, body)
            status, marked = await api.call("DELETE", CMS + "/a")
            assert status == 200 and marked["metadata"]["deletionTimestamp"]
            assert marked["metadata"]["deletionGracePeriodSeconds"] == 0
            status, error = await api.call("PATCH", CMS + "/a", {"metadata": {"finalizers": ["x.io/one", "x.io/two"]}},
                                           MERGE)
            assert status == 422 and "no new finalizers can be added if the object is being deleted" in error["message"]
            status, error = await api.call("POST", CMS, config_map("a"))
            assert status == 409 and error["message"].startswith("object is being deleted: ")
            assert (await api.call("PATCH", CMS + "/a", {"metadata": {"finalizers": None}}, MERGE))[0] == 200
            assert (await api.call("GET", CMS + "/a"))[0] == 404
    asyncio.run(main())


def test_the_main_endpoint_keeps_the_status_and_the_status_endpoint_the_rest():
    async def main():
        async with serving() as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            path = "/api/v1/namespaces/default/pods"
            made = await api.made(path, {**pod("p"), "status": {"phase": "Running"}})
            assert made["status"]["phase"] == "Pending"
            _, got = await api.call("PATCH", path + "/p/status", {
                "metadata": {"uid": made["metadata"]["uid"]},
                "status": {"phase": "Running"}, "spec": {"nodeName": "n"}}, STRATEGIC)
            assert got["status"]["phase"] == "Running" and "nodeName" not in got["spec"], got
            _, got = await api.call("PATCH", path + "/p", {"status": {"phase": "Failed"},
                                                           "metadata": {"labels": {"a": "b"}}}, STRATEGIC)
            assert got["status"]["phase"] == "Running" and got["metadata"]["labels"] == {"a": "b"}
            status, _ = await api.call("PATCH", path + "/p/status", {"metadata": {"uid": "other"}}, STRATEGIC)
            assert status == 409
    asyncio.run(main())


def test_a_client_that_goes_while_its_write_commits_leaks_nothing():
    class Slow(MemoryLog):
        def __init__(self):
            super().__init__()
            self.entered, self.gate = asyncio.Event(), asyncio.Event()
            self.gate.set()

        async def write(self, key, value, expect):
            if key.startswith("services/default/s"):
                self.entered.set()
                await self.gate.wait()
            return await super().write(key, value, expect)

    async def main():
        log = Slow()
        async with serving(log) as api:
            log.gate.clear()
            request = build("POST", "/api/v1/namespaces/default/services", {}, BUILTIN)
            request.user = ANYBODY
            request._body = b'{"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}'
            writer = asyncio.create_task(api.server.handlers._writes.create(request, request.resource))
            async with asyncio.timeout(5):
                await log.entered.wait()
                writer.cancel()  # what the server does with a handler whose client has gone
                log.gate.set()
                stored = await writer
            held = {value for _, value in api.server.allocator._held(stored.obj)}
            assert held and held == api.server.allocator.addresses.used
    asyncio.run(main())

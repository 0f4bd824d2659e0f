"""Admission webhooks against a real TLS server in this process: changed, refused, unreachable, late, dry."""

import asyncio

from controlplane.apiserver.webhooks import matching
from controlplane.apiserver.webhooks.matching import Asked
from tests.unit.apiserver.harness import config_map, pod, serving
from tests.unit.apiserver.hookserver import config, hooks, patch

MAPS = "/api/v1/namespaces/default/configmaps"
CONFIGS = "/apis/admissionregistration.k8s.io/v1"
MERGE = "application/merge-patch+json"


async def configure(api, kind, *configs):
    for one in configs:
        await api.made(f"{CONFIGS}/{kind}webhookconfigurations", one)


def test_mutating_hooks_change_objects_and_see_each_other(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            server.answers["/one"] = lambda r: patch({"op": "add", "path": "/data/seen", "value": ",".join(
                sorted(r["object"]["data"]))}, {"op": "add", "path": "/unknown", "value": 1})
            server.answers["/two"] = lambda r: patch({"op": "add", "path": "/data/two", "value": "2"})
            await configure(api, "mutating", config("a", server.client("/one"), reinvocationPolicy="IfNeeded"),
                            config("b", server.client("/two")))
            made = await api.made(MAPS, config_map("m", x="y"))
            assert made["data"] == {"x": "y", "two": "2", "seen": "seen,two,x"} and "unknown" not in made
            assert [path for path, _ in server.asked] == ["/one", "/two", "/one"]
            asked = server.asked[0][1]
            assert asked["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
            assert asked["operation"] == "CREATE" and asked["name"] == "m" and asked["namespace"] == "default"
            assert asked["oldObject"] is None and asked["options"]["kind"] == "CreateOptions"
            assert asked["userInfo"]["username"] and asked["dryRun"] is False
            # the configuration itself is nobody's business but its owner's
            server.answers["/all"] = lambda r: {"allowed": False}
            everything = config("c", server.client("/all"), operations=["*"], resources=["*/*"], groups=["*"])
            await configure(api, "validating", everything)
            assert (await api.call("POST", MAPS, config_map("n", a="b")))[0] == 400
            assert (await api.call("DELETE", f"{CONFIGS}/validatingwebhookconfigurations/c"))[0] == 200
            assert (await api.call("POST", MAPS, config_map("n", a="b")))[0] == 201
    asyncio.run(main())


def test_validating_hooks_refuse_updates_deletes_and_connections(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            server.answers["/no"] = lambda r: {"allowed": False, "status": {"message": "not today", "code": 403,
                                                                            "reason": "Forbidden"},
                                               "warnings": ["mind the gap"]}
            await configure(api, "validating", config(
                "v", server.client("/no"), ["UPDATE", "DELETE"], objectSelector={"matchLabels": {"kept": "yes"}}),
                config("w", server.client("/no"), ["CONNECT"], ["pods/attach"]))
            await api.made(MAPS, config_map("m", {"kept": "yes"}, a="b"))
            status, error = await api.call("PATCH", MAPS + "/m", {"data": {"a": "c"}}, MERGE)
            assert (status, error["reason"], error["message"]) == (
                403, "Forbidden", 'admission webhook "v.example.com" denied the request: not today')
            assert server.asked[-1][1]["oldObject"]["data"] == {"a": "b"}
            assert server.asked[-1][1]["options"]["kind"] == "PatchOptions"
            status, error = await api.call("DELETE", MAPS + "/m", {"propagationPolicy": "Orphan"})
            assert status == 403 and server.asked[-1][1]["object"] is None
            assert server.asked[-1][1]["options"] == {"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1",
                                                      "propagationPolicy": "Orphan"}
            await api.made(MAPS, config_map("free", a="b"))
            assert (await api.call("DELETE", MAPS + "/free"))[0] == 200
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            await api.made("/api/v1/namespaces/default/pods", pod("p", nodeName="n"))
            status, error = await api.call("POST", "/api/v1/namespaces/default/pods/p/attach?stdin=true&container=c")
            assert status == 403 and server.asked[-1][1]["object"] == {
                "kind": "PodAttachOptions", "apiVersion": "v1", "stdin": True, "container": "c"}
            assert server.asked[-1][1]["kind"]["kind"] == "PodAttachOptions"
            assert server.asked[-1][1]["subResource"] == "attach" and server.asked[-1][1]["options"] is None
    asyncio.run(main())


def test_failed_calls_close_or_open(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            stop = asyncio.Event()

            async def late(_):
                await stop.wait()
                return {"allowed": True}
            server.answers["/late"] = late
            server.answers["/broken"] = lambda r: 500
            await configure(api, "validating", config("late", server.client("/late"), timeoutSeconds=1))
            status, error = await api.call("POST", MAPS, config_map("m"))
            stop.set()
            assert status == 500 and error["message"] == (
                'Internal error occurred: failed calling webhook "late.example.com": failed to call webhook: '
                f'Post "{server.url}/late?timeout=1s": context deadline exceeded')
            path = f"{CONFIGS}/validatingwebhookconfigurations"
            await api.call("DELETE", path + "/late")
            for name, client, told in (
                    ("broken", server.client("/broken"), 'an error on the server ("no") has prevented'),
                    ("trust", {"url": server.url + "/x", "caBundle": ""}, "certificate signed by unknown authority"),
                    ("away", {"service": {"namespace": "default", "name": "gone"}}, 'service "gone" not found')):
                await configure(api, "validating", config(name, client))
                status, error = await api.call("POST", MAPS, config_map("m"))
                assert status == 500 and told in error["message"], error
                fail_open = {"webhooks": [{**config(name, client)["webhooks"][0], "failurePolicy": "Ignore"}]}
                assert (await api.call("PATCH", f"{path}/{name}", fail_open, MERGE))[0] == 200
                await api.made(MAPS, config_map(name))
                await api.call("DELETE", f"{path}/{name}")
            await configure(api, "validating", config("dry", server.client("/x")))
            assert (await api.call("POST", MAPS + "?dryRun=All", config_map("m")))[0] == 201
            assert server.asked[-1][1]["dryRun"] is True
    asyncio.run(main())


def test_conditions_choose_what_is_asked(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            server.answers["/mark"] = lambda r: patch({"op": "add", "path": "/data/marked", "value": "yes"})
            await configure(api, "mutating", config(
                "c", server.client("/mark"), matchConditions=[
                    {"name": "named", "expression": "object.metadata.name != 'skip-me'"},
                    {"name": "leases", "expression": "request.resource.resource == 'configmaps' && "
                                                     "!('system:nodes' in request.userInfo.groups)"}]))
            assert "marked" not in (await api.made(MAPS, config_map("skip-me", a="b")))["data"]
            assert (await api.made(MAPS, config_map("m", a="b")))["data"]["marked"] == "yes"
            await configure(api, "validating", config(
                "f", server.client("/x"), ["DELETE"], matchConditions=[
                    {"name": "wrong", "expression": "object.metadata.name == 'm'"}]))
            status, error = await api.call("DELETE", MAPS + "/m")
            assert status == 403 and "no such overload" in error["message"], error
    asyncio.run(main())


def test_a_service_is_called_at_an_endpoint_under_its_own_name(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            await api.made("/api/v1/namespaces/default/services", {
                "metadata": {"name": "hook"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 8443}]}})
            client = {"service": {"namespace": "default", "name": "hook", "port": 8443, "path": "/svc"},
                      "caBundle": server.bundle}
            await configure(api, "mutating", config("s", client, timeoutSeconds=2))
            piece = {"metadata": {"name": "hook-1", "labels": {"kubernetes.io/service-name": "hook"}},
                     "addressType": "IPv4", "ports": [{"name": "", "port": server.port}],
                     "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": False}}]}
            # stored below validation, which rightly refuses loopback endpoints
            piece |= {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice"}
            piece["metadata"] |= {"namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
            key = "endpointslices.discovery.k8s.io/default/hook-1"
            item = await api.server.cache.write(key, piece, 0)
            status, error = await api.call("POST", MAPS, config_map("m"))
            assert status == 500 and error["message"].endswith(
                'Post "https://hook.default.svc:8443/svc": no endpoints available for service "hook"')
            piece["endpoints"][0]["conditions"]["ready"] = True
            await api.server.cache.write(key, piece, item.revision)
            await api.made(MAPS, config_map("m"))
            assert server.asked[-1][0] == "/svc"
    asyncio.run(main())


def test_rules():
    asked = Asked("CREATE", "apps", "v1", "deployments", "scale", "web", True)
    rule = {"operations": ["*"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments/*"]}
    assert matching.matches(rule, asked)
    assert matching.matches({**rule, "resources": ["*/scale"], "scope": "Namespaced"}, asked)
    assert matching.matches({**rule, "resources": ["*/*"]}, asked)
    assert not matching.matches({**rule, "resources": ["deployments"]}, asked)
    assert not matching.matches({**rule, "resources": ["*"]}, asked)
    assert not matching.matches({**rule, "scope": "Cluster"}, asked)
    assert not matching.matches({**rule, "operations": ["UPDATE"]}, asked)
    assert not matching.matches({**rule, "resourceNames": ["other"]}, asked)

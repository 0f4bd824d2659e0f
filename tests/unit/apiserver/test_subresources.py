import asyncio

from tests.unit.apiserver.harness import pod, serving

PODS = "/api/v1/namespaces/default/pods"
DEPLOYS = "/apis/apps/v1/namespaces/default/deployments"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"


async def account(api):
    await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})


def test_scale_is_a_view_of_replicas():
    async def main():
        async with serving() as api:
            made = await api.made(DEPLOYS, {
                "metadata": {"name": "d"}, "spec": {
                    "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
                    "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}})
            _, scale = await api.call("GET", DEPLOYS + "/d/scale")
            assert scale["kind"] == "Scale" and scale["spec"] == {"replicas": 2}
            assert scale["status"] == {"replicas": 0, "selector": "a=b"}
            status, scale = await api.call("PATCH", DEPLOYS + "/d/scale", {"spec": {"replicas": 5}}, MERGE)
            assert status == 200 and scale["spec"] == {"replicas": 5}
            _, now = await api.call("GET", DEPLOYS + "/d")
            assert now["spec"]["replicas"] == 5 and now["metadata"]["generation"] == 2
            stale = {"metadata": {"resourceVersion": made["metadata"]["resourceVersion"]}, "spec": {"replicas": 1}}
            assert (await api.call("PUT", DEPLOYS + "/d/scale", stale))[0] == 409
            assert (await api.call("PUT", DEPLOYS + "/d/scale", {"spec": {"replicas": -1}}))[0] == 422
            _, scale = await api.call("PUT", DEPLOYS + "/d/scale", {"spec": {}})
            assert scale["spec"] == {}
    asyncio.run(main())


def test_both_forms_of_binding_bind_once():
    async def main():
        async with serving() as api:
            await account(api)
            for name in ("p", "q"):
                await api.made(PODS, pod(name))
            promise = {"status": {"nominatedNodeName": "n9"}}
            assert (await api.call("PATCH", PODS + "/p/status", promise, "application/merge-patch+json"))[0] == 200
            binding = {"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}}
            assert (await api.call("POST", PODS + "/p/binding", binding))[0] == 201
            _, bound = await api.call("GET", PODS + "/p")
            assert bound["spec"]["nodeName"] == "n1" and "nominatedNodeName" not in bound["status"]
            assert {c["type"]: c["status"] for c in bound["status"]["conditions"]}["PodScheduled"] == "True"
            status, error = await api.call("POST", PODS + "/p/binding", binding)
            assert status == 409 and 'pod p is already assigned to node "n1"' in error["message"]
            other = {"metadata": {"name": "q"}, "target": {"name": "n2"}}
            assert (await api.call("POST", "/api/v1/namespaces/default/bindings", other))[0] == 201
            assert (await api.call("GET", PODS + "/q"))[1]["spec"]["nodeName"] == "n2"
    asyncio.run(main())


def test_eviction_marks_and_deletes():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(PODS, pod("p", nodeName="n"))
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}}
            status, answer = await api.call("POST", PODS + "/p/eviction", {
                **eviction, "deleteOptions": {"gracePeriodSeconds": 7, "dryRun": ["All"]}})
            assert status == 201 and answer["status"] == "Success"
            assert "deletionTimestamp" not in (await api.call("GET", PODS + "/p"))[1]["metadata"]
            status, _ = await api.call("POST", PODS + "/p/eviction", {
                **eviction, "deleteOptions": {"gracePeriodSeconds": 7}})
            _, going = await api.call("GET", PODS + "/p")
            assert going["metadata"]["deletionGracePeriodSeconds"] == 7
            assert any(c["type"] == "DisruptionTarget" and c["reason"] == "EvictionByEvictionAPI"
                       for c in going["status"]["conditions"])
    asyncio.run(main())


def test_ephemeral_containers_are_only_added():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(PODS, pod("p"))
            debug = {"name": "d", "image": "busybox", "terminationMessagePolicy": "File"}
            status, got = await api.call("PATCH", PODS + "/p/ephemeralcontainers", {
                "metadata": {"labels": {"x": "y"}}, "spec": {"ephemeralContainers": [debug]}}, STRATEGIC)
            assert status == 200, got
            assert got["spec"]["ephemeralContainers"][0]["name"] == "d" and "labels" not in got["metadata"]
            status, error = await api.call("PATCH", PODS + "/p/ephemeralcontainers",
                                           {"spec": {"ephemeralContainers": None}}, MERGE)
            assert status == 422 and "may not be removed" in error["message"]
    asyncio.run(main())


def test_unknown_subresources_and_verbs():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(PODS, pod("p"))
            assert (await api.call("GET", PODS + "/p/nothing"))[0] == 404
            assert (await api.call("GET", PODS + "/p/binding"))[0] == 405
            assert (await api.call("POST", PODS + "/p/status", {}))[0] == 405
            assert (await api.call("GET", PODS + "/p/status/more"))[0] == 404
    asyncio.run(main())


def test_scale_is_applied_by_an_owner():
    async def main():
        async with serving() as api:
            await api.made(DEPLOYS + "?fieldManager=maker", {
                "metadata": {"name": "d"}, "spec": {
                    "replicas": 2, "selector": {"matchLabels": {"a": "b"}},
                    "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}})
            scale = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"},
                     "spec": {"replicas": 4}}
            where, apply = DEPLOYS + "/d/scale?fieldManager=scaler", "application/apply-patch+yaml"
            status, refused = await api.call("PATCH", where, scale, apply)
            assert status == 409 and 'conflict with "maker"' in refused["message"]
            assert refused["message"].endswith("using apps/v1: .spec.replicas"), refused["message"]
            status, shown = await api.call("PATCH", where + "&force=true", scale, apply)
            assert status == 200 and shown["spec"] == {"replicas": 4}, shown
            _, now = await api.call("GET", DEPLOYS + "/d")
            [mine] = [e for e in now["metadata"]["managedFields"] if e["manager"] == "scaler"]
            assert (mine["operation"], mine["subresource"]) == ("Apply", "scale")
            assert mine["fieldsV1"] == {"f:spec": {"f:replicas": {}}}
    asyncio.run(main())

import asyncio

from controlplane.apiserver.writing.deletes import Options, decide, finalizers_for
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import config_map, pod, serving

CMS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"


def running(**meta):
    return {"metadata": {"name": "p", "uid": "u", "generation": 1, **meta},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 20}, "status": {"phase": "Running"}}


def test_a_running_pod_gets_its_grace_and_a_second_delete_only_shortens_it():
    pods = named("pods")
    first = decide(pods, running(), Options(), True, 1000.0)
    assert first["metadata"]["deletionTimestamp"] == "1970-01-01T00:17:00Z"
    assert (first["metadata"]["deletionGracePeriodSeconds"], first["metadata"]["generation"]) == (20, 2)
    longer = decide(pods, first, Options(grace=60), True, 1001.0)
    assert longer["metadata"] == first["metadata"]
    shorter = decide(pods, first, Options(grace=5), True, 1001.0)
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    assert decide(pods, first, Options(grace=0), True, 1001.0) is None
    idle = running()
    del idle["spec"]["nodeName"]
    assert decide(pods, idle, Options(), True, 0.0) is None
    held = running(finalizers=["a.b/c"])
    assert decide(pods, held, Options(grace=0), True, 0.0)["metadata"]["deletionGracePeriodSeconds"] == 0


def test_propagation_leaves_work_to_the_collector():
    deployments, mine = named("deployments.apps"), ["a.b/c"]
    assert finalizers_for(deployments, mine, "") == mine
    assert finalizers_for(deployments, mine, "Foreground") == ["a.b/c", "foregroundDeletion"]
    assert finalizers_for(deployments, ["orphan"], "Background") == []
    assert finalizers_for(named("replicationcontrollers"), [], "") == ["orphan"]


def test_preconditions_hold_at_the_write():
    async def main():
        async with serving() as api:
            made = await api.made(CMS, config_map("a"))
            for wrong in ({"uid": "x"}, {"resourceVersion": "1"}):
                status, error = await api.call("DELETE", CMS + "/a", {
                    "kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1", "preconditions": wrong})
                assert status == 409 and "in the precondition" in error["message"], error
                assert error["details"]["kind"] == "ConfigMap"
            status, gone = await api.call("DELETE", CMS + "/a", {
                "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": made["metadata"]["uid"]}})
            assert status == 200 and gone["status"] == "Success"
            assert gone["details"] == {"name": "a", "kind": "configmaps", "uid": made["metadata"]["uid"]}
            assert (await api.call("DELETE", CMS + "/a"))[0] == 404
            assert (await api.call("DELETE", CMS + "/a?propagationPolicy=Sideways"))[0] == 422
    asyncio.run(main())


def test_a_pod_answers_itself_and_a_collection_its_members():
    async def main():
        async with serving() as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            for name in ("p", "q"):
                await api.made(PODS, pod(name))
            await api.made(PODS, pod("r", nodeName="n"))
            status, gone = await api.call("DELETE", PODS + "/p")
            assert status == 200 and gone["kind"] == "Pod"
            status, gone = await api.call("DELETE", PODS)
            assert gone["kind"] == "PodList" and len(gone["items"]) == 2
            _, left = await api.call("GET", PODS)
            assert [p["metadata"]["name"] for p in left["items"]] == ["r"]
            assert left["items"][0]["metadata"]["deletionGracePeriodSeconds"] == 30
            assert (await api.call("DELETE", "/api/v1/pods"))[0] == 405
    asyncio.run(main())


def test_a_namespace_terminates_and_ends_with_finalize():
    async def main():
        async with serving() as api:
            made = await api.made("/api/v1/namespaces", {"metadata": {"name": "x"}})
            assert made["spec"]["finalizers"] == ["kubernetes"]
            status, going = await api.call("DELETE", "/api/v1/namespaces/x")
            assert status == 200 and going["status"]["phase"] == "Terminating"
            status, error = await api.call("POST", "/api/v1/namespaces/x/configmaps", config_map("a"))
            assert status == 403 and error["details"]["causes"][0]["reason"] == "NamespaceTerminating"
            assert "because it is being terminated" in error["message"]
            going["spec"]["finalizers"] = []
            status, error = await api.call("PUT", "/api/v1/namespaces/x/finalize", going)
            assert status == 200, error
            assert (await api.call("GET", "/api/v1/namespaces/x"))[0] == 404
            status, error = await api.call("DELETE", "/api/v1/namespaces/default")
            assert status == 403 and error["message"].endswith("this namespace may not be deleted")
    asyncio.run(main())

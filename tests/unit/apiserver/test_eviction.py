"""Evictions against disruption budgets, through the real endpoint."""

import asyncio

from tests.unit.apiserver.harness import pod, serving

PODS = "/api/v1/namespaces/default/pods"


def budget(name, allowed, **spec):
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {
        "name": name, "namespace": "default", "uid": name, "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "a"}}, **spec},
        "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "desiredHealthy": 2, "currentHealthy": 1,
                   "expectedPods": 2}}


async def running(api, name, ready="True"):
    made = pod(name, nodeName="n")
    made["metadata"]["labels"] = {"app": "a"}
    made = await api.made(PODS, made)
    made["status"] |= {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}
    assert (await api.call("PUT", f"{PODS}/{name}/status", made))[0] == 200


def test_a_budget_is_spent_once_and_then_refuses():
    async def main():
        async with serving() as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            for name in ("p", "q", "r"):
                await running(api, name)
            key = "poddisruptionbudgets.policy/default/b"
            await api.server.cache.write(key, budget("b", 1), 0)

            async def evict(name, **options):
                return await api.call("POST", f"{PODS}/{name}/eviction", {
                    "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, **options})
            assert (await evict("p", deleteOptions={"dryRun": ["All"]}))[0] == 201
            both = await asyncio.gather(evict("p"), evict("q"))
            assert sorted(status for status, _ in both) == [201, 429]
            error = next(body for status, body in both if status == 429)
            assert error["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
            assert error["details"]["causes"] == [{"reason": "DisruptionBudget", "message": (
                "The disruption budget b needs 2 healthy pods and has 1 currently")}]
            spent = api.server.cache.get(key)
            assert spent.obj["status"]["disruptionsAllowed"] == 0
            assert set(spent.obj["status"]["disruptedPods"]) < {"p", "q"}
            # what is going already, and what does not run, needs no budget
            gone = next(iter(spent.obj["status"]["disruptedPods"]))
            assert (await evict(gone))[0] == 201
            await api.server.cache.write(key, budget("b", 0, unhealthyPodEvictionPolicy="AlwaysAllow"), spent.revision)
            await running(api, "unready", "False")
            assert (await evict("unready"))[0] == 201
            await api.server.cache.write("poddisruptionbudgets.policy/default/c", budget("c", 1), 0)
            status, error = await evict("r")
            assert status == 500 and error["message"].startswith("This pod has more than one PodDisruptionBudget")
    asyncio.run(main())

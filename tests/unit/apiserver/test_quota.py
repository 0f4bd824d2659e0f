"""Limits and quotas as a client meets them: defaults, refusals in upstream's words, and no overshoot under load."""

import asyncio

from controlplane.machinery import podresources, usage
from tests.unit.apiserver.harness import config_map, pod, serving

SPACE = "/api/v1/namespaces/default"


async def account(api):
    await api.made(SPACE + "/serviceaccounts", {"metadata": {"name": "default"}})


async def quota(api, name, spec):
    """A quota as the controller leaves it: counted."""
    made = await api.made(SPACE + "/resourcequotas", {"metadata": {"name": name}, "spec": spec})
    made["status"] = {"hard": spec["hard"], "used": dict.fromkeys(spec["hard"], "0")}
    status, made = await api.call("PUT", SPACE + f"/resourcequotas/{name}/status", made)
    assert status == 200, made


def sized(name, resources=None, **spec):
    made = pod(name, **spec)
    if resources:
        made["spec"]["containers"][0]["resources"] = resources
    return made


def test_limits_complete_and_refuse():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(SPACE + "/limitranges", {"metadata": {"name": "l"}, "spec": {"limits": [
                {"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}, "default": {"cpu": "500m"},
                 "defaultRequest": {"cpu": "200m"}, "maxLimitRequestRatio": {"cpu": "4"}}]}})
            made = await api.made(SPACE + "/pods", pod("a"))
            assert made["spec"]["containers"][0]["resources"] == {"limits": {"cpu": "500m"},
                                                                  "requests": {"cpu": "200m"}}
            assert made["metadata"]["annotations"]["kubernetes.io/limit-ranger"] == \
                "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
            status, error = await api.call("POST", SPACE + "/pods", sized("b", {"limits": {"cpu": "2"}}))
            assert status == 403
            assert error["message"] == 'pods "b" is forbidden: maximum cpu usage per Container is 1, but limit is 2'
            status, error = await api.call("POST", SPACE + "/pods", sized(
                "c", {"requests": {"cpu": "50m"}, "limits": {"cpu": "500m"}}))
            assert error["message"] == (
                'pods "c" is forbidden: [minimum cpu usage per Container is 100m, but request is 50m, '
                "cpu max limit to request ratio per Container is 4, but provided ratio is 10.000000]")
    asyncio.run(main())


def test_a_burst_of_creates_never_overshoots():
    async def main():
        async with serving() as api:
            await account(api)
            await quota(api, "q", {"hard": {"configmaps": "5", "count/configmaps": "7"}})
            results = await asyncio.gather(*(api.call("POST", SPACE + "/configmaps", config_map(f"m{n}"))
                                             for n in range(20)))
            assert sorted(status for status, _ in results) == [201] * 5 + [403] * 15
            refusal = next(body["message"] for status, body in results if status == 403)
            assert refusal.endswith("is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, "
                                    "limited: configmaps=5")
            _, now = await api.call("GET", SPACE + "/resourcequotas/q")
            assert now["status"]["used"] == {"configmaps": "5", "count/configmaps": "5"}
            assert (await api.call("POST", SPACE + "/configmaps", config_map("m0")))[0] in (403, 409)
            assert (await api.call("POST", SPACE + "/secrets?dryRun=All", {"metadata": {"name": "s"}}))[0] == 201
    asyncio.run(main())


def test_pods_state_what_a_quota_limits_and_scopes_choose():
    async def main():
        async with serving() as api:
            await account(api)
            await quota(api, "long", {"hard": {"pods": "1", "limits.cpu": "1"}, "scopes": ["NotTerminating"]})
            status, error = await api.call("POST", SPACE + "/pods", pod("a"))
            assert (status, error["message"]) == (
                403, 'pods "a" is forbidden: failed quota: long: must specify limits.cpu for: c')
            half = {"limits": {"cpu": "500m"}}
            await api.made(SPACE + "/pods", sized("a", half))
            status, error = await api.call("POST", SPACE + "/pods", sized("b", {"limits": {"cpu": "600m"}}))
            assert error["message"] == (
                'pods "b" is forbidden: exceeded quota: long, requested: limits.cpu=600m,pods=1, '
                "used: limits.cpu=500m,pods=1, limited: limits.cpu=1,pods=1")
            await api.made(SPACE + "/pods", sized("c", activeDeadlineSeconds=60))
    asyncio.run(main())


def test_scopes_and_sums():
    asked = {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi", "example.com/x": "2"}}
    run = sized("p", asked, priorityClassName="high", initContainers=[
        {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"name": "init", "resources": {"requests": {"cpu": "3"}}}])
    assert str(podresources.requests(run)["cpu"]) == "4"
    used = usage.of("pods", run, 0.0)
    assert usage.printed(used) == ("count/pods=1,cpu=4,limits.memory=1Gi,pods=1,requests.cpu=4")
    scoped = {"spec": {"scopeSelector": {"matchExpressions": [
        {"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}}
    assert usage.in_scope(scoped, "pods", run) and not usage.in_scope(scoped, "pods", pod("q"))
    assert usage.in_scope({"spec": {"scopes": ["BestEffort"]}}, "pods", pod("q"))
    assert usage.of("pods", {**run, "status": {"phase": "Failed"}}, 0.0) == {"count/pods": usage.ONE}
    balanced = {"metadata": {}, "spec": {"type": "LoadBalancer", "ports": [{"port": 1}, {"port": 2}]}}
    assert usage.of("services", balanced, 0.0)["services.nodeports"].value() == 2


def test_nobody_is_let_in_when_a_reservation_cannot_be_stored():
    async def main():
        async with serving() as api:
            await quota(api, "q", {"hard": {"configmaps": "5"}})
            cache, write = api.server.cache, api.server.cache.write

            async def full(key, obj, expect):
                if key.startswith("resourcequotas/"):
                    raise OSError("no space left")
                return await write(key, obj, expect)
            cache.write = full
            results = await asyncio.gather(*(api.call("POST", SPACE + "/configmaps", config_map(f"m{n}"))
                                             for n in range(3)))
            assert [status for status, _ in results] == [500] * 3
            cache.write = write
            await api.made(SPACE + "/configmaps", config_map("m"))
    asyncio.run(main())

"""What a cluster begins with, priorities of pods, addresses that mirror Services, resizing."""

import asyncio

from tests.unit.apiserver.harness import DEADLINE, pod, serving

PODS = "/api/v1/namespaces/default/pods"
CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
NETWORK = "/apis/networking.k8s.io/v1"


async def account(api):
    await api.made("/api/v1/namespaces/default/serviceaccounts",
                   {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})


def priority(name, value, **more):
    return {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
            **more}


def test_a_cluster_begins_furnished_and_stays_so():
    async def main():
        async with serving() as api:
            status, got = await api.call("GET", f"{CLASSES}/system-node-critical")
            assert (status, got["value"], got["metadata"]["generation"]) == (200, 2000001000, 1)
            status, ranges = await api.call("GET", f"{NETWORK}/servicecidrs/kubernetes")
            assert ranges["spec"]["cidrs"] == ["10.96.0.0/16"]
            assert ranges["status"]["conditions"][0]["status"] == "True"
            async with api.watching(f"{CLASSES}?watch=1&resourceVersion={got['metadata']['resourceVersion']}"
                                    "&fieldSelector=metadata.name%3Dsystem-node-critical") as events:
                assert (await api.call("DELETE", f"{CLASSES}/system-node-critical"))[0] == 200
                assert [(await events.next())[0] for _ in range(2)] == ["DELETED", "ADDED"]
    asyncio.run(main())


def test_other_servers_learn_whom_to_believe(tmp_path):
    async def main():
        async with serving(tls=tmp_path) as api:
            status, config = await api.call(
                "GET", "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
            assert status == 200 and config["data"]["client-ca-file"].startswith("-----BEGIN CERTIFICATE-----")
    asyncio.run(main())


def test_pods_get_the_number_of_their_class():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(CLASSES, priority("high", 1000, preemptionPolicy="Never"))
            spec = (await api.made(PODS, pod("a", priorityClassName="high")))["spec"]
            assert (spec["priority"], spec["preemptionPolicy"]) == (1000, "Never")
            assert (await api.made(PODS, pod("b")))["spec"]["priority"] == 0
            await api.made(CLASSES, priority("usual", 7, globalDefault=True))
            spec = (await api.made(PODS, pod("c")))["spec"]
            assert (spec["priority"], spec["priorityClassName"]) == (7, "usual")
            status, error = await api.call("POST", CLASSES, priority("other", 8, globalDefault=True))
            assert status == 403 and "PriorityClass usual is already marked as default" in error["message"]
            status, error = await api.call("POST", PODS, pod("d", priority=5))
            assert status == 403 and "the integer value of priority (5) must not be provided" in error["message"]
            status, error = await api.call("POST", PODS, pod("e", priorityClassName="none"))
            assert status == 403 and "no PriorityClass with name none was found" in error["message"]
            assert (await api.call("DELETE", f"{CLASSES}/usual"))[0] == 200
            assert (await api.made(PODS, pod("f")))["spec"]["priority"] == 0
    asyncio.run(main())


def test_addresses_follow_the_services_that_hold_them():
    async def main():
        services = "/api/v1/namespaces/default/services"
        async with (serving() as api, asyncio.timeout(DEADLINE),
                    api.watching(f"{NETWORK}/ipaddresses?watch=1") as events):
            kind, own = await events.next()
            assert (kind, own["metadata"]["name"]) == ("ADDED", "10.96.0.1")
            made = await api.made(services, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
                                             "spec": {"ports": [{"port": 80}]}})
            kind, address = await events.next()
            assert (kind, address["metadata"]["name"]) == ("ADDED", made["spec"]["clusterIP"])
            assert address["spec"]["parentRef"] == {"resource": "services", "namespace": "default", "name": "s"}
            assert (await api.call("DELETE", f"{services}/s"))[0] == 200
            kind, gone = await events.next()
            assert (kind, gone["metadata"]["name"]) == ("DELETED", made["spec"]["clusterIP"])
    asyncio.run(main())


def test_an_address_object_has_the_canonical_form_of_an_address_for_its_name():
    async def main():
        async with (serving(service_cluster_ip_range="fd00:96::/112") as api, asyncio.timeout(DEADLINE),
                    api.watching(f"{NETWORK}/ipaddresses?watch=1") as events):
            assert (await events.next())[1]["metadata"]["name"] == "fd00:96::1"
            made = await api.made("/api/v1/namespaces/default/services", {"metadata": {"name": "s"}, "spec": {
                "ports": [{"port": 80}], "clusterIP": "fd00:0096::0005"}})
            assert made["spec"]["clusterIP"] == "fd00:0096::0005"  # its writer's words
            assert (await events.next())[1]["metadata"]["name"] == "fd00:96::5"
    asyncio.run(main())


def test_an_address_object_is_repaired_and_anothers_is_given_to_no_service():
    async def main():
        services, addresses = "/api/v1/namespaces/default/services", f"{NETWORK}/ipaddresses"

        def address(ip, resource="gateways", **labels):
            return {"metadata": {"name": ip, "labels": labels}, "spec": {
                "parentRef": {"group": "", "resource": resource, "namespace": "default", "name": "s"}}}

        async with serving(service_cluster_ip_range="10.96.0.0/29") as api, asyncio.timeout(DEADLINE):
            made = await api.made(services, {"metadata": {"name": "s"}, "spec": {
                "ports": [{"port": 80}], "clusterIP": "10.96.0.2"}})
            async with api.watching(f"{addresses}?watch=1") as events:
                seen = [(await events.next())[1]["metadata"]["name"] for _ in range(2)]
                assert seen == ["10.96.0.1", made["spec"]["clusterIP"]]
                assert (await api.call("DELETE", f"{addresses}/10.96.0.2"))[0] == 200
                assert [((await events.next())[0]) for _ in range(2)] == ["DELETED", "ADDED"]
                await api.made(addresses, address("10.96.0.3", "services", **{
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}))
                assert [(await events.next())[0] for _ in range(2)] == ["ADDED", "DELETED"]
                await api.made(addresses, address("10.96.0.4"))
                assert (await events.next())[0] == "ADDED"
            body = {"metadata": {"generateName": "t"}, "spec": {"ports": [{"port": 80}]}}
            status, error = await api.call("POST", services, {**body, "spec": {**body["spec"],
                                                                              "clusterIP": "10.96.0.4"}})
            assert status == 422 and "provided IP is already allocated" in error["message"]
            got = {(await api.made(services, body))["spec"]["clusterIP"] for _ in range(3)}
            assert got == {"10.96.0.3", "10.96.0.5", "10.96.0.6"}
            assert (await api.call("DELETE", f"{addresses}/10.96.0.4"))[0] == 200
            assert (await api.made(services, body))["spec"]["clusterIP"] == "10.96.0.4"
    asyncio.run(main())


def test_a_further_range_gives_addresses_and_leaves_them_when_it_goes():
    async def main():
        services = "/api/v1/namespaces/default/services"
        async with serving(service_cluster_ip_range="10.96.0.0/29") as api, asyncio.timeout(DEADLINE):

            async def service(name, ip=""):
                return await api.call("POST", services, {"metadata": {"name": name}, "spec": {
                    "ports": [{"port": 80}], **({"clusterIP": ip} if ip else {})}})

            for index in range(5):
                assert (await service(f"s{index}"))[0] == 201
            assert (await service("full"))[0] == 500
            made = await api.made(f"{NETWORK}/servicecidrs", {"metadata": {"name": "more"}, "spec": {
                "cidrs": ["10.97.0.0/24"]}})
            status, other = await service("other")
            assert status == 201 and other["spec"]["clusterIP"].startswith("10.97.0.")
            assert [(await service(name, "10.97.0.77"))[0] for name in ("chosen", "twice")] == [201, 422]
            async with api.watching(f"{NETWORK}/servicecidrs?watch=1&resourceVersion="
                                    + made["metadata"]["resourceVersion"]) as events:
                told = (await events.next())[1]
            assert told["metadata"]["name"] == "more" and told["status"]["conditions"][0]["status"] == "True"
            assert (await api.call("DELETE", f"{NETWORK}/servicecidrs/more"))[0] == 200
            assert (await service("late", "10.97.0.78"))[0] == 422
            status, kept = await api.call("PATCH", f"{services}/other", {"metadata": {"labels": {"a": "b"}}},
                                          "application/merge-patch+json")
            assert (status, kept["spec"]["clusterIP"]) == (200, other["spec"]["clusterIP"])
    asyncio.run(main())


def sized(cpu, limit=None):
    resources = {"requests": {"cpu": cpu}, **({"limits": {"cpu": limit}} if limit else {})}
    return {"spec": {"containers": [{"name": "c", "resources": resources}]}}


def test_a_pod_is_resized_by_its_own_door_only():
    async def main():
        async with serving() as api:
            await account(api)
            body = pod("a")
            body["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "1"}}
            made = await api.made(PODS, body)
            strategic = "application/strategic-merge-patch+json"
            status, error = await api.call("PATCH", f"{PODS}/a", sized("2"), strategic)
            assert status == 422 and "pod updates may not change fields other than" in error["message"]
            status, got = await api.call("PATCH", f"{PODS}/a/resize", {
                **sized("2", "3"), "metadata": {"labels": {"x": "y"}}}, strategic)
            assert status == 200 and got["spec"]["containers"][0]["resources"] == {
                "requests": {"cpu": "2"}, "limits": {"cpu": "3"}}
            assert got["metadata"]["generation"] == made["metadata"]["generation"] + 1
            assert "labels" not in got["metadata"] and got["status"] == made["status"]
            status, same = await api.call("PATCH", f"{PODS}/a/resize", sized("2", "3"), strategic)
            assert same["metadata"]["generation"] == got["metadata"]["generation"]
            for patch, want in (
                    (sized("4", "3"), "must be less than or equal to cpu limit of 3"),
                    ({"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": None}}}]}},
                     "resource limits cannot be removed"),
                    ({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"},
                                                                          "limits": {"example.com/gpu": "1"}}}]}},
                     "only cpu and memory resources are mutable"),
                    ({"spec": {"containers": [{"name": "c", "resources": {
                        "limits": {"cpu": "3", "memory": "1Gi"}, "requests": {"cpu": "3", "memory": "1Gi"}}}]}},
                     "Pod QOS Class may not change as a result of resizing")):
                status, error = await api.call("PATCH", f"{PODS}/a/resize", patch, strategic)
                assert status == 422 and want in error["message"], error
    asyncio.run(main())


def test_ephemeral_containers_may_not_ask_for_much():
    async def main():
        async with serving() as api:
            await account(api)
            await api.made(PODS, pod("a"))
            door, strategic = f"{PODS}/a/ephemeralcontainers", "application/strategic-merge-patch+json"
            for extra, want in (({"ports": [{"containerPort": 1}]}, "ports: Forbidden: cannot be set for an Ephemeral"),
                                ({"targetContainerName": "z"}, 'targetContainerName: Not found: "z"'),
                                ({"name": "c"}, 'name: Duplicate value: "c"')):
                status, error = await api.call("PATCH", door, {"spec": {"ephemeralContainers": [
                    {"name": "e", "image": "i", **extra}]}}, strategic)
                assert status == 422 and want in error["message"], error
            status, got = await api.call("PATCH", door, {"spec": {"ephemeralContainers": [
                {"name": "e", "image": "i", "targetContainerName": "c"}]}}, strategic)
            assert status == 200 and got["spec"]["ephemeralContainers"][0]["terminationMessagePolicy"] == "File"
    asyncio.run(main())


def test_what_the_server_makes_has_the_server_for_owner():
    async def main():
        async with serving(authorization_mode=("RBAC",)) as api:
            for key in ("namespaces/kube-system", "clusterroles.rbac.authorization.k8s.io/view",
                        "flowschemas.flowcontrol.apiserver.k8s.io/catch-all",
                        "apiservices.apiregistration.k8s.io/v1.apps"):
                item = api.server.cache.get(key)
                [owner] = item.obj["metadata"]["managedFields"]
                assert (owner["manager"], owner["operation"]) == ("kube-apiserver", "Update"), key
    asyncio.run(main())


def test_a_flow_schema_tells_whether_its_level_exists():
    async def main():
        async with serving() as api:
            flows = "/apis/flowcontrol.apiserver.k8s.io/v1"
            await api.made(f"{flows}/flowschemas", {"metadata": {"name": "f"}, "spec": {
                "priorityLevelConfiguration": {"name": "later"}, "matchingPrecedence": 900}})
            async with api.watching(f"{flows}/flowschemas?watch=1&fieldSelector=metadata.name%3Df") as events:
                async def said(status):
                    while True:
                        for one in (await events.next())[1]["status"].get("conditions", []):
                            if (one["type"], one["status"]) == ("Dangling", status):
                                return one
                assert (await said("True"))["message"] == (
                    'This FlowSchema references the PriorityLevelConfiguration object named "later" but there is no '
                    "such object")
                await api.made(f"{flows}/prioritylevelconfigurations", {"metadata": {"name": "later"}, "spec": {
                    "type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}})
                assert (await said("False"))["reason"] == "Found"
    asyncio.run(main())

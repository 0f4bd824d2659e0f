"""What admission completes by a cluster's classes."""

import asyncio

from tests.unit.apiserver.harness import pod, serving

CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
STORAGE, CLAIMS = "/apis/storage.k8s.io/v1/storageclasses", "/api/v1/namespaces/default/persistentvolumeclaims"
PODS, RUNTIMES = "/api/v1/namespaces/default/pods", "/apis/node.k8s.io/v1/runtimeclasses"
MERGE = "application/merge-patch+json"
NETWORK = "/apis/networking.k8s.io/v1"


def test_claims_and_ingresses_get_the_default_class():
    async def main():
        async with serving() as api:
            before = await api.made(CLAIMS, {"metadata": {"name": "before"}, "spec": CLAIM})
            assert "storageClassName" not in before["spec"]
            for name, default in (("slow", "false"), ("fast", "true")):
                await api.made(STORAGE, {"metadata": {"name": name, "annotations": {
                    "storageclass.kubernetes.io/is-default-class": default}}, "provisioner": "x"})
            made = await api.made(CLAIMS, {"metadata": {"name": "a"}, "spec": CLAIM})
            assert made["spec"]["storageClassName"] == "fast"
            none = await api.made(CLAIMS, {"metadata": {"name": "b"}, "spec": {**CLAIM, "storageClassName": ""}})
            assert none["spec"]["storageClassName"] == ""
            await api.made(NETWORK + "/ingressclasses", {
                "metadata": {"name": "web", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
                "spec": {"controller": "example.com/web"}})
            ingress = await api.made(NETWORK + "/namespaces/default/ingresses", {"metadata": {"name": "i"}, "spec": {
                "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}})
            assert ingress["spec"]["ingressClassName"] == "web"
    asyncio.run(main())


def test_claims_grow_when_bound_and_allowed_and_pods_learn_their_zone():
    async def main():
        async with serving() as api:
            for name, grows in (("fixed", False), ("elastic", True)):
                await api.made(STORAGE, {"metadata": {"name": name}, "provisioner": "x",
                                         "allowVolumeExpansion": grows})
            refusals = []
            for name in ("fixed", "elastic"):
                made = await api.made(CLAIMS, {"metadata": {"name": name}, "spec": {
                    **CLAIM, "storageClassName": name}})
                grown = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
                refusals.append((await api.call("PATCH", f"{CLAIMS}/{name}", grown, MERGE))[1].get("message", ""))
                made["status"] = {"phase": "Bound"}
                assert (await api.call("PUT", f"{CLAIMS}/{name}/status", made))[0] == 200
                refusals.append((await api.call("PATCH", f"{CLAIMS}/{name}", grown, MERGE))[1].get("message", ""))
            assert refusals[0] and refusals[2]  # not bound yet
            assert refusals[1].endswith("only dynamically provisioned pvc can be resized and the storageclass that "
                                        "provisions the pvc must support resize") and not refusals[3]
            await api.made("/api/v1/nodes", {"metadata": {"name": "n", "labels": {
                "topology.kubernetes.io/zone": "z", "other": "o"}}})
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            await api.made(PODS, pod("p"))
            await api.made("/api/v1/namespaces/default/bindings", {
                "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}})
            assert (await api.call("GET", PODS + "/p"))[1]["metadata"]["labels"] == {"topology.kubernetes.io/zone": "z"}
    asyncio.run(main())


def test_a_runtime_class_brings_its_overhead_and_its_nodes():
    async def main():
        async with serving() as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            status, error = await api.call("POST", PODS, pod("p", runtimeClassName="vm"))
            assert (status, error["message"]) == (
                403, 'pods "p" is forbidden: pod rejected: RuntimeClass "vm" not found')
            await api.made(RUNTIMES, {"metadata": {"name": "vm"}, "handler": "vm", "overhead": {
                "podFixed": {"cpu": "250m"}}, "scheduling": {
                "nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]}})
            made = await api.made(PODS, pod("p", runtimeClassName="vm"))
            assert made["spec"]["overhead"] == {"cpu": "250m"} and made["spec"]["nodeSelector"] == {"vm": "yes"}
            assert {"key": "vm", "operator": "Exists"} in made["spec"]["tolerations"]
            status, error = await api.call("POST", PODS, pod("q", runtimeClassName="vm", nodeSelector={"vm": "no"}))
            assert status == 403 and "conflict: runtimeClass.scheduling.nodeSelector[vm] = yes" in error["message"]
            status, error = await api.call("POST", PODS, pod("q", overhead={"cpu": "1"}))
            assert status == 403 and "Overhead set without corresponding RuntimeClass" in error["message"]
    asyncio.run(main())

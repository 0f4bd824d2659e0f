"""Admission of custom resources: pruned after webhooks, shown in the version a rule names, refused by policies."""

import asyncio

from tests.unit.apiserver.definitions import definition, foo, install, version
from tests.unit.apiserver.harness import serving
from tests.unit.apiserver.hookserver import config, hooks, patch

V1, V2 = (f"/apis/ex.io/{v}/namespaces/default/foos" for v in ("v1", "v2"))
CONFIGS = "/apis/admissionregistration.k8s.io/v1"
MERGE = "application/merge-patch+json"


def test_a_rule_about_another_version_sees_that_version():
    async def main():
        async with serving() as api:
            await api.made(f"{CONFIGS}/validatingadmissionpolicies", {"metadata": {"name": "p"}, "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["autoscaling"], "apiVersions": ["v1"],
                                                        "operations": ["*"],
                                                        "resources": ["horizontalpodautoscalers"]}]},
                "validations": [{"expression": "object.apiVersion == 'autoscaling/v1' && "
                                               "object.spec.targetCPUUtilizationPercentage <= 50"}]}})
            await api.made(f"{CONFIGS}/validatingadmissionpolicybindings", {"metadata": {"name": "p"}, "spec": {
                "policyName": "p", "validationActions": ["Deny"]}})
            path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers"
            for use, expected in ((60, 422), (40, 201)):
                status, made = await api.call("POST", path, {"metadata": {"name": f"h{use}"}, "spec": {
                    "maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
                    "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {
                        "type": "Utilization", "averageUtilization": use}}}]}})
                assert status == expected, made
    asyncio.run(main())


def test_custom_objects_are_pruned_and_shown_in_the_asked_version(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving() as api:
            await install(api, definition(versions=[version("v1"), version("v2", storage=False)]))
            server.answers["/add"] = lambda r: patch(
                {"op": "add", "path": "/spec/replicas", "value": 3}, {"op": "add", "path": "/spec/zzz", "value": 1})
            one = config("a", server.client("/add"), ["CREATE"], ["foos"], ["ex.io"])
            one["webhooks"][0]["rules"][0]["apiVersions"] = ["v1"]
            await api.made(f"{CONFIGS}/mutatingwebhookconfigurations", one)
            made = await api.made(V2, {**foo("a", color="blue"), "apiVersion": "ex.io/v2"})
            assert made["apiVersion"] == "ex.io/v2" and made["spec"] == {"color": "blue", "replicas": 3}
            asked = server.asked[-1][1]
            assert asked["object"]["apiVersion"] == "ex.io/v1" and asked["kind"]["version"] == "v1"
            assert (asked["resource"]["version"], asked["requestResource"]["version"]) == ("v1", "v2")
            server.answers["/no"] = lambda r: {"allowed": False}
            two = config("b", server.client("/no"), ["DELETE", "UPDATE"], ["foos"], ["ex.io"])
            await api.made(f"{CONFIGS}/validatingwebhookconfigurations", two)
            assert (await api.call("DELETE", V1 + "/a"))[0] == 400
            assert server.asked[-1][1]["oldObject"]["spec"]["replicas"] == 3
            assert (await api.call("PATCH", V1 + "/a", {"spec": {"color": "red"}}, MERGE))[0] == 400
            await api.call("DELETE", f"{CONFIGS}/validatingwebhookconfigurations/b")
            await api.made(f"{CONFIGS}/validatingadmissionpolicies", {"metadata": {"name": "p"}, "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["ex.io"], "apiVersions": ["*"],
                                                        "operations": ["UPDATE"], "resources": ["foos"]}]},
                "validations": [{"expression": "object.spec.color == oldObject.spec.color"}]}})
            await api.made(f"{CONFIGS}/validatingadmissionpolicybindings", {"metadata": {"name": "p"}, "spec": {
                "policyName": "p", "validationActions": ["Deny"]}})
            status, error = await api.call("PATCH", V1 + "/a", {"spec": {"color": "red"}}, MERGE)
            assert status == 422 and "failed expression: object.spec.color == oldObject.spec.color" in error["message"]
            assert (await api.call("PATCH", V1 + "/a", {"spec": {"replicas": 4}}, MERGE))[0] == 200
    asyncio.run(main())

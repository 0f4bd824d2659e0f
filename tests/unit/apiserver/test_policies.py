"""Admission policies in CEL at the API: refused, warned, parametrised, mutated; and mistakes told at once."""

import asyncio
from typing import ClassVar

from controlplane.machinery.cel.constructed import as_maps
from tests.unit.apiserver.definitions import CRDS, condition, definition
from tests.unit.apiserver.harness import config_map, pod, serving

GROUP = "/apis/admissionregistration.k8s.io/v1"
MAPS = "/api/v1/namespaces/default/configmaps"
DEPLOYS = "/apis/apps/v1/namespaces/default/deployments"
MERGE = "application/merge-patch+json"
RULE = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
        "resources": ["deployments"]}
MAP_RULE = {**RULE, "apiGroups": [""], "resources": ["configmaps"]}


class Kinds:
    validating: ClassVar[str] = "validatingadmissionpolic"
    mutating: ClassVar[str] = "mutatingadmissionpolic"


async def policy(api, kind, name, rule, binding=None, **spec):
    await api.made(f"{GROUP}/{kind}ies", {"metadata": {"name": name}, "spec": {
        "matchConstraints": {"resourceRules": [rule]}, **spec}})
    given = {"validationActions": ["Deny"]} if kind == Kinds.validating else {}
    await api.made(f"{GROUP}/{kind}ybindings", {"metadata": {"name": name + "-b"}, "spec": {
        "policyName": name, **given, **(binding or {})}})


def deployment(name, replicas, labels=None):
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}}}


def test_validations_with_variables_params_and_messages():
    async def main():
        async with serving() as api:
            await api.made(MAPS, config_map("limits", max="5"))
            await policy(
                api, Kinds.validating, "few", RULE, {"paramRef": {"name": "limits", "namespace": "default",
                                                                  "parameterNotFoundAction": "Deny"}},
                paramKind={"apiVersion": "v1", "kind": "ConfigMap"},
                variables=[{"name": "max", "expression": "int(params.data.max)"},
                           {"name": "odd", "expression": "object.spec.replicas % 2 == 1 && variables.max > 0"}],
                matchConditions=[{"name": "free", "expression": "!has(object.metadata.labels) || "
                                                                "!('free' in object.metadata.labels)"}],
                validations=[{"expression": "object.spec.replicas <= variables.max",
                              "messageExpression": "'at most ' + string(variables.max) + ' in ' + "
                                                   "namespaceObject.metadata.name"},
                             {"expression": "variables.odd", "message": "even", "reason": "Forbidden"}])
            status, error = await api.call("POST", DEPLOYS, deployment("d", 7))
            assert (status, error["reason"], error["message"]) == (422, "Invalid", (
                "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'few' with binding 'few-b' denied "
                "request: at most 5 in default"))
            status, error = await api.call("POST", DEPLOYS, deployment("d", 4))
            assert status == 403 and error["message"].endswith("denied request: even")
            await api.made(DEPLOYS, deployment("d", 3))
            await api.made(DEPLOYS, deployment("f", 8, {"free": "yes"}))
            assert (await api.call("PATCH", DEPLOYS + "/d", {"spec": {"replicas": 9}}, MERGE))[0] == 422
            await api.call("DELETE", MAPS + "/limits")
            status, error = await api.call("POST", DEPLOYS, deployment("e", 3))
            assert status == 422 and "no params found" in error["message"]
            await api.call("DELETE", f"{GROUP}/validatingadmissionpolicybindings/few-b")
            await api.made(DEPLOYS, deployment("e", 8))
    asyncio.run(main())


def test_warnings_and_faults():
    async def main():
        async with serving() as api:
            await policy(api, Kinds.validating, "soft", MAP_RULE, {"validationActions": ["Warn", "Audit"]},
                         validations=[{"expression": "object.data.a == 'b'"}])
            async with api.session.post(api.url + MAPS, json=config_map("m", a="c")) as answer:
                assert answer.status == 201 and "failed expression: object.data.a == 'b'" in answer.headers["Warning"]
            await policy(api, Kinds.validating, "hard", MAP_RULE, validations=[
                {"expression": "object.data.missing == 'x'"},
                {"expression": "authorizer.group('').resource('pods').namespace('default').check('get').allowed()"}])
            status, error = await api.call("POST", MAPS, config_map("n", a="b"))
            assert error["message"].endswith(
                "expression 'object.data.missing == 'x'' resulted in error: no such key: missing")
            patch = {"spec": {"failurePolicy": "Ignore"}}
            assert (await api.call("PATCH", f"{GROUP}/validatingadmissionpolicies/hard", patch, MERGE))[0] == 200
            await api.made(MAPS, config_map("n", a="b"))
            wrong = {"metadata": {"name": "wrong"}, "spec": {"matchConstraints": {"resourceRules": [MAP_RULE]},
                                                             "validations": [{"expression": "object.x ||"}]}}
            status, error = await api.call("POST", f"{GROUP}/validatingadmissionpolicies", wrong)
            assert status == 422 and "compilation failed" in error["message"]
            hook = {"metadata": {"name": "h"}, "webhooks": [{
                "name": "h.example.com", "clientConfig": {"url": "https://127.0.0.1/"}, "sideEffects": "None",
                "admissionReviewVersions": ["v1"], "matchConditions": [{"name": "c", "expression": "... []"}]}]}
            status, error = await api.call("POST", f"{GROUP}/mutatingwebhookconfigurations", hook)
            assert status == 422 and "compilation failed" in error["message"]
            assert error["details"]["causes"][0]["field"] == "webhooks[0].matchConditions[0].expression"
    asyncio.run(main())


def test_mutations_apply_and_patch():
    async def main():
        async with serving() as api:
            await policy(
                api, Kinds.mutating, "grow", RULE, failurePolicy="Fail", reinvocationPolicy="Never",
                variables=[{"name": "many", "expression": "object.spec.replicas + 1"}],
                mutations=[{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": (
                    'Object{metadata: Object.metadata{labels: {"by": request.operation}}, '
                    "spec: Object.spec{replicas: variables.many, template: Object.spec.template{spec: "
                    'Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: "c", '
                    'imagePullPolicy: "Never"}]}}}}')}},
                           {"patchType": "JSONPatch", "jsonPatch": {"expression": (
                               "[JSONPatch{op: 'add', path: '/metadata/annotations', value: {'n': "
                               "string(object.spec.replicas)}}]")}}])
            made = await api.made(DEPLOYS, deployment("d", 4, {"kept": "yes"}))
            assert made["spec"]["replicas"] == 5
            assert made["metadata"]["labels"] == {"kept": "yes", "by": "CREATE"}
            assert made["metadata"]["annotations"] == {"n": "5"}
            container, = made["spec"]["template"]["spec"]["containers"]
            assert (container["image"], container["imagePullPolicy"]) == ("busybox", "Never")
    asyncio.run(main())


def test_constructed_objects_are_maps():
    assert as_maps('Object{spec: Object.spec{a: [1, {"b": x.c}], ?d: y}}') == \
        '{"spec": {"a": [1, {"b": x.c}], ?"d": y}}'
    assert as_maps("'Object{a: 1}' + string(object.Object)") == "'Object{a: 1}' + string(object.Object)"
    assert as_maps("has(object.a) ? JSONPatch{op: f(a, b), path: p} : q") == \
        'has(object.a) ? {"op": f(a, b), "path": p} : q'


async def checked(api, name, **spec):
    """The warnings of a new policy, once it was looked at."""
    made = await api.made(f"{GROUP}/validatingadmissionpolicies", {"metadata": {"name": name}, "spec": spec})
    where = f"?watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={made['metadata']['resourceVersion']}"
    async with api.watching(f"{GROUP}/validatingadmissionpolicies{where}") as events:
        while True:
            status = (await events.next())[1]["status"]
            if "typeChecking" in status:
                assert status["observedGeneration"] == 1
                return status["typeChecking"].get("expressionWarnings", [])


def test_types_are_checked_in_the_status():
    async def main():
        async with serving() as api:
            await api.made(CRDS, definition())
            await condition(api, "foos.ex.io")
            rules = {"matchConstraints": {"resourceRules": [RULE]}}
            assert await checked(api, "right", **rules, validations=[{
                "expression": "object.spec.replicas > 1 && object.metadata.namespace != 'x' && variables.v > 0"}],
                variables=[{"name": "v", "expression": "1"}]) == []
            found = await checked(api, "wrong", **rules, validations=[{
                "expression": "object.spec.replicas > '1'",
                "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas"}])
            assert [w["fieldRef"] for w in found] == ["spec.validations[0].expression",
                                                      "spec.validations[0].messageExpression"]
            assert found[0]["warning"].startswith(
                "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to "
                "'(int, string)'\n | object.spec.replicas > '1'")
            assert "found no matching overload for '_+_' applied to '(string, int)'" in found[1]["warning"]
            custom = {"matchConstraints": {"resourceRules": [{**RULE, "apiGroups": ["ex.io"], "resources": ["foos"]}]}}
            [found] = await checked(api, "typo", **custom, validations=[
                {"expression": "object.spec.replicas > 1"}, {"expression": "object.spec.copies > 1"}])
            assert found["fieldRef"] == "spec.validations[1].expression"
            assert "undefined field 'copies'" in found["warning"]
    asyncio.run(main())

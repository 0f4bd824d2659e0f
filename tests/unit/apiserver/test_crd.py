"""Custom resources: from a definition to served objects and back to nothing."""

import asyncio

from controlplane.store.memory import MemoryLog
from tests.unit.apiserver.definitions import (
    CRDS,
    condition,
    definition,
    foo,
    gone,
    install,
    schema,
    session,
    version,
)
from tests.unit.apiserver.harness import serving

FOOS = "/apis/ex.io/v1/namespaces/default/foos"
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


def test_a_definition_is_served_and_ends_with_its_objects():
    async def steps(api):
        obj = await install(api, definition(names={"shortNames": ["fo"], "categories": ["all"]}))
        assert obj["status"]["storedVersions"] == ["v1"]
        assert obj["status"]["acceptedNames"] == {"plural": "foos", "singular": "foo", "kind": "Foo",
                                                  "listKind": "FooList", "shortNames": ["fo"], "categories": ["all"]}
        _, groups = await api.call("GET", "/apis")
        assert groups["groups"][-1]["preferredVersion"]["groupVersion"] == "ex.io/v1"
        _, aggregated = await api.call("GET", "/apis", headers={
            "Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"})
        assert aggregated["items"][-1]["versions"][0]["resources"][0]["shortNames"] == ["fo"]
        await api.made(FOOS, foo("a", replicas=1))
        held = foo("b")
        held["metadata"]["finalizers"] = ["wait"]  # of a custom kind: it needs no path
        await api.made(FOOS, held)
        async with api.watching(FOOS + "?watch=1") as events:
            await events.take(2)
            assert (await api.call("DELETE", f"{CRDS}/foos.ex.io"))[0] == 200
            await condition(api, "foos.ex.io", "Terminating")
            assert [e[0] for e in await events.take(2)] == ["DELETED", "MODIFIED"]
        code, refused = await api.call("POST", FOOS, foo("late"))
        assert code == 405, refused
        assert (await api.call("PATCH", FOOS + "/b", {"metadata": {"finalizers": None}}, MERGE))[0] == 200
        await gone(api, "foos.ex.io")
        assert (await api.call("GET", FOOS))[0] == 404
        _, groups = await api.call("GET", "/apis")
        assert "ex.io" not in [g["name"] for g in groups["groups"]]
    session(steps)


def test_objects_are_pruned_defaulted_and_validated():
    async def steps(api):
        await install(api, definition())
        made = await api.made(FOOS, foo("a", replicas=1, zz=1, port="http", free={"x": {"y": 1}}, note=None,
                                        template={"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "zz": 1},
                                                  "spec": {"any": 1}}))
        assert made["spec"] == {"replicas": 1, "color": "red", "port": "http", "free": {"x": {"y": 1}}, "note": None,
                                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
                                             "spec": {"any": 1}}}
        assert made["metadata"]["generation"] == 1
        code, error = await api.call("POST", FOOS + "?fieldValidation=Strict", foo("b", zz=1) | {"more": 1})
        assert code == 400 and 'unknown field "more"' in error["message"] and 'unknown field "spec.zz"' in \
            error["message"]
        code, error = await api.call("POST", FOOS, foo("b", replicas="string", port=True, color=None))
        assert code == 422
        assert [(c["field"], c["message"]) for c in error["details"]["causes"]] == [
            ("spec.replicas", 'Invalid value: "string": spec.replicas in body must be of type integer: "string"'),
            ("spec.port", 'Invalid value: "boolean": spec.port in body must be of type integer,string: "boolean"')]
        code, error = await api.call("PUT", FOOS + "/a", foo("a"))
        assert code == 422 and "metadata.resourceVersion: Invalid value: 0: must be specified for an update" in \
            error["message"]
        code, error = await api.call("PATCH", FOOS + "/a", {"spec": {}}, "application/strategic-merge-patch+json")
        assert code == 415 and "application/apply-patch+yaml" in error["message"]
        assert (await api.call("GET", FOOS, headers={"Accept": "application/vnd.kubernetes.protobuf"}))[0] == 406
        assert (await api.call("POST", FOOS, b"k8s\0\n", "application/vnd.kubernetes.protobuf"))[0] == 415
        code, listed = await api.call("GET", FOOS)
        assert listed["kind"] == "FooList" and listed["items"][0]["kind"] == "Foo"
    session(steps)


def test_status_and_scale_are_apart():
    async def steps(api):
        subs = {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                                        "labelSelectorPath": ".status.selector"}}
        await install(api, definition(versions=[version(subresources=subs)]))
        made = await api.made(FOOS, foo("a", replicas=1) | {"status": {"replicas": 9}})
        assert "status" not in made
        code, obj = await api.call("PATCH", FOOS + "/a/status", {
            "spec": {"replicas": 5}, "status": {"replicas": 1, "selector": "a=b"}, "metadata": {"labels": {"x": "y"}}},
            MERGE)
        assert code == 200 and obj["spec"]["replicas"] == 1 and obj["status"]["replicas"] == 1
        assert obj["metadata"]["generation"] == 1 and "labels" not in obj["metadata"]
        code, scale = await api.call("PATCH", FOOS + "/a/scale", {"spec": {"replicas": 3}}, MERGE)
        assert code == 200 and scale["spec"] == {"replicas": 3}
        assert scale["status"] == {"replicas": 1, "selector": "a=b"}
        code, obj = await api.call("GET", FOOS + "/a")
        assert obj["spec"]["replicas"] == 3 and obj["metadata"]["generation"] == 2
        code, error = await api.call("PATCH", FOOS + "/a/scale", {"spec": {"replicas": 30}}, MERGE)
        assert code == 422 and "spec.replicas in body should be less than or equal to 10" in error["message"]
    session(steps)


def test_a_status_begins_with_its_default():
    async def steps(api):
        waits = {"conditions": [{"type": "Accepted", "status": "Unknown"}]}
        shape = {"type": "object", "properties": {"spec": {"type": "object"}, "status": {
            "type": "object", "default": waits, "x-kubernetes-preserve-unknown-fields": True}}}
        await install(api, definition(versions=[version(subresources={"status": {}}, schema={
            "openAPIV3Schema": shape})]))
        made = await api.made(FOOS, foo("a") | {"status": {"mine": 1}})
        assert made["status"] == waits == (await api.call("GET", FOOS + "/a"))[1]["status"]
        code, told = await api.call("PATCH", FOOS + "/a/status", {"status": {"conditions": []}}, MERGE)
        assert code == 200 and told["status"] == {"conditions": []}
    session(steps)


def test_schemas_of_no_shape_are_refused_wherever_they_stand():
    async def steps(api):
        for wrong in ({"required": -1}, {"properties": [None]}, {"allOf": [None]}, {"type": 3},
                      {"x-kubernetes-validations": [None]}, {"items": {"properties": 1}}):
            for below in ({"type": "array", "items": wrong}, {"type": "object", "additionalProperties": wrong}):
                spec = {"type": "object", "properties": {"x": below, "color": {"type": "string"}}}
                made = {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec}}}
                code, error = await api.call("POST", CRDS, definition(versions=[version(
                    schema=made, selectableFields=[{"jsonPath": ".spec.color"}])]))
                assert code == 422 and "properties[x]" in error["message"], (wrong, error)
    session(steps)


def test_replicas_that_are_no_number_have_no_scale():
    async def steps(api):
        subs = {"scale": {"specReplicasPath": ".spec.color", "statusReplicasPath": ".status.replicas"}}
        await install(api, definition(versions=[version(subresources=subs)]))
        await api.made(FOOS, foo("a", color="many"))
        for method, body in (("GET", None), ("PATCH", {"spec": {"replicas": 3}})):
            code, error = await api.call(method, FOOS + "/a/scale", body, MERGE)
            assert (code, error["message"]) == (
                400, ".spec.color accessor error: many is of the type string, expected int64")
    session(steps)


def test_apply_merges_by_the_schemas_keys():
    async def steps(api):
        await install(api, definition())
        mine = foo("a", items=[{"name": "x", "value": "1"}])
        code, _ = await api.call("PATCH", FOOS + "/a?fieldManager=one", mine, APPLY)
        assert code == 201
        code, obj = await api.call("PATCH", FOOS + "/a?fieldManager=two",
                                   foo("a", items=[{"name": "y", "value": "2"}]), APPLY)
        assert code == 200 and sorted(i["name"] for i in obj["spec"]["items"]) == ["x", "y"]
        code, error = await api.call("PATCH", FOOS + "/a?fieldManager=two",
                                     foo("a", items=[{"name": "x", "value": "2"}]), APPLY)
        assert code == 409 and 'conflict with "one": .spec.items[name="x"].value' in error["message"]
        code, obj = await api.call("PATCH", FOOS + "/a?fieldManager=one", foo("a"), APPLY)
        assert [i["name"] for i in obj["spec"]["items"]] == ["y"]
        code, error = await api.call("PATCH", FOOS + "/a?fieldManager=one", foo("a", zz=1), APPLY)
        assert code == 400 and ".spec.zz: field not declared in schema" in error["message"]
    session(steps)


def test_versions_are_views_of_one_store():
    async def steps(api):
        old = version("v1beta1", storage=False, schema=schema({"type": "object", "properties": {
            "color": {"type": "string"}}}), deprecated=True)
        await install(api, definition(versions=[version(), old]))
        beta = "/apis/ex.io/v1beta1/namespaces/default/foos"
        async with api.watching(beta + "?watch=1") as events:
            await api.made(FOOS, foo("a", replicas=2))
            kind, obj = await events.next()
            assert (kind, obj["apiVersion"], obj["spec"]) == ("ADDED", "ex.io/v1beta1", {"color": "red"})
        answer = await api.session.get(api.url + beta)
        assert "ex.io/v1beta1 Foo is deprecated" in answer.headers["Warning"]
        assert (await answer.json())["items"][0]["apiVersion"] == "ex.io/v1beta1"
        made = await api.made(beta, foo("b") | {"apiVersion": "ex.io/v1beta1"})
        assert made["apiVersion"] == "ex.io/v1beta1" and made["spec"] == {}
        _, obj = await api.call("GET", FOOS + "/b")
        assert obj["apiVersion"] == "ex.io/v1" and obj["spec"] == {"color": "red"}
        _, group = await api.call("GET", "/apis/ex.io")
        assert [v["version"] for v in group["versions"]] == ["v1", "v1beta1"]
    session(steps)


def test_a_changed_schema_is_in_effect_for_stored_objects():
    async def steps(api):
        first = schema({"type": "object", "properties": {"a": {"type": "string"}}})
        made = await install(api, definition(versions=[version(schema=first)]))
        await api.made(FOOS, foo("a", a="x"))
        made["spec"]["versions"][0]["schema"] = schema({"type": "object", "required": ["b"], "properties": {
            "a": {"type": "string", "maxLength": 0}, "b": {"type": "string", "default": "new"}}})
        async with api.watching(FOOS + "?watch=1") as events:
            await events.next()
            code, obj = await api.call("PUT", f"{CRDS}/foos.ex.io", made)
            assert code == 200 and obj["metadata"]["generation"] == 2
            try:
                while True:
                    await events.next()
            except EOFError:
                pass  # the kind is another one now: clients start anew
        _, obj = await api.call("GET", FOOS + "/a")
        assert obj["spec"] == {"a": "x", "b": "new"}
        code, obj = await api.call("PATCH", FOOS + "/a", {"spec": {"b": "c"}}, MERGE)
        assert code == 200, "what was there before is not judged again"
        code, error = await api.call("PATCH", FOOS + "/a", {"spec": {"a": "longer"}}, MERGE)
        assert code == 422 and "spec.a: Too long: may not be more than 0 bytes" in error["message"]
    session(steps)


def test_kinds_survive_a_restart():
    async def main():
        log = MemoryLog()
        async with serving(log) as api:
            await install(api, definition())
            await api.made(FOOS, foo("a"))
        async with serving(log) as api:
            held = foo("b")
            held["metadata"]["finalizers"] = ["ex.io/wait"]
            await api.made(FOOS, held)
            assert (await api.call("GET", FOOS + "/a"))[0] == 200
            assert (await api.call("DELETE", f"{CRDS}/foos.ex.io"))[0] == 200
        async with serving(log) as api:  # what was being removed goes on being removed
            assert (await api.call("PATCH", FOOS + "/b", {"metadata": {"finalizers": None}}, MERGE))[0] == 200
            await gone(api, "foos.ex.io")
    asyncio.run(main())


def test_names_are_kept_by_who_came_first():
    async def steps(api):
        await install(api, definition())
        await api.made(CRDS, definition("bars", kind="Foo", names={"singular": "bar"}))
        obj = await condition(api, "bars.ex.io", "NamesAccepted", "False")
        told = {c["type"]: (c["status"], c["reason"], c["message"]) for c in obj["status"]["conditions"]}
        assert told == {"NamesAccepted": ("False", "KindConflict", '"Foo" is already in use'),
                        "Established": ("False", "NotAccepted", "not all names are accepted")}
        assert (await api.call("GET", "/apis/ex.io/v1/namespaces/default/bars"))[0] == 404
        assert (await api.call("DELETE", f"{CRDS}/foos.ex.io"))[0] == 200
        await condition(api, "bars.ex.io")
        assert (await api.call("GET", "/apis/ex.io/v1/namespaces/default/bars"))[0] == 200
    session(steps)


def test_rules_columns_and_selectable_fields():
    async def steps(api):
        rules = [{"rule": "self.replicas <= 5 || self.color == 'red'", "message": "too many"},
                 {"rule": "!has(oldSelf.note) || self.note == oldSelf.note", "fieldPath": ".note",
                  "message": "note is immutable", "reason": "FieldValueForbidden"}]
        spec = {**schema()["openAPIV3Schema"]["properties"]["spec"], "x-kubernetes-validations": rules}
        columns = [{"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                   {"name": "Ready", "type": "string", "jsonPath": '.status.conditions[?(@.type=="Ready")].status'}]
        await install(api, definition(versions=[version(
            schema=schema(spec), additionalPrinterColumns=columns, selectableFields=[{"jsonPath": ".spec.color"}])]))
        code, error = await api.call("POST", FOOS, foo("a", replicas=6, color="blue"))
        assert code == 422 and 'spec: Invalid value: "object": too many' in error["message"]
        await api.made(FOOS, foo("a", replicas=6, note="x") | {"status": {"conditions": [
            {"type": "Ready", "status": "True"}]}})
        code, error = await api.call("PATCH", FOOS + "/a", {"spec": {"note": "y"}}, MERGE)
        assert code == 422 and "spec.note: Forbidden: note is immutable" in error["message"]
        await api.made(FOOS, foo("b", color="blue", replicas=1))
        _, listed = await api.call("GET", FOOS + "?fieldSelector=spec.color%3Dblue")
        assert [i["metadata"]["name"] for i in listed["items"]] == ["b"]
        code, error = await api.call("GET", FOOS + "?fieldSelector=spec.replicas%3D1")
        assert code == 400 and "field label not supported: spec.replicas" in error["message"]
        _, table = await api.call("GET", FOOS + "/a", headers={
            "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
        assert [c["name"] for c in table["columnDefinitions"]] == ["Name", "Replicas", "Ready"]
        assert table["rows"][0]["cells"] == ["a", 6, "True"]
    session(steps)


def test_openapi_tells_of_custom_kinds():
    async def steps(api):
        before = (await api.session.get(api.url + "/openapi/v2")).headers["ETag"]
        await install(api, definition())
        answer = await api.session.get(api.url + "/openapi/v2")
        made = (await answer.json())["definitions"]["io.ex.v1.Foo"]
        assert answer.headers["ETag"] != before
        assert made["x-kubernetes-group-version-kind"] == [{"group": "ex.io", "kind": "Foo", "version": "v1"}]
        assert made["properties"]["spec"]["properties"]["color"] == {"type": "string"}
        _, root = await api.call("GET", "/openapi/v3")
        _, document = await api.call("GET", root["paths"]["apis/ex.io/v1"]["serverRelativeURL"])
        assert document["components"]["schemas"]["io.ex.v1.Foo"]["properties"]["spec"]["properties"]["color"] == {
            "type": "string", "default": "red"}
        assert "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta" in document["components"]["schemas"]
    session(steps)


def test_wrong_definitions_are_refused_in_upstreams_words():
    async def steps(api):
        bad = definition(versions=[version(schema={"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"properties": {}}, "l": {"type": "array"}, "d": {"type": "string", "default": 1}}}})])
        bad["metadata"]["name"] = "other.ex.io"
        code, error = await api.call("POST", CRDS, bad)
        assert code == 422
        told = {c["field"]: c["message"] for c in error["details"]["causes"]}
        at = "spec.validation.openAPIV3Schema"  # of all versions
        assert told["metadata.name"] == 'Invalid value: "other.ex.io": must be spec.names.plural+"."+spec.group'
        assert told[f"{at}.properties[spec].type"] == "Required value: must not be empty for specified object fields"
        assert told[f"{at}.properties[l].items"] == "Required value: must be specified"
        made = await install(api, definition())
        code, error = await api.call("PATCH", f"{CRDS}/foos.ex.io", {"spec": {"scope": "Cluster"}}, MERGE)
        assert code == 422 and 'spec.scope: Invalid value: "Cluster": field is immutable' in error["message"]
        made["spec"]["versions"][0]["name"] = "v2"
        code, error = await api.call("PUT", f"{CRDS}/foos.ex.io", made)
        assert code == 422 and 'status.storedVersions[0]: Invalid value: "v1": missing from spec.versions; v1 was ' \
            "previously a storage version" in error["message"]
    session(steps)


def test_selectors_see_the_version_that_is_watched():
    async def steps(api):
        fields = [{"jsonPath": ".spec.color"}]
        await install(api, definition(versions=[version(selectableFields=fields),
                                                version("v2", storage=False, selectableFields=fields)]))
        second = FOOS.replace("/v1/", "/v2/")
        async with api.watching(second + "?watch=1&fieldSelector=spec.color%3Dblue") as events:
            await api.made(FOOS, foo("a", color="blue"))
            assert (await events.next())[0] == "ADDED"
            await api.call("PATCH", FOOS + "/a", {"spec": {"color": "green"}}, MERGE)
            kind, last = await events.next()
            assert (kind, last["apiVersion"], last["spec"]["color"]) == ("DELETED", "ex.io/v2", "blue")
        await api.made(FOOS, foo("b", color="blue"))
        _, gone_ones = await api.call("DELETE", second + "?fieldSelector=spec.color%3Dblue")
        assert [i["metadata"]["name"] for i in gone_ones["items"]] == ["b"]
        _, left = await api.call("GET", FOOS)
        assert [i["metadata"]["name"] for i in left["items"]] == ["a"]
    session(steps)

"""Server-side apply: ownership as a real apiserver was seen to keep it."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import fieldsets
from controlplane.machinery.apply import BEFORE, MAX_UPDATE_MANAGERS, _merged_items, apply, track_update
from controlplane.machinery.errors import ApiError, Conflict
from controlplane.machinery.lastapplied import ANNOTATION, MAX_ANNOTATIONS
from controlplane.machinery.structural import structural

CONFIG_MAP = "io.k8s.api.core.v1.ConfigMap"
DEPLOYMENT = "io.k8s.api.apps.v1.Deployment"
T1, T2 = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


def config_map(data: dict, **metadata) -> dict:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "d", **metadata},
            "data": data}


def deployment(containers: list, **spec) -> dict:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "w", "namespace": "d"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, **spec,
                     "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": containers}}}}


def do(live, patch, manager="m1", force=False, definition=CONFIG_MAP, now=T1) -> dict:
    before = copy.deepcopy((live, patch))
    result = apply(live, patch, manager, force, definition, now)
    assert (live, patch) == before, "arguments must be left alone"
    return result


def owners(obj: dict) -> dict:
    return {entry["manager"]: entry["fieldsV1"] for entry in obj["metadata"]["managedFields"]}


def test_what_is_applied_is_owned_and_applying_again_changes_nothing():
    first = do(None, config_map({"a": "1", "b": "1"}, labels={"l": "x"}))
    assert first["metadata"]["managedFields"] == [{
        "manager": "m1", "operation": "Apply", "apiVersion": "v1", "time": T1, "fieldsType": "FieldsV1",
        "fieldsV1": {"f:data": {"f:a": {}, "f:b": {}}, "f:metadata": {"f:labels": {"f:l": {}}}}}]
    assert do(first, config_map({"a": "1", "b": "1"}, labels={"l": "x"}), now=T2) == first


def test_equal_values_are_shared_and_different_ones_conflict():
    live = do(do(None, config_map({"a": "1", "b": "1"})), config_map({"a": "1"}), "m2")
    assert owners(live) == {"m1": {"f:data": {"f:a": {}, "f:b": {}}}, "m2": {"f:data": {"f:a": {}}}}
    with pytest.raises(Conflict) as conflict:
        do(live, config_map({"a": "2"}), "m2")
    assert conflict.value.message == 'Apply failed with 1 conflict: conflict with "m1": .data.a'
    assert conflict.value.details == {"causes": [
        {"reason": "FieldManagerConflict", "message": 'conflict with "m1"', "field": ".data.a"}]}
    with pytest.raises(Conflict) as conflict:
        do(live, config_map({"a": "2", "b": "2"}), "m3")
    assert conflict.value.message == ('Apply failed with 3 conflicts: conflicts with "m1":\n- .data.a\n- .data.b\n'
                                      'conflicts with "m2":\n- .data.a')
    forced = do(live, config_map({"a": "2"}), "m2", force=True)
    assert forced["data"] == {"a": "2", "b": "1"}
    assert owners(forced) == {"m1": {"f:data": {"f:b": {}}}, "m2": {"f:data": {"f:a": {}}}}


def test_what_is_no_longer_applied_goes_unless_somebody_else_owns_it():
    live = do(do(None, config_map({"a": "1", "b": "1"})), config_map({"a": "1"}), "m2")
    assert do(live, config_map({}))["data"] == {"a": "1"}
    updated = {**live, "data": {**live["data"], "z": "1"}}
    updated["metadata"] = {**live["metadata"], "managedFields": track_update(live, updated, "upd", CONFIG_MAP, T2)}
    assert do(updated, config_map({}))["data"] == {"a": "1", "z": "1"}


def test_what_goes_takes_its_defaults_along():
    probe = {"httpGet": {"port": 80}}
    live = do(None, deployment([{"name": "a", "image": "i", "livenessProbe": probe}, {"name": "b", "image": "i"}]),
              definition=DEPLOYMENT)
    for container in live["spec"]["template"]["spec"]["containers"]:  # by the server, for nobody
        container |= {"imagePullPolicy": "Always", "resources": {}}
    live["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = 10
    after = do(live, deployment([{"name": "a", "image": "i"}]), definition=DEPLOYMENT)
    assert after["spec"]["template"]["spec"]["containers"] == [
        {"name": "a", "image": "i", "imagePullPolicy": "Always", "resources": {}}]
    emptied = do(do(None, config_map({"a": "1"}, labels={"l": "x"})), {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "d"}})
    assert emptied["metadata"].keys() == {"name", "namespace", "managedFields"} and "data" not in emptied


def test_an_update_owns_the_structures_it_brings_and_not_those_that_are_always_there():
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}
    container = {"name": "a", "resources": {}, "livenessProbe": {"exec": {"command": ["x"]}}}
    made = deployment([container], strategy=strategy)
    [entry] = track_update(None, made, "kubectl", DEPLOYMENT, T1)
    spec = entry["fieldsV1"]["f:spec"]
    assert spec == {
        "f:selector": {}, "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
        "f:template": {"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {"f:containers": {'k:{"name":"a"}': {
            ".": {}, "f:livenessProbe": {".": {}, "f:exec": {".": {}, "f:command": {}}}, "f:name": {},
            "f:resources": {}}}}}}


def test_lists_merge_by_their_keys_and_keys_have_defaults():
    live = do(None, deployment([{"name": "c", "image": "i", "ports": [{"containerPort": 80}],
                                 "env": [{"name": "A", "value": "1"}]}]), definition=DEPLOYMENT)
    containers = owners(live)["m1"]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert containers == {'k:{"name":"c"}': {
        ".": {}, "f:image": {}, "f:name": {}, "f:env": {'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}}},
        "f:ports": {'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}}}}
    assert owners(live)["m1"]["f:spec"]["f:selector"] == {}
    live["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"] = "TCP"  # as the server defaults it
    live["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "s"})  # by somebody untracked
    got = do(live, deployment([{"name": "d", "image": "j"},
                               {"name": "c", "image": "i", "ports": [{"containerPort": 81}]}]), definition=DEPLOYMENT)
    assert got["spec"]["template"]["spec"]["containers"] == [
        {"name": "d", "image": "j"}, {"name": "c", "image": "i", "ports": [{"containerPort": 81}]},
        {"name": "side", "image": "s"}]
    got = do(got, deployment([{"name": "c", "image": "i"}]), definition=DEPLOYMENT)
    assert [c["name"] for c in got["spec"]["template"]["spec"]["containers"]] == ["c", "side"]


def test_doubles_in_a_live_list_stay_unless_they_are_applied():
    live = deployment([{"name": "c", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"},
                                                           {"name": "A", "value": "2"}]}])
    got = do(live, deployment([{"name": "c", "env": [{"name": "C", "value": "1"}, {"name": "B", "value": "1"}]}]),
             definition=DEPLOYMENT)
    assert [e["name"] for e in got["spec"]["template"]["spec"]["containers"][0]["env"]] == ["A", "C", "B", "A"]


@pytest.mark.parametrize(("patch", "text"), [
    ({**deployment([]), "zz": 1}, ".zz: field not declared in schema"),
    (deployment([], replicas="x"), ".spec.replicas: expected numeric (int or float), got string"),
    (deployment([{"name": "c"}, {"name": "c"}]),
     '.spec.template.spec.containers: duplicate entries for key [name="c"]'),
    (deployment([{"image": "i"}]), 'omits key field "name"'),
])
def test_a_misfit_is_the_clients_fault_in_upstreams_words(patch, text):
    with pytest.raises(ApiError) as error:
        do(None, patch, definition=DEPLOYMENT)
    assert error.value.message.startswith(
        "failed to create typed patch object (d/w; apps/v1, Kind=Deployment): ") and text in error.value.message
    assert error.value.http_code == 400


def test_the_first_apply_over_an_unmanaged_object_meets_its_former_owners():
    live = config_map({"a": "1"}, uid="u")
    with pytest.raises(Conflict, match=r'conflict with "before-first-apply" using v1: \.data\.a'):
        do(live, config_map({"a": "2"}))
    assert list(owners(do(live, config_map({"b": "1"})))) == ["m1", BEFORE]


def test_updates_are_tracked():
    new = config_map({"a": "1"}, uid="u", labels={"l": "x"})
    new["metadata"]["managedFields"] = track_update(None, new, "kubectl-create", CONFIG_MAP, T1)
    assert owners(new) == {"kubectl-create": {"f:data": {".": {}, "f:a": {}},
                                              "f:metadata": {"f:labels": {".": {}, "f:l": {}}}}}
    changed = copy.deepcopy(new)
    changed["data"] = {"a": "2", "b": "1"}
    changed["metadata"]["managedFields"] = track_update(new, changed, "edit", CONFIG_MAP, T2)
    assert owners(changed)["edit"] == {"f:data": {"f:a": {}, "f:b": {}}}
    assert owners(changed)["kubectl-create"]["f:data"] == {}, "the map itself, nothing in it"
    same = copy.deepcopy(changed)
    assert track_update(changed, same, "nobody", CONFIG_MAP, T2) == changed["metadata"]["managedFields"]
    with pytest.raises(Conflict, match=r'conflict with "edit" using v1: \.data\.a'):
        do(changed, config_map({"a": "3"}))
    reset = copy.deepcopy(changed)
    reset["metadata"]["managedFields"] = [{}]
    assert track_update(changed, reset, "edit", CONFIG_MAP, T2) == []
    assert track_update(config_map({}, uid="u"), new | {"metadata": {"uid": "u"}}, "edit", CONFIG_MAP, T2) == []


def test_status_and_spec_are_tracked_where_they_are_written():
    new = deployment([{"name": "c", "image": "i"}])
    new["status"] = {"replicas": 1}
    spec = track_update(None, new, "m", DEPLOYMENT, T1)
    status = track_update(None, new, "m", DEPLOYMENT, T1, "status")
    assert "f:status" not in spec[0]["fieldsV1"] and list(status[0]["fieldsV1"]) == ["f:status"]
    assert status[0]["subresource"] == "status"


def test_old_updaters_are_put_together():
    obj = config_map({}, uid="u")
    for number in range(15):
        after = copy.deepcopy(obj)
        after["data"][f"k{number}"] = "x"
        after["metadata"]["managedFields"] = track_update(obj if number else None, after, f"m{number:02}", CONFIG_MAP,
                                                          f"2026-01-01T00:00:{number:02}Z")
        obj = after
    entries = obj["metadata"]["managedFields"]
    assert len(entries) == MAX_UPDATE_MANAGERS
    assert sum(len([k for k in e["fieldsV1"]["f:data"] if k != "."]) for e in entries) == 15


PATHS = st.sets(st.lists(st.sampled_from(["f:a", "f:b", "f:c"]), min_size=1, max_size=3).map(tuple), max_size=6)


def tree(members: set) -> dict:
    out: dict = {}
    for path in members:
        at = out
        for part in path:
            at = at.setdefault(part, {})
        at["."] = {}
    return out


def members(of: dict, prefix: tuple = ()) -> set:
    return {prefix} if prefix and of == {".": {}} else {
        p for key, sub in of.items() for p in ([prefix] if key == "." else members(sub, (*prefix, key)))}


@settings(max_examples=80, deadline=None)
@given(PATHS, PATHS)
def test_the_algebra_is_that_of_sets(left, right):
    assert members(fieldsets.union(tree(left), tree(right))) == left | right
    assert members(fieldsets.intersection(tree(left), tree(right))) == left & right
    assert members(fieldsets.difference(tree(left), tree(right))) == left - right
    assert fieldsets.read(fieldsets.written(tree(left))) == tree(left)


DATA = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("12"), max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["m1", "m2", "m3"]), DATA), max_size=6))
def test_forced_applies_leave_exactly_what_is_wanted(applies):
    live, wanted = None, {}
    for manager, data in applies:
        live = do(live, config_map(data), manager, force=True)
        assert {k: live["data"].get(k) for k in data} == data
        wanted[manager] = dict(data)
        wanted = {m: {k: v for k, v in d.items() if m == manager or k not in data or data[k] == v}
                  for m, d in wanted.items()}
        union = {k: v for d in wanted.values() for k, v in d.items()}
        assert live["data"] == union


def test_a_schemas_default_completes_a_key():
    node = structural.node_of({"type": "object", "properties": {"l": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "properties": {"k": {"type": "string", "default": "d"},
                                                   "v": {"type": "string"}}}}}})
    obj = apply(None, {"kind": "Foo", "l": [{"v": "1"}]}, "one", False, node, "2024-01-01T00:00:00Z")
    obj = apply(obj, {"kind": "Foo", "l": [{"k": "d", "v": "1"}, {"k": "e"}]}, "two", False, node,
                      "2024-01-01T00:00:00Z")
    assert [i.get("k", "d") for i in obj["l"]] == ["d", "e"]


@pytest.mark.parametrize(("live", "config", "merged"), [
    ("ab", "c", "abc"), ("ab", "ba", "ba"), ("abc", "xc", "abxc"), ("abc", "cx", "abcx"), ("", "ba", "ba"),
    ("abcd", "dxa", "bcdxa"), ("abc", "xby", "axbcy"), ("ab", "", "ab")])
def test_items_stand_in_the_order_of_both_lists(live, config, merged):
    node = {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}
    assert "".join(_merged_items(list(live), list(config), node)) == merged


def test_kubectl_takes_over_what_it_applied_without_the_server():
    last = '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c","namespace":"d"},"data":{"a":"1","b":"1"}}'
    live = config_map({"a": "1", "b": "1"}, annotations={ANNOTATION: last})
    live["metadata"]["managedFields"] = track_update(None, live, "kubectl-client-side-apply", CONFIG_MAP, T1)
    with pytest.raises(Conflict):
        do(live, config_map({"a": "2"}), "another")
    taken = do(live, config_map({"a": "2"}), "kubectl", now=T2)
    assert taken["data"] == {"a": "2", "b": "1"}
    assert "f:a" not in owners(taken)["kubectl-client-side-apply"]["f:data"]
    assert json.loads(taken["metadata"]["annotations"][ANNOTATION]) == config_map({"a": "2"})
    assert do(taken, config_map({"a": "2"}), "kubectl", now="2026-01-01T00:00:09Z") == taken

    changed = copy.deepcopy(live)
    changed["data"]["b"] = "edited"
    changed["metadata"]["managedFields"] = track_update(live, changed, "editor", CONFIG_MAP, T2)
    with pytest.raises(Conflict) as refused:
        do(changed, config_map({"a": "2", "b": "2"}), "kubectl")
    assert [cause["field"] for cause in refused.value.details["causes"]] == [".data.b"]


def test_no_annotation_of_kubectls_outgrows_its_limit():
    live = config_map({}, annotations={ANNOTATION: "{}", "mine": "x"})
    result = do(live, config_map({"a": "x" * MAX_ANNOTATIONS}), "kubectl")
    assert result["metadata"]["annotations"] == {"mine": "x"}

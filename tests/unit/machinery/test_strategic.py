"""Strategic merge: each directive as a real apiserver was seen to carry it out."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery.errors import ApiError, BadRequest
from controlplane.machinery.strategic import merge

STRING = {"type": "string"}


def objects(key: str, **properties) -> dict:
    return {"type": "array", "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": key,
            "items": {"type": "object", "properties": {key: STRING, **properties}}}


ENV = objects("name", value=STRING)
KIND = {"type": "object", "properties": {
    "metadata": {"type": "object", "properties": {
        "labels": {"type": "object", "additionalProperties": STRING},
        "finalizers": {"type": "array", "items": STRING, "x-kubernetes-patch-strategy": "merge"}}},
    "spec": {"type": "object", "properties": {
        "containers": objects("name", image=STRING, env=ENV, ports=objects("containerPort")),
        "volumes": {**objects("name"), "x-kubernetes-patch-strategy": "merge,retainKeys"},
        "strategy": {"type": "object", "x-kubernetes-patch-strategy": "retainKeys", "properties": {}},
        "whole": {"type": "object", "x-kubernetes-patch-strategy": "replace", "properties": {}},
        "args": {"type": "array", "items": STRING}}}}}


def spec(doc: dict, patch: dict) -> dict:
    """Merge specs; check that the arguments were left alone."""
    before = copy.deepcopy((doc, patch))
    result = merge({"spec": doc}, {"spec": patch}, KIND)["spec"]
    assert (doc, patch) == before
    return result


def names(items: list) -> list:
    return [item["name"] for item in items]


def test_maps_merge_null_deletes_and_plain_lists_are_replaced():
    assert spec({"args": ["a"], "x": {"a": 1, "b": 2}}, {"args": ["b"], "x": {"a": None, "c": 3}, "new": {"n": None}}) \
        == {"args": ["b"], "x": {"b": 2, "c": 3}, "new": {}}
    assert spec({"whole": {"a": 1}}, {"whole": {"b": 1}}) == {"whole": {"b": 1}}
    assert merge({"metadata": {"labels": {"a": "1"}}}, {"metadata": {"labels": {"b": "2"}}}, KIND) == {
        "metadata": {"labels": {"a": "1", "b": "2"}}}


def test_patch_directives_in_maps():
    assert spec({"x": {"a": 1}}, {"x": {"$patch": "replace", "b": 2}}) == {"x": {"b": 2}}
    assert spec({"x": {"a": 1}}, {"x": {"$patch": "delete"}}) == {"x": {}}
    with pytest.raises(ApiError, match=r"unknown patch type: frob in map: map\[\$patch:frob b:2\]"):
        spec({"x": {"a": 1}}, {"x": {"$patch": "frob", "b": 2}})


def test_lists_of_objects_merge_by_key_new_items_first():
    old = {"containers": [{"name": "a", "image": "1", "env": [{"name": "E", "value": "1"}]}, {"name": "b"}]}
    got = spec(old, {"containers": [{"name": "c"}, {"name": "a", "env": [{"name": "F", "value": "2"}]}]})
    assert names(got["containers"]) == ["c", "a", "b"]
    assert got["containers"][1] == {"name": "a", "image": "1", "env": [{"name": "F", "value": "2"},
                                                                     {"name": "E", "value": "1"}]}
    ports = {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}
    got = spec(ports, {"containers": [{"name": "a", "ports": [{"containerPort": 81}]}]})
    assert [p["containerPort"] for p in got["containers"][0]["ports"]] == [81, 80]


def test_patch_directives_in_lists():
    old = {"containers": [{"name": "a", "image": "1"}, {"name": "b"}]}
    assert names(spec(old, {"containers": [{"name": "a", "$patch": "delete"}]})["containers"]) == ["b"]
    got = spec(old, {"containers": [{"$patch": "replace"}, {"name": "b", "image": "2"}]})
    assert got == {"containers": [{"name": "b", "image": "2"}]}
    assert spec({}, {"containers": [{"name": "a", "$patch": "delete"}, {"name": "b", "$retainKeys": ["name"]}]}) == {
        "containers": [{"name": "b"}]}


def test_what_carries_a_directive_adds_nothing_where_nothing_was():
    patch = {"strategy": {"$patch": "replace", "type": "x"},
             "containers": [{"name": "a"}, {"name": "b", "$patch": "replace"}]}
    assert spec({}, patch) == {"containers": [{"name": "a"}]}
    assert spec({"args": ["a"]}, {"args": {"$patch": "merge", "x": 1}}) == {}
    added = {"name": "c", "ports": [{"containerPort": 1, "$patch": "delete"}], "$retainKeys": ["name", "ports"]}
    assert spec({"containers": []}, {"containers": [added]}) == {"containers": [{"name": "c", "ports": []}]}


def test_an_item_without_its_key_is_the_clients_fault():
    with pytest.raises(ApiError) as error:
        spec({"containers": [{"name": "a"}]}, {"containers": [{"image": "nokey"}]})
    assert error.value.message == "map: map[image:nokey] does not contain declared merge key: name"
    assert error.value.http_code == 400


def test_primitive_lists_are_sets():
    def finalizers(old, **patch):
        return merge({"metadata": {"finalizers": old}}, {"metadata": patch}, KIND)["metadata"]["finalizers"]
    assert finalizers(["a", "b"], finalizers=["c", "a"]) == ["c", "a", "b"]
    assert finalizers(["a", "b", "c"], **{"$deleteFromPrimitiveList/finalizers": ["b", "x"]}) == ["a", "c"]
    assert finalizers(["a", "b"], **{"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
                                     "$setElementOrder/finalizers": ["b", "c"]}) == ["b", "c"]


def test_set_element_order():
    old = {"containers": [{"name": n} for n in "abcd"]}

    def order(keys: str, **more) -> list:
        return names(spec(old, {"$setElementOrder/containers": [{"name": n} for n in keys], **more})["containers"])
    assert order("dcba") == list("dcba")
    assert order("ca") == list("bcad"), "what is not named keeps its place before its followers"
    assert order("xa", containers=[{"name": "x"}]) == list("xabcd")
    assert order("axd", containers=[{"name": "x"}]) == list("axbcd")
    assert order("bcd", containers=[{"name": "a", "$patch": "delete"}]) == list("bcd")
    with pytest.raises(ApiError, match="doesn't match"):
        order("ab", containers=[{"name": "b"}, {"name": "a"}])
    with pytest.raises(BadRequest, match="setElementOrder"):
        spec(old, {"$setElementOrder/containers": {}})


def test_retain_keys():
    assert spec({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}},
                {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}) == {"strategy": {"type": "Recreate"}}
    got = spec({"volumes": [{"name": "v", "emptyDir": {}}]},
               {"volumes": [{"name": "v", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]})
    assert got == {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}
    with pytest.raises(BadRequest, match="invalid patch format of retainKeys"):
        spec({"strategy": {}}, {"strategy": {"$retainKeys": ["type"], "other": 1}})


def test_the_kubelets_conditions():
    old = {"containers": [{"name": "Ready", "image": "False", "reason": "X"}, {"name": "Disk", "image": "1"}]}
    got = spec(old, {"$setElementOrder/containers": [{"name": "Disk"}, {"name": "Ready"}],
                     "containers": [{"name": "Ready", "image": "True", "reason": None}]})
    assert got == {"containers": [{"name": "Disk", "image": "1"}, {"name": "Ready", "image": "True"}]}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), unique=True), st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_merging_twice_is_merging_once_and_an_order_is_kept(old, new):
    doc, patch = {"containers": [{"name": n} for n in old]}, {"containers": [{"name": n} for n in new]}
    once = spec(doc, patch)
    assert sorted(names(once["containers"])) == sorted({*old, *new})
    assert spec(once, patch) == once
    ordered = names(spec(doc, {**patch, "$setElementOrder/containers": patch["containers"]})["containers"])
    assert [n for n in ordered if n in new] == new and [n for n in ordered if n not in new] == [
        n for n in old if n not in new]

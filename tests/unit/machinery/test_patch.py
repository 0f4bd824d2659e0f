"""RFC 6902 and RFC 7386: the documents' own examples, refusals, and properties."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import patch
from controlplane.machinery.errors import BadRequest, TooLarge
from controlplane.machinery.patch import Inapplicable, json_patch, merge_patch

JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab~/", max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=2), inner,
                                                                               max_size=3), max_leaves=12)


@pytest.mark.parametrize(("doc", "ops", "want"), [
    ({"a": [1, 3]}, [("add", "/a/1", 2)], {"a": [1, 2, 3]}),
    ({"a": []}, [("add", "/a/-", 1), ("add", "/a/0", 0)], {"a": [0, 1]}),
    ({"a": {"b~/c": 1}}, [("replace", "/a/b~0~1c", 2)], {"a": {"b~/c": 2}}),
    ({"a": 1}, [("add", "", {"b": 1}), ("add", "/c", None)], {"b": 1, "c": None}),
    ({"a": [1, 2]}, [("remove", "/a/0", None)], {"a": [2]}),
    ({"a": {"x": 1.0}}, [("test", "/a", {"x": 1}), ("test", "/nothing", None)], {"a": {"x": 1.0}}),
])
def test_operations(doc, ops, want):
    before = copy.deepcopy(doc)
    assert json_patch(doc, [{"op": op, "path": path, "value": value} for op, path, value in ops]) == want
    assert doc == before


def test_move_and_copy():
    doc = {"a": {"x": [1]}, "b": [2, 3]}
    assert json_patch(doc, [{"op": "move", "from": "/a/x", "path": "/b/0"},
                            {"op": "copy", "from": "/b/0", "path": "/c"},
                            {"op": "add", "path": "/c/-", "value": 9}]) == {"a": {}, "b": [[1], 2, 3], "c": [1, 9]}


@pytest.mark.parametrize("op", [
    {"op": "remove", "path": "/x"}, {"op": "replace", "path": "/x", "value": 1},
    {"op": "test", "path": "/t", "value": 1},
    {"op": "add", "path": "/l/2", "value": 1}, {"op": "add", "path": "/l/01", "value": 1},
    {"op": "add", "path": "/l/-1", "value": 1}, {"op": "add", "path": "x", "value": 1}, {"op": "add", "path": "/y"},
    {"op": "move", "from": "/m", "path": "/m/n"}, {"op": "frob", "path": "/t"},
    {"op": "add", "path": "/t/u", "value": 1},
])
def test_what_does_not_apply_is_upstreams_422(op):
    with pytest.raises(Inapplicable) as error:
        json_patch({"t": True, "l": [1], "m": {"n": {}}}, [op])
    status = error.value.status()
    assert (status["code"], status["reason"], status["details"]) == (422, "Invalid", {})
    assert status["message"] == "the server rejected our request due to an error in our request"


def test_patches_are_bounded_and_must_be_lists():
    with pytest.raises(BadRequest, match="error decoding patch"):
        json_patch({}, {"op": "add"})
    with pytest.raises(TooLarge, match="10000, got 10001"):
        json_patch({}, [{}] * 10_001)
    with pytest.raises(TooLarge):
        json_patch({"a": [0] * 50}, [{"op": "copy", "from": "/a", "path": "/a/-"}] * 30)


def test_merge_patch_follows_the_rfc():
    doc = {"title": "G", "author": {"given": "J", "family": "D"}, "tags": ["e", "s"]}
    change = {"title": "H", "phone": "+1", "author": {"family": None}, "tags": ["e"], "new": {"x": {"y": None}}}
    assert merge_patch(doc, change) == {"title": "H", "author": {"given": "J"}, "tags": ["e"], "phone": "+1",
                                        "new": {"x": {}}}
    assert merge_patch({"a": "b"}, ["c"]) == ["c"] and merge_patch(["a"], {"a": 1}) == {"a": 1}


@settings(max_examples=80, deadline=None)
@given(JSON, JSON)
def test_merging_is_idempotent_and_shares_nothing(doc, change):
    before = copy.deepcopy((doc, change))
    once = merge_patch(doc, change)
    assert patch.equal(merge_patch(once, change), once)
    assert patch.equal(list(before), [doc, change])


@settings(max_examples=80, deadline=None)
@given(JSON, JSON)
def test_replacing_the_document_gives_the_value(doc, value):
    assert patch.equal(json_patch(doc, [{"op": "replace", "path": "", "value": value},
                                        {"op": "test", "path": "", "value": value}]), value)

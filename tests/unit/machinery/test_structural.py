"""Structural schemas: what they remove, fill in, find wrong, and which of them are structural."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery.structural import formats, rules, structural, values

STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def objects(**properties):
    return {"type": "object", "properties": properties}


def wrong_with(schema):
    structure, openapi = rules.check(schema, "s")
    return structure + openapi


def texts(value, schema, old=values.ABSENT):
    return [str(cause) for cause in values.validate({"x": value}, objects(x=schema),
                                                              old if old is values.ABSENT else {"x": old})]


@pytest.mark.parametrize(("value", "schema", "said"), [
    ("a", INTEGER, 'Invalid value: "string": x in body must be of type integer: "string"'),
    (True, INTEGER, 'Invalid value: "boolean": x in body must be of type integer: "boolean"'),
    (None, STRING, 'Invalid value: "null": x in body must be of type string: "null"'),
    (11, {**INTEGER, "maximum": 10}, "Invalid value: 11: x in body should be less than or equal to 10"),
    (1, {**INTEGER, "minimum": 1, "exclusiveMinimum": True}, "Invalid value: 1: x in body should be greater than 1"),
    (3, {**INTEGER, "multipleOf": 2}, "Invalid value: 3: x in body should be a multiple of 2"),
    ("abc", {**STRING, "pattern": "^b"}, "Invalid value: \"abc\": x in body should match '^b'"),
    ("abc", {**STRING, "maxLength": 2}, "Too long: may not be more than 2 bytes"),
    ("a", {**STRING, "minLength": 2}, 'Invalid value: "a": x in body should be at least 2 chars long'),
    ("c", {**STRING, "enum": ["b", "a"]}, 'Unsupported value: "c": supported values: "a", "b"'),
    ("x", {**STRING, "format": "ipv4"}, 'Invalid value: "x": x in body must be of type ipv4: "x"'),
    ([], {"type": "array", "items": STRING, "minItems": 1}, "Invalid value: 0: x in body should have at least 1 items"),
    ([1, 2], {"type": "array", "items": INTEGER, "maxItems": 1}, "Too many: 2: must have at most 1 items"),
    ({}, {"type": "object", "minProperties": 1}, "Invalid value: 0: x in body should have at least 1 properties"),
])
def test_wrong_values_are_told_in_upstreams_words(value, schema, said):
    assert texts(value, schema) == [f"x: {said}"]


def test_keys_items_and_junctors():
    named = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
             "items": objects(k={**STRING, "default": "d"}, v=INTEGER)}
    assert texts([{"k": "a"}, {"k": "a"}, {"k": "d"}, {}], named) == [
        'x[1]: Duplicate value: {"k":"a"}', 'x[3]: Duplicate value: {"k":null}']
    assert texts(["a", "a"], {"type": "array", "x-kubernetes-list-type": "set", "items": STRING}) == [
        'x[1]: Duplicate value: "a"']
    one = {**objects(a=STRING, b=STRING), "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    assert texts({"a": "1"}, one) == []
    assert texts({}, one)[0] == ('<nil>: Invalid value: "": "x" must validate one and only one schema (oneOf). '
                                 "Found none valid")
    assert "Found 2 valid alternatives" in texts({"a": "1", "b": "2"}, one)[0]
    assert texts({"a": "1"}, {**objects(a=STRING), "not": {"required": ["a"]}}) == [
        '<nil>: Invalid value: "": "x" must not validate the schema (not)']
    assert texts({"a.b": 1}, {"type": "object", "additionalProperties": STRING})[0].startswith("x[a.b]: ")


def test_what_did_not_change_is_not_judged_again():
    tight = objects(a={**STRING, "maxLength": 1}, b=STRING)
    assert texts({"a": "long", "b": "new"}, tight, {"a": "long", "b": "old"}) == []
    assert texts({"a": "longer", "b": "old"}, tight, {"a": "long", "b": "old"}) != []
    keyed = {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["b"], "items": tight}
    assert texts([{"a": "x", "b": "2"}, {"a": "long", "b": "1"}], keyed, [{"a": "long", "b": "1"}]) == []


def test_pruning_keeps_what_is_declared_or_preserved():
    schema = objects(spec=objects(a=STRING, free={"type": "object", structural.PRESERVE: True,
                                                  "properties": {"in": objects(k=STRING)}},
                                  m={"type": "object", "additionalProperties": objects(q=STRING)},
                                  pod={"type": "object", structural.EMBEDDED: True, "properties": {"spec": objects()}}))
    obj = {"apiVersion": "v1", "kind": "K", "metadata": {"zz": 1}, "top": 1, "spec": {
        "a": "1", "zz": {"y": 1}, "free": {"any": [1], "in": {"k": "1", "z": 1}}, "m": {"x": {"q": "", "z": 1}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"z": 1}}}}
    assert set(structural.prune(obj, schema)) == {"top", "spec.zz", "spec.free.in.z", "spec.m.x.z", "spec.pod.spec.z"}
    assert obj == {"apiVersion": "v1", "kind": "K", "metadata": {"zz": 1}, "spec": {
        "a": "1", "free": {"any": [1], "in": {"k": "1"}}, "m": {"x": {"q": ""}},
        "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}}}
    assert structural.check_metadata(obj) == (["metadata.zz"], []) and obj["metadata"] == {}


VALUES = st.recursive(st.none() | st.integers(-3, 3) | st.text("ab", max_size=2),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
                          st.sampled_from("abc"), inner, max_size=3), max_leaves=8)
SCHEMA = objects(a={**INTEGER, "default": 1}, b={**objects(a={**STRING, "default": "x"}), "default": {}},
                 c={"type": "array", "items": {**objects(a=STRING, b={**INTEGER, "nullable": True, "default": 2})}})


@given(st.dictionaries(st.sampled_from("abcd"), VALUES))
@settings(max_examples=60, deadline=None)
def test_pruning_and_defaulting_settle_at_once(obj):
    structural.prune(obj, SCHEMA)
    structural.default(obj, SCHEMA)
    again = copy.deepcopy(obj)
    assert structural.prune(again, SCHEMA) == []
    structural.default(again, SCHEMA)
    assert again == obj
    assert not values.validate(obj, SCHEMA, copy.deepcopy(obj))


@pytest.mark.parametrize(("node", "at", "said"), [
    ({"properties": {}}, ".type", "Required value: must not be empty for specified object fields"),
    ({"type": "array"}, ".items", "Required value: must be specified"),
    ({"type": "array", "items": {}}, ".items.type", "Required value: must not be empty for specified array items"),
    ({"type": "text"}, ".type", 'Unsupported value: "text": supported values: "array", "boolean", "integer", "number", '
     '"object", "string"'),
    ({**STRING, "pattern": "("}, ".pattern", "Invalid value"),
    ({**STRING, "default": 1}, ".default", 'Invalid value: "integer": '),
    ({**objects(a=STRING), "default": {"b": 1}}, ".default", 'Invalid value: {"b":1}: must not have unknown fields'),
    ({"type": "array", "x-kubernetes-list-type": "set", "items": {**STRING, "nullable": True}}, ".items.nullable",
     "Forbidden: cannot be nullable when x-kubernetes-list-type is set"),
    ({**objects(a=STRING), "allOf": [{"type": "object"}]}, ".allOf[0].type",
     "Forbidden: must be empty to be structural"),
    ({"type": "object", structural.PRESERVE: False}, f".{structural.PRESERVE}",
     "Invalid value: false: must be true or undefined"),
    ({"type": "array", "items": objects(k=STRING), "x-kubernetes-list-type": "map",
      "x-kubernetes-list-map-keys": ["k"]}, ".items.properties[k].default",
     "Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required "
     "property"),
    ({**objects(a=STRING), "additionalProperties": STRING}, ".additionalProperties",
     "Forbidden: additionalProperties and properties are mutual exclusive"),
])
def test_what_is_not_structural_is_refused(node, at, said):
    found = wrong_with(objects(x=node))
    assert any(c.field == f"s.properties[x]{at}" and c.message.startswith(said) for c in found), \
        [str(c) for c in found]


def test_junctors_of_the_root_speak_of_what_is_declared():
    wrong = {**objects(a=STRING), "anyOf": [{"properties": {"b": {"minLength": 1}, "metadata": {"maxProperties": 1}}}]}
    assert {(c.field, c.message) for c in wrong_with(wrong)} == {
        ("s.properties[b]", "Required value: because it is defined in s.anyOf[0].properties[b]"),
        ("s.properties[metadata]", "Required value: because it is defined in s.anyOf[0].properties[metadata]"),
        ("s.anyOf[0].properties[metadata]", "Forbidden: must not be specified in a nested context")}


def test_structural_schemas_pass():
    fine = objects(port={structural.INT_OR_STRING: True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                   pod={"type": "object", structural.EMBEDDED: True, structural.PRESERVE: True},
                   one={**objects(a=STRING, b=STRING), "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                   metadata={"type": "object", "properties": {"name": {**STRING, "maxLength": 3}}})
    assert wrong_with(fine) == []
    assert [str(c) for c in wrong_with({"type": "array", "items": STRING})] == [
        's.type: Invalid value: "array": must be object at the root']


def test_formats():
    assert formats.duration("1h30m") == 5400 and formats.fits("date-time", "2024-01-01T00:00:00Z")
    assert not formats.fits("uuid", "x") and formats.fits("nobody knows", "x")

"""Bodies: the three formats, fields given twice, and what must be refused."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import wire
from controlplane.machinery.errors import UnsupportedMediaType
from controlplane.machinery.wire import Undecodable, decode


def test_media_types():
    assert decode(b'{"a":1}', "") == decode(b'{"a":1}', "application/json; charset=utf-8") == {"a": 1}
    assert decode(b"a: 1", "application/yaml") == decode(b'{"a": 1}', "application/apply-patch+yaml") == {"a": 1}
    with pytest.raises(UnsupportedMediaType, match="accepted media types include: application/json, "):
        decode(b"", "text/plain")
    for body, kind in ((b"{", "application/json"), (b"a: [", "application/yaml"),
                       (b"no", "application/vnd.kubernetes.protobuf")):
        with pytest.raises(Undecodable):
            decode(body, kind)


def test_fields_given_twice_in_json_are_named_by_their_path():
    found: list[str] = []
    body = b'{"a":{"x":1,"x":2},"l":[{"k":1},{"k":1,"k":2,"k":3}],"a2":1,"a2":{"y":1,"y":2}}\n'
    assert decode(body, duplicates=found) == {"a": {"x": 2}, "l": [{"k": 1}, {"k": 3}], "a2": {"y": 2}}
    assert found == ['duplicate field "a2"', 'duplicate field "a.x"', 'duplicate field "l[1].k"',
                     'duplicate field "a2.y"']
    found.clear()
    decode(b'{ "a": "\\u003c", "b": {"a": 1.0} }', duplicates=found)
    assert found == []


def test_yaml_is_read_as_kubernetes_reads_it():
    text = b"""
a: {2: x, true: "y"}
time: 2001-12-14
sexagesimal: 1:30
octal: 0644
float: 1.5
bool: [yes, y, N, yonder, off]
none: ~
base: &b {k: v}
merged: {<<: *b, w: z}
"""
    assert decode(text, "application/yaml") == {
        "a": {"2": "x", "true": "y"}, "time": "2001-12-14", "sexagesimal": "1:30", "octal": 420, "float": 1.5,
        "bool": [True, True, False, "yonder", False], "none": None, "base": {"k": "v"}, "merged": {"k": "v", "w": "z"}}
    found: list[str] = []
    assert decode(b"a: 1\nb:\n  c: 1\n  c: 2\n", "application/yaml", found) == {"a": 1, "b": {"c": 2}}
    assert found == ['line 4: key "c" already set in map']


@pytest.mark.parametrize("body", [
    b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%b]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 110)),
    b"&a [*a]", b"[" * 5000 + b"]" * 5000, b"a: !!binary aGk=", b"a: .inf", b"!!python/object/apply:os.getcwd []",
    b"? [1]\n: 2", b"a: 1\n---\nb: 2", b"a: \xff",
])
def test_yaml_that_could_do_harm_is_refused(body):
    with pytest.raises(Undecodable):
        decode(body, "application/yaml", [])


def test_json_too_deep_to_encode_is_refused():
    with pytest.raises(Undecodable, match="max depth"):
        decode(b'{"a":' * 300 + b"1" + b"}" * 300)
    wide = orjson.dumps([{}] * 1000)
    assert decode(wide) == [{}] * 1000


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_json_survives_however_it_is_spaced(value):
    for option in (0, orjson.OPT_INDENT_2):
        found: list[str] = []
        assert decode(orjson.dumps(value, option=option), duplicates=found) == value and found == []
    assert wire.decode(orjson.dumps(value), wire.APPLY) == value

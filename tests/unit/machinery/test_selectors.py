import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import selectors
from controlplane.machinery.errors import BadRequest
from controlplane.machinery.resources import named


@pytest.mark.parametrize(("text", "labels", "want"), [
    ("", {}, True), ("a=1", {"a": "1"}, True), ("a==1", {"a": "2"}, False), ("a!=1", {}, True), ("a", {"a": ""}, True),
    ("!a", {"a": ""}, False), ("a in (1, 2)", {"a": "2"}, True), ("a in (1,2)", {}, False),
    ("a notin (1,2)", {}, True), ("a notin (1)", {"a": "1"}, False), ("a>1", {"a": "2"}, True),
    ("a<1", {"a": "x"}, False),
    ("a=1,b!=2, !c", {"a": "1", "b": "3"}, True), ("a=", {"a": ""}, True), ("a in (),b", {"a": "", "b": "x"}, True),
    ("in in (in)", {"in": "in"}, True), ("x.io/a = b", {"x.io/a": "b"}, True)])
def test_labels(text, labels, want):
    assert selectors.parse_labels(text).matches(labels) is want


@pytest.mark.parametrize(("text", "why"), [
    ("a=1,", "found '', expected: identifier after ','"),
    (",", "found ',', expected: !, identifier, or 'end of string'"),
    ("a in 1", "unable to parse requirement: found '1' expected: '('"), ("!a=1", "expected: ',' or 'end of string'"),
    ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
    ("a=b=c", "found '=', expected: ',' or 'end of string'"),
    ("-a", 'unable to parse requirement: <nil>: Invalid value: "-a": name part must consist of'),
    ("a=-", 'values[0][a]: Invalid value: "-": a valid label'), ("a>b", "the value must be an integer")])
def test_bad_label_selectors(text, why):
    with pytest.raises(BadRequest) as caught:
        selectors.parse_labels(text)
    assert why in caught.value.message


def test_label_selector_objects():
    assert selectors.from_label_selector(None).matches({}) is False
    assert selectors.from_label_selector({}).empty
    found = selectors.from_label_selector({"matchLabels": {"b": "1"}, "matchExpressions": [
        {"key": "a", "operator": "NotIn", "values": ["y", "x"]}, {"key": "c", "operator": "Exists"}]})
    assert str(found) == "a notin (x,y),b=1,c"
    assert found.matches({"b": "1", "c": ""})
    with pytest.raises(BadRequest, match="is not a valid label selector operator"):
        selectors.from_label_selector({"matchExpressions": [{"key": "a", "operator": "Is"}]})


_KEYS, _VALUES = st.sampled_from("abc"), st.sampled_from(["", "1", "2", "x"])


@given(st.lists(st.tuples(_KEYS, st.sampled_from(["=", "!=", " in ", " notin "]), st.lists(_VALUES, min_size=1))),
       st.dictionaries(_KEYS, _VALUES))
def test_the_printed_selector_means_the_same(terms, labels):
    text = ",".join(f"{k}{op}{'(' + ','.join(vs) + ')' if 'in' in op else vs[0]}" for k, op, vs in terms)
    parsed = selectors.parse_labels(text)
    wants = [(labels.get(k) in vs if op == " in " else labels.get(k) not in vs) if "in" in op
             else (labels.get(k) == vs[0]) == (op == "=") for k, op, vs in terms]
    assert parsed.matches(labels) is all(wants)
    assert selectors.parse_labels(str(parsed)) == parsed


def test_fields():
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}
    fields = selectors.fields_of(named("pods"), pod)
    parsed = selectors.parse_fields("spec.nodeName=n,status.phase!=Failed,spec.hostNetwork==false")
    assert parsed.matches(fields.__getitem__)
    assert selectors.field_matcher(named("pods"), parsed)(pod)
    assert not selectors.field_matcher(named("pods"), selectors.parse_fields("spec.host=other"))(pod)
    assert parsed.exact("spec.nodeName") == "n" and parsed.exact("status.phase") is None
    assert selectors.parse_fields(r"metadata.name=a\,b\=c").exact("metadata.name") == "a,b=c"


@pytest.mark.parametrize(("plural", "text", "why"), [
    ("pods", "spec.foo=1", "field label not supported: spec.foo"),
    ("configmaps", "x=1", '"x" is not a known field selector: only "metadata.name", "metadata.namespace"'),
    ("pods", "x", "invalid selector: 'x'; can't understand 'x'")])
def test_bad_field_selectors(plural, text, why):
    with pytest.raises(BadRequest) as caught:
        selectors.check_fields(named(plural), selectors.parse_fields(text))
    assert caught.value.message == why

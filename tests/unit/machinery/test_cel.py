"""CEL: Kubernetes' functions, the rules of schemas, and the budget."""

import pytest

from controlplane.machinery.cel import checks, expression
from controlplane.machinery.cel import rules as celrules
from controlplane.machinery.structural import rules as rules_of_schemas

SELF = (("self", "DYN"),)


def value(text, given=None):
    return expression.compile_(text, SELF).evaluate({"self": given})


@pytest.mark.parametrize("text", [
    "quantity('1500m') == quantity('1.5') && quantity('1Gi').isGreaterThan(quantity('1G'))",
    "quantity('40Gi').isGreaterThan(quantity('39Ei')) == false && quantity('20Ei').add(quantity('1')).sign() == 1",
    "quantity('1').add(quantity('500m')).compareTo(quantity('1500m')) == 0 && !isQuantity('1x')",
    "quantity('50k').asInteger() == 50000 && quantity('-1').sign() == -1",
    "'a1b22'.find('[0-9]+') == '1' && 'a1b22'.findAll('[0-9]+') == ['1', '22']",
    "[1, 2, 3].isSorted() && [1, 2].sum() == 3 && [3, 1].min() == 1 && ['a', 'b'].max() == 'b'",
    "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && [1].indexOf(2) == -1 && 'ell'.lastIndexOf('l') == 2",
    "[1, 2].all(i, v, v == i + 1) && {'a': 1}.exists(k, v, k == 'a' && v == 1) && [4, 4].existsOne(i, v, v - i == 4)",
    "['a', 'b'].transformList(i, v, i > 0, v + ',(') == ['b,('] && [5].transformList(i, v, v + i) == [5]",
    "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1) == {'b': 3} && ['a'].transformMap(i, v, v) == {0: 'a'}",
    "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
    "[[1, 2], [3]].transformList(i, l, l.transformList(j, x, [i, j, x])) == [[[0, 0, 1], [0, 1, 2]], [[1, 0, 3]]]",
    "[[1, 2]].all(i, l, l.all(x, x > i) && l.all(j, x, x > j && x > i))",
    "sets.contains([1, 2], [1]) && sets.intersects([1], [1, 2]) && !sets.equivalent([1], [2])",
    "url('https://h:8443/p?a=b').getHost() == 'h:8443' && url('https://h:8443/p').getPort() == '8443'",
    "isURL('https://h') && !isURL('h h') && url('https://h/p').getEscapedPath() == '/p'",
    "ip('10.0.0.1').family() == 4 && ip('::1').isLoopback() && !isIP('x') && ip.isCanonical('::1')",
    "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16')",
    "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('10.0.0.0/8').prefixLength() == 8",
    "semver('1.2.3').isGreaterThan(semver('1.2.3-rc.1')) && semver('1.2.3').minor() == 2 && !isSemver('1')",
    "'%s-%d'.format(['a', 1]) == 'a-1' && 'AbC'.lowerAscii() == 'abc'",
    "!format.dns1123Label().validate('good').hasValue()",
    "format.uuid().validate('a)').value() == ['must be of type uuid'] && format.date().validate('2024-01-01') == "
    "optional.none()",
    "format.named('dns1035Label').value().validate('1a').orValue([]).size() == 1",
    "{'a': 1}[?'b'].orValue(2) == 2 && size('héllo') == 5 && self == null",
])
def test_functions(text):
    assert value(text) is True


def test_faults_have_upstreams_words():
    with pytest.raises(expression.EvaluationError, match=r"^no such key: b$"):
        value("self.b", {"a": 1})
    with pytest.raises(expression.EvaluationError, match=r"^division by zero$"):
        value("1 / self == 1", 0)
    with pytest.raises(expression.EvaluationError, match="parse error"):
        value("ip('x').family() == 4")
    with pytest.raises(expression.EvaluationError, match=r"^no such overload$"):
        value("self.all(i, v, true)", 3)
    with pytest.raises(expression.EvaluationError, match=r"^insert failed: key 'a' already exists$"):
        value("['a', 'a'].transformMapEntry(i, v, {v: i})")
    with pytest.raises(expression.CompileError, match="undeclared reference to 'cel'"):
        value("cel.bind(x, 1, x == 1)")
    undeclared = r"(?s)^compilation failed: ERROR: <input>:1:1: undeclared reference"
    with pytest.raises(expression.CompileError, match=undeclared):
        expression.compile_("nobody == 1", SELF)
    with pytest.raises(expression.CompileError, match="exceeds limit"):
        expression.compile_("1" * (expression.MAX_EXPRESSION + 1), SELF)


def test_loops_are_counted_and_bounded():
    assert expression.loops("self.all(x, self.exists(y, x == y)) && self.map(z, z).size() > 0") == 2
    assert expression.loops("'.all(' == self") == 0
    assert expression.loops("self.all(k, v, v.transformMapEntry(i, x, {x: i}).size() > 0)") == 2
    assert expression.mentions("self == oldSelf", "oldSelf")
    assert not expression.mentions("self.oldSelf == 'oldSelf'", "oldSelf")
    program = expression.compile_("self.all(x, self.all(y, x >= y))", SELF)
    assert program.evaluate({"self": [1] * 99}, expression.Budget()) is True
    with pytest.raises(expression.OutOfBudget):
        program.evaluate({"self": [1] * 101}, expression.Budget())
    budget = expression.Budget(150)
    assert expression.compile_("self.all(x, x == 1)", SELF).evaluate({"self": [1] * 100}, budget) is True
    with pytest.raises(expression.OutOfBudget):
        expression.compile_("self.all(x, x == 1)", SELF).evaluate({"self": [1] * 100}, budget)


def schema(*rules, **properties):
    return {"type": "object", "properties": properties, "x-kubernetes-validations": list(rules)}


def told(obj, of, old=None):
    return [str(c) for c in celrules.evaluate(obj, old, of)]


def test_rules_of_a_schema():
    count = {"type": "integer"}
    of = schema({"rule": "self.low <= self.high", "messageExpression": "'%d > %d'.format([self.low, self.high])"},
                {"rule": "self.low >= oldSelf.low", "message": "low only grows", "fieldPath": ".low",
                 "reason": "FieldValueForbidden"}, low=count, high=count)
    assert told({"low": 1, "high": 2}, of) == []
    assert told({"low": 3, "high": 2}, of) == ['<nil>: Invalid value: "object": 3 > 2']
    assert told({"low": 1, "high": 2}, of, {"low": 2, "high": 2}) == ["low: Forbidden: low only grows"]
    assert told({"low": 3, "high": 2}, of, {"low": 3, "high": 2}) == [], "unchanged: not judged again"
    assert told({"low": 1}, of) == ['<nil>: Invalid value: "object": no such key: high evaluating rule: '
                                    "self.low <= self.high"]
    inside = {"type": "object", "properties": {"spec": of, "l": {"type": "array", "items": schema(
        {"rule": "self.__namespace__ != 'x' && self.a__dash__b > 0.5"}, namespace={"type": "string"},
        **{"a-b": {"type": "number"}})}}}
    assert told({"spec": {"low": 3, "high": 2}, "l": [{"namespace": "x", "a-b": 1}]}, inside) == [
        'spec: Invalid value: "object": 3 > 2',
        'l[0]: Invalid value: "object": failed rule: self.__namespace__ != \'x\' && self.a__dash__b > 0.5']


def test_times_and_bytes_have_their_types():
    text = {"type": "string"}
    of = schema({"rule": "self.at > timestamp('2024-01-01T00:00:00Z') && self.wait < duration('1h') && "
                         "self.data == b'abc'"}, at={**text, "format": "date-time"},
                wait={**text, "format": "duration", "x-kubernetes-validations": [{"rule": "self > duration('1s')"}]},
                data={**text, "format": "byte"})
    assert told({"at": "2024-01-01T00:00:01Z", "wait": "59m", "data": "YWJj"}, of) == []
    assert len(told({"at": "2023-01-01T00:00:01Z", "wait": "1ms", "data": "YWJj"}, of)) == 2


def test_an_optional_old_self_tells_creation_from_update():
    of = schema({"rule": "oldSelf.hasValue() ? oldSelf.value().a == self.a : self.a == 'new'", "optionalOldSelf": True},
                a={"type": "string"})
    assert told({"a": "new"}, of) == [] and told({"a": "b"}, of) != []
    assert told({"a": "b"}, of, {"a": "b"}) == [] and told({"a": "c"}, of, {"a": "b"}) != []


def refused(of):
    return checks.examine(of, "s")[0]


def test_wrong_rules_are_refused_with_the_definition():
    at = "s.x-kubernetes-validations"
    written = {c.field: c.message for c in refused(schema(
        {"rule": ""}, {"rule": "true", "reason": "Whatever"}, {"rule": "true", "message": " "},
        {"rule": "true\n", "fieldPath": ".zz"}, {"rule": "true\n&& true"}, {"rule": "1 +"}))}
    assert written == {
        f"{at}[0].rule": "Required value: rule is not specified",
        f"{at}[1].reason": 'Unsupported value: "Whatever": supported values: "FieldValueDuplicate", '
                           '"FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"',
        f"{at}[2].message": 'Invalid value: " ": must be non-empty if specified',
        f"{at}[3].fieldPath": 'Invalid value: ".zz": must be a valid path',
        f"{at}[4].message": "Required value: message must be specified if rule contains line breaks"}
    found = {c.field: c.message for c in refused(schema(
        {"rule": "self.a +"}, {"rule": "1"}, {"rule": "true", "messageExpression": "1"},
        {"rule": "true", "optionalOldSelf": True}))}
    assert "compilation failed: ERROR: <input>:1:9: Syntax error" in found[f"{at}[0].rule"]
    assert found[f"{at}[1].rule"] == (
        'Invalid value: {"Rule":"1","Message":"","MessageExpression":"","Reason":null,"FieldPath":"",'
        '"OptionalOldSelf":null}: cel expression must evaluate to a bool')
    assert found[f"{at}[2].messageExpression"].endswith("messageExpression must evaluate to a string")
    assert found[f"{at}[3].optionalOldSelf"].endswith("may not be set if oldSelf is not used in rule")


def test_rules_are_looked_at_wherever_they_stand_and_have_types_where_nothing_else_is_wrong():
    broken = {"type": "object", "x-kubernetes-list-type": "set", "x-kubernetes-validations": [{"rule": "self.zz"}]}
    of = {**schema(a=broken, b={"type": "string", "x-kubernetes-validations": [{"rule": "self.size() > self"}]}),
          "anyOf": [{"x-kubernetes-validations": [{"rule": " "}]}]}
    structure, openapi = rules_of_schemas.check({**of, "anyOf": []}, "s")
    found = {c.field: c.message for c in checks.examine(of, "s", not structure, openapi)[0]}
    assert list(found) == ["s.anyOf[0].x-kubernetes-validations[0].rule",
                           "s.properties[b].x-kubernetes-validations[0].rule"]


@pytest.mark.parametrize(("kind", "rule", "said"), [
    ("integer", "self.size() > 1", "1:10: found no matching overload for 'size' applied to 'int.()'"),
    ("integer", "size(self) > 1", "1:5: found no matching overload for 'size' applied to '(int)'"),
    ("string", "self.startsWith(1)", "1:16: found no matching overload for 'startsWith' applied to 'string.(int)'"),
    ("string", "self.a == 1", "1:5: type 'string' does not support field selection"),
    ("boolean", "self.all(x, x)", "1:1: expression of type 'bool' cannot be range of a comprehension (must be list, ")])
def test_types_that_do_not_fit_are_told_in_upstreams_words(kind, rule, said):
    node = {"type": kind, "x-kubernetes-validations": [{"rule": rule}]}
    [cause] = refused({"type": "object", "properties": {"x": node}})
    assert f"compilation failed: ERROR: <input>:{said}" in cause.message


@pytest.mark.parametrize(("value", "rule", "said"), [
    (3, {"rule": "self > 2"}, None), (1, {"rule": "self > 2"}, 'Invalid value: "integer": failed rule: self > 2'),
    (1, {"rule": "self == oldSelf"}, None), (1, {"rule": "self > oldSelf"}, "failed rule: self > oldSelf"),
    (1, {"rule": "oldSelf.hasValue()", "optionalOldSelf": True}, "failed rule: oldSelf.hasValue()"),
    (1, {"rule": "1"}, "rule compile error: cel expression must evaluate to a bool"),
    (1, {"rule": "self.size() > 1"}, "rule compile error: compilation failed: ERROR: <input>:1:10")])
def test_defaults_keep_the_rules(value, rule, said):
    node = {"type": "integer", "default": value, "x-kubernetes-validations": [rule]}
    structure, _ = rules_of_schemas.check({"type": "object", "properties": {"a": node}}, "s")
    assert [c.field for c in structure] == (["s.properties[a].default"] if said else [])
    assert said is None or said in structure[0].message


def test_rules_see_what_their_schema_says():
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    inner = {"type": "object", "properties": {"a": {"type": "string", "nullable": True}, "free": free, "raw": {
        "x-kubernetes-preserve-unknown-fields": True}}}

    def fault(rule):
        return [c.message.partition("<input>:")[2].partition("\n")[0] for c in refused(schema({"rule": rule}, b=inner))]
    assert fault("self.b.a.size() > 0 && self == oldSelf && self.b == oldSelf.b && self.metadata.name != ''") == []
    assert fault("self.b.typo == 1 || 'self.zz' == ''") == ["1:7: undefined field 'typo'"]
    assert fault("has(self.b.free.x)") == ["1:4: undefined field 'x'"]
    assert fault("has(self.b.raw)") == ["1:4: undefined field 'raw'"]
    assert fault("self.b.a == null")[0].startswith("1:10: found no matching overload for '_==_'")
    assert fault("cel.bind(x, 1, x == 1)") and fault("math.greatest(1, 2) == 2")


def test_old_values_can_only_be_asked_for_where_parts_are_told_apart():
    part = {"type": "object", "properties": {"a": {"type": "string"}},
            "x-kubernetes-validations": [{"rule": "self.a == oldSelf.a"}]}
    keyed = {"type": "array", "items": part, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
             "maxItems": 9}
    assert refused(schema(m=keyed)) == []
    [cause] = refused(schema(l={"type": "array", "items": part, "maxItems": 9}))
    assert cause.message == ('Invalid value: "self.a == oldSelf.a": oldSelf cannot be used on the uncorrelatable '
                             "portion of the schema within s.properties[l]")

"""What rules may cost: upstream's figures for the same rules, and its words for too much."""

import pytest

from controlplane.machinery.cel import checks, costs, shapes
from controlplane.machinery.errors import Cause

TEXT, INT = {"type": "string"}, {"type": "integer"}


def obj(**properties):
    return {"type": "object", "properties": properties}


def many(items, **more):
    return {"type": "array", "items": items, **more}


NODE = obj(s=TEXT, t={**TEXT, "maxLength": 64}, i=INT, b={"type": "boolean"}, d={**TEXT, "format": "date-time"},
           p={"x-kubernetes-int-or-string": True}, y={**TEXT, "format": "byte", "maxLength": 9},
           ls=many(TEXT, maxItems=10), lo=many(obj(s={**TEXT, "maxLength": 5}, i=INT), maxItems=20),
           ll=many(many({**TEXT, "maxLength": 7}, maxItems=3)),
           m={"type": "object", "additionalProperties": TEXT, "maxProperties": 5})


@pytest.mark.parametrize(("rule", "cost"), [
    ("self.i > 1", 3), ("has(self.s) ? self.s == 'b' : true", 4), ("self.ls.all(x, x == 'y')", 53),
    ("self.ll.all(r, r.exists(c, c.startsWith('ab')))", 24117228),
    ("self.lo.all(a, self.lo.exists_one(b, a.s == b.s))", 3343),
    ("self.lo.map(x, x.s).all(n, n.matches('^a+$'))", 394), ("self.m.all(k, self.m[k] == '')", 38),
    ("self.t.matches('^[a-z]+$') && self.t.contains('abcdefghijkl')", 108),
    ("self.t.replace('a', 'bb').size() > 3 || self.t.split(',').size() > 2", 112),
    ("self.ls.join(',') == 'a' && self.ls.isSorted()", 6291472), ("'a' in self.ls && self.i in [1, 2, 3]", 27),
    ("self.t + self.t == oldSelf.t", 84), ("self.d > timestamp('2020-01-01T00:00:00Z') && self.y.size() > 1", 8),
    ("type(self.p) == int ? self.p > 3 : self.p == '3%'", 7),
    ("quantity(self.t).isGreaterThan(quantity('1')) || isCIDR(self.t)", 58),
    ("sets.contains(self.ls, ['a', 'b'])", 33), ("format.dns1123Label().validate(self.t).hasValue()", 836),
    ("self.lo.filter(x, x.i > 1).map(x, x.i).sum() > 5", 645),
])
def test_estimates_are_upstreams(rule, cost):
    checker = checks.checker_of(NODE, False, False)
    assert checker.fault(rule) == ""
    assert costs.estimate(checker.serialized(rule), shapes.shape(NODE)) == cost


@pytest.mark.parametrize(("two", "one"), [
    ("self.ls.all(i, x, x == 'y')", "self.ls.all(x, x == 'y')"),
    ("self.m.exists(k, v, k.startsWith('a'))", "self.m.exists(k, k.startsWith('a'))"),
    ("self.lo.all(i, a, self.lo.existsOne(j, b, a.s == b.s))", "self.lo.all(a, self.lo.exists_one(b, a.s == b.s))"),
    ("self.lo.transformList(i, x, x.i > 1, x.i).sum() > 5", "self.lo.filter(x, x.i > 1).map(x, x.i).sum() > 5"),
    ("self.ll.all(i, r, r.exists(j, c, c.startsWith('ab')))", "self.ll.all(r, r.exists(c, c.startsWith('ab')))"),
])
def test_a_loop_of_two_variables_costs_what_one_of_one_does(two, one):
    checker = checks.checker_of(NODE, False, False)
    assert checker.fault(two) == ""
    a, b = (costs.estimate(checker.serialized(rule), shapes.shape(NODE)) for rule in (two, one))
    assert a <= b < a * 2 if "transform" in two else a == b


def test_too_much_is_refused_in_upstreams_words():
    def costly(**bounds):
        item = {**obj(a={**TEXT, "maxLength": 1000}), "x-kubernetes-validations": [
            {"rule": "self.a.matches('^[a-z]+$')", "messageExpression": "self.a + self.a"}]}
        return checks.examine(obj(l=many(item, **bounds)), "s")[1]
    at, advice = "s.properties[l].items.x-kubernetes-validations[0].rule", (
        "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings "
        "are declared)")
    assert costly() == [
        Cause("FieldValueForbidden", f"Forbidden: estimated rule cost exceeds budget by factor of 84.3x {advice}", at),
        Cause("FieldValueForbidden", "Forbidden: contributed to estimated rule cost total exceeding cost limit for "
              "entire OpenAPIv3 schema", at),
        Cause("FieldValueForbidden", "Forbidden: x-kubernetes-validations estimated rule cost total for entire "
              f"OpenAPIv3 schema exceeds budget by factor of 8.4x {advice}", "s")]
    assert costly(maxItems=8000) == []
    [cause] = costly(maxItems=12500)
    assert cause.field == at and "by factor of 1.005000x" in cause.message

"""What rules may cost: bounds of the schema count, and what is unbounded is as large as a request."""

import pytest

from controlplane.machinery import celcosts, celrules, celtypes

TEXT = {"type": "string"}


def obj(**properties):
    return {"type": "object", "properties": properties}


def many(items, **more):
    return {"type": "array", "items": items, **more}


@pytest.mark.parametrize(("node", "rule", "cost"), [
    (obj(n={"type": "integer"}), "self.n > 1", 3), (obj(a=TEXT), "has(self.a) ? self.a == 'b' : true", 4),
    (obj(l=many(TEXT, maxItems=10)), "self.l.all(x, x == 'y')", 53),
    (obj(l=many(TEXT)), "self.l.all(x, x == 'y')", 5 * 1_048_575 + 3),
    (obj(l=many({**TEXT, "maxLength": 25}, maxItems=10)), "self.l.all(x, self.l.all(y, x == y))", 1453),
    (obj(a={**TEXT, "maxLength": 100}), "self.a.matches('abcd')", 42.1),
    (obj(m={"type": "object", "additionalProperties": TEXT, "maxProperties": 5}), "self.m.all(k, self.m[k] == '')", 43),
])
def test_estimates(node, rule, cost):
    checker = celtypes.Checker({"self": node}, lambda _: {})
    assert celcosts.estimate(checker.serialized(rule), {"self": node}) == pytest.approx(cost, rel=0.2)


def test_only_what_is_clearly_too_much_is_refused():
    def refused(rule, **bounds):
        item = {**obj(a={**TEXT, **{k: v for k, v in bounds.items() if k == "maxLength"}}),
                "x-kubernetes-validations": [{"rule": rule}]}
        listed = many(item, **{k: v for k, v in bounds.items() if k == "maxItems"})
        return [(c.field, c.message) for c in celrules.costs(obj(l=listed), "s")]
    assert refused("self.a == 'b'") == []
    [rule, whole] = refused("self.a.matches('^[a-z]+$')")
    assert rule == ("s.properties[l].items.x-kubernetes-validations[0].rule", (
        "Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or "
        "adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"))
    assert whole[0] == "s" and "for entire OpenAPIv3 schema exceeds budget" in whole[1]
    assert refused("self.a.matches('^[a-z]+$')", maxLength=64, maxItems=100) == []

"""Expressions of admission policies: which are refused when they are written, and what odd ones come to. What is
expected is what upstream's library says of them."""

import pytest

from controlplane.apiserver.policies import compilation, expressions
from controlplane.apiserver.policies.expressions import Scope
from controlplane.machinery.cel.expression import EvaluationError

VARIABLES = {"n": "2", "l": "[1, 2]", "s": "'a'", "free": "object.spec", "bad": "object.spec.nothing"}
OBJECT = {"kind": "Foo", "metadata": {"name": "web", "labels": {"env": "prod"}}, "spec": {"replicas": 3}}


def refused(expression, field="validations", **spec):
    key = "valueExpression" if field == "auditAnnotations" else "expression"
    named = [{"name": name, "expression": text} for name, text in VARIABLES.items()]
    found = compilation.faults("ValidatingAdmissionPolicy", {"spec": {"variables": named, field: [
        {key: expression}], **spec}}, None)
    return [cause.message.partition('": ')[2].partition("\n")[0] for cause in found]


@pytest.mark.parametrize(("expression", "why"), [
    ("object.spec.paused", "must evaluate to bool but got dyn"), ("1", "must evaluate to bool but got int"),
    ("request.typo == ''", "compilation failed: ERROR: <input>:1:8: undefined field 'typo'"),
    ("variables.n.foo == 1", "compilation failed: ERROR: <input>:1:12: type 'int' does not support field selection"),
    ("variables.l.all(x, x.foo)", "compilation failed: ERROR: <input>:1:21: type 'int' does not support field "
     "selection"),
    ("variables.s == 1", "compilation failed: ERROR: <input>:1:13: found no matching overload for '_==_' applied to "
     "'(string, int)'"),
    ("variables.none", "compilation failed: ERROR: <input>:1:10: undefined field 'none'"),
    ("true || params.a == 1", "compilation failed: ERROR: <input>:1:9: undeclared reference to 'params' (in container "
     "'')"),
    ("namespaceObject.metadata.labels['a'] == 1", "compilation failed: ERROR: <input>:1:38: found no matching overload "
     "for '_==_' applied to '(string, int)'"),
    ("variables.free.x == 1 && request.userInfo.groups.exists(g, g == 'a')", None), ("oldObject == null", None),
    ("authorizer.requestResource.check('get').allowed()", None), ("request.userInfo.extra['k'][0] == 'v'", None)])
def test_wrong_types_are_refused_with_the_policy(expression, why):
    assert refused(expression) == ([why] if why else [])


def test_messages_and_annotations_are_texts():
    assert refused("object.kind", "auditAnnotations") == ["must evaluate to one of [string null_type] but got dyn"]
    assert refused("null", "auditAnnotations") == refused("request.userInfo.extra['k'][0]", "auditAnnotations") == []
    assert refused("params.a == 1", paramKind={"apiVersion": "v1", "kind": "ConfigMap"}) == []
    told = {"validations": [{"expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()"}]}
    [cause] = compilation.faults("ValidatingAdmissionPolicy", {"spec": told}, None)
    assert cause.field == "spec.validations[0].messageExpression" and "undeclared reference to" in cause.message
    assert compilation.faults("ValidatingAdmissionPolicy", {"spec": told}, {"spec": told}) == []  # as it was


def scope(old=None, **request):
    given = expressions.scope_of({"operation": "CREATE", **request}, OBJECT, old, None, lambda: {"metadata": {}})
    return Scope({**given, "params": None}, definitions=VARIABLES)


def test_null_has_no_fields_and_what_a_request_lacks_is_not_there():
    assert scope().evaluate("has(oldObject.spec)") is scope().evaluate("has(request.name)") is False
    assert scope(OBJECT, name="web").evaluate("has(oldObject.spec) && has(request.name)") is True


def test_a_variable_that_fails_fails_whoever_asks_for_it():
    for expression in ("has(variables.bad)", "variables.bad == 1"):
        with pytest.raises(EvaluationError, match='composited variable "bad" fails to evaluate: no such key: nothing'):
            scope().evaluate(expression)


def test_match_conditions_know_no_namespace_and_say_which_failed():
    assert expressions.holds([{"expression": "namespaceObject == null"}], scope())
    assert not expressions.holds([{"expression": "variables.bad == 1"}, {"expression": "false"}], scope())
    with pytest.raises(EvaluationError) as error:
        expressions.holds([{"expression": "object.none == 1"}, {"expression": "variables.bad == 1"}], scope())
    assert str(error.value) == ("[expression 'object.none == 1' resulted in error: no such key: none, expression "
                                "'variables.bad == 1' resulted in error: composited variable \"bad\" fails to "
                                "evaluate: no such key: nothing]")

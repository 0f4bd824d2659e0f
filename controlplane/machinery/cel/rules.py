"""`x-kubernetes-validations`: the CEL rules of a structural schema, evaluated.

Owns what `self` and `oldSelf` are at each node, which rules an update skips, and the causes rules give. A rule that
mentions `oldSelf` is a transition rule and applies only where there is a former value to compare with; on an update,
other rules are not asked about what did not change. Pure. Called by the strategy of custom objects, when their schema
has rules: it loads the CEL library. What is wrong with rules themselves is `checks`' to say.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from controlplane.machinery.cel import expression, types
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, required
from controlplane.machinery.structural import formats, structural
from controlplane.machinery.structural.structural import EMBEDDED, INT_OR_STRING, Schema, child, items_of, join
from controlplane.machinery.structural.values import ABSENT, former_items

RULES = "x-kubernetes-validations"
MAX_MESSAGE = 2048  # characters of a message; upstream's bound
_TYPES = {"string": "STRING", "boolean": "BOOL", "integer": "INT", "number": "DOUBLE", "array": "LIST"}
_NO_BUDGET = "validation failed due to running out of cost budget, no further validation rules will be run"
Variables = tuple[tuple[str, str], ...]
Judge = Callable[[dict[str, Any], Schema, bool], str]  # of a rule, its node, whether that is a whole resource


# The formats of strings that CEL has types for; a validated value can be read.
_FORMATS: dict[str, tuple[str, Callable[[str], Any] | None]] = {
    "byte": ("BYTES", base64.b64decode),
    "duration": ("DURATION", lambda t: expression.duration(formats.duration(t))),
    "date-time": ("TIMESTAMP", lambda t: expression.timestamp(parse_rfc3339(t))),
    "date": ("TIMESTAMP", lambda t: expression.timestamp(parse_rfc3339(t + "T00:00:00Z")))}


# --- compiling ------------------------------------------------------------------------------------------------------

def _variables(schema: Schema) -> Variables:
    kind = _TYPES.get(schema.get("type") or "", "DYN")
    if kind == "STRING":
        kind = _FORMATS.get(schema.get("format") or "", ("STRING", None))[0]
    if schema.get("nullable"):
        kind = "DYN"
    return ("oldSelf", kind), ("self", kind)


def _compiled(text: str, schema: Schema, optional: bool) -> expression.Program:
    old = "oldSelf" if optional and expression.mentions(text, "oldSelf") else ""
    return expression.compile_(text, _variables(schema), old)


# --- values -----------------------------------------------------------------------------------------------------------

def converted(value: Any, schema: Schema, resource: bool = False) -> Any:
    """A JSON value as CEL sees it: numbers, bytes and times by their type, properties by identifiers."""
    if isinstance(value, dict):
        made: dict[str, Any] = {}
        properties = schema.get("properties") or {}
        for key, inner in value.items():
            if resource and key == "metadata":
                made[key] = {k: inner[k] for k in ("name", "generateName") if k in inner} if isinstance(inner, dict) \
                    else inner
                continue
            sub = child(schema, key)
            name = types.escaped(key) if key in properties else key
            made[name] = inner if sub is None else converted(inner, sub, bool(sub.get(EMBEDDED)))
        return made
    if isinstance(value, list):
        inside = items_of(schema)
        return [converted(inner, inside, bool(inside.get(EMBEDDED))) for inner in value]
    kind = schema.get("type")
    if kind == "number" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == "integer" and isinstance(value, float):
        return int(value)
    if isinstance(value, str) and (read := _FORMATS.get(schema.get("format") or "", ("", None))[1]) is not None:
        try:
            return read(value)
        except ValueError:
            return value  # a former value that today's schema would refuse
    return value


# --- evaluating -------------------------------------------------------------------------------------------------------

def evaluate(obj: Any, old: Any, schema: Schema) -> list[Cause]:
    """What the rules say of a valid object; `old` is the object it replaces, or None."""
    run = _Run()
    run.value(obj, ABSENT if old is None else old, schema, "", True)
    return run.found


def of_default(value: Any, schema: Schema, path: str, resource: bool, judge: Judge) -> list[Cause]:
    """What the rules say of the default of a node: all of them, as if it had stood there before, and those that ask
    for no former value, as if it had not. `judge` says what is wrong with a rule itself."""
    for old in (value, ABSENT):
        run = _Run(judge)
        run.value(value, old, schema, path, resource)
        if run.found:
            return run.found
    return []


class _Run:
    """One walk over an object, on one budget. With a `judge`, what did not change is judged, too."""

    def __init__(self, judge: Judge | None = None) -> None:
        self._judge = judge
        self.found: list[Cause] = []
        self._budget = expression.Budget()
        self._over = False

    def value(self, value: Any, old: Any, schema: Schema, path: str, resource: bool) -> None:
        if self._over or value is None:
            return
        if schema.get(RULES):
            self._rules(value, old, schema, path, resource)
        if isinstance(value, dict):
            before = old if isinstance(old, dict) else {}
            for key, inner in value.items():
                sub = None if resource and key == "metadata" else child(schema, key)
                if sub:
                    at = join(path, key) if key in (schema.get("properties") or {}) else f"{path}[{key}]"
                    self.value(inner, before.get(key, ABSENT), sub, at, bool(sub.get(EMBEDDED)))
        elif isinstance(value, list):
            inside = items_of(schema)
            former = former_items(schema, old)
            for index, inner in enumerate(value):
                self.value(inner, former(inner), inside, f"{path}[{index}]", bool(inside.get(EMBEDDED)))

    def _rules(self, value: Any, old: Any, schema: Schema, path: str, resource: bool) -> None:
        mine = converted(value, schema, resource)
        before = ABSENT if old is ABSENT or old is None else converted(old, schema, resource)
        for rule in schema[RULES]:
            if self._over or not (rule.get("rule") or "").strip():
                continue
            if self._judge is not None and (fault := self._judge(rule, schema, resource)):
                self.found.append(invalid(path, _kind(schema), f"rule compile error: {fault}"))
                continue
            optional = bool(rule.get("optionalOldSelf"))
            transition = expression.mentions(rule["rule"], "oldSelf")
            if transition and before is ABSENT and not optional:
                continue
            if self._judge is None and not transition and old is not ABSENT and value == old:
                continue
            given = {"self": mine}
            if transition:
                given["oldSelf"] = ([] if before is ABSENT else [before]) if optional else before
            self._rule(rule, schema, given, value, path)

    def _rule(self, rule: dict[str, Any], schema: Schema, given: dict[str, Any], value: Any, path: str) -> None:
        kind = _kind(schema)
        said = rule.get("message") or rule["rule"].strip()
        shown = rule.get("message") or f"failed rule: {said}"
        path = path or "<nil>"
        try:
            program = _compiled(rule["rule"], schema, bool(rule.get("optionalOldSelf")))
            if program.evaluate(_full(given), self._budget) is True:
                return
        except expression.OutOfBudget as error:
            self._over = True
            self.found.append(invalid(path, kind, f"'{error}': no further validation rules will be run due to call "
                                      f"cost exceeds limit for rule: {said}" if self._budget.left
                                      else _NO_BUDGET))
            return
        except expression.CompileError as error:
            self.found.append(invalid(path, kind, f"rule compile error: {error}"))
            return
        except expression.EvaluationError as error:
            text = str(error)
            self.found.append(invalid(path, kind, f"'{text}': call arguments did not match a supported operator, "
                                      f"function or macro signature for rule: {said}"
                                      if text.startswith("no such overload") else f"{text} evaluating rule: {said}"))
            return
        self.found.append(_cause(rule, schema, path, kind, value, self._message(rule, schema, given) or shown))

    def _message(self, rule: dict[str, Any], schema: Schema, given: dict[str, Any]) -> str:
        """What the messageExpression says; "" where it says nothing usable."""
        if not rule.get("messageExpression"):
            return ""
        try:
            said = _compiled(rule["messageExpression"], schema, bool(rule.get("optionalOldSelf"))).evaluate(
                _full(given), self._budget)
        except ValueError:
            return ""
        text = said.strip() if isinstance(said, str) else ""
        return "" if "\n" in text or len(text) > MAX_MESSAGE else text


def _kind(schema: Schema) -> str:
    return "string" if schema.get(INT_OR_STRING) else str(schema.get("type") or "object")


def _full(given: dict[str, Any]) -> dict[str, Any]:
    """Every declared variable has a value; a rule that does not mention oldSelf never looks at it."""
    return given if "oldSelf" in given else {**given, "oldSelf": given["self"]}


def _cause(rule: dict[str, Any], schema: Schema, path: str, kind: str, value: Any, message: str) -> Cause:
    at = f"{path}.{structural.field_path(rule['fieldPath'], schema)[0]}".removeprefix("<nil>.") \
        if rule.get("fieldPath") else path
    reason = rule.get("reason")
    if reason == "FieldValueForbidden":
        return forbidden(at, message)
    if reason == "FieldValueRequired":
        return required(at, message)
    if reason == "FieldValueDuplicate":
        return duplicate(at, value)
    return invalid(at, kind, message)


def ruled(schema: Schema) -> bool:
    """Whether any node has rules."""
    return any(node.get(RULES) for _, node in structural.nodes(schema))

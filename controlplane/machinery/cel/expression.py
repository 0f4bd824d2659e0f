"""CEL expressions: compiled once, evaluated within a budget, with Kubernetes' functions.

Owns the one place that loads the CEL library (16 MB, loaded when the first expression is compiled) and the shape of its
answers: a `Program` evaluates plain JSON values to plain values, and every failure is a `CompileError` or an
`EvaluationError` with upstream's text. The library ends an evaluation after PER_CALL iterations; what all evaluations
for one object take together is bounded here, by an estimate from how deep their loops nest and how long the collections
are they may run over, for the library does not tell what it spent. Called by the validation
rules of custom resources and by admission policies.

Upstream: k8s.io/apiserver/pkg/cel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from controlplane.machinery.cel import macros

MAX_EXPRESSION = 16 * 1024  # characters; compiling is linear in it, and upstream's parser refuses about as much
PER_CALL = 10_000  # iterations of all loops of one evaluation: the library's own limit, which cannot be moved
PER_OBJECT = 1_000_000  # iterations of all evaluations for one object or request: a fraction of a second
COMPILED = 2048  # programs kept; some 10 kB each, and rules repeat in every write of their kind
ENVIRONMENTS = 64  # sets of variables with their types
_LOOPS = re.compile(r"\.\s*(?:all|exists|exists_one|existsOne|map|filter|transform(?:List|Map|MapEntry))\s*\(")
_STRINGS = re.compile(r"""[rR]?("{3}.*?"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""", re.DOTALL)
_NOISE = re.compile(r"^(?:[A-Z_]+: )?(.*?)(?: \[[A-Z_]+\])?$", re.DOTALL)
_MISSING = re.compile(r'Key not found in map : "?(.*?)"?$')
_INDEX = re.compile(r"Index error: index=(-?\d+)")
# The messages that CEL has types of its own for.
_WELL_KNOWN: dict[str, Any] = {
    ".google.protobuf.Value": lambda t: t.DYN, ".google.protobuf.ListValue": lambda t: t.List(t.DYN),
    ".google.protobuf.Struct": lambda t: t.Map(t.STRING, t.DYN), ".google.protobuf.Timestamp": lambda t: t.TIMESTAMP,
    ".google.protobuf.Duration": lambda t: t.DURATION}
TYPES = ("BOOL", "BYTES", "DOUBLE", "DURATION", "DYN", "INT", "STRING", "TIMESTAMP")


class CompileError(ValueError):
    """The expression is wrong; the text shows where."""


class EvaluationError(ValueError):
    """The expression gave no value for these variables."""


class OutOfBudget(EvaluationError):  # noqa: N818 - it says what happened
    """The expression would have cost too much."""

    def __init__(self) -> None:
        super().__init__("operation cancelled: actual cost limit exceeded")


class Budget:
    """What the expressions for one object may still cost together."""

    def __init__(self, limit: int = PER_OBJECT) -> None:
        self.left = limit

    def spend(self, cost: int) -> None:
        """Raises OutOfBudget."""
        if cost > self.left:
            self.left = 0
            raise OutOfBudget
        self.left -= cost


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. `returns` is its static type: BOOL, STRING, …, or DYN when that shows only later."""

    text: str
    returns: str
    depth: int  # of nested loops
    compiled: Any

    def evaluate(self, variables: Mapping[str, Any], budget: Budget | None = None) -> Any:
        """The value, as plain Python. Raises EvaluationError, OutOfBudget among them."""
        if budget is not None:
            budget.spend(cost(self.depth, variables.values()))
        try:
            found = self.compiled.eval(data=dict(variables))
        except RuntimeError as error:
            if "Iteration budget exceeded" in str(error):
                raise OutOfBudget from None
            raise EvaluationError(plain(str(error))) from None
        if found.type().name() == "ERROR":
            if "Iteration budget exceeded" in str(found.value()):
                raise OutOfBudget
            raise EvaluationError(_worded(plain(str(found.value()))))
        return found.plain_value()


def cost(depth: int, values: Any) -> int:
    """An upper bound of the iterations of `depth` nested loops over these values, PER_CALL at most. Pure."""
    if not depth:
        return 1
    longest = max((n for value in values for n in _lengths(value)), default=1)
    return int(min(max(longest, 1) ** depth, PER_CALL))


def _lengths(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        yield len(value)
        for inner in value.values():
            yield from _lengths(inner)
    elif isinstance(value, list):
        yield len(value)
        for inner in value:
            yield from _lengths(inner)


def loops(expression: str) -> int:
    """How deep the loops of an expression nest. Pure."""
    text = _STRINGS.sub("''", expression)
    starts = {m.end() - 1 for m in _LOOPS.finditer(text)}
    open_, deepest = [], 0
    for at, character in enumerate(text):
        if character == "(":
            open_.append(at in starts)
            deepest = max(deepest, sum(open_))
        elif character == ")" and open_:
            open_.pop()
    return deepest


def without_strings(expression: str) -> str:
    """The expression with its string literals blanked, every other character in its place. Pure."""
    return _STRINGS.sub(lambda m: " " * len(m.group(0)), expression)


def spelled(expression: str) -> str:
    """The expression as the library can say it."""
    from controlplane.machinery.cel import library
    expression = macros.rewritten(expression, without_strings(expression))
    return library.rewritten(expression, without_strings(expression)) if "validate" in expression else expression


def mentions(expression: str, variable: str) -> bool:
    """Whether an expression uses a variable. Pure."""
    return re.search(rf"(?<![\w.]){variable}\b", _STRINGS.sub("''", expression)) is not None


def plain(text: str) -> str:
    """The library's text without its own noise."""
    match = _NOISE.match(text.strip())
    return match.group(1).rstrip() if match else text


def _worded(text: str) -> str:
    """The library's text in upstream's words."""
    if found := _MISSING.search(text):
        return f"no such key: {found.group(1)}"
    if found := _INDEX.search(text):
        return f"index out of bounds: {found.group(1)}"
    if text.startswith(("No matching overloads", "Applying SELECT to non-message type")):
        return "no such overload"
    return {"divide by zero": "division by zero", "modulus by zero": "modulus by zero"}.get(text, text)


def timestamp(seconds: float) -> Any:
    """Seconds since the epoch as CEL's timestamp."""
    from google.protobuf import timestamp_pb2
    made = timestamp_pb2.Timestamp()
    made.FromMicroseconds(round(seconds * 1e6))
    return made


def duration(seconds: float) -> Any:
    """Seconds as CEL's duration."""
    from google.protobuf import duration_pb2
    made = duration_pb2.Duration()
    made.FromMicroseconds(round(seconds * 1e6))
    return made


@lru_cache(ENVIRONMENTS)
def _environment(variables: tuple[tuple[str, str], ...]) -> Any:
    from cel_expr_python import cel
    types = {"LIST": cel.Type.List(cel.Type.DYN), "MAP": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)}
    return cel.NewEnv(variables={name: types.get(kind) or getattr(cel.Type, kind) for name, kind in variables},
                      extensions=_extensions(cel))


def _extensions(cel: Any) -> list[Any]:
    """What upstream's environment has, and bindings for our own use: nobody else's get through `macros`."""
    from cel_expr_python.ext import ext_bindings, ext_optional, ext_strings

    from controlplane.machinery.cel import library
    return [ext_strings.ExtStrings(), ext_optional.ExtOptional(), ext_bindings.ExtBindings(),
            cel.CelExtension("kubernetes", library.declarations(cel))]  # last: it adds to functions of the others


def typed_environment(file: Any, kinds: Mapping[str, tuple[str, str]], inner: Mapping[str, tuple[str, str]]) -> Any:
    """The library's environment for checking expressions over the messages of `file`. `kinds` and `inner` are the
    protobuf type and type name of each variable, and of the elements of those that are a LIST or MAP."""
    from cel_expr_python import cel
    from google.protobuf import descriptor_pool, duration_pb2, struct_pb2, timestamp_pb2
    pool = descriptor_pool.DescriptorPool()
    for known in (duration_pb2, struct_pb2, timestamp_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())

    def type_of(kind: str, name: str) -> Any:
        if kind == "MESSAGE":
            return _WELL_KNOWN[name](cel.Type) if name in _WELL_KNOWN else cel.Type(name[1:])
        return getattr(cel.Type, "INT" if kind == "INT64" else kind)
    variables = {}
    for name, (kind, type_name) in kinds.items():
        if kind == "LIST":
            variables[name] = cel.Type.List(type_of(*inner[name]))
        elif kind == "MAP":
            variables[name] = cel.Type.Map(cel.Type.STRING, type_of(*inner[name]))
        else:
            variables[name] = type_of(kind, type_name)
    return cel.NewEnv(descriptor_pool=pool, variables=variables, extensions=_extensions(cel))


@lru_cache(COMPILED)
def compile_(expression: str, variables: tuple[tuple[str, str], ...], optional: str = "") -> Program:
    """The program of an expression over `variables`, pairs of name and type (one of TYPES, LIST or MAP).

    `optional` names a variable the expression sees as an optional: it is given as a list of none or one value.
    Raises CompileError."""
    if len(expression) > MAX_EXPRESSION:
        raise CompileError(f"expression code point size exceeds limit: size: {len(expression)}, limit {MAX_EXPRESSION}")
    text = spelled(expression)
    if optional:
        variables = tuple((n, "LIST" if n == optional else k) for n, k in variables)
        text = f"cel.bind({optional}, {optional}.size() == 0 ? optional.none() : optional.of({optional}[0]), {text}\n)"
    try:
        compiled = _environment(variables).compile(text)
    except RuntimeError as error:
        raise CompileError(f"compilation failed: {plain(str(error))}") from None
    return Program(expression, compiled.return_type().name(), loops(expression), compiled)

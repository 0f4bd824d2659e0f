"""The small JSONPath of printer columns and selectable fields.

Owns parsing (once) and evaluation of `.spec.replicas`, `['a.b']`, `[0]`, `[-1]`, `[*]`, `\\.` escapes and filters
such as `[?(@.type=="Ready")]`, with or without surrounding braces. Whatever does not exist yields nothing. Pure.
Called by the tables of custom resources.

Upstream: k8s.io/client-go/util/jsonpath.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

KEPT = 512  # parsed paths: the columns of a few dozen kinds
Step = Callable[[Any], Iterable[Any]]

_TOKEN = re.compile(r"""
    \.\.(?P<deep>[\w$-]+) | \.(?P<field>(?:\\.|[^.\[\]\\])+) | \[\s*(?P<index>-?\d+)\s*\] | \[\s*(?P<all>\*)\s*\]
    | \[\s*'(?P<single>[^']*)'\s*\] | \[\s*"(?P<double>[^"]*)"\s*\]
    | \[\?\(\s*@(?P<path>[^=!<>]*?)\s*(?:(?P<op>==|!=|<=|>=|<|>)\s*(?P<value>"[^"]*"|'[^']*'|[^)]*?))?\s*\)\]
""", re.VERBOSE)


@dataclass(frozen=True, slots=True)
class Path:
    """A parsed path: call it with a value for all that it finds."""

    steps: tuple[Step, ...]

    def __call__(self, value: Any) -> list[Any]:
        found = [value]
        for step in self.steps:
            found = [inner for one in found for inner in step(one)]
        return found


@lru_cache(KEPT)
def parse(text: str) -> Path:
    """The path of a text. Raises ValueError."""
    inner = text.strip()
    if inner.startswith("{") and inner.endswith("}"):
        inner = inner[1:-1]
    inner = inner.removeprefix("$")
    if inner and inner[0] not in ".[":
        inner = "." + inner
    steps: list[Step] = []
    at = 0
    while at < len(inner):
        match = _TOKEN.match(inner, at)
        if match is None:
            if inner[at:] == ".":
                break
            raise ValueError(f"unrecognized text in JSONPath: {inner[at:]!r}")
        steps.append(_step(match))
        at = match.end()
    return Path(tuple(steps))


def _step(match: re.Match[str]) -> Step:
    parts = match.groupdict()
    if parts["deep"] is not None:
        return _deep(parts["deep"])
    if parts["field"] is not None:
        name = re.sub(r"\\(.)", r"\1", parts["field"])
        return _every if name == "*" else _field(name)
    if parts["index"] is not None:
        return _index(int(parts["index"]))
    if parts["all"] is not None:
        return _every
    if parts["path"] is not None:
        return _filter(parse(parts["path"] or "."), parts["op"] or "", parts["value"] or "")
    return _field(parts["single"] if parts["single"] is not None else parts["double"])


def _field(name: str) -> Step:
    def step(value: Any) -> Iterable[Any]:
        return (value[name],) if isinstance(value, dict) and name in value else ()
    return step


def _index(at: int) -> Step:
    def step(value: Any) -> Iterable[Any]:
        return (value[at],) if isinstance(value, list) and -len(value) <= at < len(value) else ()
    return step


def _every(value: Any) -> Iterable[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()


def _deep(name: str) -> Step:
    def step(value: Any) -> Iterable[Any]:
        if isinstance(value, dict) and name in value:
            yield value[name]
        for inner in _every(value):
            yield from step(inner)
    return step


def _filter(path: Path, operator: str, literal: str) -> Step:
    wanted = _literal(literal)

    def holds(item: Any) -> bool:
        found = path(item)
        if not operator:
            return bool(found)
        return any(_compare(one, operator, wanted) for one in found)

    return lambda value: [item for item in _every(value) if holds(item)]


def _literal(text: str) -> Any:
    if text[:1] in ("'", '"'):
        return text[1:-1]
    try:
        return orjson.loads(text) if text else ""
    except orjson.JSONDecodeError:
        return text


def _compare(left: Any, operator: str, right: Any) -> bool:
    if operator == "==":
        return bool(left == right)
    if operator == "!=":
        return bool(left != right)
    try:
        return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator])
    except TypeError:
        return False

"""Request bodies: bytes of JSON, YAML or Kubernetes protobuf to plain objects.

Owns the choice by media type and the dangers of each format: fields given twice, aliases that explode, values JSON does
not have, nesting that would exhaust the stack. Promises that what it returns can be encoded as JSON again. YAML is read
as Kubernetes' tools read it: keys become text, times stay text. Answers are not its business. Pure. Called by the
apiserver for every body; costs some microseconds for the usual ones.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import orjson

from controlplane.machinery.errors import UnsupportedMediaType

JSON = "application/json"
YAML = "application/yaml"
PROTOBUF = "application/vnd.kubernetes.protobuf"
APPLY = "application/apply-patch+yaml"
ACCEPTED = (JSON, YAML, PROTOBUF)

MAX_DEPTH = 200  # levels of nesting: the encoder stops at 254, and recursive readers must not exhaust the stack
MAX_YAML_NODES = 500_000  # after aliases are expanded: a body of 3 MiB without aliases holds fewer
MAX_DUPLICATES = 100  # reported; upstream also cuts such lists

_YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml", APPLY})
_INTEGER = r"^(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)$"
_FLOAT = (r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
          r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$")


class Undecodable(ValueError):  # noqa: N818
    """The body is not what its media type says; the text is for the client."""


def media_type(content_type: str) -> str:
    """`application/json; charset=utf-8` → `application/json`; empty means JSON."""
    return content_type.partition(";")[0].strip().lower() or JSON


def decode(body: bytes, content_type: str = JSON, duplicates: list[str] | None = None) -> Any:
    """The value of a body, normally a dict. Fields given twice (the last one counts) are described in `duplicates`
    when a list is given. Raises Undecodable (a ValueError), UnsupportedMediaType."""
    media = media_type(content_type)
    if media == JSON:
        return _json(body, duplicates)
    if media == PROTOBUF:
        from controlplane.machinery import protobuf  # half of the clients never send it
        try:
            return protobuf.decode(body)
        except ValueError as error:
            raise Undecodable(str(error)) from None
    if media in _YAML_TYPES:
        if body.lstrip()[:1] == b"{":
            try:
                return _json(body, duplicates)
            except Undecodable:
                pass  # a YAML flow mapping may begin like that too
        return _yaml(body, duplicates)
    raise UnsupportedMediaType("the body of the request was in an unknown format - accepted media types include: "
                               + ", ".join(ACCEPTED))


# --- JSON ----------------------------------------------------------------------------------------------------------

def _json(body: bytes, duplicates: list[str] | None) -> Any:
    try:
        value = orjson.loads(body)
    except ValueError as error:
        raise Undecodable(f"json parse error: {error}") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise Undecodable("json: exceeded max depth")
    if duplicates is not None and not _same(value, body):
        duplicates += _json_duplicates(body)
    return value


def _same(value: Any, body: bytes) -> bool:
    """Whether encoding gives the body back, as it does for most clients: then nothing was given twice."""
    try:
        return orjson.dumps(value) == body.rstrip()
    except TypeError:
        return False


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        if not level:
            return False
        level = [inner for item in level if isinstance(item, dict | list)
                 for inner in (item.values() if isinstance(item, dict) else item) if isinstance(inner, dict | list)]
    return bool(level)


class _Twice:
    """A value together with the names given twice in it, while the text is read from the inside out."""

    def __init__(self, fields: dict[str, Any], names: list[str]) -> None:
        self.fields, self.names = fields, names


def _json_duplicates(body: bytes) -> list[str]:
    found = False

    def pairs(items: list[tuple[str, Any]]) -> Any:
        nonlocal found
        fields = dict(items)
        if len(fields) == len(items):
            return fields
        found = True
        seen: set[str] = set()
        names = [name for name, _ in items if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
        return _Twice(fields, list(dict.fromkeys(names)))

    value = json.loads(body, object_pairs_hook=pairs)
    if not found:
        return []
    paths: list[str] = []
    _name(value, "", paths)
    return [f'duplicate field "{path}"' for path in paths[:MAX_DUPLICATES]]


def _name(value: Any, path: str, paths: list[str]) -> None:
    if isinstance(value, _Twice):
        paths += [f"{path}.{name}" if path else name for name in value.names]
        value = value.fields
    if isinstance(value, dict):
        for key, inner in value.items():
            _name(inner, f"{path}.{key}" if path else key, paths)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _name(inner, f"{path}[{index}]", paths)


# --- YAML ----------------------------------------------------------------------------------------------------------

@cache
def _loader() -> Any:
    """The safe C loader, reading scalars as Kubernetes' YAML library does: no times, no base-60 numbers."""
    import re

    import yaml

    class Loader(yaml.CSafeLoader):
        yaml_implicit_resolvers = {  # noqa: RUF012 - the library's own class attribute
            first: [(tag, pattern) for tag, pattern in resolvers
                    if tag.rpartition(":")[2] not in ("timestamp", "int", "float")]
            for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()}
        bool_values = {**yaml.CSafeLoader.bool_values, "y": True, "n": False}  # noqa: RUF012

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^[yYnN]$"), list("yYnN"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(_INTEGER), list("-+0123456789"))
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))
    return Loader


def _yaml(body: bytes, duplicates: list[str] | None) -> Any:
    import yaml
    try:
        loader = _loader()(body)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if duplicates is not None:
                _yaml_duplicates(node, duplicates)
            return _plain(loader.construct_document(node), [MAX_YAML_NODES], MAX_DEPTH)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise Undecodable(f"yaml: {where}{getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        text = str(error) if isinstance(error, Undecodable) else f"yaml: {type(error).__name__.lower()}"
        raise Undecodable(text) from None


def _yaml_duplicates(root: Any, found: list[str]) -> None:
    import yaml
    seen: set[int] = set()
    stack = [root]
    while stack and len(found) < MAX_DUPLICATES:
        node = stack.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            stack += reversed(node.value)
            continue
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in keys:
                    found.append(f'line {key.start_mark.line + 1}: key "{key.value}" already set in map')
                keys.add(key.value)
        stack += [value for _, value in reversed(node.value)]


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """A value that JSON has too, with aliases as copies; `budget` is what may still be made."""
    budget[0] -= 1
    if budget[0] < 0:
        raise Undecodable("yaml: document contains excessive aliasing")
    if depth < 0:
        raise Undecodable("yaml: exceeded max depth")
    if isinstance(value, dict):
        return {_key(key): _plain(inner, budget, depth - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, budget, depth - 1) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        raise Undecodable("json: unsupported value: a number that is not finite")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise Undecodable(f"yaml: a value of type {type(value).__name__} has no JSON form")


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int | float):
        return str(key)
    raise Undecodable("yaml: a key must be text")

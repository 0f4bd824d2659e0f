"""Whether a value is what its structural schema says, in upstream's words.

Owns the value validations (types, formats, bounds, enums, patterns, junctors, list types), and ratcheting: on an
update, what did not change is not judged anew, so that a schema may be tightened without locking existing objects.
Items of a list are compared with their former selves only when the list is a map by keys. Pure; nothing is changed.
Called by the apiserver's custom resources and, for defaults, by `rules`.

Upstream: k8s.io/kube-openapi/pkg/validation, apiextensions-apiserver/pkg/apiserver/{validation,schema/listtype}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from controlplane.machinery.checker import RANGES
from controlplane.machinery.errors import (
    Cause,
    duplicate,
    invalid,
    not_supported,
    required,
    too_long,
    too_many,
    type_invalid,
)
from controlplane.machinery.structural import formats
from controlplane.machinery.structural.patterns import PatternError, compiled
from controlplane.machinery.structural.structural import (
    EMBEDDED,
    INT_OR_STRING,
    PRESERVE,
    Schema,
    child,
    items_of,
    join,
)

ABSENT: Any = object()  # no former value to compare with
_NAMES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number",
          type(None): "null"}


def validate(value: Any, schema: Schema, old: Any = ABSENT) -> list[Cause]:
    """What is wrong with a whole object. `old` is the object it replaces."""
    return list(_value(value, schema, "", old, True))


def check(value: Any, schema: Schema, path: str) -> list[Cause]:
    """What is wrong with a part of an object, such as a default."""
    return list(_value(value, schema, path, ABSENT, False))


def _value(value: Any, schema: Schema, path: str, old: Any, resource: bool) -> Iterator[Cause]:
    if old is not ABSENT and value == old and type(value) is type(old):
        return  # ratcheting: what was accepted once stays acceptable until somebody changes it
    if value is None and schema.get("nullable"):
        return
    if not _typed(value, schema):
        yield _type_cause(value, schema, path)
        return
    if value is None:
        return
    if isinstance(value, dict):
        yield from _object(value, schema, path, old, resource)
    elif isinstance(value, list):
        yield from _array(value, schema, path, old)
    elif isinstance(value, str):
        yield from _text(value, schema, path)
    elif not isinstance(value, bool):
        yield from _number(value, schema, path)
    options = schema.get("enum")
    if options is not None and not any(value == option and isinstance(value, bool) == isinstance(option, bool)
                                       for option in options):
        yield not_supported(path, value, [o if isinstance(o, str) else _shown(o) for o in options])
    yield from _junctors(value, schema, path)


def _shown(value: Any) -> str:
    import json
    return json.dumps(value, separators=(",", ":"))


def _typed(value: Any, schema: Schema) -> bool:
    if schema.get(INT_OR_STRING) and not schema.get("type"):
        return value.__class__ in (int, str) or (isinstance(value, float) and value.is_integer())
    kind = schema.get("type")
    if not kind:
        return value is not None or bool(schema.get(PRESERVE))
    if kind == "integer":
        return value.__class__ is int or (isinstance(value, float) and value.is_integer())
    if kind == "number":
        return value.__class__ in (int, float)
    return _NAMES.get(value.__class__) == kind


def _type_cause(value: Any, schema: Schema, path: str) -> Cause:
    wanted = schema.get("type") or ("integer,string" if schema.get(INT_OR_STRING) else "object")
    given = _NAMES.get(value.__class__, "object")
    return type_invalid(path, given, f'{path} in body must be of type {wanted}: "{given}"')


def _object(value: dict[str, Any], schema: Schema, path: str, old: Any, resource: bool) -> Iterator[Cause]:
    size = len(value)
    if (least := schema.get("minProperties")) is not None and size < least:
        yield invalid(path, size, f"{path} in body should have at least {least} properties")
    if (most := schema.get("maxProperties")) is not None and size > most:
        yield too_many(path, size, most)
    for name in schema.get("required") or ():
        if name not in value:
            yield required(join(path, name))
    if schema.get(EMBEDDED):
        for name in ("apiVersion", "kind"):
            if name not in value:
                yield required(join(path, name))
            elif not value[name]:
                yield invalid(join(path, name), value[name], "must not be empty")
    before = old if isinstance(old, dict) else {}
    for key, inner in value.items():
        if key == "metadata" and (resource or schema.get(EMBEDDED)):
            if isinstance(inner, dict):
                yield from _metadata_rules(inner, (schema.get("properties") or {}).get(key), join(path, key))
            continue
        sub = child(schema, key)
        if sub is not None:
            yield from _value(inner, sub, _member(schema, path, key), before.get(key, ABSENT),
                              bool(sub.get(EMBEDDED)))


def _member(schema: Schema, path: str, key: str) -> str:
    """The path of a member: keys of maps with dots are written in brackets, as upstream's field paths are."""
    if key in (schema.get("properties") or {}) or "." not in key:
        return join(path, key)
    return f"{path}[{key}]"


def _metadata_rules(metadata: dict[str, Any], schema: Any, path: str) -> Iterator[Cause]:
    """A schema may restrict name and generateName, and nothing else of the metadata."""
    for name in ("name", "generateName"):
        sub = ((schema or {}).get("properties") or {}).get(name) if isinstance(schema, dict) else None
        if isinstance(sub, dict) and name in metadata:
            yield from _value(metadata[name], sub, join(path, name), ABSENT, False)


def _array(value: list[Any], schema: Schema, path: str, old: Any) -> Iterator[Cause]:
    size = len(value)
    if (least := schema.get("minItems")) is not None and size < least:
        yield invalid(path, size, f"{path} in body should have at least {least} items")
    if (most := schema.get("maxItems")) is not None and size > most:
        yield too_many(path, size, most)
    inside = items_of(schema)
    former = former_items(schema, old)
    for index, inner in enumerate(value):
        yield from _value(inner, inside, f"{path}[{index}]", former(inner), bool(inside.get(EMBEDDED)))
    yield from _unique(value, schema, path)


def former_items(schema: Schema, old: Any) -> Any:
    """A function from an item to its former self, ABSENT where there is none to compare with."""
    if schema.get("x-kubernetes-list-type") != "map" or not isinstance(old, list):
        return lambda item: ABSENT
    by_key = {_key(item, schema): item for item in old}
    return lambda item: by_key.get(_key(item, schema), ABSENT)


def _key(item: Any, schema: Schema) -> Any:
    if not isinstance(item, dict):
        return None
    inside = items_of(schema).get("properties") or {}
    return tuple(_shown(item.get(k, (inside.get(k) or {}).get("default"))) for k in
                 schema.get("x-kubernetes-list-map-keys") or ())


def _unique(value: list[Any], schema: Schema, path: str) -> Iterator[Cause]:
    kind = schema.get("x-kubernetes-list-type")
    if kind not in ("set", "map"):
        return
    seen: set[Any] = set()
    for index, item in enumerate(value):
        if kind == "map" and not isinstance(item, dict):
            continue
        mark = _key(item, schema) if kind == "map" else _sorted(item)
        if mark in seen:
            keys = schema.get("x-kubernetes-list-map-keys") or ()
            yield duplicate(f"{path}[{index}]", {k: item.get(k) for k in keys} if kind == "map" else item)
        seen.add(mark)


def _sorted(value: Any) -> str:
    import json
    return json.dumps(value, sort_keys=True)


def _text(value: str, schema: Schema, path: str) -> Iterator[Cause]:
    if (most := schema.get("maxLength")) is not None and len(value) > most:
        yield too_long(path, most)
    if (least := schema.get("minLength")) is not None and len(value) < least:
        yield invalid(path, value, f"{path} in body should be at least {least} chars long")
    pattern = schema.get("pattern")
    if pattern:
        try:
            fits = compiled(pattern).search(value) is not None
        except PatternError:
            fits = False
        if not fits:
            yield invalid(path, value, f"{path} in body should match '{pattern}'")
    form = schema.get("format")
    if form and not formats.fits(form, value):
        yield invalid(path, value, f'{path} in body must be of type {form}: "{value}"')


def _number(value: float, schema: Schema, path: str) -> Iterator[Cause]:
    most, least, step = schema.get("maximum"), schema.get("minimum"), schema.get("multipleOf")
    if most is not None and (value > most or (schema.get("exclusiveMaximum") and value == most)):
        relation = "less than" if schema.get("exclusiveMaximum") else "less than or equal to"
        yield invalid(path, value, f"{path} in body should be {relation} {_plain(most)}")
    if least is not None and (value < least or (schema.get("exclusiveMinimum") and value == least)):
        relation = "greater than" if schema.get("exclusiveMinimum") else "greater than or equal to"
        yield invalid(path, value, f"{path} in body should be {relation} {_plain(least)}")
    if step and abs(value / step - round(value / step)) > 1e-9:
        yield invalid(path, value, f"{path} in body should be a multiple of {_plain(step)}")
    bounds = RANGES.get(schema.get("format") or "")
    if bounds and not bounds[0] <= value <= bounds[1]:
        yield invalid(path, value, f"{path} in body must be of type {schema['format']}: \"{_plain(value)}\"")


def _plain(number: float) -> str:
    return str(int(number)) if float(number).is_integer() else str(number)


def _junctors(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    """allOf, anyOf, oneOf and not: value validations only, beside the structure."""
    faults = [fault for part in schema.get("allOf") or () for fault in _loose(value, part, path)]
    if faults:
        yield from faults
        yield invalid("<nil>", "", f'"{path}" must validate all the schemas (allOf)')
    if options := schema.get("anyOf"):
        results = [list(_loose(value, part, path)) for part in options]
        if all(results):
            yield invalid("<nil>", "", f'"{path}" must validate at least one schema (anyOf)')
            yield from _closest(results)
    if options := schema.get("oneOf"):
        results = [list(_loose(value, part, path)) for part in options]
        valid = sum(1 for faults in results if not faults)
        if valid != 1:
            why = "Found none valid" if not valid else f"Found {valid} valid alternatives"
            yield invalid("<nil>", "", f'"{path}" must validate one and only one schema (oneOf). {why}')
            if not valid:
                yield from _closest(results)
    if isinstance(schema.get("not"), dict) and not list(_loose(value, schema["not"], path)):
        yield invalid("<nil>", "", f'"{path}" must not validate the schema (not)')


def _closest(results: Iterable[list[Cause]]) -> list[Cause]:
    """The faults of the alternative that came nearest, which is most likely the one that was meant."""
    return min(results, key=len)


def _loose(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    """As `_value`, for a part of a junctor: it names no types, and null is judged like anything else."""
    if isinstance(schema, dict):
        part = schema if schema.get("type") or schema.get(INT_OR_STRING) else {**schema, PRESERVE: True}
        yield from _value(value, part, path, ABSENT, False)

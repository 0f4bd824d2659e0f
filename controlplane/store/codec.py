"""The bytes of an object: canonical JSON, and what is cut out of it or spliced into it without decoding.

Owns the stored form: `{"apiVersion":…,"kind":…,"metadata":{…},…}` with all other keys sorted and without
`metadata.resourceVersion`, because the revision of the log is the version. Two objects that mean the same have the
same bytes, so a write that changes nothing is found by comparing bytes. Splicing works on the first `"metadata":{`:
within a JSON string the quotes would be escaped, so only the key itself can match. Never validates an object. Called by
the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

Object = dict[str, Any]

_METADATA = b'"metadata":{'
_SORTED = orjson.OPT_SORT_KEYS
_HEADS = 512  # kinds × versions a server knows, with room for custom ones; each head is under 200 bytes


@lru_cache(maxsize=_HEADS)
def _head(api_version: str, kind: str) -> bytes:
    return b'{"apiVersion":' + orjson.dumps(api_version) + b',"kind":' + orjson.dumps(kind) + b',"metadata":'


def encode(obj: Object) -> bytes:
    """The stored form of `obj`. Raises TypeError for what JSON cannot hold."""
    metadata = obj.get("metadata") or {}
    if "resourceVersion" in metadata:
        metadata = {key: value for key, value in metadata.items() if key != "resourceVersion"}
    rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
    front = _head(obj.get("apiVersion") or "", obj.get("kind") or "") + orjson.dumps(metadata, option=_SORTED)
    if not rest:
        return front + b"}"
    return front + b"," + orjson.dumps(rest, option=_SORTED)[1:]


def body(value: bytes, revision: int) -> bytes:
    """The stored form with `metadata.resourceVersion` spliced in: what clients get."""
    at = value.index(_METADATA) + len(_METADATA)
    comma = b"" if value[at:at + 1] == b"}" else b","
    return b'%b"resourceVersion":"%d"%b%b' % (value[:at], revision, comma, value[at:])


def bare(data: bytes) -> bytes:
    """An item of a typed list: without apiVersion and kind."""
    return b"{" + data[data.index(_METADATA):]


def decode(data: bytes) -> Object:
    """The object of stored or served bytes."""
    return orjson.loads(data)  # type: ignore[no-any-return]

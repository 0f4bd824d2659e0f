"""Objects constructed in CEL: `Object{spec: Object.spec{replicas: 3}}` and `JSONPatch{op: "add", …}`.

Owns the rewriting of these literals into maps, which is what they come to: their type names only say where in the
object they stand. Everything else of an expression stays as it is. Also declares `jsonpatch.escapeKey`. Pure. Called by
the mutating policies; the function is declared by `library`.

Upstream: k8s.io/apiserver/pkg/cel/mutation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_TOKEN = re.compile(
    r"""(?P<string>[rRbB]{0,2}(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'))"""
    r"""|(?P<comment>//[^\n]*)"""
    r"""|(?P<type>(?<![\w.])(?:Object(?:\.[A-Za-z_]\w*)*|JSONPatch)\s*\{)"""
    r"""|(?P<name>`[^`]+`|[A-Za-z_]\w*)"""
    r"""|(?P<other>.)""", re.DOTALL)


def as_maps(expression: str) -> str:
    """The expression with maps in the place of constructed objects."""
    made: list[str] = []
    braces: list[bool] = []  # of each open bracket: whether it is a constructed object's
    field = False  # whether a field's name may come next
    for found in _TOKEN.finditer(expression):
        kind, text = found.lastgroup, found.group()
        if kind == "type":
            made.append("{")
            braces.append(True)
            field = True
            continue
        if kind == "name" and field and braces and braces[-1]:
            made.append('"' + text.strip("`") + '"')
            field = False
            continue
        made.append(text)
        if text in ("{", "(", "["):
            braces.append(False)
            field = False
        elif text in ("}", ")", "]"):
            if braces:
                braces.pop()
            field = False
        elif text == "," and braces and braces[-1]:
            field = True
        elif kind != "comment" and not text.isspace() and text != "?":
            field = False
    return "".join(made)


def escape_key(text: str) -> str:
    """A key as one step of a JSON pointer."""
    return text.replace("~", "~0").replace("/", "~1")


def rows(t: Any) -> list[tuple[str, Any, list[Any], bool, Callable[..., Any]]]:
    """Name, result, arguments, member and function; `t` is the library's Type."""
    return [("jsonpatch.escapeKey", t.STRING, [t.STRING], False, escape_key)]

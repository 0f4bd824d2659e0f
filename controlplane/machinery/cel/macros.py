"""Loops of two variables, as the library can say them.

`l.all(i, v, p)` goes over the places and items of a list, or the keys and values of a map. The library's loops have one
variable: ours go over pairs, and bind both halves to their names. Pure. Called by `expression`.

Upstream: github.com/google/cel-go/ext/comprehensions.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

ENTRIES, MERGED = "kubernetesEntries", "kubernetesMerged"  # members of any list or map, and of any list of maps
PAIR = "kubernetesPair"  # and a number: the loop's own variable
_MACRO = re.compile(r"\.\s*(all|exists|exists_one|existsOne|transformList|transformMap|transformMapEntry)\s*\(")
_NAMES = {"existsOne": "exists_one", "transformList": "map", "transformMap": "map", "transformMapEntry": "map"}
_NAME = re.compile(r"\s*[A-Za-z_]\w*\s*")
_OURS_ALONE = re.compile(r"(?<![\w.])cel\s*\.\s*bind\b")  # upstream's environment has no such macro
Edit = tuple[int, int, str]  # from, to, what stands there instead


def entries(value: Any) -> list[list[Any]]:
    """The pairs a loop of two variables goes over. Raises ValueError of what cannot be gone over."""
    if not isinstance(value, dict | list):
        raise ValueError("no such overload")
    return [list(pair) for pair in (value.items() if isinstance(value, dict) else enumerate(value))]


def merged(maps: list[dict[Any, Any]]) -> dict[Any, Any]:
    """One map of all. Raises ValueError where two have a key in common."""
    made: dict[Any, Any] = {}
    for one in maps:
        for key, value in one.items():
            if key in made:
                raise ValueError(f"insert failed: key '{key}' already exists")
            made[key] = value
    return made


def rewritten(expression: str, plain: str) -> str:
    """The expression without loops of two variables. `plain`: the expression with its strings blanked."""
    edits: list[Edit] = [(found.end(), found.end(), "s") for found in _OURS_ALONE.finditer(plain)]
    if found := list(_MACRO.finditer(plain)):
        calls = _calls(plain)
        for number, match in enumerate(found):
            if match.end() - 1 in calls:
                edits += _edits(plain, match, *calls[match.end() - 1], f"{PAIR}{number}")
    for start, end, text in sorted(edits, reverse=True):
        expression = expression[:start] + text + expression[end:]
    return expression


def _calls(plain: str) -> dict[int, tuple[list[int], int]]:
    """Of every opened parenthesis: where the commas between its parts are, and where it is closed."""
    open_: list[tuple[int, list[int]]] = []
    found: dict[int, tuple[list[int], int]] = {}
    for at, character in enumerate(plain):
        if character in "([{":
            open_.append((at, []))
        elif character == "," and open_:
            open_[-1][1].append(at)
        elif character in ")]}" and open_:
            start, commas = open_.pop()
            found[start] = commas, at
    return found


def _edits(plain: str, match: re.Match[str], commas: list[int], close: int, pair: str) -> Iterator[Edit]:
    """What makes one loop over pairs of a loop of two variables; nothing where it has one."""
    name = match[1]
    if len(commas) not in ((2, 3) if name.startswith("transform") else (2,)):
        return
    first, second = plain[match.end():commas[0]], plain[commas[0] + 1:commas[1]]
    if not _NAME.fullmatch(first) or not _NAME.fullmatch(second):
        return
    bind, bound = f" cel.bind({first}, {pair}[0], cel.bind({second}, {pair}[1],", "))"
    yield match.start(), match.end(), f".{ENTRIES}().{_NAMES.get(name, name)}({pair},"
    yield match.end(), commas[1] + 1, bind
    if len(commas) == 3:
        yield commas[2], commas[2] + 1, f"{bound},{bind}"
    if name == "transformMap":
        yield commas[-1] + 1, commas[-1] + 1, f" {{{pair}[0]:"
    yield close, close + 1, ("}" if name == "transformMap" else "") + f"{bound})" + (
        f".{MERGED}()" if name.startswith("transformMap") else "")

"""A part of a settings file, read strictly: each value by its type, each mistake with its place. Pure.

Owns the sentences about mistakes in the form of a file. Called by `configuration` and `profiles`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.errors import Finding

_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Part:
    """A mapping in a file, and the path to it, "" for the whole."""

    given: Mapping[str, Any]
    path: str

    def at(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def refused(self, field: str, why: str, fix: str) -> Finding:
        """To be raised: what is wrong with a field."""
        return Finding(f"{self.at(field)} {why}", fix=fix)

    def only(self, *known: str) -> None:
        """Raises Finding for a field that is not known."""
        for field in self.given:
            if field not in known:
                raise self.refused(field, "is no known field", f"take it out; known are {', '.join(sorted(known))}")

    def _value(self, field: str, kind: type | tuple[type, ...], called: str) -> Any:
        value = self.given.get(field)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise self.refused(field, f"is {value!r}", f"give {called}")
        return value

    def text(self, field: str, default: str = "") -> str:
        return self._value(field, str, "a text") or default

    def texts(self, field: str) -> list[str]:
        found = self._value(field, list, "a list of texts") or []
        if not all(isinstance(one, str) for one in found):
            raise self.refused(field, f"is {found!r}", "give a list of texts")
        return list(found)

    def truth(self, field: str) -> bool:
        return bool(self._value(field, bool, "true or false"))

    def number(self, field: str, default: float, least: float, most: float = math.inf) -> float:
        value = self._value(field, (int, float), "a number")
        if value is None:
            return default
        if not least <= value <= most:
            bounds = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
            raise self.refused(field, f"is {value:g}", f"give a number {bounds}")
        return float(value)

    def seconds(self, field: str, default: float) -> float:
        """A duration such as 100ms or 1m30s."""
        text = self._value(field, str, "a duration such as 5s")
        if text is None:
            return default
        if not _DURATION.fullmatch(text):
            raise self.refused(field, f"is {text!r}", "give a duration such as 5s")
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text))

    def mapping(self, field: str) -> Part:
        """The part under a field; an empty one where there is none."""
        return Part(self._value(field, dict, "a mapping") or {}, self.at(field))

    def parts(self, field: str) -> list[Part]:
        """The parts of a list of mappings."""
        found = []
        for number, value in enumerate(self._value(field, list, "a list") or ()):
            if not isinstance(value, dict):
                raise self.refused(f"{field}[{number}]", f"is {value!r}", "give a mapping")
            found.append(Part(value, f"{self.at(field)}[{number}]"))
        return found

"""Resource quantities: `100m`, `1.5Gi`, `2e3` as exact numbers with upstream's one canonical spelling.

A quantity is a whole number of nano-units (upstream keeps no finer grain and rounds what is finer away from zero) and
the family of suffixes it was written in, which the canonical text keeps. Immutable and hashable; equal when the number
is equal. Whoever counts cpu, memory or storage calls this: defaults, validation, the scheduler, the kubelet.

Upstream: k8s.io/apimachinery/pkg/api/resource.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

_SHAPE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
_NUMERIC = "unable to parse numeric part of quantity"
_SUFFIX = "unable to parse quantity's suffix"
_PARTS = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?([eEinumkKMGTP]*[-+]?[0-9]*)")
_EXPONENT = re.compile(r"[eE]([+-]?[0-9]+)")
_NANO = 10**9
_MAX = (2**63 - 1) * _NANO  # upstream caps what is larger
_EXPONENT_MAX = 100  # 1e100 is far beyond the cap; an unbounded exponent would be an attack on memory
_REMEMBERED = 4096  # parsed texts kept: the same few quantities stand in every pod

DECIMAL, BINARY, EXPONENT = "DecimalSI", "BinarySI", "DecimalExponent"
_TENS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TWOS = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_TEN_NAMES = {power: suffix for suffix, power in _TENS.items()}
_TWO_NAMES = ("", *_TWOS)


@dataclass(frozen=True, slots=True, order=True)
class Quantity:
    """`nano` units of 10⁻⁹; `form` is the family of suffixes and takes no part in comparisons."""

    nano: int
    form: str = field(default=DECIMAL, compare=False)

    def value(self) -> int:
        """Whole units, rounded away from zero: bytes of memory."""
        return _away(self.nano, _NANO)

    def milli(self) -> int:
        """Thousandths, rounded away from zero: cpu."""
        return _away(self.nano, 10**6)

    def __add__(self, other: Quantity) -> Quantity:
        return Quantity(self.nano + other.nano, self.form if self.nano else other.form)

    def __sub__(self, other: Quantity) -> Quantity:
        return Quantity(self.nano - other.nano, self.form if self.nano else other.form)

    def __bool__(self) -> bool:
        return self.nano != 0

    def __str__(self) -> str:
        if self.nano == 0:
            return "0"
        if self.form == BINARY and abs(self.nano) >= 1024 * _NANO:
            number, steps = self.value(), 0
            while steps < 6 and number % 1024 == 0:
                number, steps = number // 1024, steps + 1
            return f"{number}{_TWO_NAMES[steps]}"
        number, power = self.nano, -9
        while number % 1000 == 0 and power < 18:
            number, power = number // 1000, power + 3
        if self.form == EXPONENT:
            return f"{number}e{power}" if power else str(number)
        return f"{number}{_TEN_NAMES[power]}"


def _away(number: int, by: int) -> int:
    """`number` divided, rounded away from zero as upstream rounds."""
    return -(-number // by) if number > 0 else number // by


def parse(text: str | int | float) -> Quantity:
    """The quantity a text (or a JSON number) stands for. Raises ValueError in upstream's words."""
    return _parse(text if isinstance(text, str) else str(text))


@lru_cache(_REMEMBERED)
def _parse(text: str) -> Quantity:
    if text == "":
        raise ValueError(_SHAPE)
    found = _PARTS.fullmatch(text)
    if found is None:
        raise ValueError(_SHAPE)
    sign, whole, fraction, suffix = found.groups()
    digits = whole + (fraction or "")
    power, twos, form = _scale(suffix)
    if not digits:
        raise ValueError(_NUMERIC)
    # exact: digits * 10^power * 2^twos, in nanos, rounded away from zero
    power += 9 - len(fraction or "")
    number = int(digits) << twos
    number = number * 10**power if power >= 0 else -(-number // 10**-power)
    number = min(number, _MAX)
    if form == BINARY and 0 < number < _NANO:
        form = DECIMAL
    return Quantity(-number if sign == "-" else number, form)


def _scale(suffix: str) -> tuple[int, int, str]:
    """(power of ten, power of two, family) of a suffix."""
    if suffix in _TENS:
        return _TENS[suffix], 0, DECIMAL
    if suffix in _TWOS:
        return 0, _TWOS[suffix], BINARY
    found = _EXPONENT.fullmatch(suffix)
    if found is None:
        raise ValueError(_SUFFIX)
    return max(-_EXPONENT_MAX, min(int(found[1]), _EXPONENT_MAX)), 0, EXPONENT


def canonical(text: str | int | float) -> str:
    """The one spelling upstream stores: `0.05` is `50m`, `1000` is `1k`."""
    return str(parse(text))


def add(*texts: str) -> Quantity:
    """The sum, in the family of the first that is not zero."""
    total = Quantity(0)
    for text in texts:
        total += parse(text)
    return total


def compare(left: str, right: str) -> int:
    """Negative, zero or positive as `left` is less than, equal to or greater than `right`."""
    a, b = parse(left).nano, parse(right).nano
    return (a > b) - (a < b)

"""What CEL's functions cost, and how large what they return may be, from the sizes of what they are given.

Owns the numbers of upstream's estimate for CEL's own functions and those of Kubernetes, and the arithmetic of sizes,
which stays at the largest 64-bit number as upstream's does. Pure. Called by `costs`.

Upstream: github.com/google/cel-go/checker/cost.go, k8s.io/apiserver/pkg/cel/library/cost.go.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery.cel.shapes import Shape

LIST, MAP, STRUCT = 10, 30, 40  # of making one
TRAVERSAL, REGEX = 0.1, 0.25  # per character
REGEX_OF_FORMAT = 128  # characters of the longest expression behind a named format
MAX = 2**64 - 1  # where upstream's numbers end: sums and products stay there
NOMINAL = frozenset((
    "serviceAccount", "path", "group", "resource", "subresource", "namespace", "name", "allowed", "reason", "error",
    "errored", "masked", "prefixLength", "family", "isUnspecified", "isLoopback", "isLinkLocalMulticast",
    "isLinkLocalUnicast", "isGlobalUnicast", "sign", "asInteger", "isInteger", "asApproximateFloat", "isGreaterThan",
    "isLessThan", "compareTo", "add", "sub", "major", "minor", "patch", "getScheme", "getHostname", "getHost",
    "getPort", "getEscapedPath", "getQuery"))
_ORDERED = frozenset(f"{sign}_{kind}" for sign in ("less", "less_equals", "greater", "greater_equals")
                     for kind in ("string", "bytes"))
Size = tuple[int, int]  # fewest and most items, entries or characters
Entries = tuple[str, Size, Size]  # what of: list or map; sizes of its keys and values
UNKNOWN: Size = (0, MAX)
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of an expression: the most it costs, where its value lies below `self`, and how large that is."""

    cost: int
    path: Path = ()
    size: Size | None = None
    entries: Entries | None = None
    type: Shape = field(default_factory=lambda: Shape("dyn"))
    literal: Any = None

    @property
    def known(self) -> Size:
        return self.size or UNKNOWN


def add(*sizes: Size) -> Size:
    return min(MAX, sum(s[0] for s in sizes)), min(MAX, sum(s[1] for s in sizes))


def union(a: Size, b: Size) -> Size:
    return min(a[0], b[0]), max(a[1], b[1])


def times(a: int, b: int) -> int:
    return min(MAX, a * b)


def scaled(size: int, factor: float) -> int:
    """A size at a cost per unit, rounded up."""
    product = float(size) * factor
    return MAX if product >= 2.0**64 else math.ceil(product)


def of_text(name: str, target: Value | None, given: list[Value]) -> tuple[int, Size | None] | None:
    """Functions that read a text: the target of a method, the first argument of others."""
    if name == "check":
        return 350_000, None
    if name in ("fieldSelector", "labelSelector"):
        length = given[0].known[1]
        return min(MAX, LIST + scaled(length, TRAVERSAL) + scaled(scaled(length, 0.5), LIST + STRUCT)), None
    if name in ("lowerAscii", "upperAscii", "substring", "trim") and target is not None:
        return scaled(target.known[1], TRAVERSAL), target.known
    if name == "replace" and target is not None and len(given) >= 2:
        return scaled(target.known[1], 2 * TRAVERSAL), _replaced(target.known, given[0].known, given[1].known)
    if name == "split" and target is not None:
        most = given[1].literal if len(given) > 1 and isinstance(given[1].literal, int) else target.known[1]
        return scaled(target.known[1], 2 * TRAVERSAL), (0, most)
    if name in ("find", "findAll") and target is not None:
        read = scaled(min(MAX, target.known[1] + 1), TRAVERSAL)
        return times(read, scaled(given[0].known[1], REGEX)), (0, target.known[1])
    if name in ("containsIP", "containsCIDR"):
        text = given[0].type.kind == "string"
        work = (4 if name == "containsIP" else 7) + (scaled(given[0].known[1], TRAVERSAL) if text else 0)
        return min(MAX, work), None
    if name == "ip" and target is not None:
        return 1, None
    if name == "ip.isCanonical":
        return scaled(given[0].known[1], 2 * TRAVERSAL), None
    if name == "kubernetes.faults":  # of a named format
        return scaled(scaled(given[-1].known[1], TRAVERSAL), REGEX_OF_FORMAT * REGEX), None
    if name == "url":
        return scaled(given[0].known[1], TRAVERSAL), given[0].known
    if name in ("cidr", "isIP", "isCIDR", "ip", "quantity", "isQuantity", "semver", "isSemver") and given:
        return scaled(given[0].known[1], TRAVERSAL), None
    return None


def _replaced(text: Size, old: Size, new: Size) -> Size:
    """How long a text may be with every `old` in it replaced by `new`."""
    if old[0] == 0:
        most = add((0, times(min(MAX, text[1] + 1), new[1])), (0, text[1]))[1]
    elif new[1] <= old[0]:
        most = text[1]
    else:
        most = times(math.ceil(text[1] / old[0]), new[1])
    if old[1] == 0:
        least = (text[0] + 1) * new[0] + text[0]
    elif old[1] <= new[0]:
        least = text[0]
    else:
        least = times(math.ceil(text[0] / old[1]), new[0])
    return least, most


def by_overload(overload: str, target: Value | None, given: list[Value]) -> tuple[int, Size | None]:
    """The functions of CEL itself."""
    sizes = [value.known for value in given]
    if overload == "string_format" and target is not None:
        return scaled(target.known[1], TRAVERSAL), None
    if overload == "string_to_bytes":
        return scaled(sizes[0][1], TRAVERSAL), (sizes[0][0], times(sizes[0][1], 4))
    if overload == "bytes_to_string":
        return scaled(sizes[0][1], TRAVERSAL), (sizes[0][0] // 4, sizes[0][1])
    if overload == "strings_quote":
        return scaled(sizes[0][1], TRAVERSAL), (sizes[0][0] + 2, min(MAX, 2 * sizes[0][1] + 2))
    if overload in ("starts_with_string", "ends_with_string"):
        return scaled(sizes[0][1], TRAVERSAL), None
    if overload == "in_list":
        return sizes[1][1], None
    if overload in ("matches", "matches_string"):
        text, pattern = (target.known, sizes[0]) if target is not None else (sizes[0], sizes[1])
        return times(scaled(min(MAX, text[1] + 1), TRAVERSAL), scaled(pattern[1], REGEX)), None
    if overload == "contains_string" and target is not None:
        return times(scaled(target.known[1], TRAVERSAL), scaled(sizes[0][1], TRAVERSAL)), None
    if overload in ("add_string", "add_bytes"):
        return scaled(add(*sizes)[1], TRAVERSAL), add(*sizes)
    if overload == "add_list":
        return 1, add(*sizes)
    if overload in ("equals", "not_equals") or overload in _ORDERED:
        return scaled(min(sizes[0][1], sizes[1][1]), TRAVERSAL), None
    return 1, None

"""What Kubernetes adds to CEL: lists, sets, regex, URLs, quantities, addresses, versions, formats.

Owns the functions as plain Python, and `declarations()`, which hands them to the library. Values CEL has no type for
are maps with one key that names their kind, such as `{"quantity": "1500000000"}`; their content is canonical, so that
`==` means what people expect. A function that cannot give an answer raises ValueError, which ends the evaluation
with that text. Pure. Called by `expression`, which is the only one to load the library.

Upstream: k8s.io/apiserver/pkg/cel/library.
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from controlplane.machinery import names, quantity
from controlplane.machinery.cel import authorizer, constructed, macros
from controlplane.machinery.structural import formats

Tagged = dict[str, Any]
_SEMVER = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?")
_FORMATS: dict[str, Callable[[str], list[str]]] = {
    "dns1123Label": names.dns_label, "dns1123Subdomain": names.dns_subdomain, "dns1035Label": names.dns_1035_label,
    "qualifiedName": names.qualified_name, "labelValue": names.label_value,
    "dns1123LabelPrefix": lambda text: names.dns_label(text.rstrip("-")),
    "dns1123SubdomainPrefix": lambda text: names.dns_subdomain(text.rstrip("-")),
    "dns1035LabelPrefix": lambda text: names.dns_1035_label(text.rstrip("-")),
    **{name: lambda text, name=name: _typed(name, text)  # type: ignore[misc]
       for name in ("uri", "uuid", "byte", "date", "datetime")}}
NANO = 10**9  # of which quantities are whole numbers


def valid(parse: Callable[[str], Any]) -> Callable[[str], bool]:
    """Whether a text can be parsed."""
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True
    return check


# --- quantities and versions: both compare ---------------------------------------------------------------------------

def parse_quantity(text: str) -> Tagged:
    return as_quantity(quantity.parse(text).nano)


def as_quantity(nano: int) -> Tagged:
    """A quantity as expressions hold it: as text, for CEL's integers end at nine billion whole units of it."""
    return {"quantity": str(nano)}


def _nano(value: Any) -> int:
    """Of a quantity or a plain number."""
    return int(value["quantity"]) if isinstance(value, dict) else quantity.parse(value).nano


def parse_semver(text: str) -> Tagged:
    if _SEMVER.fullmatch(text) is None:
        raise ValueError(f"No Major.Minor.Patch elements found in {text!r}")
    return {"semver": text.partition("+")[0]}


def _order(value: Any) -> Any:
    """What tagged values are compared by."""
    if not isinstance(value, dict) or "semver" not in value:
        return _nano(value)
    match = _SEMVER.fullmatch(value["semver"])
    assert match is not None
    before = match[4]
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in before.split(".")] if before else []
    return [*map(int, match.groups()[:3]), 0 if before else 1, parts]


def compare(left: Any, right: Any) -> int:
    a, b = _order(left), _order(right)
    return (a > b) - (a < b)


def as_integer(value: Tagged) -> int:
    whole, rest = divmod(_nano(value), NANO)
    if rest:
        raise ValueError("cannot convert value to integer")
    return whole


def major(value: Tagged) -> int:
    return int(value["semver"].split(".")[0])


def minor(value: Tagged) -> int:
    return int(value["semver"].split(".")[1])


def patch(value: Tagged) -> int:
    return int(re.split(r"[.-]", value["semver"])[2])


# --- lists, sets, text ------------------------------------------------------------------------------------------------

def is_sorted(items: list[Any]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(items))


def smallest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("min called on empty list")
    return min(items)


def largest(items: list[Any]) -> Any:
    if not items:
        raise ValueError("max called on empty list")
    return max(items)


def find(text: str, pattern: str) -> str:
    match = re.search(pattern, text)
    return match.group(0) if match else ""


def find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    found = [m.group(0) for m in re.finditer(pattern, text)]
    return found if limit < 0 else found[:limit]


def place(items: list[Any], item: Any, order: Iterable[int]) -> int:
    """The first place in this order that has such an item, -1 when none has."""
    return next((at for at in order if items[at] == item), -1)


def contains(left: list[Any], right: list[Any]) -> bool:
    return all(item in left for item in right)


# --- URLs and addresses -----------------------------------------------------------------------------------------------

def parse_url(text: str) -> Tagged:
    parts = urlsplit(text)
    if not (parts.scheme or text.startswith("/")) or any(c.isspace() for c in text):
        raise ValueError(f'URL parse error during conversion from string: parse "{text}": invalid URI for request')
    return {"url": text}


def host(value: Tagged) -> str:
    return urlsplit(value["url"]).netloc.rpartition("@")[2]


def parse_ip(text: str) -> Tagged:
    if "%" in text:
        raise ValueError(f"IP Address {text!r} parse error during conversion from string: IP address with zone value "
                         "is not allowed")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"IP Address {text!r} parse error during conversion from string") from None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise ValueError(f"IPv4-mapped IPv6 address {text!r} is not allowed")
    return {"ip": str(address)}


def parse_cidr(text: str) -> Tagged:
    try:
        if "/" not in text:
            raise ValueError(text)
        return {"cidr": str(ipaddress.ip_interface(text))}
    except ValueError:
        raise ValueError(f"network address parse error during conversion from string: {text!r}") from None


def address(value: Any) -> Any:
    return ipaddress.ip_address(value["ip"] if isinstance(value, dict) else value)


def network(value: Any) -> Any:
    return ipaddress.ip_interface(value["cidr"] if isinstance(value, dict) else value).network


def contains_cidr(value: Any, inner: Any) -> bool:
    outer, given = network(value), network(inner)
    return bool(outer.version == given.version and given.subnet_of(outer))


def ip_of(value: Any) -> Tagged:
    return parse_ip(value) if isinstance(value, str) else {"ip": value["cidr"].partition("/")[0]}


# --- formats ---------------------------------------------------------------------------------------------------------

_VALIDATE = re.compile(r"""format\s*\.\s*(?:(\w+)\(\s*\)|named\(\s*['"](\w+)['"]\s*\)\s*\.\s*value\(\s*\))
                           \s*\.\s*validate\s*\(""", re.VERBOSE)


def _typed(name: str, text: str) -> list[str]:
    return [] if formats.fits(name, text) else [f"must be of type {name}"]


def faults(name: str, text: str) -> list[str]:
    """What is wrong with a text of a named format."""
    if name not in _FORMATS:
        raise ValueError(f"no such format: {name}")
    return _FORMATS[name](text)


def rewritten(expression: str, plain: str) -> str:
    """The expression with `format.x().validate(y)`, an optional list, as the library can say it: its functions cannot
    give optionals. `plain` is the expression with its strings blanked, where parentheses are counted."""
    while match := _VALIDATE.search(expression):
        depth, at = 1, match.end()
        while at < len(plain) and depth:
            depth += {"(": 1, ")": -1}.get(plain[at], 0)
            at += 1
        front = f"optional.ofNonZeroValue(kubernetes.faults('{match[1] or match[2]}', "
        expression = f"{expression[:match.start()]}{front}{expression[match.end():at]}){expression[at:]}"
        plain = f"{plain[:match.start()]}{' ' * len(front)}{plain[match.end():at]} {plain[at:]}"
    return expression


def declarations(cel: Any) -> list[Any]:
    """The functions as the library's declarations. Overloads differ by the number of arguments and the receiver."""
    t = cel.Type
    dyn, text, flag, number, many = t.DYN, t.STRING, t.BOOL, t.INT, t.List(t.DYN)
    rows: list[tuple[str, Any, list[Any], bool, Callable[..., Any]]] = [
        ("isSorted", flag, [many], True, is_sorted), ("sum", dyn, [many], True, sum),
        ("min", dyn, [many], True, smallest), ("max", dyn, [many], True, largest),
        ("indexOf", number, [many, dyn], True, lambda items, item: place(items, item, range(len(items)))),
        ("lastIndexOf", number, [many, dyn], True, lambda items, item: place(items, item, range(len(items))[::-1])),
        (macros.ENTRIES, t.List(many), [dyn], True, macros.entries),
        (macros.MERGED, t.Map(dyn, dyn), [many], True, macros.merged),
        ("find", text, [text, text], True, find), ("findAll", t.List(text), [text, text], True, find_all),
        ("findAll", t.List(text), [text, text, number], True, find_all),
        ("sets.contains", flag, [many, many], False, contains),
        ("sets.equivalent", flag, [many, many], False, lambda a, b: contains(a, b) and contains(b, a)),
        ("sets.intersects", flag, [many, many], False, lambda a, b: any(item in a for item in b)),
        ("quantity", dyn, [text], False, parse_quantity), ("isQuantity", flag, [text], False, valid(parse_quantity)),
        ("sign", number, [dyn], True, lambda v: compare(v, 0)),
        ("isInteger", flag, [dyn], True, lambda v: _nano(v) % NANO == 0),
        ("asInteger", number, [dyn], True, as_integer),
        ("asApproximateFloat", t.DOUBLE, [dyn], True, lambda v: _nano(v) / NANO),
        ("add", dyn, [dyn, dyn], True, lambda a, b: as_quantity(_nano(a) + _nano(b))),
        ("sub", dyn, [dyn, dyn], True, lambda a, b: as_quantity(_nano(a) - _nano(b))),
        ("compareTo", number, [dyn, dyn], True, compare),
        ("isLessThan", flag, [dyn, dyn], True, lambda a, b: compare(a, b) < 0),
        ("isGreaterThan", flag, [dyn, dyn], True, lambda a, b: compare(a, b) > 0),
        ("semver", dyn, [text], False, parse_semver), ("isSemver", flag, [text], False, valid(parse_semver)),
        ("major", number, [dyn], True, major), ("minor", number, [dyn], True, minor),
        ("patch", number, [dyn], True, patch),
        ("url", dyn, [text], False, parse_url), ("isURL", flag, [text], False, valid(parse_url)),
        ("getScheme", text, [dyn], True, lambda v: urlsplit(v["url"]).scheme), ("getHost", text, [dyn], True, host),
        ("getHostname", text, [dyn], True, lambda v: urlsplit(v["url"]).hostname or ""),
        ("getPort", text, [dyn], True, lambda v: str(urlsplit(v["url"]).port or "")),
        ("getEscapedPath", text, [dyn], True, lambda v: urlsplit(v["url"]).path),
        ("getQuery", dyn, [dyn], True, lambda v: parse_qs(urlsplit(v["url"]).query, keep_blank_values=True)),
        ("ip", dyn, [text], False, parse_ip), ("ip", dyn, [dyn], True, ip_of),
        ("isIP", flag, [text], False, valid(parse_ip)),
        ("ip.isCanonical", flag, [text], False, lambda v: parse_ip(v)["ip"] == v),
        ("family", number, [dyn], True, lambda v: address(v).version),
        ("isUnspecified", flag, [dyn], True, lambda v: address(v).is_unspecified),
        ("isLoopback", flag, [dyn], True, lambda v: address(v).is_loopback),
        ("isLinkLocalUnicast", flag, [dyn], True, lambda v: address(v).is_link_local),
        ("isLinkLocalMulticast", flag, [dyn], True, lambda v: address(v) in _LINK_MULTICAST[address(v).version]),
        ("isGlobalUnicast", flag, [dyn], True, lambda v: not (
            address(v).is_loopback or address(v).is_multicast or address(v).is_unspecified
            or address(v).is_link_local)),
        ("cidr", dyn, [text], False, parse_cidr), ("isCIDR", flag, [text], False, valid(parse_cidr)),
        ("containsIP", flag, [dyn, dyn], True, lambda c, i: address(i) in network(c)),
        ("containsCIDR", flag, [dyn, dyn], True, contains_cidr),
        ("masked", dyn, [dyn], True, lambda c: {"cidr": str(network(c))}),
        ("kubernetes.faults", t.List(text), [text, text], False, faults),
        ("prefixLength", number, [dyn], True, lambda c: network(c).prefixlen),
        *authorizer.rows(t), *constructed.rows(t),
    ]
    grouped: dict[str, list[Any]] = {}
    for index, (name, result, arguments, member, work) in enumerate(rows):
        grouped.setdefault(name, []).append(cel.Overload(f"k8s_{index}", result, arguments, member, work))
    return [cel.FunctionDecl(name, overloads) for name, overloads in grouped.items()]


_LINK_MULTICAST = {4: ipaddress.ip_network("224.0.0.0/24"), 6: ipaddress.ip_network("ff02::/16")}

"""The string and number formats a schema of a custom resource may name, and whether a text fits one.

An unknown format says nothing, as upstream. Pure. Called by `values` and the CEL conversion of values.

Upstream: k8s.io/kube-openapi/pkg/validation/strfmt.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from controlplane.machinery.clock import parse_rfc3339

_HEX = "[0-9a-f]"
_UUID = rf"{_HEX}{{8}}-?{_HEX}{{4}}-?{{v}}{_HEX}{{3}}-?{_HEX}{{4}}-?{_HEX}{{12}}"
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*\.?")
_DURATION = re.compile(r"[-+]?(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w))+)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
          "w": 604800.0}


def _attempt(parse: Callable[[str], object]) -> Callable[[str], bool]:
    def fits_(text: str) -> bool:
        try:
            parse(text)
        except (ValueError, TypeError, binascii.Error):
            return False
        return True
    return fits_


def _uri(text: str) -> object:
    parts = urlsplit(text)
    if not parts.scheme or any(c.isspace() for c in text):
        raise ValueError(text)
    return parts


def _matches(pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda text: compiled.fullmatch(text) is not None


def duration(text: str) -> float:
    """Seconds of a Go duration such as `1h30m`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    total = sum(float(number) * _UNITS[unit] for number, unit in
                re.findall(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d|w)", text))
    return -total if text.startswith("-") else total


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _attempt(datetime.date.fromisoformat), "date-time": _attempt(parse_rfc3339),
    "datetime": _attempt(parse_rfc3339), "duration": _attempt(duration),
    "byte": _attempt(lambda text: base64.b64decode(text, validate=True)),
    "ipv4": _attempt(ipaddress.IPv4Address), "ipv6": _attempt(ipaddress.IPv6Address),
    "cidr": _attempt(lambda text: ipaddress.ip_interface(text) if "/" in text else ipaddress.ip_address("")),
    "uri": _attempt(_uri), "email": _matches(r"[^@\s]+@[^@\s]+"),
    "hostname": lambda text: len(text) <= 255 and _HOSTNAME.fullmatch(text) is not None,
    "mac": _matches(r"([0-9a-f]{2}[:-]){5}[0-9a-f]{2}"),
    "uuid": _matches(_UUID.replace("{v}", _HEX)), "uuid3": _matches(_UUID.replace("{v}", "3")),
    "uuid4": _matches(_UUID.replace("{v}", "4")), "uuid5": _matches(_UUID.replace("{v}", "5")),
    "isbn10": _matches(r"(?:\d[ -]?){9}[\dx]"), "isbn13": _matches(r"(?:\d[ -]?){13}"),
    "isbn": _matches(r"(?:\d[ -]?){9}[\dx]|(?:\d[ -]?){13}"), "ssn": _matches(r"\d{3}[- ]?\d{2}[- ]?\d{4}"),
    "hexcolor": _matches(r"#?([0-9a-f]{3}|[0-9a-f]{6})"),
    "rgbcolor": _matches(r"rgb\(\s*(\d{1,3}%?)\s*,\s*(\d{1,3}%?)\s*,\s*(\d{1,3}%?)\s*\)"),
    "creditcard": _matches(r"(?:\d[ -]?){13,19}"), "bsonobjectid": _matches(r"[0-9a-f]{24}"),
    "k8s-short-name": _matches(r"(?-i:[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)"),
    "k8s-long-name": _matches(r"(?-i:(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*)"),
}


def fits(name: str, text: str) -> bool:
    """Whether a text is of the named format; true for formats nobody defines."""
    known = _FORMATS.get(name)
    return known is None or known(text)

"""What may be a name: validators of names, label keys and values, ports, keys of ConfigMaps and environment variables.

Each takes a text and returns upstream's messages, an empty list when it is fine; the caller wraps them in the field
they belong to. Results for good texts are remembered, for the same names come again on every write.

Upstream: k8s.io/apimachinery/pkg/util/validation.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache

LABEL_MAX = 63
SUBDOMAIN_MAX = 253
PORT_NAME_MAX = 15
GENERATED_MAX = 58  # a generated name keeps this much of its prefix, so that five random letters fit a DNS label
ANNOTATIONS_MAX = 256 << 10  # bytes of all keys and values together
MAX_INT32 = 2**31 - 1  # where fields of seconds, users and groups end
_REMEMBERED = 4096  # answers kept per validator; names and labels repeat, and 4096 short texts are small

Validator = Callable[[str], list[str]]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_UNDERSCORED = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_SEARCHED = rf"{_UNDERSCORED}(\.{_UNDERSCORED})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = f"({_QUALIFIED})?"
_KEY = "[-._a-zA-Z0-9]+"
_HEADER = "[-A-Za-z0-9]+"

_label = re.compile(_LABEL).fullmatch
_subdomain = re.compile(_SUBDOMAIN).fullmatch
_searched = re.compile(_SEARCHED).fullmatch
_label_1035 = re.compile(_LABEL_1035).fullmatch
_qualified = re.compile(_QUALIFIED).fullmatch
_key = re.compile(_KEY).fullmatch
_header = re.compile(_HEADER).fullmatch


def _pattern(message: str, pattern: str, *examples: str) -> str:
    if not examples:
        return f"{message} (regex used for validation is '{pattern}')"
    shown = " or ".join(f"'{e}', " for e in examples)
    return f"{message} (e.g. {shown}regex used for validation is '{pattern}')"


_NOT_LABEL = _pattern("a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must "
                      "start and end with an alphanumeric character", _LABEL, "my-name", "123-abc")
_NOT_SUBDOMAIN = _pattern("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
                          "'.', and must start and end with an alphanumeric character", _SUBDOMAIN, "example.com")
_NOT_SEARCHED = _pattern("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' "
                         "or '.', and must start and end with an alphanumeric character", _SEARCHED, "example.com")
_NOT_1035 = _pattern("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
                     "alphabetic character, and end with an alphanumeric character", _LABEL_1035, "my-name", "abc-123")
_NOT_QUALIFIED = _pattern("must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an "
                          "alphanumeric character", _QUALIFIED, "MyName", "my.name", "123-abc")
_NOT_VALUE = _pattern("a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', "
                      "and must start and end with an alphanumeric character", _VALUE, "MyValue", "my_value", "12345")
_NOT_KEY = _pattern("a valid config key must consist of alphanumeric characters, '-', '_' or '.'", _KEY,
                    "key.name", "KEY_NAME", "key-name")
_NOT_HEADER = _pattern("a valid HTTP header must consist of alphanumeric characters or '-'", _HEADER, "X-Header-Name")
_EMPTY = "must be non-empty"


def too_long(limit: int, unit: str = "characters") -> str:
    """Upstream counts bytes by that name for the parts of a label alone."""
    return f"must be no more than {limit} {unit}"


def in_range(low: int, high: int) -> str:
    return f"must be between {low} and {high}, inclusive"


def dns_label(text: str) -> list[str]:
    """RFC 1123: names of namespaces, services, containers, volumes."""
    found = [too_long(LABEL_MAX)] if len(text) > LABEL_MAX else []
    return found if _label(text) else [*found, "must not contain dots" if _subdomain(text) else _NOT_LABEL]


def dns_1035_label(text: str) -> list[str]:
    found = [too_long(LABEL_MAX)] if len(text) > LABEL_MAX else []
    return found if _label_1035(text) else [*found, _NOT_1035]


@lru_cache(_REMEMBERED)
def _subdomain_faults(text: str, unit: str = "characters") -> tuple[str, ...]:
    found = (too_long(SUBDOMAIN_MAX, unit),) if len(text) > SUBDOMAIN_MAX else ()
    return found if _subdomain(text) else (*found, _NOT_SUBDOMAIN)


def dns_subdomain(text: str) -> list[str]:
    """The default rule for names of objects."""
    return list(_subdomain_faults(text))


def search_path(text: str) -> list[str]:
    """Where resolvers look for short names; a dot alone is the root."""
    found = [too_long(SUBDOMAIN_MAX)] if len(text) > SUBDOMAIN_MAX else []
    return found if text == "." or _searched(text) else [*found, _NOT_SEARCHED]


def path_segment(text: str) -> list[str]:
    """Names that may be anything a URL can carry in one step: roles and role bindings."""
    if text in (".", ".."):
        return [f"may not be '{text}'"]
    return [f"may not contain '{c}'" for c in "/%" if c in text]


@lru_cache(_REMEMBERED)
def _qualified_faults(text: str) -> tuple[str, ...]:
    prefix, slash, rest = text.partition("/")
    if "/" in rest:
        return (f"a valid label key {_NOT_QUALIFIED} with an optional DNS subdomain prefix and '/' "
                "(e.g. 'example.com/MyName')",)
    found: list[str] = []
    if slash:
        found += [f"prefix part {m}" for m in ((_EMPTY,) if not prefix else _subdomain_faults(prefix, "bytes"))]
    last = rest if slash else prefix
    if not last:
        found.append(f"name part {_EMPTY}")
    elif len(last) > LABEL_MAX:
        found.append(f"name part {too_long(LABEL_MAX, 'bytes')}")
    if not _qualified(last):
        found.append(f"name part {_NOT_QUALIFIED}")
    return tuple(found)


def qualified_name(text: str) -> list[str]:
    """`name` or `example.com/name`: keys of labels, resources, finalizers."""
    return list(_qualified_faults(text))


def label_key(text: str) -> list[str]:
    return list(_qualified_faults(text))


def annotation_key(text: str) -> list[str]:
    """As a label's key, whatever the case of its prefix."""
    return list(_qualified_faults(text.lower()))


@lru_cache(_REMEMBERED)
def _value_faults(text: str) -> tuple[str, ...]:
    found = (too_long(LABEL_MAX, "bytes"),) if len(text) > LABEL_MAX else ()
    return found if not text or _qualified(text) else (*found, _NOT_VALUE)


def label_value(text: str) -> list[str]:
    return list(_value_faults(text))


def config_key(text: str) -> list[str]:
    """A key of a ConfigMap or Secret: it becomes a file's name."""
    found = [too_long(SUBDOMAIN_MAX)] if len(text) > SUBDOMAIN_MAX else []
    if not _key(text):
        found.append(_NOT_KEY)
    if text in (".", ".."):
        found.append(f"must not be '{text}'")
    elif text.startswith(".."):
        found.append("must not start with '..'")
    return found


def env_name(text: str) -> list[str]:
    found = [] if text else [f"environment variable name {_EMPTY}"]
    if any(not " " <= c <= "~" or c == "=" for c in text):
        found.append("a valid environment variable name must consist only of printable ASCII characters other than '='")
    return found


def port_number(port: int) -> list[str]:
    return [] if 1 <= port <= 65535 else [in_range(1, 65535)]


def port_name(text: str) -> list[str]:
    found = [too_long(PORT_NAME_MAX)] if len(text) > PORT_NAME_MAX else []
    if not re.fullmatch("[-a-z0-9]+", text):
        found.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", text):
        found.append("must contain at least one letter (a-z)")
    if "--" in text:
        found.append("must not contain consecutive hyphens")
    if text.startswith("-") or text.endswith("-"):
        found.append("must not begin or end with a hyphen")
    return found


def header_name(text: str) -> list[str]:
    return [] if _header(text) else [_NOT_HEADER]


def ip_address(text: str) -> list[str]:
    """Strict: no leading zeros, no zone, no surrounding space."""
    try:
        if "%" in text:
            raise ValueError(text)
        ipaddress.ip_address(text)
    except ValueError:
        return ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"]
    return []


def cidr(text: str) -> list[str]:
    try:
        if "/" not in text or "%" in text:
            raise ValueError(text)
        ipaddress.ip_interface(text)
    except ValueError:
        return ["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"]
    return []


def generated(base: str, suffix: str) -> str:
    """The name made of a generateName and a random suffix, cut so that it stays a DNS label."""
    return base[:GENERATED_MAX] + suffix

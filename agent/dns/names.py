"""What a name asks for, read from the name alone.

Pure. Owns the schema of the cluster's names (services, endpoints, pods, their ports) and of reverse names. Reading says
what is meant, not whether it exists: that is `zone`'s.

Called by `zone`. Upstream: the DNS specification of Kubernetes, schema version 1.1.0.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

Labels = tuple[str, ...]  # lower case, the host first, without the root
PROTOCOLS = ("tcp", "udp", "sctp")


@dataclass(frozen=True, slots=True)
class Asked:
    """`kind`: apex, version, nameserver, branch (exists, holds nothing), namespace, service, endpoint, port, protocol
    (of a service's ports), pod or unknown."""

    kind: str
    namespace: str = ""
    service: str = ""
    endpoint: str = ""  # of a pod: its address with dashes
    port: str = ""
    protocol: str = ""


UNKNOWN = Asked("unknown")


def labels(name: str) -> Labels:
    """`Cluster.Local.` -> (`cluster`, `local`)."""
    return tuple(part for part in name.lower().split(".") if part)


def below(name: Labels, zone: Labels) -> Labels | None:
    """The labels in front of the zone; None for a name elsewhere."""
    if name[len(name) - len(zone):] != zone or len(name) < len(zone):
        return None
    return name[:len(name) - len(zone)]


def read(inside: Labels) -> Asked:
    """What the labels in front of the cluster's domain ask for."""
    match inside:
        case ():
            return Asked("apex")
        case ("dns-version",):
            return Asked("version")
        case ("ns", "dns"):
            return Asked("nameserver")
        case ("svc",) | ("pod",) | ("dns",):
            return Asked("branch")
        case (namespace, "svc" | "pod"):
            return Asked("namespace", namespace)
        case (address, namespace, "pod"):
            return Asked("pod", namespace, endpoint=address)
        case (*rest, service, namespace, "svc"):
            return _in_service(tuple(rest), service, namespace)
    return UNKNOWN


def _in_service(rest: Labels, service: str, namespace: str) -> Asked:
    match rest:
        case ():
            return Asked("service", namespace, service)
        case (protocol,) if protocol.startswith("_"):
            known = protocol[1:] in PROTOCOLS
            return Asked("protocol", namespace, service, protocol=protocol[1:]) if known else UNKNOWN
        case (endpoint,):
            return Asked("endpoint", namespace, service, endpoint)
        case (port, protocol) if port.startswith("_") and protocol.startswith("_"):
            return Asked("port", namespace, service, port=port[1:], protocol=protocol[1:])
    return UNKNOWN


def dashed(address: str) -> str:
    """An address as a label: `10-244-0-5`, `2001-db8--5`; one that would begin with a dash gets a zero first."""
    text = address.replace(".", "-").replace(":", "-")
    return "0" + text if text.startswith("-") else text


def undashed(label: str) -> str:
    """The address a pod's label names, "" when it names none."""
    for text in (label.replace("-", "."), label.replace("-", ":")):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return ""


def reversed_address(name: Labels) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of a whole `in-addr.arpa` or `ip6.arpa` name; None for any other name."""
    if name[-2:] == ("in-addr", "arpa") and len(name) == 6:
        text = ".".join(reversed(name[:4]))
    elif name[-2:] == ("ip6", "arpa") and len(name) == 34 and all(len(n) == 1 for n in name[:32]):
        digits = "".join(reversed(name[:32]))
        text = ":".join(digits[at:at + 4] for at in range(0, 32, 4))
    else:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None

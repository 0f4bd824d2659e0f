"""From service ports to iptables chains.

Pure. Owns the shape of the rules: upstream's chain names and meaning, made lean, for the kernel's work grows with the
number of rules. A connection is sent to a remote endpoint straight from the KUBE-SVC chain; only endpoints on this node
(a pod may reach itself: hairpin) and affinity need a KUBE-SEP chain. KUBE-SERVICES does not list every service but
branches by the last bits of the address, two at a time, so that each new connection passes a few dozen rules however
many services there are; who is to be masqueraded is asked once per leaf. Only the rules that lead to a service say its
name. Every rule is written as iptables-save prints it, so that what is there already can be told from what is not.
`piece` turns one service into its own chains and its lines in shared chains; `RuleSet` keeps the pieces and answers
with exactly the chains a change touches.

Called by `proxy`; written out by `iptables`. Upstream: pkg/proxy/iptables/proxier.go.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial

from agent.proxy.model import Endpoint, ServiceKey, ServicePort
from netsetup.rtnetlink import packed

Chain = tuple[str, str]  # table, chain
Rules = tuple[str, ...]
Hook = tuple[str, str, str]  # table, built-in chain, rule
Line = tuple[int, str]  # of a shared chain: its place among others, and the rule

MASQUERADE_BIT = "0x4000"
MARK = f"{MASQUERADE_BIT}/{MASQUERADE_BIT}"
TABLES = ("nat", "filter")
# Addresses are given out at random: their last bits spread evenly in a range of any size, their first ones do not.
STEP, DEPTH = 2, 10  # last bits of an address that a branch looks at, and that all branches to a leaf do: 1,024 leaves
WHOLE_ADDRESS = {4: "255.255.255.255", 6: ":".join(["ffff"] * 8)}
OWN_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-IPS-")
UNMARK = f"-j MARK --set-xmark 0x0/{MASQUERADE_BIT}"  # no service of the leaf took the packet: it goes as it came
CANARY = "KUBE-PROXY-CANARY"
OUTER, MASKED, INNER, STRAY = range(4)  # places in a leaf: addresses of the outside come before the mark
_LAST = ('-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
         "-m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")

FIXED: dict[Chain, Rules] = {
    ("nat", "KUBE-MARK-MASQ"): (f"-j MARK --set-xmark {MARK}",),
    ("nat", "KUBE-POSTROUTING"): (
        f"-m mark ! --mark {MARK} -j RETURN", f"-j MARK --set-xmark {MASQUERADE_BIT}/0x0",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully'),
    ("nat", CANARY): (), ("filter", CANARY): (),
    ("filter", "KUBE-FORWARD"): (
        "-m conntrack --ctstate INVALID -j DROP",
        f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {MARK} -j ACCEPT',
        '-m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED '
        "-j ACCEPT"),
}
MARTIANS: Rules = (
    '! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "block incoming localnet connections" '
    "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",)
# Shared chains that always exist, with the rules that end them.
SHARED: dict[Chain, Rules] = {
    ("nat", "KUBE-SERVICES"): (_LAST,), ("nat", "KUBE-NODEPORTS"): (), ("filter", "KUBE-SERVICES"): (),
    ("filter", "KUBE-EXTERNAL-SERVICES"): (), ("filter", "KUBE-NODEPORTS"): (), ("filter", "KUBE-PROXY-FIREWALL"): (),
}
_NEW = "-m conntrack --ctstate NEW -m comment --comment"
# Put first in this order reversed, so that the last one here is the first in the kernel.
HOOKS: tuple[Hook, ...] = (
    ("filter", "INPUT", f'{_NEW} "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'),
    ("filter", "INPUT", '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS'),
    ("filter", "INPUT", f'{_NEW} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "INPUT", "-j KUBE-FIREWALL"),
    ("filter", "FORWARD", f'{_NEW} "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES'),
    ("filter", "FORWARD", f'{_NEW} "kubernetes service portals" -j KUBE-SERVICES'),
    ("filter", "FORWARD", '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD'),
    ("filter", "FORWARD", f'{_NEW} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "OUTPUT", f'{_NEW} "kubernetes service portals" -j KUBE-SERVICES'),
    ("filter", "OUTPUT", f'{_NEW} "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'),
    ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
    ("nat", "PREROUTING", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "OUTPUT", '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'),
    ("nat", "POSTROUTING", '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
)


@dataclass(slots=True)
class Piece:
    """What one service adds: chains of its own, and lines in shared ones."""

    own: dict[Chain, Rules] = field(default_factory=dict)
    shared: dict[Chain, list[Line]] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """Chains to write whole, and chains to delete."""

    write: dict[Chain, Rules] = field(default_factory=dict)
    delete: set[Chain] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.write or self.delete)


_NOTHING = Piece()


def chain_hash(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()[:10]).decode()


@lru_cache(maxsize=1024)
def _chance(rest: int) -> str:
    """One of so many, as near as the kernel's 31 bits come to it."""
    return f"-m statistic --mode random --probability {round(2**31 / rest) / 2**31:.11f} " if rest > 1 else ""


@lru_cache(maxsize=2 << DEPTH)
def branches(last: int, family: int) -> tuple[str, tuple[tuple[Chain, Line], ...]]:
    """The leaf of all addresses that end with the bits `last`, KUBE-IPS-10-3F, and the lines of the branches there."""
    address = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    chain, lines = "KUBE-SERVICES", []
    for low in range(0, DEPTH, STEP):
        mask, ending = (1 << STEP) - 1 << low, last & (1 << low + STEP) - 1
        branch = f"KUBE-IPS-{low + STEP}-{ending:X}"
        lines.append((("nat", chain), (INNER, f"-d {address(ending & mask)}/{address(mask)} -j {branch}")))
        chain = branch
    return chain, tuple(lines)


def fixed(family: int) -> dict[Chain, Rules]:
    return {**FIXED, ("filter", "KUBE-FIREWALL"): MARTIANS if family == 4 else ()}


class _Writer:
    """Collects the rules of one service port."""

    def __init__(self, port: ServicePort, pods: str, family: int, piece: Piece) -> None:
        self.port, self.pods, self.family, self.piece = port, pods, family, piece
        self.host = 128 if family == 6 else 32
        unique = chain_hash(port.name + port.protocol)
        self.svc, self.svl = f"KUBE-SVC-{unique}", f"KUBE-SVL-{unique}"
        self.ext, self.fw = f"KUBE-EXT-{unique}", f"KUBE-FW-{unique}"

    def own(self, name: str, rules: Iterable[str]) -> None:
        self.piece.own["nat", name] = tuple(rules)

    def line(self, table: str, chain: str, rule: str, place: int = INNER) -> None:
        self.piece.shared.setdefault((table, chain), []).append((place, rule))

    def says(self, what: str) -> str:
        return f'-m comment --comment "{self.port.name}{" " + what if what else ""}"'

    def to(self, address: str, what: str) -> str:
        port, protocol = self.port.port, self.port.protocol
        return f"-d {address}/{self.host} -p {protocol} -m {protocol} --dport {port} {self.says(what)}"

    def to_node(self, what: str) -> str:
        port, protocol = self.port.node_port, self.port.protocol
        return f"-p {protocol} {self.says(what)} -m addrtype --dst-type LOCAL -m {protocol} --dport {port}"

    def dispatch(self, address: str, what: str, target: str, place: int = OUTER) -> str:
        """The rule in its leaf, and the branches that lead there; the leaf."""
        leaf, lines = branches(int.from_bytes(packed(address)[-2:]) & (1 << DEPTH) - 1, self.family)
        for chain, line in lines:
            self.piece.shared.setdefault(chain, []).append(line)
        self.line("nat", leaf, f"{self.to(address, what)} -j {target}", place)
        return leaf

    def write(self) -> None:
        port = self.port
        self._internal()
        if port.external:
            self._external()
        if port.health_port and port.external_local:
            self.line("filter", "KUBE-NODEPORTS",
                      f"-p tcp {self.says('health check node port')} -m tcp --dport {port.health_port} -j ACCEPT")

    def _internal(self) -> None:
        port = self.port
        target = self.svl if port.internal_local else self.svc
        if port.internal_endpoints:
            leaf = self.dispatch(port.cluster_ip, "cluster IP", target, INNER)
            self.line("nat", leaf, f"! -s {self.pods} -j KUBE-MARK-MASQ", MASKED)
            self.line("nat", leaf, UNMARK, STRAY)
            self.own(target, self._balance(port.internal_endpoints))
        else:
            self.line("filter", "KUBE-SERVICES", self._refusal(partial(self.to, port.cluster_ip)))

    def _refusal(self, match: Callable[[str], str]) -> str:
        if self.port.cluster:
            return f"{match('has no local endpoints')} -j DROP"
        return f"{match('has no endpoints')} -j REJECT --reject-with {self._reject()}"

    def _reject(self) -> str:
        """By ICMP; a connecting IPv6 socket takes that for a passing trouble and tries for another second."""
        if self.family == 4:
            return "icmp-port-unreachable"
        return "tcp-reset" if self.port.protocol == "tcp" else "icmp6-port-unreachable"

    def _external(self) -> None:
        port = self.port
        usable = port.local if port.external_local else port.cluster
        if not usable:
            for address in (*port.external_ips, *port.load_balancer_ips):
                self.line("filter", "KUBE-EXTERNAL-SERVICES", self._refusal(partial(self.to, address)))
            if port.node_port:
                self.line("filter", "KUBE-EXTERNAL-SERVICES", self._refusal(self.to_node))
        if not port.cluster:
            return
        for address in port.external_ips:
            self.dispatch(address, "external IP", self.ext)
        for address in port.load_balancer_ips:
            self.dispatch(address, "loadbalancer IP", self.fw if port.source_ranges else self.ext)
        if port.node_port:
            self.line("nat", "KUBE-NODEPORTS", f"-p {port.protocol} -m {port.protocol} --dport {port.node_port} "
                                               f"{self.says('')} -j {self.ext}")
        if ("nat", self.svc) not in self.piece.own:
            self.own(self.svc, self._balance(port.cluster))
        self.own(self.ext, self._external_chain())
        if port.load_balancer_ips and port.source_ranges:
            self._firewall()

    def _external_chain(self) -> list[str]:
        port, about = self.port, f"for {self.port.name} external destinations"
        if not port.external_local:
            return [f'-m comment --comment "masquerade traffic {about}" -j KUBE-MARK-MASQ', f"-j {self.svc}"]
        local = "-m addrtype --src-type LOCAL"
        found = [f'-s {self.pods} -m comment --comment "pod traffic {about}" -j {self.svc}',
                 f'-m comment --comment "masquerade LOCAL traffic {about}" {local} -j KUBE-MARK-MASQ',
                 f'-m comment --comment "route LOCAL traffic {about}" {local} -j {self.svc}']
        if port.local:
            found.append(f"-j {self.svl}")
            if ("nat", self.svl) not in self.piece.own:
                self.own(self.svl, self._balance(port.local))
        return found

    def _firewall(self) -> None:
        port = self.port
        self.own(self.fw, [f"-s {r} {self.says('loadbalancer IP')} -j {self.ext}" for r in port.source_ranges])
        for address in port.load_balancer_ips:
            match = self.to(address, f"traffic not accepted by {self.fw}")
            self.line("filter", "KUBE-PROXY-FIREWALL", f"{match} -j DROP")

    def _balance(self, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Equal chances: the first of n takes 1/n, the next 1/(n-1) of the rest, the last everything.

        A pod may reach itself through us if it runs here, or comes from elsewhere to a node port it keeps its own
        address for; only then must the source be looked at once more, in a chain of the endpoint's."""
        port, found, rest = self.port, [], len(endpoints)
        every = bool(port.affinity or (port.external_local and port.external))
        if port.affinity:
            for endpoint in endpoints:
                sep = self._sep(endpoint)
                found.append(f"-m recent --rcheck --seconds {port.affinity} --reap {self._client(sep)}-j {sep}")
        for endpoint in endpoints:
            if every or endpoint.local:
                found.append(f"{_chance(rest)}-j {self._sep(endpoint)}")
            else:
                found.append(f"-p {port.protocol} {_chance(rest)}-j DNAT --to-destination {endpoint}")
            rest -= 1
        return found

    def _client(self, sep: str) -> str:
        """Of the match that knows the clients of an endpoint: whose they are, and that each is known by its address."""
        return f"--name {sep} --mask {WHOLE_ADDRESS[self.family]} --rsource "

    def _sep(self, endpoint: Endpoint) -> str:
        port = self.port
        name = f"KUBE-SEP-{chain_hash(port.name + port.protocol + str(endpoint))}"
        remember = f"-m recent --set {self._client(name)}" if port.affinity else ""
        self.own(name, [f"-s {endpoint.address}/{self.host} -j KUBE-MARK-MASQ",
                        f"-p {port.protocol} {remember}-j DNAT --to-destination {endpoint}"])
        return name


def piece(ports: Iterable[ServicePort], pods: str, family: int = 4) -> Piece:
    """All of one service. `pods`: the CIDR whose traffic is not masqueraded."""
    made = Piece()
    for port in ports:
        _Writer(port, pods, family, made).write()
    return made


class RuleSet:
    """Every service's piece, and the chains they make together."""

    def __init__(self, pods: str, family: int = 4) -> None:
        self.pods, self.family = pods, family
        self._new: dict[ServiceKey, Piece] = {}  # what nobody was told of yet
        self._pieces: dict[ServiceKey, Piece] = {}
        self._lines: dict[Chain, dict[ServiceKey, list[Line]]] = {}
        self._last: dict[Chain, Rules] = {}

    def update(self, services: Mapping[ServiceKey, tuple[ServicePort, ...]]) -> None:
        """Take the new ports of some services, () for gone."""
        self._new |= {key: piece(ports, self.pods, self.family) for key, ports in services.items()}

    def change(self) -> Change:
        """What the updates since the last answer (this one's or that of `everything`) change in the kernel."""
        change, touched = Change(), set()
        for key, new in self._new.items():
            old = self._pieces.get(key, _NOTHING)
            change.write.update(new.own if not old.own else {c: r for c, r in new.own.items() if old.own.get(c) != r})
            change.delete |= old.own.keys() - new.own.keys()
            for chain, lines in new.shared.items():
                if old.shared.get(chain) != lines:
                    touched.add(chain)
                    self._lines.setdefault(chain, {})[key] = lines
            for chain in old.shared.keys() - new.shared.keys():
                touched.add(chain)
                self._lines[chain].pop(key, None)
        self._take()
        for chain in touched:
            if not self._lines[chain] and chain not in SHARED:
                del self._lines[chain]
                self._last.pop(chain, None)
                change.delete.add(chain)
                continue
            rules = self._shared(chain)
            if self._last.get(chain) != rules:
                change.write[chain] = self._last[chain] = rules
        change.delete -= change.write.keys()
        return change

    def everything(self) -> dict[Chain, Rules]:
        """Every chain with its rules."""
        self._take()
        found = fixed(self.family)
        self._lines = {}
        for key, made in self._pieces.items():
            found.update(made.own)
            for chain, lines in made.shared.items():
                self._lines.setdefault(chain, {})[key] = lines
        self._last = {chain: self._shared(chain) for chain in SHARED.keys() | self._lines.keys()}
        return found | self._last

    def _take(self) -> None:
        """What is new becomes what there is."""
        self._pieces |= self._new
        for key, new in self._new.items():
            if not new.shared:
                del self._pieces[key]
        self._new = {}

    def _shared(self, chain: Chain) -> Rules:
        lines = {line for lines in self._lines.get(chain, {}).values() for line in lines}
        return (*(rule for _, rule in sorted(lines)), *SHARED.get(chain, ()))

"""From NetworkPolicies to iptables chains.

Pure. Owns what policies mean for the pods of this node: a pod that no policy selects is left alone; of a selected one,
each direction that a policy speaks of is closed but for what the policies' rules let in or out, taken together. Rules
stand in the mangle table, which every packet passes after its destination was translated and before anybody's filter
rules could accept it. Established connections go on whatever changes. A pod may always reach itself, and the node its
own pods.

Chains: PELAMIS-NP sends each new connection through the chain of its sender (NPE) and of its receiver (NPI); those ask
the chains of peers (NPP), shared by all pods of a policy, which answer by a mark; NPB is a block of addresses with
exceptions. Names follow from identities, so a change touches few chains. Called by `policies`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.proxy.rules import Rules, chain_hash
from controlplane.machinery import podfacts, selectors

Obj = dict[str, Any]
PREFIX = "PELAMIS-NP"
DISPATCH = PREFIX
ALLOWED = "0x10000/0x10000"
ALLOW = f"-j MARK --set-xmark {ALLOWED}"
CLEAR = "-j MARK --set-xmark 0x0/0x10000"
HOOKED = ("INPUT", "FORWARD")  # what pods send to this node, and what goes through it; not what the node itself sends


@dataclass(frozen=True, slots=True)
class Pod:
    """What rules need of a pod; `ports`: (name, protocol in lower case, number) of its named ports."""

    namespace: str
    name: str
    address: str
    labels: Mapping[str, str] = field(hash=False)
    ports: tuple[tuple[str, str, int], ...] = ()
    local: bool = False


def pod_of(obj: Obj, node: str, family: int = 4) -> Pod | None:
    """The pod with its address of a family; None while it has none of its own."""
    spec, status, meta = obj.get("spec") or {}, obj.get("status") or {}, obj["metadata"]
    addresses = [str(i.get("ip")) for i in status.get("podIPs") or [{"ip": status.get("podIP", "")}]]
    address = next((a for a in addresses if a and (":" in a) == (family == 6)), "")
    if not address or spec.get("hostNetwork") or podfacts.finished(obj):
        return None
    ports = tuple((p["name"], (p.get("protocol") or "TCP").lower(), p["containerPort"])
                  for c in spec.get("containers") or () for p in c.get("ports") or () if p.get("name"))
    return Pod(meta["namespace"], meta["name"], address, meta.get("labels") or {}, ports, spec.get("nodeName") == node)


def dns_pod(address: str) -> Pod:
    """The cluster's DNS as a peer: policies name it by the labels that it has everywhere."""
    return Pod("kube-system", "kube-dns", address, {"k8s-app": "kube-dns"},
               (("dns", "udp", 53), ("dns-tcp", "tcp", 53), ("metrics", "tcp", 9153)))


def plan(policies: Iterable[Obj], pods: Iterable[Pod], namespaces: Mapping[str, Mapping[str, str]],
         family: int = 4) -> dict[str, Rules]:
    """Every chain with its rules, none when no pod of this node is selected. `pods` with addresses of `family`.

    `namespaces`: their labels."""
    return _Planner(list(pods), namespaces, family).plan(sorted(policies, key=_key))


def types(policy: Obj) -> set[str]:
    """The directions a policy closes."""
    spec = policy.get("spec") or {}
    given = spec.get("policyTypes")
    return set(given) if given else {"Ingress", *(["Egress"] if spec.get("egress") else [])}


def selects(policy: Obj, meta: Obj) -> bool:
    """Whether a policy is about the pod with this metadata."""
    selector = selectors.from_label_selector(policy["spec"].get("podSelector") or {})
    return policy["metadata"]["namespace"] == meta["namespace"] and selector.matches(meta.get("labels") or {})


def _key(policy: Obj) -> tuple[str, str]:
    return policy["metadata"]["namespace"], policy["metadata"]["name"]


class _Planner:
    def __init__(self, pods: list[Pod], namespaces: Mapping[str, Mapping[str, str]], family: int) -> None:
        self.six, self.host = family == 6, 128 if family == 6 else 32
        self.pods = sorted(pods, key=lambda p: (p.namespace, p.name))
        self.namespaces = namespaces
        self.chains: dict[str, Rules] = {}
        self._selected: dict[int, list[Pod]] = {}

    def plan(self, policies: list[Obj]) -> dict[str, Rules]:
        selecting = [(p, selectors.from_label_selector(p["spec"].get("podSelector") or {}), types(p)) for p in policies]
        dispatch = []
        for pod in (p for p in self.pods if p.local):
            for direction, letter, flag in (("Egress", "E", "-s"), ("Ingress", "I", "-d")):
                mine = [p for p, selector, kinds in selecting if direction in kinds
                        and p["metadata"]["namespace"] == pod.namespace and selector.matches(dict(pod.labels))]
                if mine:
                    name = f"{PREFIX}{letter}-{chain_hash(f'{pod.namespace}/{pod.name}')}"
                    self.chains[name] = self._pod(pod, direction, mine)
                    dispatch.append(f"{flag} {pod.address}/{self.host} -j {name}")
        if dispatch:
            self.chains[DISPATCH] = ("-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN", *dispatch, CLEAR)
        return self.chains

    def _pod(self, pod: Pod, direction: str, policies: list[Obj]) -> Rules:
        itself = f"{'-s' if direction == 'Ingress' else '-d'} {pod.address}/{self.host} -j RETURN"
        lines = [itself, CLEAR]
        for policy in policies:
            for index, rule in enumerate(policy["spec"].get(direction.lower()) or ()):
                lines += self._rule(pod, direction, policy, index, rule)
        return (*lines, f"-m mark --mark {ALLOWED} -j RETURN", "-j DROP")

    def _rule(self, pod: Pod, direction: str, policy: Obj, index: int, rule: Obj) -> list[str]:
        """The lines that let in or out what one rule of a policy allows."""
        name = f"{'/'.join(_key(policy))}/{direction}/{index}"
        peers = rule.get("from" if direction == "Ingress" else "to") or []
        ports = rule.get("ports") or [None]
        lines: list[str] = []
        for port in ports:
            number = None if port is None else port.get("port")
            if direction == "Egress" and isinstance(number, str):
                lines += self._named_egress(name, peers, policy, port)
                continue
            target = self._peers(name, direction, peers, policy) if peers else "RETURN"
            lines += [f"{match}-j {target}" for match in _matches(pod, port)]
        return list(dict.fromkeys(lines))

    def _named_egress(self, name: str, peers: list[Obj], policy: Obj, port: Obj) -> list[str]:
        """A named port is each receiver's own: one chain of receivers per number."""
        protocol = (port.get("protocol") or "TCP").lower()
        receivers: dict[int, list[str]] = {}
        for pod in self._pods(peers, policy) if peers else self.pods:
            for named, spoken, number in pod.ports:
                if named == port["port"] and spoken == protocol:
                    receivers.setdefault(number, []).append(f"-d {pod.address}/{self.host} {ALLOW}")
        lines = []
        for number, found in sorted(receivers.items()):
            chain = f"{PREFIX}P-{chain_hash(f'{name}/{protocol}/{number}')}"
            self.chains[chain] = tuple(dict.fromkeys(found))
            lines.append(f"-p {protocol} -m {protocol} --dport {number} -j {chain}")
        return lines

    def _peers(self, name: str, direction: str, peers: list[Obj], policy: Obj) -> str:
        """The chain that marks what comes from, or goes to, the peers of a rule."""
        chain = f"{PREFIX}P-{chain_hash(name)}"
        if chain in self.chains:
            return chain
        flag = "-s" if direction == "Ingress" else "-d"
        known = sorted({p.address for p in self._pods(peers, policy)})
        lines = [f"{flag} {address}/{self.host} {ALLOW}" for address in known]
        for at, peer in enumerate(peers):
            block = peer.get("ipBlock")
            if not block or (":" in block["cidr"]) != self.six:
                continue
            cidr = ipaddress.ip_network(block["cidr"], strict=False)
            holes = [ipaddress.ip_network(e, strict=False) for e in block.get("except") or ()]
            if not holes:
                lines.append(f"{flag} {cidr} {ALLOW}")
                continue
            inner = f"{PREFIX}B-{chain_hash(f'{name}/{at}')}"
            self.chains[inner] = (*(f"{flag} {hole} -j RETURN" for hole in holes), ALLOW)
            lines.append(f"{flag} {cidr} -j {inner}")
        self.chains[chain] = tuple(lines)
        return chain

    def _pods(self, peers: list[Obj], policy: Obj) -> list[Pod]:
        """The pods that any of the peers selects."""
        found: dict[tuple[str, str], Pod] = {}
        for peer in peers:
            if peer.get("ipBlock"):
                continue
            chosen = selectors.from_label_selector(peer.get("podSelector") or {})
            if peer.get("namespaceSelector") is None:
                spaces = {policy["metadata"]["namespace"]}
            else:
                wanted = selectors.from_label_selector(peer["namespaceSelector"])
                spaces = {n for n, labels in self.namespaces.items() if wanted.matches(dict(labels))}
            for pod in self.pods:
                if pod.namespace in spaces and chosen.matches(dict(pod.labels)):
                    found[pod.namespace, pod.name] = pod
        return list(found.values())


def _matches(pod: Pod, port: Obj | None) -> list[str]:
    """The matches for one port of an ingress rule or of a numbered egress rule, each with its final space."""
    if port is None:
        return [""]
    protocol = (port.get("protocol") or "TCP").lower()
    number = port.get("port")
    if number is None:
        return [f"-p {protocol} "]
    if isinstance(number, str):
        return [f"-p {protocol} -m {protocol} --dport {n} " for name, spoken, n in pod.ports
                if name == number and spoken == protocol]
    last = port.get("endPort") or number
    span = f"{number}:{last}" if last != number else str(number)
    return [f"-p {protocol} -m {protocol} --dport {span} "]

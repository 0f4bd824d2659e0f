"""`pelamis trace POD SERVICE:PORT`: where a pod's packet to a service goes, and why.

Walks what the packet would meet, with what is really there: the name is asked of the cluster's DNS, the rules of this
node are the kernel's own, connections that are already under way are shown, and each possible end is named with the
pod behind it. Every rule that matches is printed once, in order. What the policies of another node do to it there is
told by the API. Nothing is changed and no packet is sent but the question for the name.

Exit code 1 when the packet ends in a refusal, on any way that chance could lead it.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import shutil
import socket
import subprocess
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.cli.output import good, say
from controlplane.cli.settings import Settings, load
from controlplane.machinery.errors import ApiError, Finding, NotFound
from controlplane.machinery.paths import Paths

ANSWER_SECONDS = 3.0
SHOWN_FLOWS = 5
REFUSED = ("dropped", "refused")
Obj = dict[str, Any]
EXAMPLES = ("trace web-1 demo:80", "trace web-1 dns.kube-system:dns --protocol udp", "trace web-1 192.168.56.200:80")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("trace", help="where a pod's packet to a service goes, and why")
    parser.add_argument("pod", metavar="POD")
    parser.add_argument("target", metavar="SERVICE:PORT", help="a service (NAME or NAME.NAMESPACE) and its port or "
                        "port's name, or any address and port, such as NODE:NODEPORT or a load balancer's")
    parser.add_argument("-n", "--namespace", default="default", help="the pod's namespace")
    parser.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.set_defaults(run=run, root=True)


@dataclass(frozen=True, slots=True)
class Target:
    """What the packet is for: a service, or an address."""

    namespace: str
    service: str
    port: str
    address: str = ""


@dataclass(slots=True)
class World:
    """What the API says."""

    pod: Obj
    service: Obj | None
    slices: list[Obj] = field(default_factory=list)
    pods: list[Obj] = field(default_factory=list)
    policies: list[Obj] = field(default_factory=list)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)


def parse_target(text: str, namespace: str) -> Target:
    """`demo:80`, `demo.other:http`, `10.96.0.1:443`, `[fd00::1]:80`. Raises Finding."""
    name, colon, port = text.rpartition(":")
    if not colon or not name or not port:
        raise Finding(f"{text} names no port", "the second argument is SERVICE:PORT", "for instance demo:80")
    try:
        return Target("", "", str(int(port)), str(ipaddress.ip_address(name.strip("[]"))))
    except ValueError:
        service, _, other = name.removesuffix(".").partition(".")
        return Target(other.split(".")[0] or namespace, service, port)


def port_number(service: Obj, wanted: str, protocol: str) -> int:
    """The service's port by number or name. Raises Finding naming those it has."""
    ports = [p for p in service["spec"].get("ports") or () if p.get("protocol", "TCP").lower() == protocol]
    for port in ports:
        if wanted in (str(port["port"]), port.get("name")):
            return int(port["port"])
    has = ", ".join(f"{p['name']}({p['port']})" if p.get("name") else str(p["port"]) for p in ports)
    raise Finding(f"service {service['metadata']['name']} has no {protocol} port {wanted}", f"it has {has or 'none'}",
                  f"a node port answers at the nodes' addresses: ADDRESS:{wanted}"
                  if wanted in (str(p.get("nodePort")) for p in ports) else "")


def direct_port(service: Obj, slices: list[Obj], wanted: str, protocol: str) -> tuple[int, str]:
    """The port at the addresses of a service that nothing translates, and a remark. Raises Finding."""
    name = service["metadata"]["name"]
    if service["spec"].get("type") == "ExternalName":
        if not wanted.isdigit():
            raise Finding(f"service {name} has no port {wanted}", "it is an alias, which has no ports of its own",
                          "give the number of a port")
        return int(wanted), f"service {name} is an alias of {service['spec'].get('externalName')}: no rule is for it " \
                            "but for what it leads to"
    offered = {str(p.get("name") or ""): int(p["port"]) for piece in slices for p in piece.get("ports") or ()
               if p.get("port") and p.get("protocol", "TCP").lower() == protocol}
    number = int(wanted) if wanted.isdigit() else offered.get(wanted)
    if number is None:
        port_number(service, wanted, protocol)  # a wrong name is told with those there are
        raise Finding(f"no endpoint of service {name} offers {wanted}", "it has no endpoints with that port")
    if number in offered.values():
        return number, ""
    has = ", ".join(str(port) for port in sorted(set(offered.values()))) or "none"
    return number, f"service {name} is headless, its ports are not translated: its endpoints offer {has}, not {number}"


def destinations(target: Target, world: World, said: list[str], protocol: str) -> tuple[list[tuple[str, int]], str]:
    """Where the packet may be for, and a remark. `said`: the DNS's answer. Raises Finding."""
    service = world.service
    if service is None:
        return [(target.address, int(target.port))], ""
    cluster_ip = service["spec"].get("clusterIP") or ""
    if service["spec"].get("type") != "ExternalName" and cluster_ip != "None":
        number = port_number(service, target.port, protocol)
        old = bool(said) and not set(said) & {cluster_ip, *(service["spec"].get("clusterIPs") or ())}
        return [(cluster_ip, number)], f"but the service's address is {cluster_ip}: the answer is old" if old else ""
    number, remark = direct_port(service, world.slices, target.port, protocol)
    return [(address, number) for address in said], remark


def sentence(end: Obj) -> str:
    """One of the last lines: where the packet ends."""
    known = end["owner"] or ("no pod that is known" if end["verdict"] == "delivered" else "")
    at = end["at"] + (f", {known}" if known else "")
    seen = " (the receiver sees this node's address)" if end["masqueraded"] else ""
    return {"delivered": f"delivered to {at}{seen}",
            "untranslated": f"no rule translates it: it goes as it is to {at}{seen}",
            "dropped": f"DROPPED on its way to {at}: {end['because']}",
            "refused": f"REFUSED on its way to {at}: {end['because']}"}[end["verdict"]]


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    settings = load(paths.etc / "node.json")
    if settings is None:
        raise Finding("this is no node of a cluster", "./pelamis up was not run here", "run it on the pod's node")
    target = parse_target(args.target, args.namespace)
    answer = _trace(settings, target, asyncio.run(_world(paths, args, target)), args)
    if args.output == "json":
        print(json.dumps(answer, indent=2))
    else:
        _show(answer)
    return 1 if any(end["verdict"] in REFUSED for end in answer["ends"]) else 0


async def _world(paths: Paths, args: argparse.Namespace, target: Target) -> World:
    from controlplane.client.config import load as kubeconfig
    from controlplane.client.rest import Client
    from controlplane.machinery.resources import named
    async with Client(kubeconfig(paths.admin_kubeconfig), user_agent="pelamis-trace") as client:
        try:
            world = World(await client.get(named("pods"), args.pod, args.namespace), None)
            if not target.address:
                world.service = await client.get(named("services"), target.service, target.namespace)
                world.slices = (await client.list(named("endpointslices.discovery.k8s.io"), target.namespace,
                                                  labels=f"kubernetes.io/service-name={target.service}"))[0]
        except NotFound as error:
            raise Finding(error.message, "", "kubectl get pods,services -A") from error
        except ApiError as error:
            raise Finding("the API server does not say what this is about", error.message) from error
        world.pods = (await client.list(named("pods")))[0]
        world.policies = (await client.list(named("networkpolicies.networking.k8s.io")))[0]
        world.namespaces = {one["metadata"]["name"]: one["metadata"].get("labels") or {}
                            for one in (await client.list(named("namespaces")))[0]}
    return world


def _trace(settings: Settings, target: Target, world: World, args: argparse.Namespace) -> Obj:
    spec = (world.service or {}).get("spec") or {}
    cluster_ip = target.address or (spec.get("clusterIP") if spec.get("clusterIP") != "None" else "") or ""
    first = (spec.get("ipFamilies") or [""])[0]
    source = _source(world.pod, settings, 6 if ":" in cluster_ip or (first == "IPv6" and not cluster_ip) else
                     4 if cluster_ip or first else 0)
    answer: Obj = {"pod": args.pod, "source": source, "protocol": args.protocol, "name": None, "remark": ""}
    said: list[str] = []
    if world.service is not None:
        name = f"{target.service}.{target.namespace}.svc.{settings.cluster_domain}"
        said, words = _resolve(name, settings.dns_ip, 6 if ":" in (cluster_ip or source) else 4)
        answer["name"] = {"asked": name, "server": settings.dns_ip, "answer": words}
    places, answer["remark"] = destinations(target, world, said, args.protocol)
    if not places:
        raise Finding(f"{target.service}.{target.namespace} has no address: the DNS says {words}",
                      answer["remark"] or "it is headless and has no ready endpoints")
    answer |= {"rules": [], "connections": [], "ends": []}
    for address, port in places:
        _follow(settings, world, answer, address, port)
    return answer


def _source(pod: Obj, settings: Settings, family: int) -> str:
    """The pod's address of a family, of its first one for 0. Raises Finding."""
    name, node = pod["metadata"]["name"], pod["spec"].get("nodeName")
    why = f"./pelamis why pod/{name} -n {pod['metadata']['namespace']}"
    if not node:
        raise Finding(f"pod {name} sends nothing yet", "it is on no node", why)
    if node != settings.node_name:
        raise Finding(f"pod {name} runs on node {node}", "rules are looked at where the packet meets them first",
                      "run this command on that node")
    status = pod.get("status") or {}
    held = [i["ip"] for i in status.get("podIPs") or ()]
    if not held:
        raise Finding(f"pod {name} has no address yet", "its sandbox was not made", why)
    found = next((ip for ip in held if not family or (":" in ip) == (family == 6)), None)
    if found is None:
        raise Finding(f"pod {name} has no address of IPv{family}", f"it has {', '.join(held)}")
    return str(found)


def _resolve(name: str, server: str, family: int) -> tuple[list[str], str]:
    """What the cluster's DNS says: the addresses of `family`, and in words."""
    import dnslib
    question = dnslib.DNSRecord.question(name, "AAAA" if family == 6 else "A")
    try:
        answer = dnslib.DNSRecord.parse(question.send(server, 53, timeout=ANSWER_SECONDS, ipv6=":" in server))
    except (OSError, dnslib.DNSError) as error:
        return [], f"nothing: {error or 'time-out'}"
    found = [str(r.rdata) for r in answer.rr if r.rtype == question.q.qtype]
    return found, ", ".join(found) or dnslib.RCODE[answer.header.rcode]


def _follow(settings: Settings, world: World, answer: Obj, address: str, port: int) -> None:
    """Add to the answer what becomes of the packet to one of its destinations."""
    from agent.proxy import trace
    from netsetup import addresses, xtables
    backend = xtables.detect(6 if ":" in address else 4)
    local = frozenset(addresses.local_addresses())
    packet = trace.Packet(answer["source"], address, answer["protocol"], port, to_node=address in local,
                          from_node=bool(world.pod["spec"].get("hostNetwork")), node_addresses=local)
    trail: trace.Trail = []
    tables = trace.parse(backend.save())
    mapped = _mapped(packet, trail)
    found = trace.ends(tables, packet, trail) if mapped is None else {
        one for outcome in mapped for one in _past(tables, packet, outcome, trail)}
    how = f"iptables-{'nft' if backend.is_nft else 'legacy'}" + ("" if mapped is None else " and nf_tables maps")
    answer["rules"].append({
        "node": settings.node_name, "how": how, "to": trace.endpoint(address, port),
        "matched": [{"chain": c, "rule": r, "note": n} for c, r, n in dict.fromkeys(trail)]})
    answer["connections"] += _flows(answer["source"], address, port, answer["protocol"])
    owners = _owners(world.pods) | dict.fromkeys(local, f"this node, {socket.gethostname()}")
    for end in sorted(found, key=lambda one: (one.at, one.outcome)):
        answer["ends"].append(_ended(settings, world, packet, end, owners))


def _owners(pods: list[Obj]) -> dict[str, str]:
    """Who has an address."""
    found = {str((p.get("status") or {}).get("hostIP")): f"node {p['spec'].get('nodeName')}" for p in pods}
    return found | {i["ip"]: f"pod {p['metadata']['namespace']}/{p['metadata']['name']}" for p in pods
                    if not p["spec"].get("hostNetwork") for i in (p.get("status") or {}).get("podIPs") or ()}


def _ended(settings: Settings, world: World, packet: Any, end: Any, owners: dict[str, str]) -> Obj:
    """An entry of the answer's `ends`."""
    from agent.proxy import tracepolicy
    outcome, _, masked = end.outcome.partition(" ")
    address, _, port = end.at.rpartition(":")
    address = address.strip("[]")
    owner = owners.get(address, "")
    made = {"verdict": {"pass": "untranslated", "DROP": "dropped", "REJECT": "refused"}.get(outcome, "delivered"),
            "at": end.at, "owner": owner, "masqueraded": bool(masked), "because": ""}
    there = next((p for p in world.pods if owner == f"pod {p['metadata']['namespace']}/{p['metadata']['name']}"), None)
    if outcome == "DROP" and end.by.startswith("PELAMIS-NPE"):
        made["because"] = _policies(world, world.pod, "Egress")
    elif outcome == "DROP" and end.by.startswith("PELAMIS-NPI") and there is not None:
        made["because"] = _policies(world, there, "Ingress")
    elif outcome in ("DROP", "REJECT"):
        nobody = outcome == "REJECT" and (not end.by or "has no endpoints" in end.by)
        made["because"] = "the service has no ready endpoints" if nobody else f"by {end.by or 'a rule above'}"
    elif there is not None and (node := there["spec"].get("nodeName")) != settings.node_name:
        arrived = replace(packet, dst=address, dport=int(port), src=settings.node_ip if masked else packet.src)
        if tracepolicy.refuses(world.policies, world.pods, world.namespaces, node, arrived):
            made |= {"verdict": "dropped", "because": f"{_policies(world, there, 'Ingress')} (on node {node})"}
    return made


def _policies(world: World, pod: Obj, direction: str) -> str:
    from agent.proxy import tracepolicy
    names = ", ".join(tracepolicy.limiting(world.policies, pod, direction)) or "a policy that is gone"
    verb = "receive" if direction == "Ingress" else "send"
    return f"NetworkPolicy {names} does not let {pod['metadata']['name']} {verb} it"


def _mapped(packet: Any, trail: Any) -> set[str] | None:
    """What the service proxy's own nf_tables table does; None when services are rules of iptables."""
    from agent.proxy import nftables, nfttrace
    found = nftables.read(6 if ":" in packet.dst else 4)
    return None if found is None else nfttrace.Table(*found).outcomes(packet, trail)


def _past(tables: Any, packet: Any, outcome: str, trail: Any) -> set[Any]:
    """What iptables (policies, others' rules) does to a packet that the maps sent to an endpoint."""
    from agent.proxy import trace
    end = outcome.partition(" ")[0]
    if end in ("DROP", "REJECT"):
        return {trace.End(outcome, trace.endpoint(packet.dst, packet.dport))}
    address, _, port = end.rpartition(":") if end != "pass" else (packet.dst, "", str(packet.dport))
    after = trace.ends(tables, replace(packet, dst=address.strip("[]"), dport=int(port)), trail)
    return {replace(one, outcome=outcome) if one.outcome.startswith("pass") else one for one in after}


def _flows(source: str, destination: str, port: int, protocol: str) -> list[str]:
    """What the kernel's table of connections holds about these two."""
    tool = shutil.which("conntrack", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not tool:
        return ["unknown: conntrack is not installed"]
    done = subprocess.run([tool, "-L", "-p", protocol, "--orig-src", source, "--orig-dst", destination, "--dport",
                           str(port)], capture_output=True, text=True, timeout=30, check=False)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.strip()]
    more = [f"and {len(lines) - SHOWN_FLOWS} more"] if len(lines) > SHOWN_FLOWS else []
    return lines[:SHOWN_FLOWS] + more


def _show(answer: Obj) -> None:
    if name := answer["name"]:
        say(good("DNS"))
        say(f"     {name['server']} says {name['asked']} is {name['answer']}")
    if answer["remark"]:
        say(f"     {answer['remark']}")
    told: set[tuple[str, ...]] = set()
    for part in answer["rules"]:
        say(good(f"Rules of {part['node']}") + f" ({part['how']}), for {answer['protocol']} {answer['source']} -> "
            f"{part['to']}")
        matched = {tuple(rule.values()): None for rule in part["matched"]}
        for chain, rule, note in (one for one in matched if one not in told):
            say(f"     {chain}  {rule}" + (f"   [{note}]" if note else ""))
        if not matched.keys() - told:
            say("     the same as above" if matched else "     no rule concerns it")
        told |= matched.keys()
    say(good("Connections under way"))
    for line in answer["connections"] or ["none"]:
        say(f"     {line}")
    say(good("End"))
    for end in answer["ends"]:
        say(f"     {sentence(end)}")

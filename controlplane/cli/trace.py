"""`pelamis trace POD SERVICE:PORT`: where a pod's packet to a service goes, and why.

Walks what the packet would meet on this node, with what is really there: the name is asked of the cluster's DNS, the
rules are the kernel's own, connections that are already under way are shown, and each possible end is named with the
pod behind it. Every rule that matches is printed, in order. Nothing is changed and no packet is sent but the question
for the name.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from controlplane.cli.output import good, say
from controlplane.cli.settings import Settings, load
from controlplane.machinery.errors import ApiError, Finding, NotFound
from controlplane.machinery.paths import Paths

ANSWER_SECONDS = 3.0
SHOWN_FLOWS = 5
Obj = dict[str, Any]
EXAMPLES = ("trace web-1 demo:80", "trace web-1 dns.kube-system:dns --protocol udp")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("trace", help="where a pod's packet to a service goes, and why")
    parser.add_argument("pod", metavar="POD")
    parser.add_argument("target", metavar="SERVICE:PORT", help="a service (NAME or NAME.NAMESPACE) and its port or "
                                                               "port's name")
    parser.add_argument("-n", "--namespace", default="default", help="the pod's namespace")
    parser.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
    parser.set_defaults(run=run, root=True)


@dataclass(frozen=True, slots=True)
class Target:
    """What the packet is for."""

    namespace: str
    service: str
    port: str


def parse_target(text: str, namespace: str) -> Target:
    """`demo:80`, `demo.other:http`. Raises Finding."""
    name, colon, port = text.rpartition(":")
    if not colon or not name or not port:
        raise Finding(f"{text} names no port", "the second argument is SERVICE:PORT", "for instance demo:80")
    service, _, other = name.removesuffix(".").partition(".")
    return Target(other.split(".")[0] or namespace, service, port)


def port_number(service: Obj, wanted: str, protocol: str) -> int:
    """The service's port by number or name. Raises Finding naming those it has."""
    ports = [p for p in service["spec"].get("ports") or () if p.get("protocol", "TCP").lower() == protocol]
    for port in ports:
        if wanted in (str(port["port"]), port.get("name")):
            return int(port["port"])
    has = ", ".join(f"{p.get('name') or ''}({p['port']})" if p.get("name") else str(p["port"]) for p in ports)
    raise Finding(f"service {service['metadata']['name']} has no {protocol} port {wanted}", f"it has {has or 'none'}")


def verdict(outcomes: set[str], owners: dict[str, str], ready: bool) -> list[str]:
    """The last lines: where the packet ends."""
    lines = []
    for outcome in sorted(outcomes):
        end, _, masked = outcome.partition(" ")
        if end == "pass":
            lines.append("no rule translates it: it goes to the address as it is")
        elif end == "DROP":
            lines.append("DROPPED by the last rule above that matched")
        elif end == "REJECT":
            why = "" if ready else ": the service has no ready endpoints"
            lines.append(f"REFUSED by the last rule above that matched{why}")
        else:
            seen = " (the receiver sees this node's address)" if masked else ""
            lines.append(f"delivered to {end}, {owners.get(end.rpartition(':')[0], 'no pod that is known')}{seen}")
    return lines


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    settings = load(paths.etc / "node.json")
    if settings is None:
        raise Finding("this is no node of a cluster", "./pelamis up was not run here", "run it on the pod's node")
    return asyncio.run(_trace(paths, settings, args))


async def _trace(paths: Paths, settings: Settings, args: argparse.Namespace) -> int:
    from controlplane.client.config import load as kubeconfig
    from controlplane.client.rest import Client
    from controlplane.machinery.resources import named
    target = parse_target(args.target, args.namespace)
    async with Client(kubeconfig(paths.admin_kubeconfig), user_agent="pelamis-trace") as client:
        try:
            pod = await client.get(named("pods"), args.pod, args.namespace)
            service = await client.get(named("services"), target.service, target.namespace)
        except NotFound as error:
            raise Finding(error.message, "", "kubectl get pods,services -A") from error
        except ApiError as error:
            raise Finding("the API server does not say what this is about", error.message) from error
        pods, _ = await client.list(named("pods"))
    if pod["spec"].get("nodeName") != settings.node_name:
        raise Finding(f"pod {args.pod} runs on node {pod['spec'].get('nodeName') or '(none yet)'}",
                      "rules are looked at where the packet meets them first", "run this command on that node")
    source = (pod.get("status") or {}).get("podIP")
    if not source:
        raise Finding(f"pod {args.pod} has no address yet", "its sandbox was not made",
                      f"kubectl describe pod {args.pod}")
    name = f"{target.service}.{target.namespace}.svc.{settings.cluster_domain}"
    cluster_ip = service["spec"].get("clusterIP") or ""
    address = _resolve(name, settings.dns_ip, 6 if ":" in (cluster_ip or source) else 4)
    number = port_number(service, target.port, args.protocol)
    if cluster_ip not in ("", "None") and address and address != cluster_ip:
        say(f"     but the service's address is {cluster_ip}: the answer is old")
    destination = cluster_ip if cluster_ip not in ("", "None") else address
    if not destination:
        raise Finding(f"{name} has no address", "a headless service without ready endpoints, or an external name")
    owners = {i["ip"]: f"pod {p['metadata']['namespace']}/{p['metadata']['name']}" for p in pods
              if not p["spec"].get("hostNetwork") for i in (p.get("status") or {}).get("podIPs") or ()}
    return _follow(settings, source, destination, number, args.protocol, owners)


def _resolve(name: str, server: str, family: int) -> str:
    """Ask the cluster's DNS for an address of `family`, and tell what it said; "" without one."""
    import dnslib
    say(good("DNS"))
    question = dnslib.DNSRecord.question(name, "AAAA" if family == 6 else "A")
    try:
        answer = dnslib.DNSRecord.parse(question.send(server, 53, timeout=ANSWER_SECONDS, ipv6=":" in server))
    except (OSError, dnslib.DNSError) as error:
        say(f"     {server} does not answer: {error or 'time-out'}")
        return ""
    found = [str(r.rdata) for r in answer.rr if r.rtype == question.q.qtype]
    say(f"     {server} says {name} is {', '.join(found) or dnslib.RCODE[answer.header.rcode]}")
    return found[0] if found else ""


def _follow(settings: Settings, source: str, destination: str, port: int, protocol: str, owners: dict[str, str]) -> int:
    from agent.proxy import trace
    from netsetup import addresses, xtables
    backend = xtables.detect(6 if ":" in destination else 4)
    local = frozenset(addresses.local_addresses())
    packet = trace.Packet(source, destination, protocol, port, to_node=destination in local, node_addresses=local)
    trail: trace.Trail = []
    tables = trace.parse(backend.save())
    mapped = _mapped(packet, trail)
    outcomes = trace.outcomes(tables, packet, trail) if mapped is None else {
        one for outcome in mapped for one in _past(tables, packet, outcome, trail)}
    how = f"iptables-{'nft' if backend.is_nft else 'legacy'}" + ("" if mapped is None else " and nf_tables maps")
    say(good(f"Rules of {settings.node_name}") + f" ({how}), for {protocol} {source} -> {destination}:{port}")
    for chain, rule, note in trail:
        say(f"     {chain}  {rule}" + (f"   [{note}]" if note else ""))
    if not trail:
        say("     no rule concerns it")
    say(good("Connections under way"))
    for line in _flows(source, destination, port, protocol) or ["none"]:
        say(f"     {line}")
    say(good("End"))
    ends = {**owners, **dict.fromkeys(local, f"this node, {socket.gethostname()}")}
    for line in verdict(outcomes, ends, any(":" in o for o in outcomes)):
        say(f"     {line}")
    return 1 if outcomes & {"DROP", "REJECT"} else 0


def _mapped(packet: Any, trail: Any) -> set[str] | None:
    """What the service proxy's own nf_tables table does; None when services are rules of iptables."""
    from agent.proxy import nftables, nfttrace
    found = nftables.read(6 if ":" in packet.dst else 4)
    return None if found is None else nfttrace.Table(*found).outcomes(packet, trail)


def _past(tables: Any, packet: Any, outcome: str, trail: Any) -> set[str]:
    """What iptables (policies, others' rules) does to a packet that the maps sent to an endpoint."""
    from agent.proxy import trace
    end = outcome.partition(" ")[0]
    if end in ("DROP", "REJECT"):
        return {outcome}
    address, _, port = end.rpartition(":") if end != "pass" else (packet.dst, "", str(packet.dport))
    after = trace.outcomes(tables, replace(packet, dst=address.strip("[]"), dport=int(port)), trail)
    return {outcome if one.startswith("pass") else one for one in after}


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

"""What NetworkPolicies mean for a packet on a node whose rules cannot be read from here.

Pure. The chains are planned as the agent of that node plans them, from what the API says, and walked as `trace` walks a
kernel's. Also names the policies that limit a pod, which chains do not tell. Called by `pelamis trace`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping

from agent.proxy import policy, trace
from agent.proxy.policy import Obj


def refuses(policies: Iterable[Obj], pods: Iterable[Obj], namespaces: Mapping[str, Mapping[str, str]], node: str,
            packet: trace.Packet) -> bool:
    """Whether `node` drops the packet, translated already, for one of its pods. `namespaces`: their labels."""
    family = 6 if ":" in packet.dst else 4
    known = [pod for obj in pods if (pod := policy.pod_of(obj, node, family)) is not None]
    chains = {name: [shlex.split(rule) for rule in rules]
              for name, rules in policy.plan(policies, known, namespaces, family).items()}
    return any(verdict == "DROP" for verdict, _ in trace.walk(chains, policy.DISPATCH, {packet})[1])


def limiting(policies: Iterable[Obj], pod: Obj, direction: str) -> list[str]:
    """The names of the policies of a pod's namespace that say what it may receive (`Ingress`) or send (`Egress`)."""
    return sorted(one["metadata"]["name"] for one in policies
                  if direction in policy.types(one) and policy.selects(one, pod["metadata"]))

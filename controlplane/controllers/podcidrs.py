"""A block of the pods' addresses for every node, of each address family the cluster has.

Promises that no two nodes get the same block and that a node keeps its own. Called by `manager`.

Upstream: pkg/controller/nodeipam/ipam (range allocator).
"""

from __future__ import annotations

import ipaddress
from typing import Any

from controlplane.controllers.runtime import NODES, Context, Controller
from controlplane.machinery import objects

PREFIXES = {4: 24, 6: 64}  # length of a node's block: 254 pods of IPv4, one link of IPv6

Obj = dict[str, Any]


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None  # the node that says so has no addresses to lose


def free_block(cluster: Any, taken: set[str]) -> str | None:
    """The first block of the cluster's range that overlaps none of `taken` (texts; empty ones are ignored)."""
    used = [network for text in taken if (network := _network(text)) is not None]
    length = max(cluster.prefixlen, PREFIXES[cluster.version])
    exact = {network for network in used if network.prefixlen == length}
    odd = [network for network in used if network.prefixlen != length and network.version == cluster.version]
    for block in cluster.subnets(new_prefix=length):
        if block not in exact and not any(block.overlaps(network) for network in odd):
            return str(block)
    return None


class PodCidrs(Controller):
    """Gives each node its blocks of `ranges`, once and for all. Keys are node names; one worker, so no block twice."""

    name = "cidr-allocator"
    workers = 1

    def __init__(self, context: Context, ranges: str) -> None:
        self.nodes = context.informer(NODES)
        super().__init__(context, self.nodes)
        self.ranges = [ipaddress.ip_network(text.strip()) for text in ranges.split(",")]
        self._given: dict[str, list[str]] = {}  # what we wrote and may not have seen yet
        self.nodes.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self._given.pop(objects.name(new), None)
            if old is not None:
                for node in self.nodes.items():  # its block may be what another waits for
                    if not objects.get(node, "spec.podCIDR"):
                        self.queue.add(objects.name(node))
        elif not objects.get(new, "spec.podCIDR"):
            self.queue.add(objects.name(new))

    async def reconcile(self, name: str) -> float | None:
        node = self.nodes.get("", name)
        if node is None or objects.deleting(node) or objects.get(node, "spec.podCIDR") or name in self._given:
            return None
        taken = {cidr for one in self.nodes.items() for cidr in objects.get(one, "spec.podCIDRs") or
                 [objects.get(one, "spec.podCIDR", "")]} | {one for given in self._given.values() for one in given}
        blocks = [block for cluster in self.ranges if (block := free_block(cluster, taken)) is not None]
        if len(blocks) < len(self.ranges):
            self.recorder.event(node, "Normal", "CIDRNotAvailable", f"Node {name} status is now: CIDRNotAvailable")
            return None
        patch = {"metadata": {"uid": objects.uid(node)}, "spec": {"podCIDR": blocks[0], "podCIDRs": blocks}}
        self._given[name] = blocks  # before the write: whether an unanswered one took place is unknown
        try:
            await self.client.patch(NODES, name, patch)
        except Exception:
            del self._given[name]
            raise
        return None

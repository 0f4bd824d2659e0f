"""A block of the pods' addresses for every node, of each address family the cluster has.

Promises that no two nodes get the same block and that a node keeps its own. Called by `manager`.

Upstream: pkg/controller/nodeipam/ipam (range allocator).
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

from controlplane.client.rest import Unreachable
from controlplane.controllers.runtime import NODES, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError

PREFIXES = {4: 24, 6: 64}  # length of a node's block: 254 pods of IPv4, one link of IPv6

Obj = dict[str, Any]


class Blocks:
    """The blocks of one cluster range and which of them are taken, each named by its text."""

    def __init__(self, text: str) -> None:
        self._range: Any = ipaddress.ip_network(text.strip())
        self._length = max(self._range.prefixlen, PREFIXES[self._range.version])
        self._size = 1 << (self._range.max_prefixlen - self._length)  # addresses of one block
        self._taken: Counter[int] = Counter()  # numbers of blocks
        self._odd: Counter[Any] = Counter()  # networks of other sizes, which somebody else gave out
        self._lowest = 0  # no block below is free

    def _number(self, text: str) -> tuple[int, Any]:
        """(number of the block, None), (-1, a network of another size) or (-1, None) for what is not of the range."""
        try:
            network: Any = ipaddress.ip_network(text, strict=False)
        except ValueError:
            return -1, None  # the node that says so has no addresses to lose
        if network.version != self._range.version or not network.overlaps(self._range):
            return -1, None
        if network.prefixlen != self._length:
            return -1, network
        return (int(network[0]) - int(self._range[0])) // self._size, None

    def take(self, text: str) -> None:
        number, odd = self._number(text)
        if number >= 0:
            self._taken[number] += 1
        elif odd is not None:
            self._odd[odd] += 1

    def release(self, text: str) -> None:
        number, odd = self._number(text)
        counts, key = (self._taken, number) if number >= 0 else (self._odd, odd)
        if counts[key] > 1:
            counts[key] -= 1
        elif key is not None:
            del counts[key]
            self._lowest = min(self._lowest, number) if number >= 0 else 0

    def free(self) -> str | None:
        """The first block that overlaps none of those taken; None when there is none left."""
        number, count = self._lowest, 1 << (self._length - self._range.prefixlen)
        while number < count:
            if number not in self._taken:
                block = type(self._range)((int(self._range[0]) + number * self._size, self._length))
                wider = next((odd for odd in self._odd if odd.overlaps(block)), None)
                if wider is None:
                    self._lowest = number
                    return str(block)
                number = max(number, (int(wider[-1]) - int(self._range[0])) // self._size)
            number += 1
        self._lowest = count
        return None


class PodCidrs(Controller):
    """Gives each node its blocks of `ranges`, once and for all. Keys are node names; a block is held from the moment it
    is chosen, so no two workers give out one."""

    name = "cidr-allocator"

    def __init__(self, context: Context, ranges: str) -> None:
        self.nodes = context.informer(NODES)
        super().__init__(context, self.nodes)
        self.ranges, self._text = [Blocks(text) for text in ranges.split(",")], ranges
        self._held: dict[str, list[str]] = {}  # by node: what it says it has, or what we wrote and have not seen yet
        self._without: set[str] = set()  # nodes for which nothing was left
        self.nodes.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        name, single = objects.name(new), objects.get(new, "spec.podCIDR", "")
        if kind == "DELETED":
            self._hold(name, [])
            self._without.discard(name)
            for one in self._without:
                self.queue.add(one)
        elif single:
            self._hold(name, objects.get(new, "spec.podCIDRs") or [single])
        else:
            self.queue.add(name)

    def _hold(self, name: str, blocks: list[str]) -> None:
        before = self._held.pop(name, [])
        if blocks:
            self._held[name] = blocks
        if before != blocks:
            for cluster in self.ranges:
                for text in before:
                    cluster.release(text)
                for text in blocks:
                    cluster.take(text)

    async def reconcile(self, name: str) -> float | None:
        node = self.nodes.get("", name)
        if node is None or objects.deleting(node) or objects.get(node, "spec.podCIDR"):
            return None
        blocks = self._held.get(name) or [block for cluster in self.ranges if (block := cluster.free()) is not None]
        if len(blocks) < len(self.ranges):
            self._without.add(name)
            self.recorder.event(node, "Normal", "CIDRNotAvailable", f"Node {name} status is now: CIDRNotAvailable; of "
                                f"{self._text} no block is left: delete the Nodes of hosts that are gone")
            return None
        self._without.discard(name)
        self._hold(name, blocks)  # before the write: whether an unanswered one took place is unknown
        patch = {"metadata": {"uid": objects.uid(node)}, "spec": {"podCIDR": blocks[0], "podCIDRs": blocks}}
        try:
            await self.client.patch(NODES, name, patch)
        except Unreachable:
            raise  # tried again with the same blocks
        except ApiError:
            if self._held.get(name) is blocks:
                self._hold(name, [])
            raise
        return None

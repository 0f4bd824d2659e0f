"""Keep the rules of NetworkPolicies true on this node.

Owns the loop from policies, pods and namespaces to the chains of `policy`. While the cluster has no policy it follows
nothing but policies, and not a rule of it is in any packet's way; with the first one it begins to follow pods. Changes
are gathered for a moment, planned whole and written as one difference, which the kernel takes at once or not at all; an
error leads to writing everything anew, with growing pauses. Rules stay when it stops. Nothing of a pod that a policy
selects begins before its rules hold, whose address the API does not tell yet then.

The agent creates one and runs `run()`. `repair` puts back what somebody removed, and the kubelet waits for `isolated`.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from agent.dns import dns
from agent.proxy import policy
from agent.proxy.policy import Obj
from agent.proxy.rules import Rules
from controlplane.client.informer import Informer
from controlplane.machinery import podfacts
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import named
from netsetup import xtables
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
GATHER = 0.03  # seconds to wait for more changes: a rollout makes many at once
RETRY_FIRST, RETRY_LIMIT = 1.0, 30.0
ISOLATION_SECONDS = 20.0  # until the kubelet tells that a pod cannot begin, and tries again
TABLE = "mangle"


@dataclass(frozen=True, slots=True)
class Begun:
    """A pod of this node that a policy selected when it began; `held` is set once rules know its addresses."""

    view: Obj
    addresses: frozenset[str]
    held: asyncio.Event


class Policies:
    """`namespaces`, `services`: informers that somebody runs; of services only the cluster's DNS counts."""

    def __init__(self, client: Any, node: str, namespaces: Informer, services: Informer,
                 ledger: Ledger | None = None, clock: Clock = SYSTEM, backend: xtables.Backend | None = None,
                 families: tuple[int, ...] = (4,)) -> None:
        self._client, self._node, self._namespaces, self._services = client, node, namespaces, services
        self._clock = clock
        self._writers = [Writer(ledger, backend if family == 4 else None, family) for family in families]
        self._policies = Informer(client, named("networkpolicies.networking.k8s.io"), keep=_trim, clock=clock)
        self._pods: Informer | None = None
        self._wake, self._lost = asyncio.Event(), False
        self._begun: dict[str, Begun] = {}  # by uid, for as long as the pod is there
        self.syncs = 0

    async def run(self) -> None:
        """Until cancelled."""
        self._policies.subscribe(lambda *_: self._wake.set())
        self._services.subscribe(self._service_changed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._policies.run())
            await self._policies.synced()
            if self._policies.items():
                await self._follow_pods(group)
            await self._follow(group)

    async def repair(self) -> None:
        """Look whether the rules are there, and put them back. Failures are tried again by the loop."""
        self._lost = True
        self._wake.set()

    async def isolated(self, pod: Obj, addresses: Collection[str]) -> None:
        """Return when rules hold for a pod of this node, nothing of which runs before; at once if no policy selects it.

        `addresses`: the pod's, which the API need not tell yet. Raises TimeoutError."""
        try:
            async with asyncio.timeout(ISOLATION_SECONDS):
                await self._policies.synced()
                if any(policy.selects(p, pod["metadata"]) for p in self._policies.items()):
                    await self._begin(pod, frozenset(addresses)).held.wait()
        except TimeoutError:
            raise TimeoutError("the rules of the network policies that select the pod are not in force yet") from None

    def _begin(self, pod: Obj, addresses: frozenset[str]) -> Begun:
        uid = pod["metadata"]["uid"]
        begun = self._begun.get(uid)
        if begun is None or begun.addresses != addresses:
            view = {**pod, "status": {"podIPs": [{"ip": a} for a in sorted(addresses)]}}
            _trim_pod(view)
            begun = Begun(view, addresses, asyncio.Event())
            self._begun = {u: b for u, b in self._begun.items() if u != uid and not b.addresses & addresses}
            self._begun[uid] = begun
            self._wake.set()
        return begun

    def _not_told(self, begun: Begun) -> bool:
        """Whether the API does not tell the addresses of a pod that began; those of a finished one are free."""
        meta = begun.view["metadata"]
        known = self._pods.get(meta["namespace"], meta["name"]) if self._pods else None
        if known is None or known["metadata"]["uid"] != meta["uid"]:
            return True
        return not (podfacts.finished(known) or begun.addresses <= {
            str(i.get("ip")) for i in known["status"].get("podIPs") or ()})

    async def _follow_pods(self, group: asyncio.TaskGroup) -> None:
        """Begin to follow pods and namespaces' labels; returns when both are known."""
        pods = self._pods = Informer(self._client, named("pods"), keep=_trim_pod, clock=self._clock)
        pods.subscribe(self._pod_changed)
        self._namespaces.subscribe(lambda *_: self._wake.set())
        group.create_task(pods.run())
        await pods.synced()
        await self._namespaces.synced()
        await self._services.synced()

    def _service_changed(self, _kind: str, _old: Obj | None, new: Obj) -> None:
        if (new["metadata"]["namespace"], new["metadata"]["name"]) == (dns.NAMESPACE, dns.NAME):
            self._wake.set()

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """Wake only for what rules are made of: pods report much else."""
        if kind == "DELETED" or (old is not None and old["metadata"]["uid"] != new["metadata"]["uid"]):
            self._begun.pop((old or new)["metadata"]["uid"], None)
        if kind != "MODIFIED" or old is None or any(
                policy.pod_of(old, self._node, w.family) != policy.pod_of(new, self._node, w.family)
                for w in self._writers):
            self._wake.set()

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        retry = 0.0
        while True:
            self._wake.clear()
            lost, self._lost = self._lost, False
            if self._pods is None and self._policies.items():
                await self._follow_pods(group)
            begun = list(self._begun.values())
            try:
                wrote = [await asyncio.to_thread(w.write, self._plan(w.family), lost) for w in self._writers]
                if lost and any(wrote):
                    log.warning("rules of network policies were removed by somebody else; wrote them again")
                retry = 0.0
            except (xtables.RestoreError, Finding, OSError) as error:
                retry = min(max(RETRY_FIRST, retry * 2), RETRY_LIMIT)
                log.error("network policies could not be written, next attempt in %.0f s: %s", retry, error)
                await self._clock.sleep(self._clock.jitter(retry))
                continue
            self.syncs += 1
            for one in begun:
                one.held.set()
            await self._wake.wait()
            await self._clock.sleep(GATHER)

    def _plan(self, family: int) -> dict[str, Rules]:
        policies = self._policies.items()
        if not policies or self._pods is None:
            return {}
        views = [*self._pods.items(), *(b.view for b in self._begun.values() if self._not_told(b))]
        pods = [p for o in views if (p := policy.pod_of(o, self._node, family)) is not None]
        answering = dns.addresses(self._services.get(dns.NAMESPACE, dns.NAME))
        pods += [policy.dns_pod(address) for address in answering if (":" in address) == (family == 6)]
        namespaces = {n["metadata"]["name"]: n["metadata"].get("labels") or {} for n in self._namespaces.items()}
        return policy.plan(policies, pods, namespaces, family)


class Writer:
    """The kernel's side. `write` is called on one thread at a time."""

    def __init__(self, ledger: Ledger | None, backend: xtables.Backend | None, family: int = 4) -> None:
        self._ledger, self._backend, self.family = ledger, backend, family
        self._have: dict[str, Rules] | None = None  # None: not known

    def write(self, wanted: dict[str, Rules], lost: bool = False) -> bool:
        """Make the kernel hold exactly these chains; True when something was written. `lost`: do not trust memory.

        Raises xtables.RestoreError; nothing was changed then, and the next call writes everything."""
        if not lost and self._have == wanted:
            return False
        backend = self._backend = self._backend or xtables.detect(self.family)
        known = {} if lost or self._have is None else self._have
        counts, hooks = dict.fromkeys(known, 0), set(policy.HOOKED if known else ())
        if lost or self._have is None:
            counts, hooks = _present(backend.save(TABLE))
            if counts == {c: len(rules) for c, rules in wanted.items()} and hooks >= set(policy.HOOKED) and lost:
                return False
        batch = _batch(wanted, known, counts, hooks)
        self._have = None
        if batch:
            if self._ledger and wanted:
                self._ledger.record("iptables", prefix="PELAMIS-", family=self.family)
            backend.restore(batch)
        self._have = dict(wanted)
        return bool(batch)


def _present(saved: str) -> tuple[dict[str, int], set[str]]:
    """(our chains with their numbers of rules, the built-in chains that lead to them), from iptables-save's text."""
    chains = dict.fromkeys((n for n in re.findall(r"^:(\S+) ", saved, re.M) if n.startswith(policy.PREFIX)), 0)
    hooks = set()
    for name, rule in re.findall(r"^-A (\S+) (.*)$", saved, re.M):
        if name in chains:
            chains[name] += 1
        elif rule == f"-j {policy.DISPATCH}":
            hooks.add(name)
    return chains, hooks


def _batch(wanted: dict[str, Rules], known: dict[str, Rules], present: Iterable[str], hooks: set[str]) -> str:
    """The iptables-restore text that leads from what is there to what is wanted; "" when nothing is to do."""
    changed = [c for c, rules in wanted.items() if known.get(c) != rules]
    gone = sorted(set(present) - wanted.keys())
    missing = [c for c in policy.HOOKED if c not in hooks] if wanted else []
    if not changed and not gone and not missing:
        return ""
    out = [f"*{TABLE}", *(f":{c} - [0:0]" for c in (*changed, *gone))]
    out += [f"-A {c} {rule}" for c in changed for rule in wanted[c]]
    out += [f"-A {c} -j {policy.DISPATCH}" for c in missing]
    if not wanted:
        out += [f"-D {c} -j {policy.DISPATCH}" for c in sorted(hooks)]
    return "\n".join([*out, *(f"-X {c}" for c in gone), "COMMIT", ""])


def _trim(obj: Obj) -> None:
    obj["metadata"].pop("annotations", None)


def _trim_pod(pod: Obj) -> None:
    """Before a pod is kept, of which there may be thousands: what rules never need."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    pod["metadata"] = {k: meta[k] for k in ("namespace", "name", "uid", "resourceVersion", "labels") if k in meta}
    named_ports = [{"ports": [p for p in c.get("ports") or () if p.get("name")]} for c in spec.get("containers") or ()]
    pod["spec"] = {"nodeName": spec.get("nodeName"), "hostNetwork": spec.get("hostNetwork", False),
                   "containers": [c for c in named_ports if c["ports"]]}
    pod["status"] = {k: status[k] for k in ("phase", "podIP", "podIPs") if k in status}

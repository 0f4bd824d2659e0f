"""Web services that have a say in scheduling: they refuse nodes, rate them, bind pods, spare victims.

Owns the calls to the extenders of the configuration, in upstream's JSON. A failing extender fails the attempt of the
pod, unless it is marked ignorable. Without extenders nothing here costs anything. Called by `loop` and `binder`.

Upstream: pkg/scheduler/extender.go, k8s.io/kube-scheduler/extender/v1.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import orjson

from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError
from controlplane.scheduler import demand
from controlplane.scheduler.configuration import Extender
from controlplane.scheduler.preemption import Plan

ANSWER_LIMIT = 64 << 20  # bytes of an answer: the names of all nodes are far less
SCALE = 10  # an extender rates 0–10, everybody else 0–100
Obj = dict[str, Any]


class Extenders:
    def __init__(self, extenders: Sequence[Extender]) -> None:
        self._extenders = extenders

    def concerned(self, pod: Obj) -> list[Extender]:
        if not self._extenders:
            return []
        asked = demand.of(pod).requests
        return [e for e in self._extenders if not e.resources or e.resources & asked.keys()]

    async def rank(self, pod: Obj, nodes: Sequence[str],
                   objects_of: dict[str, Obj]) -> tuple[list[str], dict[str, str]]:
        """(the nodes they all take, the best first; why others are refused). `nodes` come best first.

        Raises ApiError when one fails."""
        left, points = list(nodes), dict.fromkeys(nodes, 0.0)
        refused: dict[str, str] = {}
        for extender in self.concerned(pod):
            if extender.filter and left:
                answer = await self._ask(extender, extender.filter, _arguments(extender, pod, left, objects_of))
                left, more = _taken(extender, answer, left)
                refused |= more
        for extender in self.concerned(pod):
            if extender.prioritize and left:
                arguments = _arguments(extender, pod, left, objects_of)
                for one in await self._ask(extender, extender.prioritize, arguments) or ():
                    points[one["Host"]] = points.get(one["Host"], 0) + one["Score"] * extender.weight * SCALE
        # Our own order is kept among equals: the sort is stable.
        return sorted(left, key=lambda name: -points[name]), refused

    async def bind(self, pod: Obj, node: str) -> bool:
        """Whether one of them has bound the pod."""
        for extender in self.concerned(pod):
            if extender.bind:
                answer = await self._ask(extender, extender.bind, {
                    "PodName": objects.name(pod), "PodNamespace": objects.namespace(pod), "PodUID": objects.uid(pod),
                    "Node": node})
                if answer and answer.get("Error"):
                    raise ApiError(answer["Error"])
                return True
        return False

    async def spare(self, pod: Obj, plans: list[Plan]) -> list[Plan]:
        """The plans they all agree to, with the victims they name."""
        for extender in self.concerned(pod):
            if not extender.preempt or not plans:
                continue
            victims = {p.node: {"Pods": [{"UID": objects.uid(v.pod)} for v in p.victims],
                                "NumPDBViolations": p.violations} for p in plans}
            answer = await self._ask(extender, extender.preempt, {"Pod": pod, "NodeNameToMetaVictims": victims})
            agreed = (answer or {}).get("NodeNameToMetaVictims") or (answer or {}).get("nodeNameToMetaVictims") or {}
            plans = [Plan(p.node, tuple(v for v in p.victims if objects.uid(v.pod) in _uids(agreed[p.node])),
                          p.violations) for p in plans if p.node in agreed]
            plans = [p for p in plans if p.victims]
        return plans

    async def _ask(self, extender: Extender, verb: str, body: Any) -> Any:
        import aiohttp  # here already for the client; named late so that the module stays light for tests
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=extender.seconds)) as session, \
                    session.post(f"{extender.url}/{verb}", data=orjson.dumps(body), ssl=_tls(extender),
                                 headers={"Content-Type": "application/json"}) as response:
                text = await response.content.read(ANSWER_LIMIT)
                if response.status != 200:
                    raise ApiError(f"failed {verb} with extender at URL {extender.url}/{verb}, code {response.status}")
                return orjson.loads(text) if text else None
        except (aiohttp.ClientError, TimeoutError, ValueError, ApiError) as error:
            if extender.ignorable:
                return None
            raise ApiError(f"extender {extender.url}/{verb}: {error}") from error


def _arguments(extender: Extender, pod: Obj, nodes: Sequence[str], objects_of: dict[str, Obj]) -> Obj:
    if extender.names_only:
        return {"Pod": pod, "Nodes": None, "NodeNames": list(nodes)}
    return {"Pod": pod, "Nodes": {"items": [objects_of[n] for n in nodes if n in objects_of]}, "NodeNames": None}


def _field(answer: Obj, name: str) -> Any:
    """Go's decoder does not mind the case of names; extenders rely on it."""
    return next((value for key, value in answer.items() if key.lower() == name and value), None)


def _taken(extender: Extender, answer: Obj | None, nodes: list[str]) -> tuple[list[str], dict[str, str]]:
    if answer is None:  # ignored
        return nodes, {}
    if error := _field(answer, "error"):
        raise ApiError(str(error))
    names = _field(answer, "nodenames")
    if names is None:
        names = [item["metadata"]["name"] for item in (_field(answer, "nodes") or {}).get("items") or ()]
    refused = {**(_field(answer, "failednodes") or {}), **(_field(answer, "failedandunresolvablenodes") or {})}
    kept = set(names)
    return [n for n in nodes if n in kept], {n: refused.get(n, "node(s) were refused by an extender")
                                            for n in nodes if n not in kept}


def _uids(victims: Obj) -> set[str]:
    return {pod.get("UID") or pod.get("uid", "") for pod in victims.get("Pods") or victims.get("pods") or ()}


def _tls(extender: Extender) -> Any:
    if not extender.tls:
        return True
    context = ssl.create_default_context(cafile=extender.tls.get("caFile") or None)
    if extender.tls.get("insecure"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if extender.tls.get("certFile"):
        context.load_cert_chain(extender.tls["certFile"], extender.tls.get("keyFile"))
    return context

"""The Metrics API, metrics.k8s.io: how much CPU and memory nodes and pods use, for `kubectl top` and autoscalers.

Owns the group's answers, made from the kubelets' /metrics/resource when somebody asks and from nothing otherwise. CPU
is a rate between two looks at a node: the one before if it is recent, else one taken a moment earlier on purpose.
Promises at most one question to a node at a time, none while its last answer is young, and that a node nobody reaches
costs only its own rows. Keeps two samples per node. Called by the handlers for every resource of the group.

Upstream: kubernetes-sigs/metrics-server (pkg/storage, pkg/api).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.reading import representation
from controlplane.apiserver.request import Request
from controlplane.apiserver.response import Response
from controlplane.machinery import selectors
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import Resource
from controlplane.store.cache import key_of, prefix_of

LOG = logging.getLogger(__name__)
GROUP = "metrics.k8s.io"
API_VERSION = f"{GROUP}/v1beta1"
RESOURCES = tuple(Resource(GROUP, "v1beta1", plural, kind, namespaced=plural == "pods", verbs=("get", "list"))
                  for plural, kind in (("nodes", "NodeMetrics"), ("pods", "PodMetrics")))
FRESH_SECONDS = 5.0  # a node's answer is given again for so long: `kubectl top` in a loop costs little
BASE_SECONDS = 120.0  # an older look is no base for a rate: the load of long ago says nothing of now
WINDOW_SECONDS = 1.0  # what is waited between two looks when there is no base
ASK_SECONDS = 10.0  # for one node's answer; upstream's scrape limit
ANSWER_LIMIT = 8 << 20  # bytes; a node of 500 containers gives some 200 KiB

_LINE = re.compile(r"(\w+?)(?:\{(.*)\})? (\S+)(?: (\d+))?")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Object = dict[str, Any]
Key = tuple[str, str, str]  # namespace, pod, container; ("", "", "") is the node


@dataclass(slots=True)
class Reading:
    """CPU seconds since the start, bytes of working set, start (seconds, epoch; 0.0 unknown)."""

    cpu: float = 0.0
    memory: float = 0.0
    start: float = 0.0


@dataclass(slots=True)
class Sample:
    """One look at a node."""

    time: float  # seconds since the epoch
    readings: dict[Key, Reading] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    cores: float
    memory: float
    window: float  # seconds


_FIELDS = {"cpu_usage_seconds_total": "cpu", "memory_working_set_bytes": "memory", "start_time_seconds": "start"}


def parse(text: str, now: float) -> Sample:
    """The kubelet's text as a Sample; its own time stamps count, `now` stands in for them."""
    sample = Sample(now)
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        who, _, what = found[1].partition("_")
        if who not in ("node", "container") or what not in _FIELDS:
            continue
        labels = dict(_LABEL.findall(found[2] or ""))
        key = (labels.get("namespace", ""), labels.get("pod", ""), labels.get("container", ""))
        setattr(sample.readings.setdefault(key, Reading()), _FIELDS[what], float(found[3]))
        if found[4]:
            sample.time = int(found[4]) / 1000
    return sample


def usage(before: Sample | None, now: Sample) -> dict[Key, Usage]:
    """Rates between two looks; of what began in between, since it began. Without a base for it, nothing."""
    made = {}
    for key, reading in now.readings.items():
        base = before.readings.get(key) if before is not None else None
        if before is not None and base is not None and base.start == reading.start and base.cpu <= reading.cpu:
            window, used = now.time - before.time, reading.cpu - base.cpu
        elif reading.start and (before is None or reading.start >= before.time):
            window, used = now.time - reading.start, reading.cpu
        else:
            continue
        if window > 0:
            made[key] = Usage(used / window, reading.memory, window)
    return made


def amounts(used: Usage) -> Object:
    """Quantities as metrics-server writes them: nanocores and kibibytes."""
    return {"cpu": f"{round(used.cores * 1e9)}n", "memory": f"{int(used.memory) >> 10}Ki"}


def _field(meta: Object, path: str) -> str:
    return str(meta.get(path.removeprefix("metadata."), ""))


def _object(kind: str, meta: Object, at: float, window: float, now: float) -> Object:
    shown = {k: meta[k] for k in ("name", "namespace", "labels") if meta.get(k)}
    return {"kind": kind, "apiVersion": API_VERSION, "metadata": shown | {"creationTimestamp": rfc3339(now)},
            "timestamp": rfc3339(at), "window": f"{window:.3f}s"}


@dataclass(slots=True)
class _Node:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    before: Sample | None = None
    newest: Sample | None = None
    asked: float = 0.0  # monotonic


class PodMetrics:
    """`streams` knows how to reach kubelets (`ask(node, target)`)."""

    def __init__(self, context: Context, streams: Any) -> None:
        self._context, self._streams = context, streams
        self._nodes: dict[str, _Node] = {}

    async def handle(self, request: Request, resource: Resource) -> Response:
        """A get or list of nodes or pods. Raises ApiError."""
        now = self._context.clock.now()
        make = self._node_objects if resource.plural == "nodes" else self._pod_objects
        if request.name:
            found = await make([self._source(resource.plural, request.namespace, request.name)])
            if not found:
                shown = f"{request.namespace}/{request.name}" if request.namespace else request.name
                raise NotFound.of(resource.name, shown)
            return await representation.answer(request, found[0], resource, now)
        labels = selectors.parse_labels(request.query.get("labelSelector"))
        fields = selectors.parse_fields(request.query.get("fieldSelector"))
        sources = [item.obj for item in self._context.cache.list(prefix_of(resource.plural, request.namespace))]
        chosen = [s for s in sources if labels.matches(s["metadata"].get("labels") or {})
                  and fields.matches(partial(_field, s["metadata"]))]
        items = await make(chosen)
        form = representation.form_of(request)
        kind = resource.kind + "List"
        if form.shape:
            body = representation.shaped_list(request, resource, items, {}, form, now)
        else:
            body = {"kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": items}
        return Response(200, representation.encode(body, form, representation.pretty(request)), form.media)

    def _source(self, plural: str, namespace: str, name: str) -> Object:
        item = self._context.cache.get(key_of(plural, namespace, name))
        if item is None:
            raise NotFound.of(f"{plural}.{GROUP}", f"{namespace}/{name}" if namespace else name)
        return item.obj

    async def _node_objects(self, nodes: Iterable[Object]) -> list[Object]:
        names = {n["metadata"]["name"]: n for n in nodes}
        made = []
        for name, (at, used) in (await self._measure(names)).items():
            if ("", "", "") in used:
                whole = used["", "", ""]
                made.append(_object("NodeMetrics", names[name]["metadata"], at, whole.window,
                                    self._context.clock.now()) | {"usage": amounts(whole)})
        return made

    async def _pod_objects(self, pods: Iterable[Object]) -> list[Object]:
        running = [p for p in pods if (p.get("spec") or {}).get("nodeName")
                   and (p.get("status") or {}).get("phase") == "Running"]
        measured = await self._measure({p["spec"]["nodeName"] for p in running})
        made = []
        for pod in running:
            meta = pod["metadata"]
            at, used = measured.get(pod["spec"]["nodeName"], (0.0, {}))
            mine = {key[2]: value for key, value in used.items() if key[:2] == (meta["namespace"], meta["name"])}
            if mine:
                made.append(_object("PodMetrics", meta, at, max(u.window for u in mine.values()),
                                    self._context.clock.now())
                            | {"containers": [{"name": n, "usage": amounts(u)} for n, u in sorted(mine.items())]})
        return made

    # --- asking nodes

    async def _measure(self, names: Iterable[str]) -> dict[str, tuple[float, dict[Key, Usage]]]:
        """Usage by node: when, and what. Nodes that do not answer are left out."""
        wanted = sorted(names)
        there = {item.obj["metadata"]["name"] for item in self._context.cache.list(prefix_of("nodes"))}
        for gone in set(self._nodes) - there:
            del self._nodes[gone]
        results = await asyncio.gather(*(self._of_node(name) for name in wanted))
        return {name: result for name, result in zip(wanted, results, strict=True) if result is not None}

    async def _of_node(self, name: str) -> tuple[float, dict[Key, Usage]] | None:
        node = self._nodes.setdefault(name, _Node())
        clock = self._context.clock
        try:
            async with node.lock:
                if node.newest is None or clock.monotonic() - node.asked > FRESH_SECONDS:
                    fresh = await self._look(name, node)
                    if node.newest is None or fresh.time - node.newest.time > BASE_SECONDS:
                        node.newest = fresh
                        await clock.sleep(WINDOW_SECONDS)
                        fresh = await self._look(name, node)
                    node.before, node.newest = node.newest, fresh
                assert node.newest is not None
                return node.newest.time, usage(node.before, node.newest)
        except (ApiError, TimeoutError, OSError, ValueError) as error:
            LOG.info("no metrics of node %s: %s", name, getattr(error, "message", "") or error)
            return None

    async def _look(self, name: str, node: _Node) -> Sample:
        async with asyncio.timeout(ASK_SECONDS):
            body = await self._streams.ask(name, "/metrics/resource", ANSWER_LIMIT)
        node.asked = self._context.clock.monotonic()
        return parse(body.decode("utf-8", "replace"), self._context.clock.now())

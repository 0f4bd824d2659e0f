"""What one metric of a HorizontalPodAutoscaler asks for, and how its status tells it.

Reads the figure by `metricsource`, decides by `proposals`. Promises that what cannot be computed is a `MetricFailure`
with upstream's reason. Called by `autoscaler`.

Upstream: pkg/controller/podautoscaler/horizontal.go (computeStatusFor…).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane.controllers.scaling import proposals
from controlplane.controllers.scaling.metricsource import MetricSource, milli
from controlplane.controllers.scaling.proposals import Proposal, Tolerance
from controlplane.machinery import objects, quantity, selectors
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource

_FIELDS = {"Resource": "resource", "ContainerResource": "containerResource", "Pods": "pods", "Object": "object",
           "External": "external"}
_REASONS = {"Resource": "FailedGetResourceMetric", "ContainerResource": "FailedGetContainerResourceMetric",
            "Pods": "FailedGetPodsMetric", "Object": "FailedGetObjectMetric", "External": "FailedGetExternalMetric"}

Obj = dict[str, Any]


class MetricFailure(ApiError):  # noqa: N818 - a metric that fails is no fault of ours
    """A metric without an answer; `why` is the condition's reason."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(frozen=True, slots=True)
class Target:
    """What is scaled: its scale object, its pods, and what finds the resource of an object reference."""

    scale: Obj
    namespace: str
    selector: str
    pods: list[Obj]
    kind: Callable[[Obj], Resource]
    tolerance: Tolerance
    now: float

    @property
    def current(self) -> int:
        return objects.get(self.scale, "spec.replicas", 0)

    @property
    def reported(self) -> int:
        return objects.get(self.scale, "status.replicas", 0)


def amount(thousandths: int) -> str:
    """As a quantity."""
    return quantity.canonical(f"{thousandths}m")


def labels_of(source: Obj) -> str:
    selector = objects.get(source, "metric.selector")
    return str(selectors.from_label_selector(selector)) if selector else ""


async def compute(metric: Obj, target: Target, figures: MetricSource) -> tuple[Proposal, str, Obj]:
    """(the proposal, the metric's name in words, its status). Raises MetricFailure."""
    kind = metric.get("type", "")
    source = metric.get(_FIELDS.get(kind, "")) or {}
    if not source:
        raise MetricFailure("InvalidMetricSourceType", f'the HPA was unable to compute the replica count: unknown '
                                                       f'metric source type "{kind}"')
    ways = {"Resource": _resource, "ContainerResource": _resource, "Pods": _pods, "Object": _object,
            "External": _external}
    try:
        proposal, words = await ways[kind](source, target, figures)
    except ApiError as error:
        raise MetricFailure(_REASONS[kind], error.message) from error
    return proposal, words, {"type": kind, _FIELDS[kind]: _status(kind, source, proposal)}


def _status(kind: str, source: Obj, proposal: Proposal) -> Obj:
    wanted = source.get("target") or {}
    averaged = wanted.get("type") != "Value"
    current: Obj = {"averageValue" if averaged else "value": amount(proposal.value)}
    if proposal.utilization is not None:
        current["averageUtilization"] = proposal.utilization
    same: Obj = {key: source[key] for key in ("name", "container", "metric", "describedObject") if key in source}
    return {**same, "current": current}


async def _resource(source: Obj, target: Target, figures: MetricSource) -> tuple[Proposal, str]:
    name, container, wanted = source.get("name", ""), source.get("container", ""), source.get("target") or {}
    words = f"{name} container resource" if container else f"{name} resource"
    utilization = wanted.get("averageValue") is None
    what = "utilization" if utilization else "usage"
    try:
        samples = await figures.resource(target.namespace, target.selector, name, container)
    except ApiError as error:
        raise ApiError(f"failed to get {name} {what}: unable to get metrics for resource {name}: "
                       f"{error.message}") from error
    try:
        if not utilization:
            return proposals.by_average(target.current, milli(wanted["averageValue"]), name, target.pods, samples,
                                          target.tolerance, target.now), words
        if wanted.get("averageUtilization") is None:
            raise ApiError("invalid resource metric source: neither an average utilization target nor an average value "
                           "(usage) target was set")
        return proposals.by_utilization(target.current, wanted["averageUtilization"], name, container, target.pods,
                                          samples, target.tolerance, target.now), \
            f"{words} utilization (percentage of request)"
    except ApiError as error:
        raise ApiError(f"failed to get {name} {what}: {error.message}") from error


async def _pods(source: Obj, target: Target, figures: MetricSource) -> tuple[Proposal, str]:
    name = objects.get(source, "metric.name", "")
    try:
        samples = await figures.pods(target.namespace, target.selector, name, labels_of(source))
    except ApiError as error:
        raise ApiError(f"unable to get metric {name}: {error.message}") from error
    return proposals.by_average(target.current, milli(objects.get(source, "target.averageValue", "0")), "",
                                  target.pods, samples, target.tolerance, target.now), f"pods metric {name}"


async def _object(source: Obj, target: Target, figures: MetricSource) -> tuple[Proposal, str]:
    name, about = objects.get(source, "metric.name", ""), source.get("describedObject") or {}
    usage = await figures.object(target.namespace, target.kind(about), about.get("name", ""), name, labels_of(source))
    return _whole(source, target, usage), f"{about.get('kind')} metric {name}"


async def _external(source: Obj, target: Target, figures: MetricSource) -> tuple[Proposal, str]:
    name = objects.get(source, "metric.name", "")
    usage = await figures.external(target.namespace, name, labels_of(source))
    return _whole(source, target, usage), f"external metric {name}"


def _whole(source: Obj, target: Target, usage: int) -> Proposal:
    wanted = source.get("target") or {}
    if wanted.get("type") == "AverageValue" or wanted.get("value") is None:
        return proposals.by_share(target.reported, milli(wanted.get("averageValue", "0")), usage, target.tolerance)
    return proposals.by_value(target.current, milli(wanted["value"]), usage, target.pods, target.tolerance)

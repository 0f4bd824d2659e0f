"""HorizontalPodAutoscalers: as many replicas as the metrics ask for.

Runs each metric's computation, takes the largest, and follows it as fast as `behavior` allows. Promises to write
a scale only when it changes, never to shrink while a metric cannot be read, and to say in the conditions AbleToScale,
ScalingActive and ScalingLimited what it did and why. Looks at each object every fifteen seconds; without any, never.
Called by `manager`. Upstream: pkg/controller/podautoscaler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from controlplane.client.discovery import Kinds
from controlplane.controllers.runtime import PODS, Context, Controller, by_namespace, set_status
from controlplane.controllers.scaling import behavior
from controlplane.controllers.scaling.behavior import Condition, Memory
from controlplane.controllers.scaling.metrics import MetricFailure, Target, compute
from controlplane.controllers.scaling.metricsource import MetricSource
from controlplane.machinery import objects, selectors
from controlplane.machinery.errors import ApiError, Conflict
from controlplane.machinery.resources import Resource, named

PERIOD_SECONDS = 15.0  # between two looks: upstream's default
ABLE, ACTIVE = "AbleToScale", "ScalingActive"

Obj = dict[str, Any]
Key = tuple[str, str]


@dataclass(slots=True)
class Outcome:
    """What one look found: the status it makes, and the replicas to have."""

    current: int
    desired: int
    metrics: list[Obj] | None
    conditions: list[Condition]
    reason: str = ""


class Autoscalers(Controller):
    name = "horizontal-pod-autoscaler"

    def __init__(self, context: Context) -> None:
        self.autoscalers = context.informer(named("horizontalpodautoscalers.autoscaling"))
        self.pods = context.informer(PODS, namespace=by_namespace)
        self.kinds = Kinds(context.informers)
        self.figures = MetricSource(context.client)
        self._memories: dict[str, Memory] = {}  # by uid
        self._selectors: dict[str, tuple[Key, Any]] = {}  # uid -> whose it is and which pods it scales by
        super().__init__(context, self.autoscalers, self.pods, self.kinds.informer)
        self.autoscalers.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self._memories.pop(objects.uid(new), None)
            self._selectors.pop(objects.uid(new), None)
        elif old is None or old.get("spec") != new.get("spec"):  # our own status is no news
            self.queue.add(objects.key(new))

    async def reconcile(self, key: Key) -> float | None:
        autoscaler = self.autoscalers.get(*key)
        if autoscaler is None or objects.deleting(autoscaler):
            return None
        try:
            await self._look(autoscaler)
        except Conflict:
            pass  # somebody changed it: the next look sees how
        except ApiError as error:
            if error.http_code >= 500:
                raise
        return PERIOD_SECONDS

    async def _look(self, autoscaler: Obj) -> None:
        try:
            resource = self._kind(objects.get(autoscaler, "spec.scaleTargetRef") or {})
            scale = await self.client.get(resource, objects.get(autoscaler, "spec.scaleTargetRef.name", ""),
                                          objects.namespace(autoscaler), subresource="scale")
        except ApiError as error:
            self.recorder.event(autoscaler, "Warning", "FailedGetScale", error.message)
            await self._write(autoscaler, [(ABLE, "False", "FailedGetScale", "the HPA controller was unable to get the "
                                            f"target's current scale: {error.message}")])
            return
        memory = self._memories.setdefault(objects.uid(autoscaler), Memory(
            [(self.clock.monotonic(), objects.get(scale, "spec.replicas", 0))]))
        outcome = await self._decide(autoscaler, scale, memory)
        rescaled = outcome.desired != outcome.current and await self._rescale(autoscaler, resource, scale, outcome)
        if rescaled:
            memory.changed(outcome.current, outcome.desired, self.clock.monotonic())
        else:
            outcome.desired = outcome.current
        await self._write(autoscaler, outcome.conditions, outcome, rescaled)

    def _kind(self, ref: Obj) -> Resource:
        """The resource of a reference, whichever version it names. Raises ApiError."""
        if (found := self.kinds.referred(ref)) is not None:
            return found
        group = ref.get("apiVersion", "").rpartition("/")[0]
        raise ApiError(f'no matches for kind "{ref.get("kind")}" in group "{group}"')

    # --- deciding ----------------------------------------------------------------------------------------------

    async def _decide(self, autoscaler: Obj, scale: Obj, memory: Memory) -> Outcome:
        current = objects.get(scale, "spec.replicas", 0)
        least, most = behavior.bounds(autoscaler)
        able = (ABLE, "True", "SucceededGetScale", "the HPA controller was able to get the target's current scale")
        made = Outcome(current, current, None, [able])
        if current == 0 and least != 0:
            made.conditions.append((ACTIVE, "False", "ScalingDisabled",
                                    "scaling is disabled since the replica count of the target is zero"))
        elif current > most:
            made.desired, made.reason = most, "Current number of replicas above Spec.MaxReplicas"
        elif current < least:
            made.desired, made.reason = least, "Current number of replicas below Spec.MinReplicas"
        else:
            await self._measure(autoscaler, scale, memory, made)
        return made

    async def _measure(self, autoscaler: Obj, scale: Obj, memory: Memory, made: Outcome) -> None:
        """Fill `made` by the metrics."""
        text = objects.get(scale, "status.selector", "")
        if not text:
            self.recorder.event(autoscaler, "Warning", "SelectorRequired", "selector is required")
            made.conditions.append((ACTIVE, "False", "InvalidSelector",
                                    "the HPA target's scale is missing a selector"))
            return
        selector = selectors.parse_labels(text)
        pods = [pod for pod in self.pods.by("namespace", objects.namespace(autoscaler))
                if selector.matches(objects.labels(pod))]
        if rivals := self._rivals(autoscaler, selector, pods):
            message = f"pods by selector {text} are controlled by multiple HPAs: [{' '.join(rivals)}]"
            self.recorder.event(autoscaler, "Warning", "AmbiguousSelector", message)
            made.conditions.append((ACTIVE, "False", "AmbiguousSelector", message))
            return
        target = Target(scale, objects.namespace(autoscaler), text, pods, self._kind,
                        behavior.tolerance(autoscaler), self.clock.now())
        made.metrics = []
        failures: list[MetricFailure] = []
        wanted, words = -1, ""
        metrics = objects.get(autoscaler, "spec.metrics", [])
        for metric in metrics:
            try:
                proposal, name, status = await compute(metric, target, self.figures)
            except MetricFailure as failure:
                failures.append(failure)
                self.recorder.event(autoscaler, "Warning", failure.why, failure.message)
                continue
            made.metrics.append(status)
            if proposal.replicas > wanted:
                wanted, words = proposal.replicas, name
        if len(failures) >= len(metrics) or (failures and wanted < made.current):
            self._fail(autoscaler, failures, len(metrics), made)
            return
        made.conditions.append((ACTIVE, "True", "ValidMetricFound", "the HPA was able to successfully calculate a "
                                f"replica count from {words}"))
        made.desired, said = behavior.normalize(autoscaler, made.current, wanted, memory, self.clock.monotonic())
        made.conditions += said
        made.reason = f"{words} above target" if made.desired > made.current else "All metrics below target"

    def _rivals(self, autoscaler: Obj, selector: Any, pods: list[Obj]) -> list[str]:
        """All autoscalers these pods are scaled by, when this is not the only one."""
        self._selectors[objects.uid(autoscaler)] = objects.key(autoscaler), selector
        found = ["/".join(key) for key, other in self._selectors.values() if key[0] == objects.namespace(autoscaler)
                 and any(other.matches(objects.labels(pod)) for pod in pods)]
        return sorted(found) if len(found) > 1 else []

    def _fail(self, autoscaler: Obj, failures: list[MetricFailure], count: int, made: Outcome) -> None:
        if not failures:
            return  # it has no metrics at all
        first = failures[0]
        made.conditions.append((ACTIVE, "False", first.why,
                                f"the HPA was unable to compute the replica count: {first.message}"))
        self.recorder.event(autoscaler, "Warning", "FailedComputeMetricsReplicas",
                            f"invalid metrics ({len(failures)} invalid out of {count}), first error is: "
                            f"{first.message}")

    # --- writing -----------------------------------------------------------------------------------------------

    async def _rescale(self, autoscaler: Obj, resource: Resource, scale: Obj, outcome: Outcome) -> bool:
        try:
            await self.client.update(resource, {**scale, "spec": {**scale["spec"], "replicas": outcome.desired}},
                                     subresource="scale")
        except ApiError as error:
            self.recorder.event(autoscaler, "Warning", "FailedRescale", f"New size: {outcome.desired}; reason: "
                                f"{outcome.reason}; error: {error.message}")
            outcome.conditions.append((ABLE, "False", "FailedUpdateScale", "the HPA controller was unable to update "
                                       f"the target scale: {error.message}"))
            return False
        outcome.conditions.append((ABLE, "True", "SucceededRescale", "the HPA controller was able to update the target "
                                   f"scale to {outcome.desired}"))
        self.recorder.event(autoscaler, "Normal", "SuccessfulRescale",
                            f"New size: {outcome.desired}; reason: {outcome.reason}")
        return True

    async def _write(self, autoscaler: Obj, said: list[Condition], outcome: Outcome | None = None,
                     rescaled: bool = False) -> None:
        """The status; of several things said of one condition the last counts."""
        status = objects.deep_copy(autoscaler.get("status") or {})
        conditions = status.setdefault("conditions", [])
        for condition in {one[0]: one for one in said}.values():
            objects.set_condition(conditions, *condition, self.clock.timestamp())
        if generation := autoscaler["metadata"].get("generation"):
            status["observedGeneration"] = generation
        if outcome is not None:
            status["currentReplicas"], status["desiredReplicas"] = outcome.current, outcome.desired
            if outcome.metrics is not None:
                status["currentMetrics"] = outcome.metrics or None
            if rescaled:
                status["lastScaleTime"] = self.clock.timestamp()
        status.setdefault("desiredReplicas", 0)
        if status.get("currentMetrics") is None:
            status.pop("currentMetrics", None)
        await set_status(self.client, self.autoscalers.resource, autoscaler, status)

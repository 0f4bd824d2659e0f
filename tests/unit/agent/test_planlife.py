"""Whatever state a pod is found in, planning brings it to where it belongs, harms nothing healthy, doubles nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.kubelet import plan
from agent.kubelet.model import ObservedContainer, ObservedPod, ObservedSandbox
from agent.kubelet.restarts import ALL, asking, container_hash, is_sidecar, policy, restarts
from tests.unit.agent.pods import NOW, pod

ROUNDS = 60  # a pod of five containers in any state needs fewer
STATES = ("created", "running", "exited", "unknown")


class World:
    """A runtime that does what it is told: every start succeeds, init containers end well, others run on."""

    def __init__(self, the_pod: dict[str, Any], seen: ObservedPod) -> None:
        self.pod, self.now = the_pod, NOW + 1000
        self.boxes = {b.id: b for b in seen.sandboxes}
        self.containers = {c.id: c for c in seen.containers}
        self.stopped: set[str] = set()
        self.finished = False
        # Where an end asks for a new start of all, none is spared.
        self.healthy = {c.id for c in seen.containers if self.well(c)} if not asking(the_pod, seen) else set[str]()

    def __repr__(self) -> str:
        return f"World({self.pod['spec']}, {self.seen})"

    def well(self, c: ObservedContainer) -> bool:
        spec = plan.named(self.pod, c.name)
        box = self.boxes.get(c.sandbox_id)
        newest = max(self.boxes.values(), key=lambda b: b.attempt, default=None)
        return (c.state == "running" and spec is not None and c.hash == container_hash(spec)
                and box is not None and box.ready and box is newest)

    @property
    def seen(self) -> ObservedPod:
        boxes = sorted(self.boxes.values(), key=lambda b: -b.attempt)
        parts = sorted(self.containers.values(), key=lambda c: (-c.created_at, -c.attempt))
        return ObservedPod("u", "default", "p", tuple(boxes), tuple(parts))

    def facts(self, **more: Any) -> plan.Facts:
        running = frozenset(c.id for c in self.containers.values() if c.state == "running")
        return plan.Facts(started=running, stopped=frozenset(self.stopped), **more)

    def act(self, action: plan.Action) -> None:
        self.now += 1
        match action:
            case plan.RunSandbox(attempt):
                assert not any(b.ready for b in self.boxes.values())
                self.boxes[f"box{attempt}"] = ObservedSandbox(f"box{attempt}", attempt, True, self.now, ("10.0.0.9",))
            case plan.StopSandbox(id):
                self.stopped.add(id)
                self.boxes[id] = replace(self.boxes[id], ready=False)
            case plan.RemoveSandbox(id):
                assert not any(c.sandbox_id == id and c.state == "running" for c in self.containers.values())
                self.boxes.pop(id)
            case plan.StartContainer(name, attempt):
                self.start(name, attempt)
            case plan.KillContainer(id):
                self.containers[id] = replace(self.containers[id], state="exited", exit_code=137, finished_at=self.now)
            case plan.RemoveContainer(id):
                assert self.containers[id].state != "running"
                del self.containers[id]
            case plan.Reset(ids):
                assert not any(c.state in ("running", "unknown") for c in self.containers.values())
                for id in ids:
                    del self.containers[id]
            case plan.Finish():
                self.finished = True

    def start(self, name: str, attempt: int) -> None:
        assert not any(c.name == name and c.state in ("running", "unknown") for c in self.containers.values()), name
        assert not any(c.name == name and c.attempt == attempt for c in self.containers.values())
        box = self.seen.sandbox
        assert box is not None and box.ready
        spec = plan.named(self.pod, name) or {}
        once = any(c["name"] == name and not is_sidecar(c) for c in self.pod["spec"].get("initContainers") or ())
        self.containers[f"{name}-{attempt}-{self.now}"] = ObservedContainer(
            f"{name}-{attempt}-{self.now}", name, attempt, "exited" if once else "running", box.id, self.now, self.now,
            finished_at=self.now if once else 0.0, restart_count=attempt, hash=container_hash(spec))

    def live(self, **facts: Any) -> None:
        """Plan and act until nothing is left to do."""
        for _ in range(ROUNDS):
            made = plan.plan(self.pod, self.seen, self.now, self.facts(**facts))
            for action in made.actions:
                if isinstance(action, plan.KillContainer) and not self.ending:
                    assert action.id not in self.healthy, action
                self.act(action)
            if not made.actions and self.end_init():
                continue
            if self.finished or not made.actions:
                if not made.wake_at or made.wake_at <= self.now:
                    return
                self.now = made.wake_at + 1
        raise AssertionError(f"no rest after {ROUNDS} rounds: {self.seen}")

    def end_init(self) -> bool:
        """What initializes comes to its end, in time."""
        plain = {c["name"] for c in self.pod["spec"].get("initContainers") or () if not is_sidecar(c)}
        running = [c for c in self.containers.values() if c.name in plain and c.state == "running"]
        for c in running:
            self.healthy.discard(c.id)
            self.containers[c.id] = replace(c, state="exited", exit_code=0, finished_at=self.now)
        return bool(running)

    @property
    def ending(self) -> bool:
        return plan.deleting(self.pod) or plan.finished(self.pod, self.seen)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    policy = draw(st.sampled_from(("Always", "OnFailure", "Never")))
    init: list[dict[str, Any]] = []
    for index in range(draw(st.integers(0, 2))):
        init.append({"name": f"i{index}", "image": "busybox",
                     **({"restartPolicy": "Always"} if draw(st.booleans()) else {})})
    the_pod = pod(*(f"m{n}" for n in range(draw(st.integers(1, 2)))), init=tuple(init), policy=policy)
    draw(st.sampled_from([*plan.of_pod(the_pod)]))["restartPolicyRules"] = draw(st.sampled_from(([], [
        {"action": ALL, "exitCodes": {"operator": "In", "values": [42]}}])))
    attempts = draw(st.integers(0, 2))
    boxes = [ObservedSandbox(f"old{n}", n, n == attempts - 1 and draw(st.booleans()), NOW + n) for n in range(attempts)]
    containers: list[ObservedContainer] = []
    for spec in plan.of_pod(the_pod):
        for attempt in range(draw(st.integers(0, 2)) if boxes else 0):
            newest = not any(c.name == spec["name"] for c in containers)
            state = draw(st.sampled_from(STATES)) if newest else "exited"
            box = draw(st.sampled_from(boxes)) if newest else boxes[0]
            containers.append(ObservedContainer(
                f"{spec['name']}-was{attempt}", spec["name"], 1 - attempt, state, box.id, NOW + 1 - attempt, NOW,
                finished_at=NOW + 5 if state == "exited" else 0.0, exit_code=draw(st.sampled_from((0, 1, 42))),
                restart_count=1 - attempt,
                hash=container_hash(spec) if draw(st.booleans()) else "other"))
    return World(the_pod, ObservedPod("u", "default", "p", tuple(reversed(boxes)), tuple(
        sorted(containers, key=lambda c: (-c.created_at, -c.attempt)))))


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_every_pod_comes_to_rest_and_nothing_healthy_is_stopped(world: World) -> None:
    world.live()
    if plan.finished(world.pod, world.seen):
        assert not any(c.state == "running" for c in world.containers.values())
        return
    box = world.seen.sandbox
    assert box is not None and box.ready
    for spec in [*world.pod["spec"]["containers"],
                 *(c for c in world.pod["spec"].get("initContainers") or () if is_sidecar(c))]:
        found = world.seen.container(spec["name"])
        assert found is not None, f"{spec} of {world}"
        ended = found.state == "exited" and not restarts(policy(world.pod), found.exit_code, spec)
        assert found.state == "running" or ended, found
    assert world.healthy <= {c.id for c in world.containers.values() if c.state == "running"} or world.ending


@given(worlds())
@settings(max_examples=200, deadline=None)
def test_a_deletion_always_ends_with_nothing_left_running(world: World) -> None:
    world.pod["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
    world.live(terminating_since=world.now)
    assert world.finished and not any(c.state in ("running", "unknown") for c in world.containers.values())


@given(worlds(), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_under_way_is_left_alone(world: World, data: st.DataObject) -> None:
    """Neither started a second time, nor removed, whatever a look that came too early shows of it."""
    names = [c["name"] for c in plan.of_pod(world.pod)]
    busy = frozenset(data.draw(st.sets(st.sampled_from(names))))
    made = plan.plan(world.pod, world.seen, world.now, world.facts(busy=busy))
    ids = {c.id for c in world.containers.values() if c.name in busy and c.state == "created"}
    for action in made.actions:
        assert not (isinstance(action, plan.StartContainer) and action.name in busy)
        assert not (isinstance(action, plan.RemoveContainer) and action.id in ids)

"""What to do next for one pod: a pure function from (pod, what the runtime has, now, facts) to actions.

Owns every decision about a pod's life: sandboxes, the order of init containers, restarts and their back-off, liveness,
changed definitions, clean-up and the order of termination. Promises: the same inputs give the same plan; an empty plan
means nothing is to be done until something changes or `wake_at` comes; a running container whose hash is equal is never
touched. Never performs I/O and never reads a clock. Called by `worker`, which performs the actions and plans again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.backoff import INITIAL, BackOff, duration
from agent.kubelet.model import ObservedContainer, ObservedPod
from agent.kubelet.restarts import asking, follows, init_policy, is_sidecar, lasting, outdated, policy
from controlplane.machinery import podfacts
from controlplane.machinery.clock import parse_rfc3339

SANDBOX = "/sandbox"  # the busy mark of sandbox work; no container can have this name
RESET = "/reset"  # that of clearing the way for all containers
DEFAULT_GRACE = 30  # seconds; what the API defaults terminationGracePeriodSeconds to
KEPT_ATTEMPTS = 2  # the newest attempt and the one before it, which lastState and `logs --previous` show
# Seconds that a container runs on after an edit for which it must restart: several edits in a row cost one restart, and
# who made one still finds the pod as it was (upstream's kubelet needs up to a second to notice an end).
SETTLE = 1.0
FORCED_GRACE = 1  # seconds; a forced deletion still lets the runtime deliver the signal


@dataclass(frozen=True, slots=True)
class RunSandbox:
    attempt: int
    changed: bool = False  # replaces one that died


@dataclass(frozen=True, slots=True)
class StopSandbox:
    id: str


@dataclass(frozen=True, slots=True)
class RemoveSandbox:
    id: str


@dataclass(frozen=True, slots=True)
class StartContainer:
    name: str
    attempt: int
    failed_at: float = 0.0  # when the attempt before ended; 0.0 = this is the first


@dataclass(frozen=True, slots=True)
class KillContainer:
    """`grace` is seconds from now; `message` is the text of the Killing event. Its end comes after those of the
    containers `after`, but nobody waits for another beyond the grace."""

    id: str
    name: str
    grace: float
    reason: str
    message: str
    after: tuple[str, ...] = ()  # container ids


@dataclass(frozen=True, slots=True)
class RemoveContainer:
    id: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Remove these containers, in this order, so that all begin again; it was the end of `name` that asked for it."""

    ids: tuple[str, ...]
    name: str
    failed_at: float


@dataclass(frozen=True, slots=True)
class Finish:
    """No container runs any more: end and remove what is left on the host, then the object."""


Action = (RunSandbox | StopSandbox | RemoveSandbox | StartContainer | KillContainer | RemoveContainer | Reset
          | Finish)


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A failed liveness or startup probe; `grace` overrides the pod's when the probe gives one (seconds)."""

    probe: str  # Liveness | Startup
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What neither the pod nor the runtime knows. Keys are container names unless said otherwise."""

    busy: frozenset[str] = frozenset()  # under work now, incl. SANDBOX: not to be planned for
    backoffs: Mapping[str, BackOff] = field(default_factory=dict)
    not_before: Mapping[str, float] = field(default_factory=dict)  # image or configuration failed: next try
    unhealthy: Mapping[str, Unhealthy] = field(default_factory=dict)  # by container id
    started: frozenset[str] = frozenset()  # container ids whose startup is complete
    resized: frozenset[str] = frozenset()  # container names whose new resources need a new process
    stopped: frozenset[str] = frozenset()  # sandbox ids already stopped by us
    doomed: tuple[str, str] | None = None  # the pod as a whole failed: reason, message
    grace: float | None = None  # seconds instead of the pod's own, when the node needs its place
    gone: bool = False  # the object is no longer in the API
    terminating_since: float = 0.0
    edited_at: float = 0.0  # when the pod's specification last changed under our eyes


NOTHING = Facts()


@dataclass(frozen=True, slots=True)
class Plan:
    actions: tuple[Action, ...] = ()
    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # name -> reason, message
    wake_at: float = 0.0  # plan again then, even if nothing happens; 0.0 = never


def deleting(pod: dict[str, Any]) -> bool:
    return bool(pod["metadata"].get("deletionTimestamp"))


def of_pod(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every container of the pod: init, main, ephemeral."""
    for group in ("initContainers", "containers", "ephemeralContainers"):
        yield from pod["spec"].get(group) or ()


def inside(pod: dict[str, Any]) -> tuple[Any, ...]:
    """What of a pod its containers may see in their files and variables, and what may change."""
    meta = pod["metadata"]
    return meta.get("labels"), meta.get("annotations"), [c.get("resources") for c in of_pod(pod)]


def named(pod: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((c for c in of_pod(pod) if c["name"] == name), None)


def next_attempt(pod: dict[str, Any], seen: ObservedPod, name: str) -> int:
    """One more than any attempt known to the runtime or told to the API."""
    known = [c.restart_count for c in seen.containers if c.name == name]
    status = pod.get("status") or {}
    for group in ("containerStatuses", "initContainerStatuses"):
        known += [s.get("restartCount", 0) for s in status.get(group) or ()
                  if s["name"] == name and s.get("containerID")]
    return max(known) + 1 if known else 0


def finished(pod: dict[str, Any], seen: ObservedPod) -> bool:
    """True when no container of the pod will ever run again by its own rules."""
    if podfacts.finished(pod):
        return True
    if asking(pod, seen):
        return False
    for container in pod["spec"].get("initContainers") or ():
        last = seen.container(container["name"])
        if last is not None and last.state == "exited" and last.exit_code and not is_sidecar(container) \
                and not follows(init_policy(pod), last, container):
            return True
    ends = [(c, seen.container(c["name"])) for c in pod["spec"]["containers"]]
    return all(e is not None and e.state == "exited" and not follows(policy(pod), e, c) for c, e in ends)


def overdue(pod: dict[str, Any]) -> float:
    """When activeDeadlineSeconds ends, seconds since the epoch; 0.0 when there is none or it has not begun."""
    limit = pod["spec"].get("activeDeadlineSeconds")
    started = (pod.get("status") or {}).get("startTime")
    return parse_rfc3339(started) + limit if limit and started else 0.0


def grace_of(pod: dict[str, Any]) -> float:
    """Seconds the pod's containers get to end."""
    given = pod["metadata"].get("deletionGracePeriodSeconds")
    if given is None:
        given = pod["spec"].get("terminationGracePeriodSeconds")
    if given is None:
        given = DEFAULT_GRACE
    return max(float(given), FORCED_GRACE)


def plan(pod: dict[str, Any], seen: ObservedPod, now: float, facts: Facts = NOTHING) -> Plan:
    """The next steps for `pod`."""
    if facts.gone or deleting(pod):
        return _end(pod, seen, now, facts, final=True)
    if facts.doomed or finished(pod, seen):
        return _end(pod, seen, now, facts, final=False)
    if SANDBOX in facts.busy:
        return Plan()
    if ends := asking(pod, seen):
        return _reset(pod, seen, ends, now, facts)
    sandbox = seen.sandbox
    if sandbox is None or not sandbox.ready:
        return _sandbox(pod, seen, facts, now)
    draft = _Draft(pod, seen, now, facts, sandbox.id)
    draft.tidy()
    draft.visitors()
    if draft.init():
        draft.main()
    return Plan(tuple(draft.actions), draft.waiting, min(filter(None, draft.wakes), default=0.0))


def _running(seen: ObservedPod) -> list[ObservedContainer]:
    return [c for c in seen.containers if c.state in ("running", "unknown")]


def _reset(pod: dict[str, Any], seen: ObservedPod, ends: list[ObservedContainer], now: float, facts: Facts) -> Plan:
    """End all but ephemeral containers without grace, as upstream does, and when the back-off of the one whose end
    asked for it is over, forget them all: in the same sandbox the pod begins from the beginning."""
    names = {spec["name"] for spec in lasting(pod)}
    live = [c for c in _running(seen) if c.name in names]
    if live:
        return Plan(tuple(KillContainer(c.id, c.name, 0.0, "Reset", f"Stopping container {c.name}") for c in live))
    if facts.busy:
        return Plan()  # a start or a stop is under way; its end wakes us
    last = ends[0]
    until = max(facts.backoffs.get(last.name, BackOff()).until(last.finished_at), facts.not_before.get(RESET, 0.0))
    if until > now:
        text = back_off_message(pod, last.name, until - last.finished_at)
        return Plan((), {last.name: ("CrashLoopBackOff", text)}, min(filter(None, (until, overdue(pod)))))
    asked = [c.id for c in ends]
    others = [c.id for c in seen.containers if c.name in names and c.id not in asked]
    return Plan((Reset((*others, *asked), last.name, last.finished_at),))


def _sandbox(pod: dict[str, Any], seen: ObservedPod, facts: Facts, now: float) -> Plan:
    """No usable sandbox: end what is left of the old one, then make the next attempt."""
    old = seen.sandbox
    if old is None:
        return _unless_early(RunSandbox(0), facts, now)
    live = _running(seen)
    if live:
        return Plan(tuple(KillContainer(c.id, c.name, grace_of(pod), "SandboxChanged", f"Stopping container {c.name}")
                          for c in live))
    if old.id not in facts.stopped:
        return Plan((StopSandbox(old.id),))
    return _unless_early(RunSandbox(max(s.attempt for s in seen.sandboxes) + 1, changed=True), facts, now)


def _unless_early(action: RunSandbox, facts: Facts, now: float) -> Plan:
    until = facts.not_before.get(SANDBOX, 0.0)
    return Plan(wake_at=until) if until > now else Plan((action,))


def _end(pod: dict[str, Any], seen: ObservedPod, now: float, facts: Facts, *, final: bool) -> Plan:
    """Stop containers (main first, then sidecars in reverse), then the sandbox; `final` removes it with all else."""
    since = facts.terminating_since or now
    given = grace_of(pod) if facts.grace is None else facts.grace
    grace = max(given - (now - since), FORCED_GRACE)
    sidecars = [c["name"] for c in pod["spec"].get("initContainers") or () if is_sidecar(c)]
    turns = sorted(_running(seen), key=lambda c: -sidecars.index(c.name) if c.name in sidecars else -len(sidecars))
    if turns:
        return Plan(tuple(
            KillContainer(c.id, c.name, grace, "Ended", f"Stopping container {c.name}",
                          tuple(o.id for o in turns[:turns.index(c)]) if c.name in sidecars else ()) for c in turns))
    if facts.busy:
        return Plan()  # a start or a removal is under way; its end wakes us
    if final:
        return Plan((Finish(),))
    return Plan(tuple(StopSandbox(s.id) for s in seen.sandboxes if s.ready or s.id not in facts.stopped))


class _Draft:
    """One planning pass over a pod with a ready sandbox."""

    def __init__(self, pod: dict[str, Any], seen: ObservedPod, now: float, facts: Facts, sandbox_id: str) -> None:
        self.pod, self.seen, self.now, self.facts = pod, seen, now, facts
        self.here = {}
        for container in reversed(seen.containers):
            if container.sandbox_id == sandbox_id:
                self.here[container.name] = container
        self.sandbox_id = sandbox_id
        self.strays: set[str] = set()  # names of containers that must end before another of the name may run
        self.actions: list[Action] = []
        self.waiting: dict[str, tuple[str, str]] = {}
        self.wakes: list[float] = [overdue(pod)]
        self.hooked = False  # a container before this one has not run its postStart hook yet

    def tidy(self) -> None:
        """Stop what runs twice or beside the sandbox; remove attempts nobody can ask for, and sandboxes that hold no
        container any more."""
        for container in _running(self.seen):
            if self.here.get(container.name) is not container:  # left behind by an attempt nobody remembers
                self.strays.add(container.name)
                self.actions.append(KillContainer(container.id, container.name, grace_of(self.pod), "Stray",
                                                  f"Stopping container {container.name}"))
        counts: dict[str, int] = {}
        kept = {self.sandbox_id}
        for container in self.seen.containers:
            counts[container.name] = counts.get(container.name, 0) + 1
            if counts[container.name] > KEPT_ATTEMPTS and container.state == "exited":
                self.actions.append(RemoveContainer(container.id))
            else:
                kept.add(container.sandbox_id)
        self.actions += [RemoveSandbox(s.id) for s in self.seen.sandboxes if s.id not in kept]

    def init(self) -> bool:
        """Plan the init containers; True when the main ones may run."""
        specs = self.pod["spec"].get("initContainers") or []
        later = {c["name"] for c in self.pod["spec"]["containers"]}
        initialized = any(name in later for name in self.here)
        for spec in specs:
            found = self.here.get(spec["name"])
            if is_sidecar(spec):
                self.keep(spec, "Always")
                if not initialized and not (found and found.state == "running" and found.id in self.facts.started):
                    return False
            elif initialized or (found and found.state == "exited" and found.exit_code == 0):
                continue
            else:
                self.keep(spec, init_policy(self.pod), once=True)
                return False
        return True

    def main(self) -> None:
        """As with upstream, a postStart hook holds back the starts of the containers named after its own: pods rely on
        it where one program has to be up before another."""
        for spec in self.pod["spec"]["containers"]:
            self.keep(spec, policy(self.pod))
            if (spec.get("lifecycle") or {}).get("postStart"):
                starting = {a.name for a in self.actions if isinstance(a, StartContainer)}
                self.hooked = self.hooked or spec["name"] in self.facts.busy | starting

    def visitors(self) -> None:
        """Ephemeral containers look in whatever the others are at."""
        for spec in self.pod["spec"].get("ephemeralContainers") or ():
            if self.seen.container(spec["name"]) is None:
                self.keep(spec, "Never")

    def keep(self, spec: dict[str, Any], rule: str, *, once: bool = False) -> None:
        """Bring one container to where its rule wants it. `once`: it runs again in every new sandbox."""
        name = spec["name"]
        if name in self.facts.busy or name in self.strays:
            return
        found = self.here.get(name)
        if found is None:
            before = self.seen.container(name)
            if once or before is None or before.state != "exited" or follows(rule, before, spec):
                self.start(spec, None if once or self.outlived(before) else before)
        elif found.state == "created":
            self.actions.append(RemoveContainer(found.id))  # left by a crash between create and start
        elif found.state == "exited":
            if follows(rule, found, spec):
                self.start(spec, found)
        else:
            self.check(spec, found)

    def outlived(self, before: ObservedContainer | None) -> bool:
        """Whether it ended with an old sandbox that had lived well: no fault of its own, and no reason to back off."""
        box = next((s for s in self.seen.sandboxes if before and s.id == before.sandbox_id), None)
        return box is not None and before is not None and before.finished_at - box.created_at > INITIAL

    def check(self, spec: dict[str, Any], found: ObservedContainer) -> None:
        grace: float | None = None
        if found.state == "unknown":
            reason, why = "Unknown", "is in an unknown state, try killing it before restart"
        elif outdated(found, spec):
            if self.facts.edited_at <= self.now < self.facts.edited_at + SETTLE:  # else the clock was set
                self.wakes.append(self.facts.edited_at + SETTLE)
                return
            reason, why = "Changed", "definition changed, will be restarted"
        elif found.name in self.facts.resized:
            reason, why = "Resized", "resize requires restart"
        elif found.id in self.facts.unhealthy:
            failure = self.facts.unhealthy[found.id]
            reason, grace = failure.probe, failure.grace
            why = f"failed {failure.probe.lower()} probe" + ("" if policy(self.pod) == "Never" else
                                                             ", will be restarted")
        else:
            return
        self.actions.append(KillContainer(found.id, found.name, grace_of(self.pod) if grace is None else grace,
                                          reason, f"Container {found.name} {why}"))

    def start(self, spec: dict[str, Any], before: ObservedContainer | None) -> None:
        name = spec["name"]
        failed_at = before.finished_at if before else 0.0
        until = self.facts.backoffs.get(name, BackOff()).until(failed_at) if before else 0.0
        if until > self.now:
            self.waiting[name] = ("CrashLoopBackOff", back_off_message(self.pod, name, until - failed_at))
        until = max(until, self.facts.not_before.get(name, 0.0))
        if until > self.now:
            self.wakes.append(until)
        elif not self.hooked:
            self.actions.append(StartContainer(name, next_attempt(self.pod, self.seen, name), failed_at))


def back_off_message(pod: dict[str, Any], name: str, delay: float) -> str:
    meta = pod["metadata"]
    return (f"back-off {duration(delay)} restarting failed container={name} "
            f"pod={meta['name']}_{meta.get('namespace', '')}({meta['uid']})")

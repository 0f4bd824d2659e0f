"""The row of a pod: what of its many states a person should read first.

Owns the precedence: a failing or waiting init container, then waiting and terminated containers, then the phase;
being deleted outweighs them all. Pure. Called by the package.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.podfacts import ENDED
from controlplane.machinery.tables.text import (
    NONE,
    Object,
    Printer,
    created,
    human_duration,
    name,
    seconds_of,
    spec,
    status,
)

_COLUMNS = "Name, Ready, Status, Restarts, Age, IP*, Node*, Nominated Node*, Readiness Gates*"


class _Tally:
    """Restarts and when the last was."""

    def __init__(self) -> None:
        self.restarts = 0
        self.last = 0.0

    def count(self, container: Object) -> None:
        self.restarts += container.get("restartCount") or 0
        ended = ((container.get("lastState") or {}).get("terminated") or {}).get("finishedAt")
        self.last = max(self.last, seconds_of(ended) or 0.0)

    def text(self, now: float) -> str:
        ago = f" ({human_duration(now - self.last)} ago)" if self.restarts and self.last else ""
        return f"{self.restarts}{ago}"


def pod_cells(pod: Object, now: float) -> list[Any]:
    wanted, seen = spec(pod), status(pod)
    reason, ready, total, tally = state(pod)
    addresses = seen.get("podIPs") or ()
    gates = wanted.get("readinessGates") or ()
    true = {c["type"] for c in seen.get("conditions") or () if c.get("status") == "True"}
    passed = sum(1 for g in gates if g.get("conditionType") in true)
    return [name(pod), f"{ready}/{total}", reason, tally.text(now), created(pod, now),
            (addresses[0].get("ip") if addresses else seen.get("podIP")) or NONE, wanted.get("nodeName") or NONE,
            seen.get("nominatedNodeName") or NONE, f"{passed}/{len(gates)}" if gates else NONE]


def state(pod: Object) -> tuple[str, int, int, _Tally]:
    """Status word, ready containers, all containers, restarts."""
    seen = status(pod)
    conditions = {c.get("type"): c for c in seen.get("conditions") or ()}
    reason = seen.get("reason") or seen.get("phase") or ""
    if (conditions.get("PodScheduled") or {}).get("reason") == "SchedulingGated":
        reason = "SchedulingGated"
    inits = spec(pod).get("initContainers") or ()
    sidecars = {c["name"] for c in inits if c.get("restartPolicy") == "Always"}
    total = len(spec(pod).get("containers") or ()) + len(sidecars)
    starting, ready, all_inits, of_sidecars = _init_state(seen, sidecars, len(inits))
    tally = all_inits
    if not starting or (conditions.get("Initialized") or {}).get("status") == "True":
        running = False
        tally = of_sidecars
        for container in reversed(seen.get("containerStatuses") or ()):
            tally.count(container)
            word = _container_state(container.get("state") or {})
            if word:
                reason = word
            elif container.get("ready") and (container.get("state") or {}).get("running") is not None:
                running = True
                ready += 1
        if reason == "Completed" and running:
            reason = "Running" if (conditions.get("Ready") or {}).get("status") == "True" else "NotReady"
    else:
        reason = starting
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        if seen.get("reason") == "NodeLost":
            reason = "Unknown"
        elif seen.get("phase") not in ENDED:
            reason = "Terminating"
    return reason, ready, total, tally


def _init_state(seen: Object, sidecars: set[str], count: int) -> tuple[str, int, _Tally, _Tally]:
    """What initialisation waits for ("" when it is over), ready sidecars, restarts of all and of sidecars."""
    ready, every, kept = 0, _Tally(), _Tally()
    for index, container in enumerate(seen.get("initContainerStatuses") or ()):
        every.count(container)
        sidecar = container.get("name") in sidecars
        if sidecar:
            kept.count(container)
        now = container.get("state") or {}
        ended, waiting = now.get("terminated"), now.get("waiting") or {}
        if ended is not None and not ended.get("exitCode"):
            continue
        if sidecar and container.get("started"):
            ready += bool(container.get("ready"))
            continue
        if ended is not None:
            return f"Init:{_ended(ended)}", ready, every, kept
        if waiting.get("reason") and waiting["reason"] != "PodInitializing":
            return f"Init:{waiting['reason']}", ready, every, kept
        return f"Init:{index}/{count}", ready, every, kept
    return "", ready, every, kept


def _container_state(now: Object) -> str:
    if reason := (now.get("waiting") or {}).get("reason"):
        return str(reason)
    ended = now.get("terminated")
    return _ended(ended) if ended is not None else ""


def _ended(terminated: Object) -> str:
    if terminated.get("reason"):
        return str(terminated["reason"])
    if terminated.get("signal"):
        return f"Signal:{terminated['signal']}"
    return f"ExitCode:{terminated.get('exitCode') or 0}"


def _done(pod: Object) -> list[Object]:
    """Row conditions, by which kubectl can leave finished pods out."""
    texts = {"Succeeded": "The pod has completed successfully.", "Failed": "The pod failed."}
    phase = status(pod).get("phase")
    if phase not in texts:
        return []
    return [{"type": "Completed", "status": "True", "reason": phase, "message": texts[phase]}]


PRINTERS = {"pods": Printer(_COLUMNS, pod_cells, _done)}

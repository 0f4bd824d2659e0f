"""How long something that starts is waited for: as long as it gets on. A slow machine is no fault, standing still is.

Owns `Patience` and what counts as getting on: a state that changes, and processor time used by what is not ready yet (a
process that imports its libraries on an emulated core says nothing for a minute). Promises that whatever ends again and
again is given up at once, and everything else at last after MOST seconds. Reads /proc and changes nothing. Called by
`up`, `install`, `upgrade` and the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, Finding

if TYPE_CHECKING:
    from controlplane.client.rest import Client

QUIET = 90.0  # seconds without any change: longer than what an idle machine of the slowest kind says nothing for
MOST = 1800.0  # seconds in all: what changes for ever gets nowhere
WORK = 5.0  # seconds of processor time that are a change: much more than what waits and tries again uses within QUIET
ENDINGS = 5  # of one process, which then will not come up by trying again
PAUSE = 0.1  # seconds between two looks
PASSING = "node.kubernetes.io/"  # taints that tell a node's own state; others are somebody's wish
Row = Mapping[str, Any]


class Patience:
    """Ends `quiet` seconds after the last change, or after `most` seconds."""

    def __init__(self, quiet: float = QUIET, most: float = MOST, clock: Clock = SYSTEM) -> None:
        self._clock, self._quiet, self._end = clock, quiet, clock.monotonic() + most
        self._changed, self._sign = clock.monotonic(), object()

    def ended(self, sign: object) -> bool:
        """Whether to give up; `sign` is equal to the one before when nothing has changed."""
        now = self._clock.monotonic()
        if sign != self._sign:
            self._changed, self._sign = now, sign
        return now > self._end or now - self._changed > self._quiet


def work(pids: Iterable[int]) -> int:
    """Processor time these processes have used, in units of WORK; a process that is gone counts for nothing."""
    import psutil
    used = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        used += times.user + times.system
    return int(used // WORK)


async def processes_run(look: Callable[[], Sequence[Row] | None]) -> None:
    """Wait until every process of `look` (as `status` shows them) runs. Raises Finding naming those that do not."""
    patience, first = Patience(), {row["name"]: row["restarts"] for row in look() or ()}
    while True:
        rows = look() or ()
        late = [row for row in rows if row["state"] != "running"]
        if rows and not late:
            return
        for row in late:
            if row["state"] == "failed" or row["restarts"] - first.get(row["name"], 0) >= ENDINGS:
                raise Finding(f"{row['name']} does not start", row["reason"], f"its log says why: {row['log']}")
        if patience.ended(([(row["name"], row["state"], row["restarts"]) for row in rows],
                           work(row["pid"] for row in late if row["pid"]))):
            raise Finding("not everything started", "; ".join(
                f"{row['name']} is {row['state']}: {row['reason'] or 'see ' + row['log']}" for row in late),
                "./pelamis status")
        await SYSTEM.sleep(PAUSE)


async def node_takes_pods(client: Client, name: str, since: float = 0.0) -> None:
    """Wait until a node is ready by a report made after `since` (wall seconds), and none of its own states keeps pods
    away. Raises Finding with what the node says."""
    from controlplane.machinery import resources
    patience, lease_of = Patience(), resources.named("leases.coordination.k8s.io")
    while True:
        try:
            node = await client.get(resources.named("nodes"), name)
            lease = await client.get(lease_of, name, "kube-node-lease") if since else {}
            obstacle = keeps_pods_away(node, lease, since)
        except ApiError as error:
            obstacle = str(error)
        if not obstacle:
            return
        if patience.ended(obstacle):
            raise Finding(f"node {name} is not ready", obstacle, "./pelamis status")
        await SYSTEM.sleep(PAUSE)


def keeps_pods_away(node: dict[str, Any], lease: dict[str, Any], since: float) -> str:
    """Why a node takes no pods yet, "" when it does. A lease tells whole seconds of the node's clock. Pure."""
    from controlplane.machinery import objects
    from controlplane.machinery.clock import parse_rfc3339
    ready = objects.condition(node, "Ready") or {}
    if ready.get("status") != "True":
        return str(ready.get("message") or "it has not reported yet")
    if since and parse_rfc3339(lease["spec"]["renewTime"]) + 1.0 < since:
        return "it has not reported since"
    taints = [t["key"] for t in (node.get("spec") or {}).get("taints") or ()
              if t["key"].startswith(PASSING) and t["key"] != PASSING + "unschedulable"]
    return f"it has the taint {taints[0]}" if taints else ""

"""A pod's status: computed from the pod, the runtime's view and the worker's report, and the patch that tells the API.

Pure. Owns phase, conditions and the assembly of container statuses, all worded as upstream words them. Promises: a
terminal phase is never left, nor told while a container still runs; a transition time moves only with its status;
conditions owned by others are untouched. Called by `worker`; never performs I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.kubelet.compute.resize import with_resources
from agent.kubelet.compute.resources import held
from agent.kubelet.model import ObservedPod
from agent.kubelet.reporting.containerstatus import Report, container_status
from agent.kubelet.restarts import asking, init_policy, is_sidecar, may_reset, outdated, policy, restarts
from controlplane.machinery import podresources
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.podfacts import ENDED

OTHERS = ("nominatedNodeName", "resize", "reason", "message", "resourceClaimStatuses", "extendedResourceClaimStatus")
PASSING = ("PodResizePending", "PodResizeInProgress")  # told while they hold and then gone
GROUPS = (("initContainers", "initContainerStatuses"), ("containers", "containerStatuses"),
          ("ephemeralContainers", "ephemeralContainerStatuses"))
KINDS = {"initContainers": "init_container", "containers": "container", "ephemeralContainers": "ephemeral_container"}
RESETTING = "AllContainersRestarting"
OWN = {*PASSING, RESETTING, "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"}
GIVEN = ("nominatedNodeName", "resourceClaimStatuses", "extendedResourceClaimStatus")  # always somebody else's
KUBELET = "TerminationByKubelet"  # the reason of a DisruptionTarget of ours; other reasons are other people's


def compute(pod: dict[str, Any], seen: ObservedPod, now: float, report: Report,
            old: dict[str, Any] | None = None) -> dict[str, Any]:
    """The whole PodStatus. `old` is the newest status the API is known to have (default: the pod's own)."""
    old = (pod.get("status") or {}) if old is None else old
    status: dict[str, Any] = {k: v for k, v in old.items() if k in OTHERS}
    resetting = bool(asking(pod, seen))
    if not resetting and RESETTING in {c["type"] for c in old.get("conditions") or () if c["status"] == "True"}:
        old = {**old, **{key: [_put_aside(entry) for entry in old[key]] for _, key in GROUPS[:2] if key in old}}
    initialized = _initialized(pod, seen, report)
    idle = ("ContainerCreating", "")
    if pod["spec"].get("initContainers") and not initialized:
        idle = ("PodInitializing", "")
    for group, key in GROUPS:
        entries = _group(pod, group, key, seen, old, report, idle)
        if entries:
            status[key] = entries
    status["phase"] = str(old.get("phase")) if resetting and not report.doomed else phase(
        pod, status, old, report, seen)
    if status["phase"] in ENDED and old.get("phase") not in ENDED and any(
            c.state in ("running", "unknown") for c in seen.containers):
        status["phase"] = str(old.get("phase") or "Pending")  # whoever waits for the end may take what it still has
    elif report.doomed:
        status["reason"], status["message"] = report.doomed
    if status["phase"] in ENDED and not seen.containers and not any(old.get(key) for _, key in GROUPS):
        for _, key in GROUPS:
            status.pop(key, None)  # refused before anything of it was told: nothing is being created
    if pod["metadata"].get("generation"):
        status["observedGeneration"] = pod["metadata"]["generation"]
    _resources(pod, status, report)
    status["qosClass"] = old.get("qosClass") or podresources.qos_class(pod["spec"])
    status["startTime"] = old.get("startTime") or rfc3339(report.start_time or now)
    _addresses(pod, seen, status, old, report)
    status["conditions"] = _conditions(pod, seen, status, old, now, report, resetting)
    return status


def _resources(pod: dict[str, Any], status: dict[str, Any], report: Report) -> None:
    """What the pod's group holds, and what it was granted."""
    granted = held(with_resources(pod, report.allocated))
    has = granted if report.actual == report.allocated else held(with_resources(pod, report.actual))
    compute = {kind: {name: amount for name, amount in amounts.items() if podresources.supported(name)}
               for kind, amounts in has.items()}
    status["resources"] = {kind: podresources.texts(amounts) for kind, amounts in compute.items() if amounts}
    if granted["requests"]:
        status["allocatedResources"] = podresources.texts(granted["requests"])


def _put_aside(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry of a container that begins again after all were reset: its end is told as the last one."""
    if "terminated" not in entry["state"]:
        return entry
    return {**entry, "lastState": entry["state"], "state": {"waiting": {"reason": "PodInitializing"}}}


def _group(pod: dict[str, Any], group: str, key: str, seen: ObservedPod, old: dict[str, Any], report: Report,
           idle: tuple[str, str]) -> list[dict[str, Any]]:
    known = {s["name"]: s for s in old.get(key) or ()}
    init = group == "initContainers"
    entries = []
    for spec in pod["spec"].get(group) or ():
        sidecar = init and is_sidecar(spec)
        waits = ("PodInitializing", "") if init else idle
        entries.append(container_status(spec, seen, known.get(spec["name"]), report, waits,
                                        init=init and not sidecar))
    return entries


def _initialized(pod: dict[str, Any], seen: ObservedPod, report: Report) -> bool:
    if any(seen.container(c["name"]) for c in pod["spec"]["containers"]):
        return True
    for spec in pod["spec"].get("initContainers") or ():
        last = seen.container(spec["name"])
        if last is None:
            return False
        if is_sidecar(spec):
            if last.state != "running" or last.id not in report.started:
                return False
        elif last.state != "exited" or last.exit_code:
            return False
    return True


def phase(pod: dict[str, Any], status: dict[str, Any], old: dict[str, Any], report: Report,
          seen: ObservedPod) -> str:
    """The pod's phase by upstream's rules."""
    if old.get("phase") in ENDED:
        return str(old["phase"])
    if report.doomed:
        return "Failed"
    pending_init = failed_init = lost_init = 0
    specs = pod["spec"].get("initContainers") or []
    for spec, entry in zip(specs, status.get("initContainerStatuses") or ()):
        ended = entry["state"].get("terminated") or entry["lastState"].get("terminated")
        if is_sidecar(spec):
            pending_init += not entry["started"]
        elif not ended:
            pending_init += 1
        elif ended["exitCode"]:
            failed_init += 1
            lost_init += "terminated" in entry["state"] and not restarts(init_policy(pod), ended["exitCode"], spec)
    running = waiting = stopped = succeeded = again = 0
    for spec, entry in zip(pod["spec"]["containers"], status.get("containerStatuses") or ()):
        state, last = entry["state"], entry["lastState"].get("terminated")
        if "running" in state:
            running += 1
        elif "terminated" in state:
            stopped += 1
            succeeded += state["terminated"]["exitCode"] == 0
            found = seen.container(spec["name"])
            again += (found is not None and outdated(found, spec)) or restarts(
                policy(pod), state["terminated"]["exitCode"], spec)
        elif last:
            stopped += 1
            again += 1
        else:
            waiting += 1
    if report.ended and not running:
        return "Succeeded" if stopped and stopped == succeeded and not waiting else "Failed"
    if lost_init:
        return "Failed"
    if (pending_init or failed_init) and not (running or stopped):
        return "Pending"
    if waiting or not (running or stopped):
        return "Pending"
    if running or again:
        return "Running"
    return "Succeeded" if stopped == succeeded else "Failed"


def _addresses(pod: dict[str, Any], seen: ObservedPod, status: dict[str, Any], old: dict[str, Any],
               report: Report) -> None:
    if report.host_ips:
        status["hostIP"] = report.host_ips[0]
        status["hostIPs"] = [{"ip": ip} for ip in report.host_ips]
    sandbox = seen.sandbox
    ips: tuple[str, ...] = ()
    if pod["spec"].get("hostNetwork"):
        ips = report.host_ips
    elif sandbox and sandbox.ready:
        ips = sandbox.ips
    elif status["phase"] in ENDED or report.ended or sandbox:
        ips = tuple(entry["ip"] for entry in old.get("podIPs") or ())  # the last address stays readable
    if ips:
        status["podIP"] = ips[0]
        status["podIPs"] = [{"ip": ip} for ip in ips]


def ends(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(type, exit code, reason) of each container whose end is told for the first time."""
    def told(status: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        found = [entry[state]["terminated"] for entry in status.get(key) or () for state in ("state", "lastState")
                 if "terminated" in (entry.get(state) or {})]
        return {end["containerID"]: end for end in found if end.get("containerID")}
    for group, key in GROUPS:
        before = told(old, key)
        for id, end in told(new, key).items():
            if id not in before:
                yield KINDS[group], str(end["exitCode"]), str(end.get("reason", ""))


# --- conditions ------------------------------------------------------------------------------------------------------

def _conditions(pod: dict[str, Any], seen: ObservedPod, status: dict[str, Any], old: dict[str, Any],
                now: float, report: Report, resetting: bool) -> list[dict[str, Any]]:
    before = {c["type"]: c for c in old.get("conditions") or ()}
    containers = _containers_ready(pod, status)
    wanted = [*report.resize, *report.marks, _sandbox_ready(pod, seen), _init_condition(pod, status),
              _ready(pod, containers, before), ("ContainersReady", *containers)]
    wanted.append(("PodScheduled", "True", "", ""))  # or it would not be here
    if may_reset(pod):
        wanted.append(_resetting(status, resetting))
    made = []
    for kind, value, reason, message in wanted:
        entry: dict[str, Any] = {"type": kind, "status": value}
        if reason:
            entry["reason"] = reason
        if message:
            entry["message"] = message
        last = before.get(kind)
        same = last is not None and last.get("status") == value
        entry["lastTransitionTime"] = last["lastTransitionTime"] if same and last and last.get(
            "lastTransitionTime") else rfc3339(now)
        if "observedGeneration" in status:
            entry["observedGeneration"] = status["observedGeneration"]
        made.append(entry)
    ours = {*(e["type"] for e in made), *PASSING}
    others = [c for c in old.get("conditions") or () if c["type"] not in ours]
    return made + others


def _sandbox_ready(pod: dict[str, Any], seen: ObservedPod) -> tuple[str, str, str, str]:
    sandbox = seen.sandbox
    fine = sandbox is not None and sandbox.ready and (sandbox.host_network or bool(sandbox.ips)
                                                      or bool(pod["spec"].get("hostNetwork")))
    return ("PodReadyToStartContainers", "True" if fine else "False", "", "")


def _resetting(status: dict[str, Any], resetting: bool) -> tuple[str, str, str, str]:
    if status["phase"] in ENDED:
        return (RESETTING, "False", "PodCompleted" if status["phase"] == "Succeeded" else "PodFailed", "")
    return (RESETTING, "True", "RestartAllContainersStarted", "container exited with restart policy rule") \
        if resetting else (RESETTING, "False", "", "")


def _init_condition(pod: dict[str, Any], status: dict[str, Any]) -> tuple[str, str, str, str]:
    if status["phase"] == "Succeeded":
        return ("Initialized", "True", "PodCompleted", "")
    unfinished = []
    for spec, entry in zip(pod["spec"].get("initContainers") or (), status.get("initContainerStatuses") or ()):
        done = entry["started"] if is_sidecar(spec) else entry["ready"]
        if not done:
            unfinished.append(spec["name"])
    began = any("waiting" not in e["state"] or e["lastState"] for e in status.get("containerStatuses") or ())
    if unfinished and not began:
        return ("Initialized", "False", "ContainersNotInitialized",
                f"containers with incomplete status: [{' '.join(unfinished)}]")
    return ("Initialized", "True", "", "")


def _containers_ready(pod: dict[str, Any], status: dict[str, Any]) -> tuple[str, str, str]:
    if status["phase"] == "Succeeded":
        return ("False", "PodCompleted", "")
    if status["phase"] == "Failed":
        return ("False", "PodFailed", "")
    sidecars = {c["name"] for c in pod["spec"].get("initContainers") or () if is_sidecar(c)}
    entries = [e for e in status.get("initContainerStatuses") or () if e["name"] in sidecars]
    entries += status.get("containerStatuses") or ()
    unready = [e["name"] for e in entries if not e["ready"]]
    if unready:
        return ("False", "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    return ("True", "", "")


def _ready(pod: dict[str, Any], containers: tuple[str, str, str],
           before: dict[str, dict[str, Any]]) -> tuple[str, str, str, str]:
    if containers[0] != "True":
        return ("Ready", *containers)
    problems = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        if kind not in before:
            problems.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif before[kind].get("status") != "True":
            problems.append(f'the status of pod readiness gate "{kind}" is not "True", but {before[kind]["status"]}')
    if problems:
        return ("Ready", "False", "ReadinessGatesNotReady", ", ".join(problems))
    return ("Ready", "True", "", "")


def urgent(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether somebody may wait for what is new: the pod's phase, or that a container began, ended or is ready."""
    def told(status: dict[str, Any]) -> list[Any]:
        entries = [(key, e["name"], e.get("ready"), *e["state"]) for _, key in GROUPS for e in status.get(key) or ()
                   if e.get("ready") or not {"waiting"}.issuperset(e["state"])]
        return [status.get("phase") or "Pending", entries]
    return told(old) != told(new)


# --- the patch -------------------------------------------------------------------------------------------------------

MERGED = {"podIPs": "ip", "hostIPs": "ip", "conditions": "type"}  # lists the strategic patch merges by this key


def rebase(status: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """`status`, computed a while ago, with what others own as `known`, the API's newest, has it."""
    result = {k: v for k, v in status.items() if k not in GIVEN} | {k: known[k] for k in GIVEN if k in known}
    if "conditions" in status:
        own = [c for c in status["conditions"] if c["type"] in OWN or c.get("reason") == KUBELET]
        types = OWN | {c["type"] for c in own}
        result["conditions"] = own + [c for c in known.get("conditions") or () if c["type"] not in types]
    return result


def patch(uid: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """A strategic merge patch from `old` to `new` status, guarded by the pod's uid; None when nothing changed."""
    changes: dict[str, Any] = {}
    for key, value in new.items():
        if old.get(key) == value:
            continue
        if key == "conditions":
            had = {c["type"]: c for c in old.get(key) or ()}
            changes[key] = [_fields(had.get(c["type"]), c) for c in value if had.get(c["type"]) != c]
            changes[key] += [{"type": kind, "$patch": "delete"} for kind in had
                             if kind not in {c["type"] for c in value}]
            changes["$setElementOrder/conditions"] = [{"type": c["type"]} for c in value]
        elif key in MERGED and old.get(key):
            changes[key] = [{"$patch": "replace"}, *value]
        else:
            changes[key] = value
    for key in old:
        if key not in new:
            changes[key] = None
    if not changes:
        return None
    return {"metadata": {"uid": uid}, "status": changes}


def _fields(old: dict[str, Any] | None, new: dict[str, Any]) -> dict[str, Any]:
    """A merged list's item: fields that went away are told as null."""
    gone = {k: None for k in (old or {}) if k not in new and k != "lastProbeTime"}
    return {**new, **gone}

"""One container's entry in a pod's status: its state, last state, readiness and counts, worded as upstream words them.

Pure. Owns the translation of an observed container (or its absence) into a `ContainerStatus` dict. Promises never to
lose an exit the API was told of: when the runtime no longer has a container, what the API knows is carried on.
Called by `status`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.model import ObservedContainer, ObservedPod
from controlplane.machinery.clock import rfc3339

LOST = {"reason": "ContainerStatusUnknown", "exitCode": 137,
        "message": "The container could not be located when the pod was terminated"}


@dataclass(frozen=True, slots=True)
class Report:
    """What the worker knows beyond the runtime. Keys are container ids unless said otherwise."""

    waiting: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # container name -> reason, message
    ready: frozenset[str] = frozenset()  # containers whose readiness is proven or not asked for
    started: frozenset[str] = frozenset()
    messages: Mapping[str, str] = field(default_factory=dict)  # termination messages
    host_ips: tuple[str, ...] = ()
    doomed: tuple[str, str] | None = None  # the pod failed as a whole: reason, message
    ended: bool = False  # a terminating pod whose last container is gone
    resize: tuple[tuple[str, str, str, str], ...] = ()  # conditions: type, status, reason, message
    allocated: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # container name -> resources granted
    actual: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # container name -> resources it runs with
    images: Mapping[str, str] = field(default_factory=dict)  # volume name -> the image it was made of
    devices: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)  # container name -> how its devices are
    marks: tuple[tuple[str, str, str, str], ...] = ()  # further conditions, such as DisruptionTarget
    recursive: bool = False  # the runtime makes mounts read-only down to those below them
    start_time: float = 0.0  # when this node first saw the pod
    runtime: str = "containerd"  # whose ids they are


def container_status(spec: dict[str, Any], seen: ObservedPod, old: dict[str, Any] | None, report: Report,
                     idle: tuple[str, str], *, init: bool = False) -> dict[str, Any]:
    """The status of the container defined by `spec`. `idle` is the (reason, message) of one that never ran; `old` is
    the entry the API has, or None."""
    attempts = [c for c in seen.containers if c.name == spec["name"]]
    newest = attempts[0] if attempts else None
    old = old or {}
    entry: dict[str, Any] = {
        "name": spec["name"], "image": spec.get("image", ""), "imageID": old.get("imageID", ""),
        "restartCount": old.get("restartCount", 0), "ready": False, "started": False,
        "state": {}, "lastState": {}}
    if newest is None:
        _absent(entry, old, report, idle)
    else:
        _present(entry, spec, newest, attempts[1:], old, report)
    if newest is None and report.waiting.get(spec["name"]):
        entry["state"] = _waiting(*report.waiting[spec["name"]])
    if init and "terminated" in entry["state"]:
        entry["ready"] = entry["state"]["terminated"]["exitCode"] == 0
    _resources(entry, spec, report)
    _mounts(entry, spec, old, report)
    return entry


def _present(entry: dict[str, Any], spec: dict[str, Any], newest: ObservedContainer,
             older: list[ObservedContainer], old: dict[str, Any], report: Report) -> None:
    entry.update(image=newest.image or entry["image"], imageID=newest.image_id, restartCount=newest.restart_count,
                 containerID=f"{report.runtime}://{newest.id}")
    if newest.user is not None:
        uid, gid, groups = newest.user
        entry["user"] = {"linux": {"uid": uid, "gid": gid} | ({"supplementalGroups": list(groups)} if groups else {})}
    # Where the runtime knows no signal but the image's, the one asked for is sent by us.
    if signal := newest.stop_signal or (spec.get("lifecycle") or {}).get("stopSignal"):
        entry["stopSignal"] = signal
    ended = next((c for c in older if c.state == "exited"), None)
    if ended:
        entry["lastState"] = {"terminated": terminated(ended, report)}
    elif old.get("containerID") != entry["containerID"] and "terminated" in (old.get("state") or {}):
        entry["lastState"] = old["state"]  # the runtime has forgotten what the API has not
    else:
        entry["lastState"] = old.get("lastState") or {}
    if newest.state == "running":
        entry["state"] = {"running": {"startedAt": rfc3339(newest.started_at)}}
        entry["started"] = newest.id in report.started
        entry["ready"] = newest.id in report.ready and entry["started"]
    elif newest.state == "exited":
        waiting = report.waiting.get(spec["name"])
        if waiting:
            entry["state"], entry["lastState"] = _waiting(*waiting), {"terminated": terminated(newest, report)}
        else:
            entry["state"] = {"terminated": terminated(newest, report)}
    else:
        entry["state"] = _waiting(*report.waiting.get(spec["name"], ("ContainerCreating", "")))


def _absent(entry: dict[str, Any], old: dict[str, Any], report: Report, idle: tuple[str, str]) -> None:
    state = old.get("state") or {}
    entry["lastState"] = old.get("lastState") or {}
    if old.get("containerID"):
        entry["containerID"] = old["containerID"]
    if "terminated" in state and (report.ended or not report.waiting.get(entry["name"])):
        entry["state"] = state
    elif "running" in state:
        lost = {**LOST, "containerID": old.get("containerID", "")}
        if report.ended:
            entry["state"] = {"terminated": lost}
        else:
            entry["state"], entry["lastState"] = _waiting(*idle), {"terminated": lost}
    else:
        entry["state"] = _waiting(*idle)


def terminated(container: ObservedContainer, report: Report) -> dict[str, Any]:
    """A ContainerStateTerminated of an exited container."""
    reason = container.reason or ("Completed" if container.exit_code == 0 else "Error")
    state: dict[str, Any] = {"exitCode": container.exit_code, "reason": reason,
                             "startedAt": rfc3339(container.started_at), "finishedAt": rfc3339(container.finished_at),
                             "containerID": f"{report.runtime}://{container.id}"}
    message = report.messages.get(container.id) or container.message
    if message:
        state["message"] = message
    return state


def _waiting(reason: str, message: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message} if message else {"reason": reason}}


def _resources(entry: dict[str, Any], spec: dict[str, Any], report: Report) -> None:
    resources = spec.get("resources") or {}
    granted = report.allocated.get(spec["name"], resources)
    if "running" in entry["state"]:
        resources = report.actual.get(spec["name"], resources)
    if granted.get("requests"):
        entry["allocatedResources"] = dict(granted["requests"])
    if report.devices.get(spec["name"]):
        entry["allocatedResourcesStatus"] = report.devices[spec["name"]]
    if entry.get("containerID"):  # once there is a container they are told, also when they are none
        entry["resources"] = {k: dict(resources[k]) for k in ("limits", "requests") if resources.get(k)}


def _mounts(entry: dict[str, Any], spec: dict[str, Any], old: dict[str, Any], report: Report) -> None:
    """How each volume is mounted, and of which image it was made; a restarted agent goes by what it told before."""
    told = {m["mountPath"]: m["volumeStatus"] for m in old.get("volumeMounts") or () if m.get("volumeStatus")}
    mounts = []
    for mount in spec.get("volumeMounts") or ():
        made = {k: mount[k] for k in ("name", "mountPath", "readOnly") if mount.get(k)}
        if mount.get("readOnly"):
            made["recursiveReadOnly"] = _recursive(mount, report)
        if mount["name"] in report.images:
            made["volumeStatus"] = {"image": {"imageRef": report.images[mount["name"]]}}
        elif mount["mountPath"] in told:
            made["volumeStatus"] = told[mount["mountPath"]]
        mounts.append(made)
    if mounts:
        entry["volumeMounts"] = mounts


def _recursive(mount: dict[str, Any], report: Report) -> str:
    mode = mount.get("recursiveReadOnly") or "Disabled"
    return "Enabled" if mode != "Disabled" and report.recursive else "Disabled"

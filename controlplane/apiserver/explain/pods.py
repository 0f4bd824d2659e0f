"""Why a pod does not run, or is not ready: scheduling, images, configuration, crashes and probes.

Owns the reading of a pod's conditions, container statuses and events. Pure. Registered for Pods; workloads and services
follow to here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from controlplane.apiserver.explain import Object, World, called, explains, target, warnings_about
from controlplane.machinery import podfacts
from controlplane.machinery.errors import Finding
from controlplane.machinery.objects import condition
from controlplane.machinery.quantity import parse

_REASON = re.compile(r"(\d+) ((?:[^,{]|\{[^}]*\})+?)(?=, \d+ |\. |\.?$)")
PULLS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
CONFIGURATION = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")
SETUP_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "FailedPostStartHook",
                "NetworkNotReady")
EXIT_CODES = {1: "the program reported an error", 2: "the program reported wrong use",
              126: "the command cannot be executed", 127: "the command was not found in the image",
              134: "the program aborted itself", 137: "it was killed (SIGKILL)",
              139: "it crashed (segmentation fault)", 143: "it was told to end (SIGTERM)"}


@explains("Pod")
def pod(obj: Object, world: World) -> Iterator[Finding]:
    status = obj.get("status") or {}
    if not (obj.get("spec") or {}).get("nodeName"):
        yield from unscheduled(obj, world)
        return
    if status.get("phase") == "Failed":
        yield Finding(f"{called(obj)} has failed", f"{status.get('reason') or 'its containers ended with an error'}: "
                      f"{status.get('message') or _exits(status)}", f"kubectl logs {_named(obj)}")
        return
    statuses = [s for field in ("initContainerStatuses", "containerStatuses") for s in status.get(field) or ()]
    told = False
    for one in statuses:
        for finding in container(obj, one, world):
            told = True
            yield finding
    if not statuses or any((s.get("state") or {}).get("waiting", {}).get("reason") in
                           ("ContainerCreating", "PodInitializing") for s in statuses):
        yield from setup(obj, world)
    if not told and status.get("phase") == "Running":
        yield from unready(obj, world)


def _named(obj: Object, container: str = "") -> str:
    metadata = obj["metadata"]
    return f"{metadata['name']} -n {metadata.get('namespace', 'default')}" + (f" -c {container}" if container else "")


def _exits(status: Object) -> str:
    ended = [(s["name"], s["state"]["terminated"].get("exitCode")) for s in status.get("containerStatuses") or ()
             if (s.get("state") or {}).get("terminated")]
    return ", ".join(f"container {name} ended with exit code {code}" for name, code in ended)


# --- containers --------------------------------------------------------------------------------------------------


def container(obj: Object, status: Object, world: World) -> Iterator[Finding]:
    """What one container status tells."""
    waiting = (status.get("state") or {}).get("waiting") or {}
    reason, message, name = waiting.get("reason", ""), waiting.get("message", ""), status["name"]
    where = f"container {name} of {called(obj)}"
    if reason in PULLS:
        yield pull(obj, status, reason, message, world)
    elif reason in CONFIGURATION:
        yield Finding(f"{where} cannot be started", message or reason, _configuration_fix(obj, message))
    elif reason == "CrashLoopBackOff":
        yield crash(obj, status, where)


def pull(obj: Object, status: Object, reason: str, message: str, world: World) -> Finding:
    image = status.get("image") or next((c.get("image", "") for c in obj["spec"].get("containers") or ()
                                         if c.get("name") == status["name"]), "")
    if reason == "ImagePullBackOff":  # the event has the first cause, the status only the waiting
        told = [e["message"] for e in warnings_about(obj, world, "Failed") if image in e.get("message", "")]
        message = next((m for m in told if "BackOff" not in m), message)
    fix = f"check the name and tag: kubectl set image {target(obj)} {status['name']}=<image>"
    text = message.lower()
    if reason == "InvalidImageName":
        fix = f'"{image}" is no image reference; use [registry/]name[:tag]'
    elif reason == "ErrImageNeverPull":
        fix = f"import it on the node (pelamis image import), or set imagePullPolicy: IfNotPresent for {status['name']}"
    elif any(word in text for word in ("unauthorized", "denied", "authentication", "forbidden", "401", "403")):
        fix = ("the registry wants credentials: kubectl create secret docker-registry <name> …, and name it in "
               "imagePullSecrets of the pod or its service account")
    elif any(word in text for word in ("no such host", "timeout", "refused", "unreachable", "dial tcp")):
        fix = "the node cannot reach the registry: check its name resolution, route and proxy"
    return Finding(f"the image {image} of {called(obj)} cannot be had", message or reason, fix)


def _configuration_fix(obj: Object, message: str) -> str:
    namespace = obj["metadata"].get("namespace", "default")
    if missing := re.search(r'(configmap|secret) "([^"]+)" not found', message):
        kind, name = missing.groups()
        return f"kubectl create {kind if kind == 'configmap' else 'secret generic'} {name} -n {namespace} …"
    if missing := re.search(r"couldn't find key (\S+) in (ConfigMap|Secret) (\S+)", message):
        key, kind, name = missing.groups()
        return f"add the key {key} to {kind.lower()} {name.rpartition('/')[2]}, or mark it optional in the pod"
    if "executable file not found" in message or "no such file or directory" in message.lower():
        return "the image has no such command: correct `command` of the container"
    return f"kubectl describe {target(obj)}"


def crash(obj: Object, status: Object, where: str) -> Finding:
    last = (status.get("lastState") or {}).get("terminated") or {}
    code = last.get("exitCode")
    if last.get("reason") == "OOMKilled":
        limit = next((((c.get("resources") or {}).get("limits") or {}).get("memory", "")
                      for c in obj["spec"].get("containers") or () if c.get("name") == status["name"]), "")
        return Finding(f"{where} runs out of memory and was restarted {status.get('restartCount', 0)} times",
                       f"its limit is {limit}" if limit else "", "raise resources.limits.memory of the container")
    meaning = EXIT_CODES.get(code if isinstance(code, int) else -1, "")
    because = f"it ends with exit code {code}" + (f", {meaning}" if meaning else "")
    if last.get("message"):
        because += f"; its last words: {last['message'].strip()[-200:]}"
    if code == 0:
        because = "it ends by itself, successfully, while the pod is to run for ever (restartPolicy Always)"
    return Finding(f"{where} keeps ending and was restarted {status.get('restartCount', 0)} times", because,
                   f"kubectl logs --previous {_named(obj, status['name'])}")


def setup(obj: Object, world: World) -> Iterator[Finding]:
    """A pod on a node whose containers were not made yet."""
    events = warnings_about(obj, world, *SETUP_EVENTS)
    if events:
        yield Finding(f"{called(obj)} cannot be set up on its node", events[0].get("message", ""),
                      _configuration_fix(obj, events[0].get("message", "")))
        return
    node = world.get("nodes", "", obj["spec"]["nodeName"])
    if node is not None and (condition(node, "Ready") or {}).get("status") != "True":
        yield Finding(f"node {obj['spec']['nodeName']} of {called(obj)} is not ready",
                      (condition(node, "Ready") or {}).get("message", ""), "pelamis status, on that node")


def unready(obj: Object, world: World) -> Iterator[Finding]:
    """A running pod that is not ready."""
    for status in (obj.get("status") or {}).get("containerStatuses") or ():
        if status.get("ready"):
            continue
        events = warnings_about(obj, world, "Unhealthy")
        because = events[0].get("message", "") if events else "its readiness probe has not succeeded yet"
        yield Finding(f"container {status['name']} of {called(obj)} runs but is not ready", because,
                      f"check its probe's port and path; kubectl logs {_named(obj, status['name'])}")
    for gate in (obj.get("spec") or {}).get("readinessGates") or ():
        if (condition(obj, gate.get("conditionType", "")) or {}).get("status") != "True":
            yield Finding(f"{called(obj)} waits for its readiness gate {gate.get('conditionType')}", "",
                          "whoever owns that condition must set it to True")


# --- scheduling --------------------------------------------------------------------------------------------------


def unscheduled(obj: Object, world: World) -> Iterator[Finding]:
    gates = [g["name"] for g in (obj.get("spec") or {}).get("schedulingGates") or ()]
    if gates:
        yield Finding(f"{called(obj)} is held back by its scheduling gates", ", ".join(gates),
                      "whoever set them removes them when it is time")
        return
    verdict = condition(obj, "PodScheduled")
    if verdict is None:
        yield Finding(f"no scheduler has looked at {called(obj)} yet",
                      f"it asks for {(obj.get('spec') or {}).get('schedulerName', 'default-scheduler')}",
                      "pelamis status tells whether the scheduler runs")
        return
    message = verdict.get("message", "")
    counted = reasons(message)
    nodes = world.list("nodes", "")
    for count, reason in counted or [(0, message)]:
        yield Finding(f"{called(obj)} fits on no node",
                      f"{count} of {len(nodes) or '?'} nodes: {reason}" if count else reason,
                      _scheduling_fix(obj, reason, nodes, world))
    if nodes:
        yield from nearest(obj, world)


def nearest(obj: Object, world: World) -> Iterator[Finding]:
    """The node that comes nearest, and the smallest change that would make it do: the scheduler's own judgement."""
    from controlplane.scheduler import imagined  # only who asks why a pod waits needs the scheduler here
    found = imagined.outcome(obj, {name: world.list(name, "") for name in imagined.RESOURCES})
    if found.node and not found.leaving:
        yield Finding(f"{called(obj)} would fit on node {found.node} now", "the cluster has changed since it was tried",
                      "the scheduler tries it again by itself")
    elif found.node:
        yield Finding(f"{called(obj)} fits on node {found.node} when others leave", ", ".join(found.leaving),
                      "they are less important and are being preempted")
    elif found.nearest is not None:
        node, reasons_ = found.nearest["node"], found.nearest["reasons"]
        yield Finding(f"node {node} comes nearest to taking {called(obj)}", ", ".join(reasons_),
                      f"node {node} {found.nearest['advice']}")


def reasons(message: str) -> list[tuple[int, str]]:
    """The counted reasons of a scheduler's message `0/3 nodes are available: 1 A, 2 B.`"""
    _, found, tail = message.partition("nodes are available:")
    text = tail.partition(" preemption:")[0].strip()
    return [(int(n), reason.strip().rstrip(".")) for n, reason in _REASON.findall(text)] if found else []


def _scheduling_fix(obj: Object, reason: str, nodes: Sequence[Object], world: World) -> str:
    if not nodes:
        return "there is no node: pelamis up, or join one"
    if reason.startswith("Insufficient "):
        resource = reason.removeprefix("Insufficient ").split()[0]
        best, free = roomiest(nodes, world.list("pods", ""), resource)
        return f"lower the request for {resource} to {free} at most (free on node {best}), or remove other pods there"
    if taint := re.search(r"untolerated taint\(?s?\)? \{([^:}]+): ?([^}]*)\}", reason):
        key, value = taint.groups()
        node = next((n["metadata"]["name"] for n in nodes
                     if any(t.get("key") == key for t in n["spec"].get("taints") or ())), "<node>")
        return f"tolerate {key}{'=' + value if value else ''} in the pod, or kubectl taint node {node} {key}-"
    if "unschedulable" in reason:
        cordoned = [n["metadata"]["name"] for n in nodes if (n.get("spec") or {}).get("unschedulable")]
        return f"kubectl uncordon {' '.join(cordoned) or '<node>'}"
    if "affinity/selector" in reason or "node selector" in reason:
        wanted = (obj.get("spec") or {}).get("nodeSelector") or {}
        near = min(nodes, key=lambda n: len(wanted.items() - (n["metadata"].get("labels") or {}).items()))
        missing = sorted(wanted.items() - (near["metadata"].get("labels") or {}).items())
        if missing:
            return f"kubectl label node {near['metadata']['name']} " + " ".join(f"{k}={v}" for k, v in missing)
    if "ports" in reason:
        return "another pod holds the host port: use another one, or none"
    return f"kubectl describe {target(obj)}"


def roomiest(nodes: Sequence[Object], pods: Sequence[Object], resource: str) -> tuple[str, str]:
    """The node with most of a resource free, and how much that is."""
    best, most = "", -1
    for node in nodes:
        name = node["metadata"]["name"]
        have = parse(str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))).milli()
        used = sum(parse(str(((c.get("resources") or {}).get("requests") or {}).get(resource, "0"))).milli()
                   for p in pods if (p.get("spec") or {}).get("nodeName") == name
                   and not podfacts.finished(p)
                   for c in p["spec"].get("containers") or ())
        if have - used > most:
            best, most = name, max(0, have - used)
    return best, f"{most}m" if resource == "cpu" else _bytes(most // 1000) if resource != "pods" else str(most // 1000)


def _bytes(count: int) -> str:
    for unit, size in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if count >= size:
            return f"{count // size}{unit}"
    return str(count)

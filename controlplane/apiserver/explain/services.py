"""Why a service leads nowhere: its selector, its pods, its ports, its load balancer.

Owns the comparison of a Service with the pods it means and the EndpointSlices it got, and who owes it an external
address. Pure. Registered for Services.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from controlplane.apiserver.explain import MAX_FOLLOWED, Object, World, called, explains, target, warnings_about
from controlplane.apiserver.explain.pods import pod
from controlplane.cloud import lab
from controlplane.machinery.errors import Finding
from controlplane.machinery.objects import condition

SERVICE_LABEL = "kubernetes.io/service-name"
PROXY_LABEL = "service.kubernetes.io/service-proxy-name"  # somebody answers it who needs no endpoints, such as our DNS


@explains("Service")
def service(obj: Object, world: World) -> Iterator[Finding]:
    spec, namespace = obj.get("spec") or {}, obj["metadata"]["namespace"]
    if spec.get("type") == "ExternalName" or PROXY_LABEL in (obj["metadata"].get("labels") or {}):
        return
    pods = world.list("pods", namespace)
    selector = spec.get("selector") or {}
    matching = [p for p in pods if selector and selector.items() <= (p["metadata"].get("labels") or {}).items()]
    if not _ready(obj, world):
        if not selector:
            yield Finding(f"{called(obj)} has no endpoints", "it has no selector, so nobody makes them",
                          "give it a selector, or create EndpointSlices for it")
        elif not matching:
            yield mismatch(obj, selector, pods)
        else:
            yield from unready(obj, matching, world)
    yield from ports(obj, matching)
    if spec.get("type") == "LoadBalancer" and not ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        yield unbalanced(obj, world)


def unbalanced(obj: Object, world: World) -> Finding:
    """Who has not given a load balancer its address, and why."""
    fact, kind = f"{called(obj)} has no external address", (obj.get("spec") or {}).get("loadBalancerClass")
    if kind and kind != lab.CLASS:
        return Finding(fact, f"the controller of its loadBalancerClass {kind} has given it none", "see whether that "
                       "controller runs, or make the Service anew without a class: the field cannot be changed")
    if told := warnings_about(obj, world, "SyncLoadBalancerFailed"):
        return _told(fact, told[0])
    pools = world.get("configmaps", *lab.CONFIG)
    if pools is None:
        return Finding(fact, "there is no pool of addresses, and no cloud that gives one",
                       f"kubectl -n {lab.CONFIG[0]} create configmap {lab.CONFIG[1]} --from-literal=lab=FIRST-LAST, "
                       "with free addresses of the nodes' network; until then, use its node port")
    if refused := warnings_about({"kind": "ConfigMap", **pools}, world, "InvalidPool"):
        return _told(fact, refused[0])
    return Finding(fact, "nobody has given it one yet", "pelamis status tells whether the controllers run")


def _told(fact: str, event: Object) -> Finding:
    """What an event says whose message is a finding as text."""
    because, _, fix = str(event.get("message")).partition("\n  fix: ")
    return Finding(fact, because, fix)


def _ready(obj: Object, world: World) -> int:
    """How many ready endpoints the service has."""
    return sum(1 for piece in world.list("endpointslices.discovery.k8s.io", obj["metadata"]["namespace"])
               if (piece["metadata"].get("labels") or {}).get(SERVICE_LABEL) == obj["metadata"]["name"]
               for end in piece.get("endpoints") or ()
               if (end.get("conditions") or {}).get("ready", True) is not False and end.get("addresses"))


def mismatch(obj: Object, selector: Object, pods: Sequence[Object]) -> Finding:
    """No pod matches: the nearest miss."""
    fact, wanted = f"{called(obj)} has no endpoints", ",".join(f"{k}={v}" for k, v in sorted(selector.items()))

    def misses(one: Object) -> list[tuple[str, str]]:
        return sorted(selector.items() - (one["metadata"].get("labels") or {}).items())

    def distance(one: Object) -> tuple[int, int]:
        labels = one["metadata"].get("labels") or {}
        return len(misses(one)), -sum(1 for key in selector if key in labels)

    near = min(pods, key=distance) if pods else None
    if near is None:
        return Finding(fact, f"there is no pod in the namespace; it wants {wanted}",
                       f"kubectl run {obj['metadata']['name']} --image=… --labels={wanted} -n "
                       f"{obj['metadata']['namespace']}")
    labels = near["metadata"].get("labels") or {}
    if len(misses(near)) == len(selector) and not any(key in labels for key in selector):
        return Finding(fact, f"no pod has the labels it wants: {wanted}", f"kubectl get pods --show-labels -n "
                       f"{obj['metadata']['namespace']}, then correct spec.selector")
    key, value = misses(near)[0]
    has = f"{key}={labels[key]}" if key in labels else f"no label {key}"
    fix = f"kubectl set selector service {obj['metadata']['name']} " + ",".join(
        f"{k}={labels.get(k, v)}" for k, v in sorted(selector.items())) + f" -n {obj['metadata']['namespace']}"
    return Finding(fact, f"it wants {key}={value}, the nearest pod {near['metadata']['name']} has {has}",
                   fix if key in labels else f"kubectl label {target(near)} {key}={value}")


def unready(obj: Object, matching: Sequence[Object], world: World) -> Iterator[Finding]:
    waiting = [p for p in matching if (condition(p, "Ready") or {}).get("status") != "True"]
    if not waiting:
        yield Finding(f"{called(obj)} has no ready endpoints yet", "its pods are ready; the endpoints follow",
                      "pelamis status tells whether the controllers run")
        return
    yield Finding(f"{called(obj)} has no ready endpoints", f"none of its {len(matching)} pods is ready",
                  f"see why {target(waiting[0])} is not")
    for one in waiting[:MAX_FOLLOWED]:
        yield from pod({"kind": "Pod", **one}, world)


def ports(obj: Object, matching: Sequence[Object]) -> Iterator[Finding]:
    """Named target ports that no pod has."""
    for port in (obj.get("spec") or {}).get("ports") or ():
        wanted = port.get("targetPort")
        if not isinstance(wanted, str) or wanted.isdigit() or not matching:
            continue
        declared = sorted({p.get("name", "") for one in matching for c in one["spec"].get("containers") or ()
                           for p in c.get("ports") or ()} - {""})
        if wanted not in declared:
            yield Finding(f"port {port.get('port')} of {called(obj)} leads to no container port",
                          f'its targetPort "{wanted}" is the name of none; '
                          + (f"the pods have {', '.join(declared)}" if declared else "the pods' ports have no names"),
                          f"set targetPort to {declared[0]}" if declared else
                          "set targetPort to a number, or name the container's port")

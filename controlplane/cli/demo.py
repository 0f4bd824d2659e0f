"""`up --demo`: proves the cluster with real traffic.

A Deployment of three replicas and a Service are applied; then the Service is asked by its cluster IP from the host and
from inside a pod until every replica has answered. What is proved is printed; what fails is a `Finding` that says
where.
"""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

from controlplane.cli import inpod
from controlplane.cli.output import say, step
from controlplane.cli.patience import PAUSE, Patience
from controlplane.client.rest import Client
from controlplane.machinery import objects, resources
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import AlreadyExists, Finding

NAME, NAMESPACE, REPLICAS = "demo", "default", 3
DEPLOYMENTS, SERVICES, PODS = (resources.named(n) for n in ("deployments.apps", "services", "pods"))
ASK_SECONDS = 30.0  # without another replica answering; random balancing needs about ten requests for all
REQUEST_SECONDS = 5.0  # one request; longer means the rules are not there


def manifests(image: str) -> list[tuple[resources.Resource, dict[str, Any]]]:
    labels = {"app": NAME}
    container = {"name": "web", "image": image, "ports": [{"containerPort": 80}],
                 "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 2},
                 "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}}
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME, "namespace": NAMESPACE},
                  "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels},
                           "template": {"metadata": {"labels": labels}, "spec": {
                               "terminationGracePeriodSeconds": 2, "containers": [container]}}}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME, "namespace": NAMESPACE},
               "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": 80}]}}
    return [(DEPLOYMENTS, deployment), (SERVICES, service)]


async def _create(client: Client, image: str) -> None:
    for resource, obj in manifests(image):
        try:
            await client.create(resource, obj, namespace=NAMESPACE)
        except AlreadyExists:
            await client.patch(resource, NAME, {"spec": obj["spec"]}, namespace=NAMESPACE)


async def _ready(client: Client) -> list[dict[str, Any]]:
    """The demo's pods once all are ready. Raises Finding with what the pods say."""
    patience = Patience()
    while True:
        pods, _ = await client.list(PODS, NAMESPACE, labels=f"app={NAME}")
        alive = [p for p in pods if not p["metadata"].get("deletionTimestamp")]
        ready = [p for p in alive if objects.holds(p, "Ready")]
        if len(ready) == len(alive) == REPLICAS:
            return ready
        if patience.ended([p.get("status") for p in alive]):
            raise Finding(f"only {len(ready)} of {REPLICAS} demo pods are ready",
                          "; ".join(_complaint(p) for p in alive if p not in ready),
                          f"kubectl describe pods -l app={NAME}")
        await SYSTEM.sleep(PAUSE)


def _complaint(pod: dict[str, Any]) -> str:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting:
            return f"{objects.name(pod)}: {waiting.get('reason', '')} {waiting.get('message', '')}".strip()
    scheduled = objects.condition(pod, "PodScheduled") or {}
    return f"{objects.name(pod)}: {scheduled.get('message') or status.get('phase', 'Unknown')}"


def _fetch(address: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a cluster IP is never behind a proxy
    with opener.open(f"http://{address}/", timeout=REQUEST_SECONDS) as answer:
        return answer.read().decode().strip()


async def _all_answer(names: set[str], ask: Any) -> dict[str, int]:
    """Ask until every pod of `names` has answered; how often each did. Raises Finding."""
    seen = dict.fromkeys(sorted(names), 0)
    patience, trouble = Patience(ASK_SECONDS), ""
    while not all(seen.values()):
        if patience.ended([bool(count) for count in seen.values()]):
            silent = ", ".join(n for n, count in seen.items() if not count)
            raise Finding(f"no answer through the service from {silent}", trouble,
                          f"./pelamis status; kubectl get endpointslices -l kubernetes.io/service-name={NAME}")
        try:
            answer = await ask()
        except (OSError, Finding) as error:
            trouble = str(error)
            await SYSTEM.sleep(PAUSE)
            continue
        for name in names:
            if name in answer:
                seen[name] += 1
    return seen


async def prove(client: Client, image: str) -> str:
    """Run the demo; returns the service's cluster IP. Raises Finding."""
    with step("applying a Deployment of three replicas and a Service"):
        await _create(client, image)
    with step("waiting for three ready pods"):
        pods = await _ready(client)
    names = {objects.name(p) for p in pods}
    service = await client.get(SERVICES, NAME, NAMESPACE)
    ip = service["spec"]["clusterIP"]
    address = f"[{ip}]" if ":" in ip else ip
    with step(f"curl http://{address}/ from the host"):
        from_host = await _all_answer(names, lambda: asyncio.to_thread(_fetch, address))
    with step(f"wget http://{address}/ from inside a pod"):
        from_pod = await _all_answer(names, lambda: inpod.run(
            client, objects.name(pods[0]), NAMESPACE, "web", ["timeout", "5", "wget", "-q", "-O-", f"http://{address}/"]))
    say(f"  all {REPLICAS} replicas answered, to {sum(from_host.values())} requests from the host and to "
        f"{sum(from_pod.values())} from a pod")
    return address

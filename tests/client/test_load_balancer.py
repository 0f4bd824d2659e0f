"""`type: LoadBalancer` on a host without a cloud: an address from a pool, and somebody on the network reaches it."""

from __future__ import annotations

import json

import pytest

from agent.image import demo

from .cluster import eventually

pytestmark = pytest.mark.client
MANIFEST = json.dumps({"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "balanced"}},
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "load-balancer-pools", "namespace": "kube-system"},
     "data": {"lab": "192.168.77.200-192.168.77.201"}},
    *({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "balanced"},
       "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80}]}} for name in "abc")]})


def test_services_get_addresses_of_the_pool_and_answer_on_them(cluster):
    cluster.kubectl("apply", "-f", "-", input=MANIFEST)
    try:
        eventually(lambda: cluster.get("sa", "-n", "balanced", "default"))
        cluster.kubectl("run", "web", "-n", "balanced", f"--image={demo.DEMO}", "--labels=app=web",
                        "--image-pull-policy=IfNotPresent")

        def given() -> list[str]:
            return [entry["ip"] for one in cluster.get("services", "-n", "balanced")["items"]
                    for entry in one["status"]["loadBalancer"].get("ingress") or ()]

        eventually(lambda: sorted(given()) == ["192.168.77.200", "192.168.77.201"])
        for address in given():
            eventually(lambda address=address: "web" in cluster.run(
                "curl", "-s", "-m", "2", f"http://{address}/", check=False).stdout)
        assert "no address left" in eventually(lambda: cluster.kubectl(
            "get", "events", "-n", "balanced", "--field-selector=reason=SyncLoadBalancerFailed"))
        first = next(one["metadata"]["name"] for one in cluster.get("services", "-n", "balanced")["items"]
                     if one["status"]["loadBalancer"])
        cluster.kubectl("delete", "service", "-n", "balanced", first)
        eventually(lambda: len(given()) == 2)  # who waited has it now
    finally:
        cluster.kubectl("delete", "configmap", "-n", "kube-system", "load-balancer-pools", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", "balanced", "--wait=false", "--ignore-not-found")

"""A cluster with two address families, whose Services are nf_tables maps, and one that has IPv6 alone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from agent.image import demo

from .cluster import Cluster, eventually

pytestmark = pytest.mark.client
NODE4, NODE6 = "192.168.77.10", "fd00:77::10"
WEB = json.dumps({"apiVersion": "v1", "kind": "List", "items": [
    {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {
        "terminationGracePeriodSeconds": 0, "containers": [{
            "name": "web", "image": demo.BUSYBOX, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "mkdir /www && echo here >/www/index.html && httpd -f -p 80 -h /www"],
            "ports": [{"containerPort": 80, "hostPort": 8888, "hostIP": NODE4}]}]}},
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ipFamilyPolicy": "RequireDualStack", "type": "NodePort",
        "ports": [{"port": 80}]}}]})


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    made = Cluster()
    try:
        line = f"addr add {NODE6}/64 dev uplink nodad"
        subprocess.run(["ip", "-n", made.host.netns, *line.split()], check=True)
        made.pelamis("up", "--demo", "--node-ip", NODE4, "--proxy-mode", "nftables",
                     "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56", "--service-cidr", "10.96.0.0/16,fd00:96::/112")
        yield made
    finally:
        made.close()


def test_services_of_two_families_by_maps_and_by_rules(two: Cluster) -> None:
    two.kubectl("apply", "-f", "-", input=WEB)
    two.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    assert len(two.get("pod", "web")["status"]["podIPs"]) == 2
    spec = two.get("service", "web")["spec"]
    four, six = spec["clusterIPs"]
    places = [four, f"[{six}]", f"{NODE4}:{spec['ports'][0]['nodePort']}", f"[{NODE6}]:{spec['ports'][0]['nodePort']}",
              f"{NODE4}:8888"]

    def answers(place: str) -> bool:
        return two.run("curl", "-gs", "-m", "2", f"http://{place}/", check=False).stdout == "here\n"

    for place in places:
        eventually(lambda place=place: answers(place), 20)
    looked = two.run("kubectl", "exec", "web", "--", "nslookup", "web.default.svc.cluster.local").stdout
    assert four in looked and six in looked
    told = two.pelamis("trace", "web", "web:80").stdout
    assert "nf_tables maps" in told and "masqueraded" not in told and "delivered to 10.244.0." in told
    assert "KUBE-SVC" not in two.run("iptables-save").stdout

    two.pelamis("up", "--proxy-mode", "iptables")  # the other writer takes over, and nothing of the first is left
    for place in places:
        eventually(lambda place=place: answers(place), 20)
    assert "pelamis-proxy" not in two.run("nft", "list", "tables").stdout
    assert "KUBE-SVC" in two.run("iptables-save").stdout and "KUBE-SVC" in two.run("ip6tables-save").stdout
    refused = two.pelamis("up", "--cluster-cidr", "10.1.0.0/16", check=False)
    assert refused.returncode == 1 and "cannot be changed" in refused.stderr


def test_a_cluster_of_ipv6_alone() -> None:
    made = Cluster()
    try:
        for line in ("addr flush dev uplink", f"addr add {NODE6}/64 dev uplink nodad",
                     "route add default via fd00:77::1 dev uplink"):
            subprocess.run(["ip", "-n", made.host.netns, *line.split()], check=True)
        refused = made.pelamis("up", "--cluster-cidr", "fd00:10:244::/56", check=False)
        assert refused.returncode == 1 and "differ in their address families" in refused.stderr
        made.pelamis("up", "--demo", "--cluster-cidr", "fd00:10:244::/56", "--service-cidr", "fd00:96::/112")
        assert "inet " not in made.run("ip", "addr", "show", "uplink").stdout
        web = json.loads(WEB)
        del web["items"][0]["spec"]["containers"][0]["ports"][0]["hostIP"]
        del web["items"][1]["spec"]["ipFamilyPolicy"]
        made.kubectl("apply", "-f", "-", input=json.dumps(web))
        made.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
        spec = made.get("service", "web")["spec"]
        assert spec["ipFamilies"] == ["IPv6"] and made.get("endpointslice", "kubernetes")["addressType"] == "IPv6"
        for place in (f"[{spec['clusterIP']}]", f"[{NODE6}]:{spec['ports'][0]['nodePort']}", f"[{NODE6}]:8888"):
            eventually(lambda place=place: made.run("curl", "-gs", "-m", "2", f"http://{place}/",
                                                    check=False).stdout == "here\n", 20)
        assert spec["clusterIP"] in made.run("kubectl", "exec", "web", "--", "nslookup",
                                             "web.default.svc.cluster.local").stdout
        told = made.pelamis("trace", "web", "web:80").stdout
        assert "delivered to [fd00:10:244:" in told or "delivered to fd00:10:244:" in told
        assert f"fd00:96::a says web.default.svc.cluster.local is {spec['clusterIP']}" in told
        agent = (made.host.paths.log / "agent.log").read_text()
        assert " W " not in agent and "forbidden" not in agent  # nothing is asked before it is allowed
    finally:
        made.close()

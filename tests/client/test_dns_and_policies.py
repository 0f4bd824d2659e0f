"""Names, policies and the packet trace as a user meets them, in a whole cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .cluster import Cluster, eventually

pytestmark = pytest.mark.client
ONLY_DNS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-dns}
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{port: 53, protocol: UDP}, {port: 53}]
"""
MORE_ADDRESSES = """
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.196.0.0/24]}
"""
FAR = """
apiVersion: v1
kind: Service
metadata: {name: far}
spec: {clusterIP: 10.196.0.77, selector: {app: demo}, ports: [{port: 80}]}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.pelamis("up", "--demo")
        yield made
    finally:
        made.close()


def test_names_policies_and_trace(cluster: Cluster) -> None:
    pod = cluster.get("pods", "-l", "app=demo")["items"][0]["metadata"]["name"]
    address = cluster.get("service", "demo")["spec"]["clusterIP"]

    def inside(*command: str) -> str:
        return cluster.run("kubectl", "exec", pod, "--", *command, check=False).stdout

    assert "search default.svc.cluster.local svc.cluster.local cluster.local" in inside("cat", "/etc/resolv.conf")
    assert f"Address: {address}" in inside("nslookup", "demo.default.svc.cluster.local")
    for name in ("demo", "demo.default", "demo.default.svc.cluster.local"):
        assert inside("timeout", "3", "wget", "-qO-", f"http://{name}/").startswith("demo-")
    ask = ("import dnslib,sys; q=dnslib.DNSRecord.question(sys.argv[1]); "
           "print([str(r.rdata) for r in dnslib.DNSRecord.parse(q.send('10.96.0.10', timeout=4)).rr])")

    def host(name: str) -> str:
        return cluster.run(f"{cluster.env['PELAMIS_VENV']}/bin/python", "-c", ask, name).stdout

    assert "10.96.0.1" in host("kubernetes.default.svc.cluster.local")
    cluster.kubectl("create", "service", "clusterip", "hollow", "--clusterip=None")
    cluster.kubectl("set", "selector", "service/hollow", "app=demo")
    eventually(lambda: host("hollow.default.svc.cluster.local").count("10.244.") == 3, 10)
    assert "coredns_dns_requests_total" in cluster.run("curl", "-s", "http://10.96.0.10:9153/metrics").stdout

    told = cluster.pelamis("trace", pod, "demo:80").stdout
    assert f"is {address}" in told and "KUBE-SVC-" in told and "delivered to 10.244.0." in told
    assert "pod default/demo-" in told and f"dst={address} " in told  # a connection of before, still remembered
    cluster.kubectl("apply", "-f", "-", input=ONLY_DNS)
    eventually(lambda: not inside("timeout", "1", "wget", "-qO-", "http://demo/"))
    assert f"Address: {address}" in inside("nslookup", "demo.default.svc.cluster.local")
    refused = cluster.pelamis("trace", pod, "demo:80", check=False)
    assert refused.returncode == 1 and "PELAMIS-NPE-" in refused.stdout and "DROPPED" in refused.stdout
    image = cluster.get("pod", pod)["spec"]["containers"][0]["image"]
    cluster.kubectl("run", "hasty", "--image", image, "--restart=Never", "--command", "--", "sh", "-c",
                    f"timeout 1 wget -qO- http://{address}/ || echo shut")  # from its very first instant
    eventually(lambda: "shut" in cluster.kubectl("logs", "hasty"))
    cluster.kubectl("delete", "pod", "hasty", "--now")
    cluster.kubectl("delete", "networkpolicy", "only-dns")
    eventually(lambda: inside("timeout", "1", "wget", "-qO-", "http://demo/").startswith("demo-"))
    cluster.kubectl("apply", "-f", "-", input=MORE_ADDRESSES)
    eventually(lambda: cluster.kubectl("create", "-f", "-", input=FAR), 10)
    eventually(lambda: inside("timeout", "1", "wget", "-qO-", "http://10.196.0.77/").startswith("demo-"))
    assert "services" in cluster.kubectl("get", "ipaddress", "10.196.0.77")
    assert "far.default.svc.cluster.local" in inside("nslookup", "10.196.0.77")
    cluster.kubectl("delete", "service/far", "servicecidr/more")
    cluster.kubectl("create", "service", "clusterip", "nobody", "--tcp=80")
    nobody = eventually(lambda: cluster.pelamis("trace", pod, "nobody:80", check=False), 10)
    assert nobody.returncode == 1 and "REFUSED" in nobody.stdout and "no ready endpoints" in nobody.stdout
    assert "it has 80(80)" in cluster.pelamis("trace", pod, "nobody:81", check=False).stderr

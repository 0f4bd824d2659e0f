"""`pelamis why` on a real cluster: what statuses and events really say is understood."""

import json

import pytest

from tests.client.cluster import eventually

pytestmark = pytest.mark.client


def why(cluster, *what):
    """All findings as one text; the exit code tells whether there are any."""
    done = cluster.pelamis("why", *what, "-o", "json", check=False)
    found = json.loads(done.stdout)["findings"]
    assert done.returncode == (3 if found else 0), done.stderr
    return "\n".join(f"{f['fact']}: {f['because']} -> {f['fix']}" for f in found)


def test_why_follows_a_deployment_and_a_service_to_the_cause(cluster):
    cluster.kubectl("create", "namespace", "broken")
    cluster.kubectl("create", "deployment", "web", "--image=nowhere.invalid/web:1", "-n", "broken")
    cluster.kubectl("create", "service", "clusterip", "wbe", "--tcp=80:80", "-n", "broken")
    eventually(lambda: "the image nowhere.invalid/web:1" in why(cluster, "deploy/web", "-n", "broken"))
    assert "wants app=wbe, the nearest pod web-" in why(cluster, "svc/wbe", "-n", "broken")
    for everything in (why(cluster), why(cluster, "-n", "broken")):
        assert "the image nowhere.invalid/web:1" in everything and "service broken/wbe has no endpoints" in everything
    cluster.kubectl("run", "crash", "--image=pelamis.local/demo:1", "-n", "broken", "--command",
                    "--", "sh", "-c", "exit 9")
    eventually(lambda: "exit code 9" in why(cluster, "po/crash", "-n", "broken"))
    cluster.kubectl("run", "huge", "--image=pelamis.local/demo:1", "-n", "broken",
                    '--overrides={"spec":{"containers":[{"name":"c","image":"a",'
                    '"resources":{"requests":{"cpu":"999"}}}]}}')
    said = eventually(lambda: why(cluster, "po/huge", "-n", "broken"))
    assert "Insufficient cpu" in said and "free on node lab-1" in said
    cluster.fails("get", "secrets", "-n", "broken", "--as=jane")
    assert "kubectl create role jane-list-secrets --verb=list --resource=secrets -n broken" in why(cluster)
    cluster.kubectl("patch", "service", "wbe", "-n", "broken", "-p", '{"metadata":{"finalizers":["x.io/y"]}}')
    cluster.kubectl("delete", "namespace", "broken", "--wait=false")
    eventually(lambda: "still holds 1 services" in why(cluster, "ns/broken"), seconds=60)
    cluster.kubectl("patch", "service", "wbe", "-n", "broken", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    cluster.kubectl("wait", "--for=delete", "namespace/broken", "--timeout=60s")

"""What a new user does first, with the real kubectl against a cluster that `./pelamis up --demo` made."""

import json
import re

import pytest

from tests.client.cluster import NODE_IP, eventually

pytestmark = pytest.mark.client


def wait_for_pods(cluster, selector, count):
    def ready():
        pods = cluster.get("pods", "-l", selector)["items"]
        good = [p for p in pods for c in p["status"].get("conditions", [])
                if c["type"] == "Ready" and c["status"] == "True" and "deletionTimestamp" not in p["metadata"]]
        return good if len(good) == count == len(pods) else None
    return eventually(ready, why=f"{count} ready pods of {selector}")


def test_a_second_up_changes_nothing(cluster):
    before = json.loads(cluster.pelamis("status", "-o", "json").stdout)
    again = cluster.pelamis("up", "--demo")
    after = json.loads(cluster.pelamis("status", "-o", "json").stdout)
    assert "The cluster is ready." in again.stdout
    assert [c["pid"] for c in before["components"]] == [c["pid"] for c in after["components"]]
    assert after["healthy"]


def test_status_and_kubeconfig(cluster):
    text = cluster.pelamis("status").stdout
    for name in ("containerd", "apiserver", "controllers", "agent"):
        assert re.search(rf"^{name} +running", text, re.MULTILINE)
    assert cluster.pelamis("kubeconfig").stdout.strip() == str(cluster.kubeconfig)


def test_the_classic_tutorial(cluster):
    assert "pod/nginx created" in cluster.kubectl("run", "nginx", "--image=nginx:1.22", "--port=80")
    wait_for_pods(cluster, "run=nginx", 1)
    assert "service/nginx exposed" in cluster.kubectl(
        "expose", "pod", "nginx", "--port=8080", "--target-port=80")
    address = cluster.kubectl("get", "service", "nginx", "-o", "jsonpath={.spec.clusterIP}")
    page = eventually(lambda: cluster.run("curl", "-sS", "-m", "5", f"http://{address}:8080/").stdout)
    assert "Welcome to nginx!" in page
    log = eventually(lambda: cluster.kubectl("logs", "nginx"))
    assert "GET / HTTP/1.1" in log
    cluster.kubectl("delete", "service,pod", "nginx", "--now")


def test_looking_around(cluster):
    nodes = cluster.kubectl("get", "nodes", "-o", "wide")
    assert re.search(rf"lab-1 +Ready +.*{NODE_IP}", nodes)
    assert "deployments" in cluster.kubectl("api-resources")
    assert "apps/v1" in cluster.kubectl("api-versions").split()
    assert "Server Version: v1." in cluster.kubectl("version")
    assert "Kubernetes control plane" in cluster.kubectl("cluster-info")
    assert "Healthy" in cluster.kubectl("get", "componentstatuses")
    assert "Scheduled" in cluster.kubectl("get", "events", "-A")
    described = cluster.kubectl("describe", "node", "lab-1")
    assert "Allocatable:" in described and "KubeletReady" in described
    assert "demo" in cluster.kubectl("get", "all", "-A")
    assert cluster.kubectl("get", "pods", "-l", "app=demo", "--field-selector", "status.phase=Running",
                           "-o", "name").count("pod/") == 3


def test_logs_and_exec(cluster):
    pod = cluster.get("pods", "-l", "app=demo")["items"][0]["metadata"]["name"]
    assert f"serving {pod}" in cluster.kubectl("logs", pod, "--tail=1000")
    assert cluster.kubectl("exec", pod, "--", "hostname").strip() == pod
    done = cluster.run("kubectl", "exec", pod, "--", "sh", "-c", "echo out; echo err >&2; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert "err" in done.stderr
    assert cluster.kubectl("exec", "-i", pod, "--", "sh", "-c", "read x; echo got $x", input="word\n") == "got word\n"
    terminal = cluster.run("script", "-qec", f"kubectl exec -it {pod} -- sh -c 'test -t 0 && echo terminal'",
                           "/dev/null")
    assert "terminal" in terminal.stdout


def test_crash_logs_and_back_off(cluster):
    cluster.kubectl("run", "crash", "--image=busybox:1", "--restart=Always", "--", "sh", "-c", "echo dying; exit 7")

    def restarted():
        status = cluster.get("pod", "crash")["status"]["containerStatuses"][0]
        return status if status["restartCount"] >= 1 and "waiting" in status["state"] else None
    status = eventually(restarted)
    assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert status["lastState"]["terminated"]["exitCode"] == 7
    assert cluster.kubectl("logs", "crash", "--previous") == "dying\n"
    cluster.kubectl("delete", "pod", "crash", "--now")


def test_apply_scale_roll_and_undo(cluster, tmp_path):
    manifest = tmp_path / "web.yaml"
    text = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: web, image: "pelamis.local/demo:1", env: [{name: EDITION, value: "1"}]}
"""
    manifest.write_text(text)
    assert "created" in cluster.kubectl("apply", "-f", str(manifest))
    assert "unchanged" in cluster.kubectl("apply", "-f", str(manifest))
    assert "successfully rolled out" in cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    cluster.kubectl("scale", "deployment/web", "--replicas=3")
    wait_for_pods(cluster, "app=web", 3)
    manifest.write_text(text.replace('value: "1"', 'value: "2"').replace("replicas: 2", "replicas: 3"))
    assert "EDITION" in cluster.run("kubectl", "diff", "-f", str(manifest), check=False).stdout
    assert "configured" in cluster.kubectl("apply", "-f", str(manifest))
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    assert "REVISION" in cluster.kubectl("rollout", "history", "deployment/web")
    cluster.kubectl("rollout", "undo", "deployment/web")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    value = cluster.kubectl("get", "deployment", "web", "-o",
                            "jsonpath={.spec.template.spec.containers[0].env[0].value}")
    assert value == "1"
    cluster.kubectl("expose", "deployment", "web", "--port=80", "--type=NodePort")
    port = cluster.kubectl("get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}")
    eventually(lambda: "web-" in cluster.run("curl", "-sS", "-m", "5", f"http://{NODE_IP}:{port}/").stdout)
    cluster.kubectl("delete", "service", "web")
    cluster.kubectl("delete", "-f", str(manifest))
    eventually(lambda: cluster.get("pods", "-l", "app=web")["items"] == [])


def test_edit_and_watch(cluster):
    cluster.kubectl("create", "configmap", "edited", "--from-literal=a=1")
    cluster.kubectl("edit", "configmap", "edited", env={"KUBE_EDITOR": "sed -i 's/a: \"1\"/a: \"2\"/'"})
    assert cluster.get("configmap", "edited")["data"] == {"a": "2"}
    watched = cluster.run("timeout", "5", "kubectl", "get", "configmaps", "edited", "-w", check=False).stdout
    assert "edited" in watched
    cluster.kubectl("delete", "configmap", "edited")


def test_bad_input_is_named(cluster):
    assert 'unknown field "spec.replica"' in cluster.fails("apply", "-f", "-", input=json.dumps(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replica": 1}}))
    assert "is invalid" in cluster.fails("create", "configmap", "Bad_Name")
    assert "the server doesn't have a resource type" in cluster.fails("get", "unicorns")
    assert '"nobody" not found' in cluster.fails("get", "pod", "nobody")
    assert "quantities must match" in cluster.fails("run", "q", "--image=busybox:1", "--overrides", json.dumps(
        {"spec": {"containers": [{"name": "q", "image": "busybox:1", "resources": {"requests": {"cpu": "lots"}}}]}}))


def test_a_pod_that_fits_nowhere_says_why(cluster):
    cluster.kubectl("run", "huge", "--image=busybox:1", "--overrides", json.dumps({"spec": {"containers": [
        {"name": "huge", "image": "busybox:1", "resources": {"requests": {"cpu": "1000"}}}]}}))
    eventually(lambda: "0/1 nodes are available: 1 Insufficient cpu." in cluster.kubectl("describe", "pod", "huge"))
    cluster.kubectl("delete", "pod", "huge")


def test_configuration_reaches_the_container(cluster):
    cluster.kubectl("create", "configmap", "settings", "--from-literal=greeting=hello")
    cluster.kubectl("create", "secret", "generic", "hidden", "--from-literal=password=s3cret")
    script = "cat /c/greeting /s/password; echo $WORD $(GREETING); echo x > /e/file"
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"}, "spec": {
        "restartPolicy": "Never",
        "containers": [{"name": "r", "image": "busybox:1", "command": ["sh", "-c", script],
                        "env": [{"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "settings",
                                                                                   "key": "greeting"}}},
                                {"name": "GREETING", "value": "$(WORD)-again"}],
                        "volumeMounts": [{"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"},
                                         {"name": "e", "mountPath": "/e"}]}],
        "volumes": [{"name": "c", "configMap": {"name": "settings"}}, {"name": "s", "secret": {"secretName": "hidden"}},
                    {"name": "e", "emptyDir": {}}]}}
    cluster.kubectl("create", "-f", "-", input=json.dumps(pod))
    eventually(lambda: cluster.get("pod", "reader")["status"]["phase"] == "Succeeded")
    assert cluster.kubectl("logs", "reader") == "hellos3crethello hello-again\n"
    cluster.kubectl("delete", "pod/reader", "configmap/settings", "secret/hidden")


def test_a_namespace_goes_with_what_is_in_it(cluster):
    cluster.kubectl("create", "namespace", "short")
    cluster.kubectl("-n", "short", "create", "deployment", "d", "--image=pelamis.local/demo:1", "--replicas=2")
    eventually(lambda: len(cluster.get("pods", "-n", "short")["items"]) == 2)
    cluster.kubectl("delete", "namespace", "short", "--timeout=90s")
    assert '"short" not found' in cluster.fails("get", "namespace", "short")

"""What the machine goes through: kill -9 of every process, down and up again, and a purge that leaves no trace."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.client.cluster import Cluster, eventually

pytestmark = pytest.mark.client

# What `up` may touch. Names only: the contents of folders of others change by themselves on a living machine.
WATCHED_FOLDERS = ("/etc", "/opt", "/run/containerd", "/run/netns", "/usr/local", "/usr/sbin", "/var/lib/cni")


@pytest.fixture(scope="module")
def before_and_cluster():
    cluster = Cluster()
    try:
        before = snapshot(cluster)
        cluster.pelamis("up", "--demo", "--node-name", "lab-2")
        yield before, cluster
    finally:
        cluster.close()


def snapshot(cluster):
    """Rules, links, routes, addresses, mounts, settings and files of the test host. Not cgroups: other clusters of a
    test run share that tree and change it meanwhile."""
    def lines(*command):
        done = cluster.run(*command, check=False)
        return sorted(line for line in done.stdout.splitlines() if not line.startswith(("#", ":")))
    found = {name: lines(*command) for name, command in {
        "iptables": ("iptables-save",), "iptables-legacy": ("iptables-legacy-save",), "nft": ("nft", "list", "ruleset"),
        "links": ("ip", "-brief", "link"), "addresses": ("ip", "-brief", "addr"), "routes": ("ip", "route"),
        "neighbours": ("ip", "neigh"),
        "settings": ("sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"),
        "root": ("find", str(cluster.root), "-mindepth", "1", "-not", "-path", "*/images*",
                 "-not", "-path", "*/.kube*"),
        "processes": ("pgrep", "-f", str(cluster.root)),
    }.items()}
    holder = cluster.host.holder.pid
    found["processes"] = [p for p in found["processes"] if int(p) != holder]
    mounts = Path(f"/proc/{holder}/mountinfo").read_text().splitlines()
    others = ("/run/netns/pelamis-", "/run/netns/pt")  # the names of other tests' hosts, which come and go meanwhile
    found["mounts"] = sorted(line.split()[4] for line in mounts if not line.split()[4].startswith(others))
    found["files"] = [p for folder in WATCHED_FOLDERS if os.path.isdir(folder)
                      for p in lines("find", folder, "-maxdepth", "2") if "pelamis-" not in p]
    return found


@pytest.fixture(scope="module")
def cluster(before_and_cluster):
    return before_and_cluster[1]


@pytest.fixture(scope="module")
def workload(cluster):
    """Two pods behind a service, so that every kind of thing is there: veths, rules, mounts, cgroups."""
    cluster.kubectl("create", "deployment", "web", "--image=pelamis.local/demo:1", "--replicas=2")
    cluster.kubectl("expose", "deployment", "web", "--port=80")
    cluster.kubectl("create", "configmap", "kept", "--from-literal=a=1")
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s")


def containers(cluster):
    """What must not change: container ids, restart counts and start times of the pods."""
    return sorted((p["metadata"]["name"], c["containerID"], c["restartCount"], c["state"]["running"]["startedAt"])
                  for p in cluster.get("pods", "-l", "app=web")["items"] for c in p["status"]["containerStatuses"])


def component(cluster, name):
    rows = json.loads(cluster.pelamis("status", "-o", "json", check=False).stdout)["components"]
    return next(r for r in rows if r["name"] == name)


def answers(cluster):
    address = cluster.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}")
    return "web-" in cluster.run("curl", "-sS", "-m", "5", f"http://{address}/").stdout


@pytest.mark.parametrize("name", ["controllers", "agent", "apiserver", "containerd"])
def test_kill_9_loses_nothing(cluster, workload, name):
    eventually(lambda: answers(cluster))
    before, pid = containers(cluster), component(cluster, name)["pid"]
    cluster.kubectl("create", "configmap", f"written-before-{name}", "--from-literal=a=1")
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: component(cluster, name)["state"] == "running" and component(cluster, name)["pid"] != pid)
    eventually(lambda: answers(cluster))
    assert cluster.get("configmap", f"written-before-{name}")["data"] == {"a": "1"}
    assert containers(cluster) == before
    cluster.kubectl("run", f"after-{name}", "--image=pelamis.local/demo:1")
    eventually(lambda: cluster.get("pod", f"after-{name}")["status"].get("phase") == "Running")
    cluster.kubectl("delete", "pod", f"after-{name}", "--now")
    assert containers(cluster) == before


CHURN = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{churn: "{round}"}}}}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{{name: kept, configMap: {{name: kept}}}}, {{name: own, emptyDir: {{medium: Memory}}}}]
  initContainers: [{{name: init, image: "pelamis.local/demo:1", command: [sh, -c, "cp /kept/a /own/a"], {mounts}}}]
  containers:
  - {{name: main, image: "pelamis.local/demo:1", command: [sh, -c, "exec sleep 600"], {mounts}}}
  - {{name: side, image: "pelamis.local/demo:1", command: [sh, -c, "exec sleep 600"]}}
"""
MOUNTS = "volumeMounts: [{name: kept, mountPath: /kept}, {name: own, mountPath: /own}]"
ROUNDS = int(os.environ.get("PELAMIS_FAULT_ROUNDS", "3"))  # the supervisor waits longer each time
AT_ONCE = 3


def test_an_agent_killed_in_the_middle_of_anything_loses_and_doubles_nothing(cluster, workload):
    """While pods come and go, at moments of chance: whatever it was at, the next one takes it up."""
    seed = int(os.environ.get("PELAMIS_FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
    print(f"PELAMIS_FAULT_SEED={seed}")
    dice = random.Random(seed)
    for number in range(ROUNDS):
        eventually(lambda: component(cluster, "agent")["state"] == "running")
        pid = component(cluster, "agent")["pid"]
        cluster.kubectl("create", "-f", "-", input="---".join(
            CHURN.format(name=f"churn-{number}-{i}", round=number, mounts=MOUNTS) for i in range(AT_ONCE)))
        cluster.kubectl("delete", "pods", "-l", f"churn,churn!={number}", "--wait=false")
        time.sleep(dice.uniform(0.0, 1.5))
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: component(cluster, "agent")["pid"] != pid)

    def settled():
        pods = {p["metadata"]["uid"]: p for p in cluster.get("pods")["items"]}
        assert sorted(p["metadata"]["labels"]["churn"] for p in pods.values() if "churn" in p["metadata"]["labels"]) \
            == [str(ROUNDS - 1)] * AT_ONCE
        seen = observed(cluster)
        assert set(seen) == set(pods), "the runtime has pods that nobody knows, or lacks some"
        for uid, pod in pods.items():
            told = sorted(s["containerID"].rpartition("/")[2] for s in pod["status"]["containerStatuses"]
                          if s["ready"])
            assert len(told) == len(pod["spec"]["containers"]) and told == seen[uid], pod["metadata"]["name"]
        return True
    eventually(settled, 120)
    assert cluster.kubectl("exec", f"churn-{ROUNDS - 1}-0", "-c", "main", "--", "cat", "/own/a") == "1"
    cluster.kubectl("delete", "pods", "-l", "churn")
    folders = cluster.host.paths.kubelet / "pods"
    eventually(lambda: {path.name for path in folders.iterdir()} == set(observed(cluster)))


def observed(cluster):
    """The ids of the containers that run, by pod."""
    found = {}

    async def body(runtime, images):
        for uid, pod in (await runtime.observe()).items():
            found[uid] = sorted(c.id for c in pod.containers if c.state == "running")
    cluster.host.run(body)
    return found


def test_a_killed_supervisor_leaves_all_running(cluster, workload):
    before = [(r["name"], r["pid"]) for r in json.loads(cluster.pelamis("status", "-o", "json").stdout)["components"]]
    os.kill(int((cluster.host.paths.run / "supervisor.lock").read_text()), signal.SIGKILL)
    eventually(lambda: cluster.pelamis("status", check=False).returncode == 1)
    assert answers(cluster)
    cluster.pelamis("up")
    after = [(r["name"], r["pid"]) for r in json.loads(cluster.pelamis("status", "-o", "json").stdout)["components"]]
    assert after == before


def test_down_stops_and_up_brings_back(cluster, workload):
    uids = {pod["metadata"]["uid"] for pod in cluster.get("pods")["items"]}
    cluster.pelamis("down")
    assert not [group for group in Path("/sys/fs/cgroup").rglob("pod*") if group.name.removeprefix("pod") in uids]
    assert "nothing runs here" in cluster.pelamis("status", check=False).stdout
    assert "KUBE-SVC" not in cluster.run("iptables-save").stdout
    cluster.pelamis("up")
    assert cluster.get("configmap", "kept")["data"] == {"a": "1"}
    cluster.kubectl("rollout", "status", "deployment/web", "--timeout=90s")
    eventually(lambda: answers(cluster))


def test_an_occupied_port_is_named(cluster):
    """Another namespace on the same machine: only the port is taken, nothing is installed or left."""
    other = Cluster()
    listener = None
    try:
        listener = subprocess.Popen(other.host.enter(sys.executable, "-m", "http.server", "6443"),
                                    stderr=subprocess.DEVNULL)
        eventually(lambda: ":6443" in other.run("ss", "-ltn").stdout)
        done = other.pelamis("up", check=False)
        assert done.returncode == 1
        assert "port 6443, which the API server needs, is in use by python" in done.stderr
        assert not other.host.paths.etc.exists()
    finally:
        if listener is not None:
            listener.kill()
            listener.wait()
        other.host.close()


def test_up_takes_a_schedulers_configuration(cluster, tmp_path):
    file = tmp_path / "scheduler.yaml"
    profiles = "profiles: [{schedulerName: default-scheduler}, {schedulerName: packing, pluginConfig: [%s]}]"
    fit = "{name: NodeResourcesFit, args: {scoringStrategy: {type: %s}}}"
    head = "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"
    file.write_text(head + profiles % (fit % "Fullest"))
    refused = cluster.pelamis("up", "--node-name", "lab-2", "--scheduler-config", str(file), check=False)
    assert refused.returncode == 1 and str(file) in refused.stderr and "Traceback" not in refused.stderr
    file.write_text(head + profiles % (fit % "MostAllocated"))
    cluster.pelamis("up", "--node-name", "lab-2", "--scheduler-config", str(file))
    packed = {"spec": {"schedulerName": "packing"}}
    cluster.kubectl("run", "packed", "--image=pelamis.local/demo:1", f"--overrides={json.dumps(packed)}")
    cluster.kubectl("wait", "--for=condition=PodScheduled", "pod/packed", "--timeout=60s")


@pytest.fixture(scope="module")
def purge(before_and_cluster, workload):
    """What `down --purge` said: a second attempt of the test finds the same."""
    return before_and_cluster[1].pelamis("down", "--purge").stdout


def test_purge_leaves_the_machine_as_it_was(before_and_cluster, purge):
    before, cluster = before_and_cluster
    assert "this machine is as it was" in purge

    def as_it_was():  # the last processes may be about to end
        after = snapshot(cluster)
        for what in before:
            assert after[what] == before[what], what
        return True
    eventually(as_it_was)

"""A pod's life as its containers see it: sidecars, last words, restart rules, deadlines, gates, static pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.node.nodekubelet import PODS, STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
Life = dict[str, Any]


def test_sidecars_start_before_and_end_after_the_rest(host: Host, tmp_path: Path) -> None:
    def says(name: str) -> str:
        return (f"trap 'echo {name} down >> /h/log; exit 0' TERM; echo {name} up >> /h/log; touch /tmp/up; "
                "while :; do sleep 600 & wait $!; done")

    async def body(rig: Rig) -> None:
        mount: Life = {"volumeMounts": [{"name": "h", "mountPath": "/h"}]}
        probe = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "timeoutSeconds": 5}
        side = {"image": "busybox:1", "restartPolicy": "Always", "startupProbe": probe, **mount}
        async with rig.kubelet():
            await rig.create("mesh", sh(says("main"), readinessProbe=probe, **mount), terminationGracePeriodSeconds=10,
                             initContainers=[
                {"name": "one", **side, **sh(says("one"))},
                {"name": "plain", "image": "busybox:1", **mount, **sh("echo plain >> /h/log")},
                {"name": "two", **side, **sh(says("two"))}],
                volumes=[{"name": "h", "hostPath": {"path": str(tmp_path)}}])
            await rig.create("job", sh("exit 0"), restartPolicy="Never",
                             initContainers=[{"name": "one", "image": "busybox:1", "restartPolicy": "Always",
                                              **sh(STAY)}])
            await rig.pod("mesh", ready)
            job = await rig.pod("job", lambda p: p["status"]["phase"] == "Succeeded")  # sidecars do not keep it alive
            assert all("terminated" in s["state"] for s in job["status"]["initContainerStatuses"])  # and have ended
            await rig.remove("mesh", "job")
        lines = (tmp_path / "log").read_text().splitlines()
        assert lines == ["one up", "plain", "two up", "main up", "main down", "two down", "one down"]
    run(host, body)


def test_a_sick_sidecar_is_restarted_alone_and_within_its_probes_own_grace(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            often = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10}

            def test(path: str) -> dict[str, Any]:
                return {"exec": {"command": ["test", "-e", path]}}
            deaf = "trap '' TERM; touch /tmp/well; while :; do sleep 600 & wait $!; done"
            sidecar = {"name": "s", "image": "busybox:1", "restartPolicy": "Always", **sh(deaf),
                       "readinessProbe": {**often, **test("/tmp/ready")}, "startupProbe": {
                           **often, **test("/tmp/well"), "failureThreshold": 60},
                       "livenessProbe": {**often, **test("/tmp/well"), "terminationGracePeriodSeconds": 1}}
            await rig.create("mesh2", sh(STAY), initContainers=[sidecar], terminationGracePeriodSeconds=3600)
            await rig.pod("mesh2", lambda p: state(p).get("ready") is True)
            found = rig.api.objects["pods", "default", "mesh2"]
            assert not ready(found) and found["status"]["phase"] == "Running"  # a sidecar's readiness is the pod's
            await rig.inside("mesh2", "touch /tmp/ready", "s")
            first = await rig.pod("mesh2", ready)
            await rig.inside("mesh2", "rm /tmp/well", "s")
            # It does not hear SIGTERM, and the pod's own grace is an hour.
            again = await rig.pod("mesh2", lambda p: p["status"]["initContainerStatuses"][0]["restartCount"] == 1)
            assert again["status"]["initContainerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
            assert again["status"]["containerStatuses"][0]["containerID"] == first["status"]["containerStatuses"][0][
                "containerID"] and not state(again)["restartCount"]
            await rig.api.delete(PODS, "mesh2", "default", grace=1)
            await rig.pod("mesh2", lambda p: p is None)
    run(host, body)


def test_how_a_container_ended_is_told(host: Host) -> None:
    async def body(rig: Rig) -> None:
        once: Life = {"restartPolicy": "Never"}
        fall = {"terminationMessagePolicy": "FallbackToLogsOnError"}
        async with rig.kubelet():
            await rig.create("words", sh("echo from the log; exit 3", name="log", **fall),
                             sh("echo unseen; printf written > /dev/termination-log; exit 4", name="file", **fall),
                             sh("echo fine", name="fine", **fall),
                             sh("printf own > /tmp/words", name="own", terminationMessagePath="/tmp/words"), **once)
            await rig.create("greedy", sh("tail /dev/zero", resources={"limits": {"memory": "16Mi"}}), **once)
            await rig.create("late", sh(STAY), activeDeadlineSeconds=2)
            await rig.create("absent", {"command": ["/no/such"]}, **once)
            words = await rig.pod("words", lambda p: p["status"]["phase"] == "Failed")
            told = {n: state(words, n)["state"]["terminated"].get("message") for n in ("log", "file", "fine", "own")}
            assert told == {"log": "from the log\n", "file": "written", "fine": None, "own": "own"}
            greedy = await rig.pod("greedy", lambda p: p["status"]["phase"] == "Failed")
            ended = state(greedy)["state"]["terminated"]
            assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
            # On a busy machine its time may be up before it has begun.
            late = await rig.pod("late", lambda p: p["status"]["phase"] == "Failed" and "running" not in str(state(p)))
            assert late["status"]["reason"] == "DeadlineExceeded"
            absent = await rig.pod("absent", lambda p: "terminated" in state(p).get("state", {}))
            ended = state(absent)["state"]["terminated"]
            assert (ended["reason"], ended["exitCode"]) == ("StartError", 128)
            assert "no such file" in ended["message"].lower()
            await rig.remove("words", "greedy", "late", "absent")
    run(host, body)


def test_each_container_may_have_its_own_restart_rule(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            rules = [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]
            await rig.create("rules", sh(STAY, name="main"),
                             sh("exit 0", name="again", restartPolicy="Always"),
                             sh("exit 1", name="once", restartPolicy="Never"),
                             sh("[ -e /h/was ] && exit 7; touch /h/was; exit 42", name="coded", restartPolicy="Never",
                                restartPolicyRules=rules, volumeMounts=[{"name": "e", "mountPath": "/h"}]),
                             restartPolicy="Never", volumes=[{"name": "e", "emptyDir": {}}])
            pod = await rig.pod("rules", lambda p: state(p, "again").get("restartCount") == 1 and state(
                p, "coded").get("restartCount") == 1 and "terminated" in state(p, "coded")["state"]
                and "terminated" in state(p, "once")["state"])
            assert state(pod, "once")["restartCount"] == 0 and pod["status"]["phase"] == "Running"
            assert state(pod, "coded")["state"]["terminated"]["exitCode"] == 7
            await rig.remove("rules")
    run(host, body)


def test_an_exit_may_begin_the_whole_pod_again(host: Host) -> None:
    """Each container writes down that it ran into a volume that stays, as sandbox and address do."""
    def note(name: str, then: str, **more: Any) -> dict[str, Any]:
        return sh(f"echo {name} >> /v/ran; {then}", name=name, image="busybox:1", imagePullPolicy="IfNotPresent",
                  volumeMounts=[{"name": "v", "mountPath": "/v"}], **more)

    async def body(rig: Rig) -> None:
        rules = [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]
        asks = "[ -e /v/go ] && exec sleep 600; until [ -e /v/go ]; do sleep 0.1; done; exit 42"
        async with rig.kubelet():
            await rig.create("again", note("main", asks, restartPolicy="Never", restartPolicyRules=rules),
                             note("beside", STAY, lifecycle={"preStop": {"exec": {"command": ["touch", "/v/asked"]}}}),
                             initContainers=[note("first", "true"), note("side", STAY, restartPolicy="Always")],
                             restartPolicy="Never", volumes=[{"name": "v", "emptyDir": {}}])
            before = await rig.pod("again", ready)
            assert condition(before, "AllContainersRestarting") == "False"
            await rig.inside("again", "touch /v/go", "beside")
            after = await rig.pod("again", lambda p: ready(p) and state(p, "main").get("restartCount") == 1)
            ran = (await rig.inside("again", "cat /v/ran; ls /v", "main")).split()
            for once in (ran[:4], ran[4:8]):
                assert once[:2] == ["first", "side"] and sorted(once[2:]) == ["beside", "main"]
            assert ran[8:] == ["go", "ran"]  # no hook was asked
            every = [*after["status"]["initContainerStatuses"], *after["status"]["containerStatuses"]]
            assert {s["name"]: (s["restartCount"], s["lastState"]["terminated"]["exitCode"]) for s in every} == {
                "first": (1, 0), "side": (1, 137), "main": (1, 42), "beside": (1, 137)}
            assert after["status"]["podIP"] == before["status"]["podIP"]
            observed = (await rig.runtime.observe(after["metadata"]["uid"]))[after["metadata"]["uid"]]
            assert [box.attempt for box in observed.sandboxes] == [0] and len(observed.containers) == 4
            assert condition(after, "AllContainersRestarting") == "False"
            await rig.remove("again")
    run(host, body)


def condition(pod: dict[str, Any], kind: str) -> str:
    return next((c["status"] for c in pod["status"]["conditions"] if c["type"] == kind), "")


def test_readiness_gates_wait_for_their_condition(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("gated", sh(STAY), readinessGates=[{"conditionType": "example.org/lb"}])
            await rig.pod("gated", lambda p: state(p).get("ready"))
            await rig.pod("gated", lambda p: "ReadinessGatesNotReady" in str(p) and not ready(p))
            await rig.api.patch(PODS, "gated", {"status": {"conditions": [
                {"type": "example.org/lb", "status": "True"}]}}, "default", subresource="status")
            await rig.pod("gated", ready)
            await rig.remove("gated")
    run(host, body)


def test_what_the_node_may_not_run_fails_with_a_reason(host: Host) -> None:
    async def body(rig: Rig) -> None:
        from agent.kubelet.admit import Place
        rig.place = Place("n1", {"disk": "ssd"}, {"cpu": "2", "memory": "1Gi", "pods": "3"})
        port = [{"containerPort": 80, "hostPort": 8080}]
        async with rig.kubelet():
            await rig.create("first", sh(STAY, ports=port))
            await rig.pod("first", ready)
            wrong: dict[str, tuple[Life, str]] = {
                "clash": ({"containers": [sh("", name="c", image="busybox:1", ports=port)]}, "NodePorts"),
                "elsewhere": ({"nodeSelector": {"disk": "hdd"}}, "NodeAffinity"),
                "large": ({"containers": [sh("", name="c", image="busybox:1", resources={
                    "requests": {"cpu": "3"}})]}, "OutOfcpu"),
                "kernel": ({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}},
                           "SysctlForbidden")}
            for name, (spec, _) in wrong.items():
                await rig.create(name, sh(STAY), **spec)
            for name, (_, reason) in wrong.items():
                pod = await rig.pod(name, lambda p: p["status"]["phase"] == "Failed")
                assert pod["status"]["reason"] == reason, pod["status"]
            assert not [u for u, p in (await rig.runtime.observe()).items() if p.name in wrong]
            await rig.remove("first", *wrong)
    run(host, body)


def test_resources_change_under_a_running_container(host: Host) -> None:
    async def body(rig: Rig) -> None:
        from agent.kubelet.admit import Place
        rig.place = Place("n1", {}, {"cpu": "2", "memory": "1Gi", "pods": "9"})

        def wants(cpu: str, memory: str) -> Life:
            return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}

        async def limit(name: str = "c") -> str:
            return await rig.inside("grows", "cat /sys/fs/cgroup/memory.max 2>/dev/null || "
                                             "cat /sys/fs/cgroup/memory/memory.limit_in_bytes", name)

        async def resize(cpu: str, memory: str) -> None:
            await rig.api.patch(PODS, "grows", {"spec": {"containers": [
                {"name": n, "resources": wants(cpu, memory)} for n in ("c", "again")]}}, "default")

        async with rig.kubelet():
            await rig.create("grows", sh(STAY, resources=wants("100m", "32Mi")),
                             sh(STAY, name="again", resources=wants("100m", "32Mi"), resizePolicy=[
                                 {"resourceName": "memory", "restartPolicy": "RestartContainer"}]))
            before = await rig.pod("grows", ready)
            assert await limit() == str(32 << 20)
            await resize("200m", "64Mi")
            after = await rig.pod("grows", lambda p: ready(p) and all(
                state(p, n).get("resources", {}).get("limits", {}).get("memory") == "64Mi" for n in ("c", "again")))
            assert await limit() == await limit("again") == str(64 << 20)
            assert state(after)["containerID"] == state(before)["containerID"]
            assert (state(after)["restartCount"], state(after, "again")["restartCount"]) == (0, 1)
            assert state(after)["allocatedResources"] == {"cpu": "200m", "memory": "64Mi"}
            await rig.inside("grows", "dd if=/dev/zero of=/dev/shm/full bs=1M count=24 2>/dev/null")
            await resize("200m", "16Mi")
            stuck = await rig.pod("grows", lambda p: "cannot decrease memory limits" in str(p))
            told = next(c for c in stuck["status"]["conditions"] if c["type"] == "PodResizeInProgress")
            assert told["reason"] == "Error"
            assert 'container "c" memory limit (16777216) below current usage' in told["message"]
            assert await limit() == str(64 << 20)
            await rig.inside("grows", "rm /dev/shm/full")
            await resize("9", "64Mi")
            stuck = await rig.pod("grows", lambda p: "PodResizePending" in str(p))
            told = next(c for c in stuck["status"]["conditions"] if c["type"] == "PodResizePending")
            assert told["reason"] == "Infeasible" and "requested: 18000, capacity: 2000" in told["message"]
            await resize("100m", "32Mi")
            await rig.pod("grows", lambda p: "PodResize" not in str(p) and state(
                p).get("resources", {}).get("limits", {}).get("memory") == "32Mi")
            assert await limit() == str(32 << 20)
            await rig.remove("grows")
    run(host, body)


STATIC = """apiVersion: v1
kind: Pod
metadata: {name: fixed}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "busybox:1", command: [sh, -c, "%s; sleep 600"]}]
"""


def test_static_pods_run_without_an_api_and_show_themselves_in_it(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        rig.manifests = tmp_path
        (tmp_path / "fixed.yaml").write_text(STATIC % "echo first")
        (tmp_path / "broken.yaml").write_text("kind: [")
        async with rig.kubelet() as kubelet:
            mirror = await rig.pod("fixed-n1", ready)
            assert mirror["metadata"]["annotations"]["kubernetes.io/config.source"] == "file"
            await eventually(lambda: holds("InvalidStaticPod" in rig.api.events()))
            again = mirror
            for grace in (0, 30):  # only the image goes, at once or by and by
                gone = again["metadata"]["uid"]
                await rig.api.delete(PODS, "fixed-n1", "default", grace=grace)
                again = await rig.pod("fixed-n1", lambda p, gone=gone: ready(p) and p["metadata"]["uid"] != gone)
                assert state(again)["containerID"] == state(mirror)["containerID"]
                assert "observedGeneration" not in again["status"]
            assert [p["metadata"]["name"] for p in kubelet.pods()] == ["fixed-n1"]
        async with rig.kubelet():  # a restart adopts it
            (tmp_path / "fixed.yaml").write_text(STATIC % "echo second")
            changed = await rig.pod("fixed-n1", lambda p: ready(p) and p["metadata"]["annotations"][
                "kubernetes.io/config.hash"] != mirror["metadata"]["annotations"]["kubernetes.io/config.hash"])
            assert state(changed)["containerID"] != state(mirror)["containerID"]
            (tmp_path / "fixed.yaml").unlink()
            await rig.pod("fixed-n1", lambda p: p is None)
            await eventually(lambda: _empty(rig))
    run(host, body)


async def _empty(rig: Rig) -> bool:
    return not await rig.runtime.observe()

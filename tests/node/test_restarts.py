"""What an exit is followed by, on real containers: nothing, another start now or later, the next container, the end."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet import backoff
from tests.node.nodekubelet import PODS, STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
MOUNT: dict[str, Any] = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}


def init(name: str, script: str) -> dict[str, Any]:
    return {"name": name, "image": "busybox:1", **sh(script, **MOUNT)}


def noting(folder: Path, name: str = "") -> dict[str, Any]:
    """A volume of the node's, where what a pod wrote outlives it."""
    (folder / name).mkdir(exist_ok=True)
    return {"volumes": [{"name": "v", "hostPath": {"path": str(folder / name)}}]}


def test_init_containers_run_in_order_until_they_succeed_or_fail_the_pod(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        twice = "echo first >> /v/ran; [ $(wc -l < /v/ran) = 2 ]"
        async with rig.kubelet():
            steps = [init("first", twice), init("second", "echo second >> /v/ran")]
            await rig.create("orderly", sh("echo main >> /v/ran; " + STAY, **MOUNT), initContainers=steps,
                             **noting(tmp_path, "orderly"))
            await rig.create("once", sh("echo main >> /v/ran", **MOUNT), restartPolicy="Never",
                             initContainers=[init("first", "echo first >> /v/ran; exit 3"), *steps[1:]],
                             **noting(tmp_path, "once"))
            pod = await rig.pod("orderly", ready)
            await eventually(lambda: holds("main" in (tmp_path / "orderly/ran").read_text()))
            assert (tmp_path / "orderly/ran").read_text().split() == ["first", "first", "second", "main"]
            told = {s["name"]: (s["restartCount"], s["state"]["terminated"]["exitCode"], s["ready"])
                    for s in pod["status"]["initContainerStatuses"]}
            assert told == {"first": (1, 0, True), "second": (0, 0, True)}
            once = await rig.pod("once", lambda p: p["status"]["phase"] == "Failed")
            assert (tmp_path / "once/ran").read_text().split() == ["first"]
            assert state(once, "first", "initContainerStatuses")["state"]["terminated"]["exitCode"] == 3
            assert state(once)["state"]["waiting"]["reason"] == "PodInitializing"
            await rig.remove("orderly", "once")
    run(host, body)


def test_the_pods_policy_says_which_exits_are_followed_by_another_start(host: Host, tmp_path: Path) -> None:
    twice = "echo >> /v/ran; [ $(wc -l < /v/ran) = 2 ] && {{ {}; }}; exit {}"
    wanted = {  # policy, what the second run does, the first run's exit code -> phase, runs
        "always": ("Always", STAY, 0, "Running", 2), "failing": ("Always", STAY, 1, "Running", 2),
        "mended": ("OnFailure", "exit 0", 1, "Succeeded", 2), "good": ("OnFailure", "exit 1", 0, "Succeeded", 1),
        "never": ("Never", "exit 0", 1, "Failed", 1)}

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            for name, (policy, then, code, _, _) in wanted.items():
                await rig.create(name, sh(twice.format(then, code), **MOUNT), restartPolicy=policy,
                                 **noting(tmp_path, name))
            for name, (_, _, _, phase, runs) in wanted.items():
                await rig.pod(name, lambda p, phase=phase, runs=runs: p["status"]["phase"] == phase
                              and state(p)["restartCount"] == runs - 1 and (phase != "Running" or ready(p)))
                await eventually(lambda name=name, runs=runs: holds(len((tmp_path / name / "ran").read_text()) == runs))
            await rig.remove(*wanted)
    run(host, body)


def test_the_wait_doubles_to_its_limit_and_is_forgotten_after_a_good_run(
        host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With seconds for upstream's minutes; the numbers themselves are shown beside `backoff`."""
    for name, seconds in (("INITIAL", 1.0), ("LIMIT", 2.0), ("FORGET", 6.0)):
        monkeypatch.setattr(backoff, name, seconds)
    script = ("up() { read t _ < /proc/uptime; echo $1 $t >> /v/log; }; up start; "
              "[ $(grep -c start /v/log) = 5 ] && sleep 7; up end; exit 1")

    def waits(rig: Rig) -> dict[int, str]:
        """The waits that were told, by how often it had been started again."""
        said = [(state(o).get("restartCount"), re.search(r"back-off (\w+) restarting", str(o["status"])))
                for _, plural, o in rig.api.log if plural == "pods"]
        return {count: found[1] for count, found in said if found}

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("crash", sh(script, **MOUNT), **noting(tmp_path))
            pod = await rig.pod("crash", lambda p: state(p).get("restartCount") == 6 and "waiting" in state(p)["state"])
            lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
            times = [float(t) for _, t in lines]
            assert [word for word, _ in lines[:14]] == ["start", "end"] * 7
            pauses = [begin - end for end, begin in zip(times[1::2], times[2::2])]
            assert pauses[1] >= 1 and pauses[2] >= 2 and pauses[3] >= 2
            # The first end and that of the long run were followed by a start at once; on a slow machine others too.
            said = waits(rig)
            assert said and said.items() <= {1: "1s", 2: "2s", 3: "2s", 5: "1s", 6: "2s"}.items()
            assert state(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            await rig.remove("crash")
    run(host, body)


def test_a_changed_image_is_run_whatever_the_policy_and_hooks_hold_back_the_next(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        policies = ("Never", "OnFailure", "Always")
        async with rig.kubelet():
            for policy in policies:
                await rig.create(policy.lower(), sh(STAY), sh(STAY, name="other"), restartPolicy=policy)
            hook = {"postStart": {"exec": {"command": ["sh", "-c", "sleep 1; echo hook >> /v/ran"]}}}
            await rig.create("ordered", sh("echo first >> /v/ran; " + STAY, name="first", lifecycle=hook, **MOUNT),
                             sh("echo second >> /v/ran; " + STAY, name="second", **MOUNT), **noting(tmp_path))
            before = {policy: await rig.pod(policy.lower(), ready) for policy in policies}
            for policy in policies:
                await rig.api.patch(PODS, policy.lower(), {"spec": {"containers": [
                    {"name": "c", "image": "docker.io/library/busybox:1"}]}}, "default")
            for policy in policies:
                after = await rig.pod(policy.lower(), lambda p: ready(p) and state(p)["restartCount"] == 1)
                assert state(after)["lastState"]["terminated"]["exitCode"] == 0
                assert state(after, "other")["containerID"] == state(before[policy], "other")["containerID"]
                phases = {o["status"].get("phase") for _, plural, o in rig.api.log
                          if plural == "pods" and o["metadata"]["name"] == policy.lower()}
                assert phases == {"Pending", "Running"}  # it never seemed to have ended
            await rig.pod("ordered", ready)
            await eventually(lambda: holds((tmp_path / "ran").read_text().split() == ["first", "hook", "second"]))
            await rig.remove("ordered", *(policy.lower() for policy in policies))
    run(host, body)


def test_an_ephemeral_container_looks_in_and_is_started_once(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("seen", sh("echo own > /tmp/file; exec sleep 4242"), shareProcessNamespace=True,
                             **noting(tmp_path))
            before = await rig.pod("seen", ready)
            pid = "$(ps -o pid,args | awk '$2 == \"sleep\" && $3 == 4242 {print $1}')"
            look = f"cat /proc/{pid}/root/tmp/file > /v/found 2>&1; exit 3"
            await rig.api.patch(PODS, "seen", {"spec": {"ephemeralContainers": [
                {"name": "look", "image": "busybox:1", **sh(look, **MOUNT)},
                {"name": "stay", "image": "busybox:1", **sh(STAY)}]}}, "default")

            def both(pod: Any, name: str, word: str) -> bool:
                return word in state(pod, name, "ephemeralContainerStatuses").get("state", {})
            after = await rig.pod("seen", lambda p: both(p, "look", "terminated") and both(p, "stay", "running"))
            assert state(after, "look", "ephemeralContainerStatuses")["state"]["terminated"]["exitCode"] == 3
            assert (tmp_path / "found").read_text() == "own\n"
            assert ready(after) and state(after)["containerID"] == state(before)["containerID"]
            uid = after["metadata"]["uid"]
            await rig.create("stuck", sh(STAY), initContainers=[init("one", "until [ -e /v/go ]; do sleep 0.1; done")],
                             **noting(tmp_path))
            await rig.pod("stuck", lambda p: "running" in state(p, "one", "initContainerStatuses").get("state", {}))
            await rig.api.patch(PODS, "stuck", {"spec": {"ephemeralContainers": [
                {"name": "help", "image": "busybox:1", **sh("touch /v/go", **MOUNT)}]}}, "default")
            await rig.pod("stuck", ready)
        async with rig.kubelet():  # nor is it started again by another kubelet
            await rig.create("late", sh(STAY))
            await rig.pod("late", ready)
            attempts = [c.attempt for c in (await rig.runtime.observe(uid))[uid].containers if c.name == "look"]
            assert attempts == [0]
            await rig.remove("seen", "late", "stuck")
    run(host, body)


def test_a_container_gets_its_grace_and_no_more(host: Host, tmp_path: Path) -> None:
    volumes = noting(tmp_path)
    hears = "trap '{} ' TERM; touch /v/{}-up; while :; do sleep 600 & wait $!; done"

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            polite = hears.format("echo bye > /v/polite; exit 0;", "polite")
            slow = hears.format("sleep 1.5; echo late > /v/slow; exit 0;", "slow")
            await rig.create("ends", sh(polite, name="polite", **MOUNT), sh(slow, name="slow", **MOUNT),
                             terminationGracePeriodSeconds=60, **volumes)
            deaf = ("trap 'echo heard >> /v/deaf' TERM; "
                    "while :; do read t _ < /proc/uptime; echo $t > /v/last; sleep 0.1; done")
            await rig.create("deaf", sh(deaf, **MOUNT), terminationGracePeriodSeconds=2, **volumes)
            await rig.create("late", sh(deaf.replace("/v/", "/tmp/"), **MOUNT), activeDeadlineSeconds=2,
                             terminationGracePeriodSeconds=1, **volumes)
            await eventually(lambda: holds(all((tmp_path / f).exists() for f in ("polite-up", "slow-up", "last"))))
            await rig.pod("deaf", ready)
            before = time.clock_gettime(time.CLOCK_BOOTTIME)
            await rig.remove("ends", "deaf")
            assert (tmp_path / "polite").read_text() == "bye\n" and (tmp_path / "slow").read_text() == "late\n"
            assert (tmp_path / "deaf").read_text() == "heard\n"  # asked once, then killed when its time was up
            assert float((tmp_path / "last").read_text()) >= before + 1.5
            late = await rig.pod("late", lambda p: p["status"]["phase"] == "Failed" and "running" not in str(state(p)))
            uid = late["metadata"]["uid"]
            assert late["status"]["reason"] == "DeadlineExceeded" and "DeadlineExceeded" in rig.api.events()
            assert not [c for c in (await rig.runtime.observe(uid))[uid].containers if c.state == "running"]
            await rig.remove("late")
    run(host, body)

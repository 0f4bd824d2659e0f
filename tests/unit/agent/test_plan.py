"""A pod's life as a transcript: what is there, and what the plan says to do about it."""

from __future__ import annotations

from agent.kubelet import plan as p
from agent.kubelet.backoff import BackOff, duration
from tests.unit.agent.pods import NOW, box, down, pod, seen, up


def steps(the_pod, observed, now=NOW, **facts):
    """The actions in words."""
    out = []
    for action in p.plan(the_pod, observed, now, p.Facts(**facts)).actions:
        kind = type(action).__name__
        if isinstance(action, p.StartContainer):
            out.append(f"start {action.name}/{action.attempt}")
        elif isinstance(action, p.KillContainer):
            out.append(f"kill {action.id} {action.grace:g}s {action.reason}")
        elif isinstance(action, p.RunSandbox):
            out.append(f"sandbox {action.attempt}")
        else:
            out.append(f"{kind} {getattr(action, 'id', '')}".strip())
    return out


def test_a_pod_from_nothing_to_running():
    two = pod("a", "b")
    assert steps(two, seen()) == ["sandbox 0"]
    assert steps(two, seen(), busy=frozenset({p.SANDBOX})) == []
    assert steps(two, seen(box())) == ["start a/0", "start b/0"]
    assert steps(two, seen(box()), busy=frozenset({"a"})) == ["start b/0"]
    assert steps(two, seen(box(), up("a"), up("b"))) == []


def test_init_containers_run_one_after_another_and_gate_the_rest():
    three = pod("main", init=("one", "two"))
    assert steps(three, seen(box())) == ["start one/0"]
    assert steps(three, seen(box(), up("one"))) == []
    assert steps(three, seen(box(), down("one"))) == ["start two/0"]
    assert steps(three, seen(box(), down("one"), down("two"))) == ["start main/0"]
    assert steps(three, seen(box(), down("one", 1))) == ["start one/1"]
    failed = pod("main", init=("one",), policy="Never")
    assert steps(failed, seen(box(), down("one", 1))) == ["StopSandbox box0"]


def test_a_sidecar_gates_until_started_and_ends_last():
    mesh = pod("main", init=({"name": "side", "restartPolicy": "Always"},))
    assert steps(mesh, seen(box(), up("side"))) == []
    assert steps(mesh, seen(box(), up("side")), started=frozenset({"side0"})) == ["start main/0"]
    assert steps(mesh, seen(box(), down("side", 1), up("main"))) == ["start side/1"]
    mesh["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
    mesh["metadata"]["deletionGracePeriodSeconds"] = 30
    assert steps(mesh, seen(box(), up("side"), up("main"))) == ["kill main0 30s Ended", "kill side0 30s Ended"]
    turns = pod("main", "beside", init=tuple({"name": n, "restartPolicy": "Always"} for n in ("one", "two")))
    ends = p.plan(turns, seen(box(), up("one"), up("two"), up("main"), up("beside")), NOW, p.Facts(gone=True)).actions
    assert [(a.name, set(a.after)) for a in ends if isinstance(a, p.KillContainer)] == [
        ("main", set()), ("beside", set()), ("two", {"main0", "beside0"}), ("one", {"main0", "beside0", "two0"})]
    only_side = seen(box(), up("side"), down("main"))
    assert steps(mesh, only_side, NOW + 10, terminating_since=NOW) == ["kill side0 20s Ended"]


def test_a_hook_at_the_start_holds_back_the_containers_named_after_its_own():
    made = pod({"name": "a", "lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}, "b")
    assert steps(made, seen(box())) == ["start a/0"]
    assert steps(made, seen(box(), up("a")), busy=frozenset({"a"})) == []
    assert steps(made, seen(box(), up("a"))) == ["start b/0"]
    assert steps(made, seen(box()), not_before={"a": NOW + 9}) == ["start b/0"]  # no image, no hook


def test_ephemeral_containers_do_not_wait_for_initialization():
    made = pod("main", init=("one",))
    made["spec"]["ephemeralContainers"] = [{"name": "visitor", "image": "busybox"}]
    assert steps(made, seen(box(), up("one"))) == ["start visitor/0"]


def test_a_changed_definition_is_started_whatever_the_policy_and_the_exit():
    for policy in ("Never", "OnFailure"):
        made = pod("a", "b", policy=policy)
        assert steps(made, seen(box(), up("a", image="old"), up("b"))) == ["kill a0 30s Changed"]
        assert steps(made, seen(box(), down("a", image="old"), up("b"))) == ["start a/1"]
        assert steps(made, seen(box(), down("a", image="old"), down("b"))) == ["start a/1"]


def test_restart_policy_decides_what_an_exit_means():
    for policy, code, expected in (("Always", 0, ["start c/1"]), ("Always", 1, ["start c/1"]),
                                   ("OnFailure", 1, ["start c/1"]), ("OnFailure", 0, ["StopSandbox box0"]),
                                   ("Never", 0, ["StopSandbox box0"]), ("Never", 1, ["StopSandbox box0"])):
        assert steps(pod(policy=policy), seen(box(), down("c", code))) == expected, policy
    one_left = pod("a", "b", policy="Never")
    assert steps(one_left, seen(box(), down("a"), up("b"))) == []


def test_crash_loop_waits_ten_seconds_then_doubles_and_says_so():
    crashing, backoff = pod(), BackOff()
    assert steps(crashing, seen(box(), down("c", 1))) == ["start c/1"]  # the first time at once
    backoff = backoff.longer(NOW, NOW)
    made = p.plan(crashing, seen(box(), down("c", 1, attempt=1)), NOW + 1, p.Facts(backoffs={"c": backoff}))
    assert made.actions == () and made.wake_at == NOW + 10
    assert made.waiting["c"] == ("CrashLoopBackOff", "back-off 10s restarting failed container=c pod=p_default(u)")
    assert steps(crashing, seen(box(), down("c", 1, attempt=1)), NOW + 10, backoffs={"c": backoff}) == ["start c/2"]
    delays = []
    for _ in range(7):
        delays.append(duration(backoff.delay))
        backoff = backoff.longer(NOW, NOW)
    assert delays == ["10s", "20s", "40s", "1m20s", "2m40s", "5m0s", "5m0s"]
    assert backoff.until(NOW + 601) == 0.0  # ten quiet minutes forget


def test_a_changed_image_and_a_failed_probe_replace_the_process_and_nothing_else_does():
    edited, running = pod({"name": "c", "image": "other"}), seen(box(), up("c"))
    assert steps(edited, running) == ["kill c0 30s Changed"]
    made = p.plan(edited, running, NOW, p.Facts(edited_at=NOW - 0.4))
    assert not made.actions and made.wake_at == NOW - 0.4 + p.SETTLE  # more edits may come
    assert steps(edited, running, edited_at=NOW - p.SETTLE) == ["kill c0 30s Changed"]
    assert steps(edited, running, edited_at=NOW + 60) == ["kill c0 30s Changed"]  # the clock was set back
    sick = {"c0": p.Unhealthy("Liveness", 5.0)}
    made = p.plan(pod(), seen(box(), up("c")), NOW, p.Facts(unhealthy=sick)).actions[0]
    assert (made.grace, made.message) == (5.0, "Container c failed liveness probe, will be restarted")
    changed_otherwise = pod({"name": "c", "env": [{"name": "A", "value": "b"}]})
    assert steps(changed_otherwise, seen(box(), up("c"))) == []


def test_a_dead_sandbox_takes_its_containers_with_it_and_a_new_attempt_begins():
    plain = pod()
    assert steps(plain, seen(box(ready=False), up("c"))) == ["kill c0 30s SandboxChanged"]
    assert steps(plain, seen(box(ready=False), down("c", 137))) == ["StopSandbox box0"]
    assert steps(plain, seen(box(ready=False), down("c", 137)), stopped=frozenset({"box0"})) == ["sandbox 1"]
    reborn = seen(box(1), box(0, False), down("c", 137))
    assert steps(plain, reborn) == ["start c/1"]
    once = pod(policy="Never")
    assert steps(once, seen(box(ready=False), down("c", 137)), stopped=frozenset({"box0"})) == []
    with_init = pod("c", init=("i",))
    assert steps(with_init, seen(box(1), box(0, False), down("i"), down("c", 137))) == ["start i/1"]


def test_deletion_stops_then_cleans_then_gives_the_object_back():
    leaving = pod(deletionTimestamp="2023-11-14T22:13:20Z", deletionGracePeriodSeconds=5)
    assert steps(leaving, seen(box(), up("c"))) == ["kill c0 5s Ended"]
    assert steps(leaving, seen(box(), up("c")), NOW + 4, terminating_since=NOW) == ["kill c0 1s Ended"]
    assert steps(leaving, seen(box(), down("c", 137))) == ["Finish"]  # what removes a sandbox ends it, too
    stopped = {"stopped": frozenset({"box0"})}
    assert steps(leaving, seen(box(ready=False), down("c", 137)), **stopped, busy=frozenset({"c"})) == []
    assert steps(leaving, seen(box(ready=False), down("c", 137)), **stopped) == ["Finish"]
    assert steps(leaving, seen()) == ["Finish"]
    assert steps(pod(), seen(box(), up("c")), gone=True) == ["kill c0 30s Ended"]


def test_only_the_last_two_attempts_are_kept():
    crowd = seen(box(), up("c", 3), down("c", 1, 2), down("c", 1, 1), down("c", 1, 0))
    assert steps(pod(), crowd) == ["RemoveContainer c1", "RemoveContainer c0"]
    moved = seen(box(1), box(0, False), up("c", 2, "box1"), down("c", 1, 1, box="box1"))
    assert steps(pod(), moved) == ["RemoveSandbox box0"]


def test_a_restart_of_the_kubelet_counts_on_from_what_the_api_knows():
    told = pod()
    told["status"]["containerStatuses"] = [{"name": "c", "restartCount": 4, "containerID": "containerd://lost"}]
    assert steps(told, seen(box())) == ["start c/5"]


def test_the_deadline_of_a_job_ends_it():
    late = pod()
    late["spec"]["activeDeadlineSeconds"] = 60
    late["status"]["startTime"] = "2023-11-14T22:13:20Z"
    assert p.plan(late, seen(box(), up("c")), NOW).wake_at == NOW + 60
    doomed = ("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
    assert steps(late, seen(box(), up("c")), NOW + 60, doomed=doomed) == ["kill c0 30s Ended"]


def test_what_failed_is_not_tried_before_its_time():
    assert steps(pod(), seen(box()), not_before={"c": NOW + 5}) == []
    assert p.plan(pod(), seen(box()), NOW, p.Facts(not_before={"c": NOW + 5})).wake_at == NOW + 5
    assert steps(pod(), seen(), not_before={p.SANDBOX: NOW + 5}) == []


def test_an_exit_may_begin_the_whole_pod_again():
    rules = [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]
    job = pod({"name": "main", "restartPolicy": "Never", "restartPolicyRules": rules}, "beside",
              init=("one", {"name": "side", "restartPolicy": "Always"}), policy="Never")
    asked = down("main", 42, at=NOW)
    running = seen(box(), down("one"), up("side"), asked, up("beside"))
    assert not p.finished(job, running)
    assert steps(job, running) == ["kill side0 0s Reset", "kill beside0 0s Reset"]
    still = seen(box(), down("one"), down("side", 137), asked, down("beside", 137))
    assert steps(job, still, busy=frozenset({"beside"})) == []
    [reset] = p.plan(job, still, NOW).actions
    assert isinstance(reset, p.Reset) and reset.ids[-1] == "main0" and sorted(reset.ids) == sorted(
        c.id for c in still.containers)  # whoever comes in between finds the one that asked for it
    held = p.plan(job, still, NOW, p.Facts(backoffs={"main": BackOff(10.0, NOW - 20)}))
    assert not held.actions and held.wake_at == NOW + 10 and held.waiting["main"][0] == "CrashLoopBackOff"
    assert steps(job, seen(box())) == ["start one/0"]
    # Its sandbox is gone too: the way is cleared all the same, and then a new one made.
    lost = seen(box(ready=False), asked)
    assert isinstance(p.plan(job, lost, NOW).actions[0], p.Reset)
    assert steps(job, seen(box(), down("main", 1), up("beside"), down("one"), up("side"))) == []
    job["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
    assert steps(job, running) == ["kill beside0 30s Ended", "kill side0 30s Ended"]

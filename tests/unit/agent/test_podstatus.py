"""A pod's status at the moments users look at it, and the patch that tells of it."""

from __future__ import annotations

from agent.kubelet.reporting import status
from agent.kubelet.reporting.containerstatus import Report
from tests.unit.agent.pods import NOW, box, down, pod, seen, up


def view(the_pod, observed, now=NOW, **report):
    return status.compute(the_pod, observed, now, Report(host_ips=("10.0.0.1",), **report))


def condition(made, kind):
    found = next(c for c in made["conditions"] if c["type"] == kind)
    return found["status"], found.get("reason", ""), found.get("message", "")


def test_from_creating_to_ready():
    made = view(pod(), seen())
    assert made["phase"] == "Pending"
    assert made["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert condition(made, "Ready") == ("False", "ContainersNotReady", "containers with unready status: [c]")
    assert condition(made, "PodReadyToStartContainers")[0] == "False"
    made = view(pod(), seen(box(), up("c")), started=frozenset({"c0"}), ready=frozenset({"c0"}))
    assert (made["phase"], made["podIP"], made["hostIP"]) == ("Running", "10.244.1.5", "10.0.0.1")
    assert made["containerStatuses"][0]["containerID"] == "containerd://c0"
    assert all(c["status"] == "True" for c in made["conditions"])
    assert "observedGeneration" not in made
    made = view(pod(generation=3), seen(box(), up("c")))
    assert made["observedGeneration"] == 3 and {c["observedGeneration"] for c in made["conditions"]} == {3}


def test_what_the_pod_has_as_a_whole_and_what_ends_a_container_are_told():
    whole = pod({"name": "c", "lifecycle": {"stopSignal": "SIGUSR1"}})
    whole["spec"]["resources"] = {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}
    made = view(whole, seen(box(), up("c")))
    assert made["resources"] == whole["spec"]["resources"] and made["allocatedResources"] == {"cpu": "1"}
    assert made["containerStatuses"][0]["stopSignal"] == "SIGUSR1"
    made = view(pod(), seen(box(), up("c", stop_signal="SIGQUIT")))
    assert made["containerStatuses"][0]["stopSignal"] == "SIGQUIT" and made["resources"] == {}


def test_what_the_pods_group_holds_is_told_overhead_and_all():
    whole = pod("c")
    whole["spec"]["resources"] = {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}
    whole["spec"]["overhead"] = {"cpu": "250m", "memory": "1Mi"}
    made = view(whole, seen(box(), up("c")), actual={"": {"requests": {"cpu": "3"}}})
    assert made["resources"] == {"requests": {"cpu": "3250m", "memory": "1Mi"}}  # not given back yet
    assert made["allocatedResources"] == {"cpu": "1250m", "memory": "1Mi"}
    sums = pod(*({"name": name, "resources": {"requests": {"cpu": "1", "example.org/gpu": "1"},
                                              "limits": {"cpu": "2", **more}}}
                 for name, more in (("c", {"memory": "1Gi"}), ("d", {}))))
    made = view(sums, seen(box(), up("c"), up("d")))  # a limit is the pod's when every container has one
    assert made["resources"] == {"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}
    assert made["allocatedResources"] == {"cpu": "2", "example.org/gpu": "2"}


def test_image_volumes_tell_of_which_image_they_are():
    made = pod({"name": "c", "volumeMounts": [{"name": "i", "mountPath": "/i"}, {"name": "e", "mountPath": "/e"}]})
    told = view(made, seen(box(), up("c")), images={"i": "sha256:7"})["containerStatuses"][0]["volumeMounts"]
    assert told == [{"name": "i", "mountPath": "/i", "volumeStatus": {"image": {"imageRef": "sha256:7"}}},
                    {"name": "e", "mountPath": "/e"}]
    made["status"]["containerStatuses"] = [{"name": "c", "volumeMounts": told}]  # a restarted agent's knowledge
    assert view(made, seen(box(), up("c")))["containerStatuses"][0]["volumeMounts"] == told


def test_each_end_is_told_once():
    with_init = pod("c", init=("i",))
    first = view(with_init, seen(box(), down("i"), up("c")))
    assert list(status.ends({}, first)) == [("init_container", "0", "Completed")]
    second = view(with_init | {"status": first}, seen(box(), down("i"), down("c", 139)), waiting={"c": ("Why", "")})
    assert list(status.ends(first, second)) == [("container", "139", "Error")] and "waiting" in str(
        second["containerStatuses"][0]["state"])
    assert not list(status.ends(second, view(with_init | {"status": second}, seen(box(), down("i"), down("c", 139)))))


def test_an_end_is_told_when_the_last_container_has_ended():
    made = pod("c", init=({"name": "side", "restartPolicy": "Always"},), policy="Never")
    made["status"]["phase"] = "Running"
    assert view(made, seen(box(), up("side"), down("c")))["phase"] == "Running"
    assert view(made, seen(box(), down("side", 137), down("c")))["phase"] == "Succeeded"
    doomed = view(made, seen(box(), up("side"), up("c")), doomed=("Evicted", "no room"))
    assert doomed["phase"] == "Running" and "reason" not in doomed
    doomed = view(made, seen(box(), down("side", 137), down("c", 137)), doomed=("Evicted", "no room"))
    assert (doomed["phase"], doomed["reason"]) == ("Failed", "Evicted")
    waits = view(made, seen(box()))
    assert len(view(made | {"status": waits}, seen(), doomed=("Evicted", "no room"))["containerStatuses"]) == 1
    refused = view(pod("c", init=("i",)), seen(), doomed=("NodePorts", "taken"))
    for told in (refused, view(pod("c", init=("i",)) | {"status": refused}, seen())):
        assert (told["phase"], told["reason"]) == ("Failed", "NodePorts") and "containerStatuses" not in told


def test_init_containers_hold_the_others_back():
    with_init = pod("c", init=("i",))
    made = view(with_init, seen(box(), up("i")))
    assert made["containerStatuses"][0]["state"]["waiting"]["reason"] == "PodInitializing"
    assert condition(made, "Initialized") == ("False", "ContainersNotInitialized",
                                              "containers with incomplete status: [i]")
    made = view(with_init, seen(box(), down("i"), up("c")))
    assert made["initContainerStatuses"][0]["ready"] and condition(made, "Initialized")[0] == "True"


def test_crash_loop_shows_the_wait_and_the_last_exit():
    made = view(pod(), seen(box(), down("c", 3, attempt=1)), waiting={"c": ("CrashLoopBackOff", "back-off 10s …")},
                messages={"c1": "out of luck"})
    entry = made["containerStatuses"][0]
    assert entry["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert entry["lastState"]["terminated"]["exitCode"] == 3
    assert entry["lastState"]["terminated"]["message"] == "out of luck"
    assert (entry["restartCount"], made["phase"]) == (1, "Running")


def test_phases_of_pods_that_end():
    for policy, codes, expected in (("Never", (0, 0), "Succeeded"), ("Never", (0, 1), "Failed"),
                                    ("OnFailure", (0, 0), "Succeeded"), ("OnFailure", (0, 1), "Running"),
                                    ("Always", (0, 0), "Running")):
        made = view(pod("a", "b", policy=policy), seen(box(), down("a", codes[0]), down("b", codes[1])))
        assert made["phase"] == expected, (policy, codes)
    done = pod(policy="Never")
    done["status"] = view(done, seen(box(), down("c")))
    assert condition(done["status"], "Ready")[:2] == ("False", "PodCompleted")
    assert view(done, seen())["phase"] == "Succeeded"  # never left again
    assert view(done, seen())["containerStatuses"][0]["state"]["terminated"]["reason"] == "Completed"


def test_a_pod_whose_containers_vanished_while_it_ended_says_so():
    running = pod(deletionTimestamp="2023-11-14T22:13:20Z")
    running["status"] = view(running, seen(box(), up("c")), started=frozenset({"c0"}), ready=frozenset({"c0"}))
    made = view(running, seen(), ended=True)
    assert made["containerStatuses"][0]["state"]["terminated"]["reason"] == "ContainerStatusUnknown"
    assert made["phase"] == "Failed"


def test_only_changes_are_sent_and_times_move_with_their_status():
    the_pod = pod()
    old = view(the_pod, seen(box(), up("c")), started=frozenset({"c0"}))
    new = status.compute(the_pod, seen(box(), up("c")), NOW + 60,
                         Report(host_ips=("10.0.0.1",), started=frozenset({"c0"}), ready=frozenset({"c0"})), old)
    assert status.patch("u", old, old) is None
    body = status.patch("u", old, new)
    assert body["metadata"] == {"uid": "u"}
    assert {c["type"] for c in body["status"]["conditions"]} == {"Ready", "ContainersReady"}
    assert set(body["status"]) == {"conditions", "$setElementOrder/conditions", "containerStatuses"}
    times = {c["type"]: c["lastTransitionTime"] for c in new["conditions"]}
    assert times["Ready"] > times["PodReadyToStartContainers"]


def test_readiness_gates_and_foreign_conditions():
    gated = pod()
    gated["spec"]["readinessGates"] = [{"conditionType": "x/lb"}]
    good = {"started": frozenset({"c0"}), "ready": frozenset({"c0"})}
    made = view(gated, seen(box(), up("c")), **good)
    assert condition(made, "Ready")[1] == "ReadinessGatesNotReady"
    gated["status"]["conditions"] = [{"type": "x/lb", "status": "True"}]
    made = view(gated, seen(box(), up("c")), **good)
    assert condition(made, "Ready")[0] == "True" and condition(made, "x/lb")[0] == "True"


def test_a_pod_that_begins_again_as_a_whole_tells_so_and_forgets_no_end():
    rules = [{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]
    job = pod({"name": "main", "restartPolicyRules": rules, "restartPolicy": "Never"}, init=("one",), policy="Never")
    job["status"]["phase"] = "Running"
    kind = "AllContainersRestarting"
    before = view(job, seen(box(), down("one"), up("main")))
    assert condition(before, kind) == ("False", "", "") and kind not in {
        c["type"] for c in view(pod(), seen(box(), up("c")))["conditions"]}
    job["status"] = view(job | {"status": before}, seen(box(), down("one", 137), down("main", 42)))
    assert job["status"]["phase"] == "Running"  # and not failed, although its policy is Never
    assert condition(job["status"], kind) == ("True", "RestartAllContainersStarted",
                                              "container exited with restart policy rule")
    job["status"] = view(job, seen(box()))
    assert condition(job["status"], kind)[0] == "False" and job["status"]["phase"] != "Failed"
    for entry, code in ((job["status"]["initContainerStatuses"][0], 137), (job["status"]["containerStatuses"][0], 42)):
        assert "waiting" in entry["state"] and entry["lastState"]["terminated"]["exitCode"] == code
    made = view(job, seen(box(), down("one", attempt=1), up("main", 1)))
    assert made["phase"] == "Running" and made["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 42
    assert (made["containerStatuses"][0]["restartCount"], made["initContainerStatuses"][0]["restartCount"]) == (1, 1)
    assert made["initContainerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137

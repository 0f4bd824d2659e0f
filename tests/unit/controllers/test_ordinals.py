"""StatefulSets, told as transcripts: a small world in which pods become ready one step after they were made."""

from controlplane.controllers.workloads import history
from controlplane.controllers.workloads.statefulsets import identity, ordinals
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339, rfc3339

NOW = parse_rfc3339("2026-01-01T00:00:00Z")


def statefulset(replicas=3, update=None, **spec):
    return {"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "generation": 1},
            "spec": {"replicas": replicas, "serviceName": "web", "selector": {"matchLabels": {"app": "x"}},
                     "updateStrategy": {"type": "RollingUpdate", **({"rollingUpdate": update} if update else {})},
                     "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c"}]}},
                     **spec}}


class World:
    def __init__(self, owner, revision="old"):
        self.owner, self.update, self.current, self.pods, self.now = owner, revision, revision, [], NOW
        self.broken = set()  # revisions whose pods never become ready

    def play(self, limit=40):
        """All steps until nothing moves; a step's pods are told together, new ones with their revision."""
        told = []
        for _ in range(limit):
            plan = ordinals.plan(self.owner, self.pods, self.update, self.now)
            gone = {objects.name(pod) for pod in plan.delete}
            step = [f"+{number}:{self.update if new else self.current}" for number, new in plan.create]
            step += [f"-{ordinals.ordinal(self.owner, pod)}" for pod in plan.delete]
            if step:
                told.append(" ".join(step))
            moved = bool(step)
            self.pods = [pod for pod in self.pods if objects.name(pod) not in gone]
            for pod in self.pods:
                if not ordinals.ready(pod) and ordinals.revision(pod) not in self.broken:
                    moved = True
                    pod["status"] = {"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(self.now)}]}
            for number, new in plan.create:
                revision = {"metadata": {"name": self.update if new else self.current},
                            "data": history.data(self.owner)}
                self.pods.append(identity.child(self.owner, number, revision) | {"status": {"phase": "Pending"}})
            self.status = ordinals.status(self.owner, self.pods, self.current, self.update, self.now)
            self.current = self.status["currentRevision"]
            if not moved:
                return told
        raise AssertionError(told)


def test_ordered_one_after_the_other():
    w = World(statefulset())
    assert w.play() == ["+0:old", "+1:old", "+2:old"]
    w.owner["spec"]["replicas"] = 1
    assert w.play() == ["-2", "-1"]
    w.owner["spec"].update(replicas=2, ordinals={"start": 1})
    assert w.play() == ["+1:old", "+2:old", "-0"]


def test_parallel_all_at_once():
    w = World(statefulset(podManagementPolicy="Parallel"))
    assert w.play() == ["+0:old +1:old +2:old"]
    w.owner["spec"]["replicas"] = 0
    assert w.play() == ["-2 -1 -0"]


def test_updates_go_downwards():
    said = {}
    for name, update in (("all", None), ("upper", {"partition": 1}), ("two", {"maxUnavailable": 2})):
        w = World(statefulset(update=update, podManagementPolicy="Parallel" if name == "two" else "OrderedReady"))
        w.play()
        w.update = "new"
        said[name] = w.play(), w.current, w.status.get("updatedReplicas")
    assert said["all"] == (["-2", "+2:new", "-1", "+1:new", "-0", "+0:new"], "new", 3)
    assert said["upper"] == (["-2", "+2:new", "-1", "+1:new"], "old", 2)
    assert said["two"] == (["-2 -1", "+1:new +2:new", "-0", "+0:new"], "new", 3)


def test_a_lost_pod_below_the_partition_comes_back_as_it_was():
    w = World(statefulset(update={"partition": 2}))
    w.play()
    w.update = "new"
    w.play()
    w.pods = [pod for pod in w.pods if objects.name(pod) != "web-0"]
    assert w.play() == ["+0:old"]


def test_on_delete_waits_for_the_user():
    w = World(statefulset())
    w.owner["spec"]["updateStrategy"] = {"type": "OnDelete"}
    w.play()
    w.update = "new"
    assert w.play() == []
    w.pods.pop()
    assert w.play() == ["+2:new"]


def test_a_broken_update_stops_and_its_rollback_needs_a_hand():
    w = World(statefulset())
    w.play()
    w.update, w.broken = "bad", {"bad"}
    assert w.play() == ["-2", "+2:bad"], "no further than the first pod that does not come up"
    w.update = "old"
    assert w.play() == [], "the broken pod holds up its own rollback, as documented upstream"
    w.pods.pop()
    assert w.play() == ["+2:old"]


def test_new_pods_are_given_time_to_prove_themselves():
    w = World(statefulset(2, minReadySeconds=30))
    assert w.play() == ["+0:old"] and w.status["readyReplicas"] == 1 and w.status["availableReplicas"] == 0
    w.now += 30
    assert w.play() == ["+1:old"]


def test_finished_pods_are_replaced():
    w = World(statefulset(2))
    w.play()
    w.pods[0]["status"]["phase"] = "Failed"
    assert w.play() == ["-0", "+0:old"]


def test_identity_and_claims():
    template = {"metadata": {"name": "data"}, "spec": {"resources": {"requests": {"storage": "1Gi"}}}}
    one = statefulset(volumeClaimTemplates=[template])
    one["spec"]["template"]["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    made = identity.child(one, 2, {"metadata": {"name": "web-abc"}, "data": history.data(one)})
    assert (objects.name(made), made["spec"]["hostname"], made["spec"]["subdomain"]) == ("web-2", "web-2", "web")
    assert objects.labels(made) == {"app": "x", "controller-revision-hash": "web-abc",
                                    "apps.kubernetes.io/pod-index": "2", "statefulset.kubernetes.io/pod-name": "web-2"}
    assert [v.get("persistentVolumeClaim") for v in made["spec"]["volumes"]] == [{"claimName": "data-web-2"}, None]
    (claim,) = identity.claims(one, 2)
    assert (objects.name(claim), objects.labels(claim)) == ("data-web-2", {"app": "x"})


def test_claims_belong_to_whom_the_policy_says():
    one = statefulset(volumeClaimTemplates=[{"metadata": {"name": "data"}}])
    claim = {"metadata": {"name": "data-web-2", "uid": "c"}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-2", "uid": "p"}}

    def owners(deleted, scaled, replicas):
        one["spec"]["persistentVolumeClaimRetentionPolicy"] = {"whenDeleted": deleted, "whenScaled": scaled}
        one["spec"]["replicas"] = replicas
        patch = identity.owners_patch(one, 2, pod, claim)
        return [ref["kind"] for ref in patch["metadata"]["ownerReferences"] or ()] if patch else None
    assert owners("Retain", "Retain", 3) is None and owners("Retain", "Delete", 3) is None
    assert owners("Delete", "Retain", 1) == ["StatefulSet"] and owners("Delete", "Delete", 3) == ["StatefulSet"]
    assert owners("Retain", "Delete", 1) == ["Pod"] and owners("Delete", "Delete", 1) == ["Pod"]
    claim["metadata"]["ownerReferences"] = [objects.owner_reference(pod)]
    assert owners("Retain", "Retain", 3) == [] and identity.stale(one, 2, claim)


def test_shrinking_halts_at_sick_pods_but_for_the_first():
    w = World(statefulset())
    w.play()
    w.owner["spec"]["replicas"] = 0
    for pod in w.pods:
        pod["status"]["conditions"][0]["status"] = "False"
    assert not ordinals.plan(w.owner, w.pods, "old", NOW).delete
    for pod in w.pods[:2]:
        pod["status"]["conditions"][0]["status"] = "True"
    assert [objects.name(pod) for pod in ordinals.plan(w.owner, w.pods, "old", NOW).delete] == ["web-2"]

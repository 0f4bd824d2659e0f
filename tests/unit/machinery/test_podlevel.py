"""What a pod states for itself as a whole: defaults, quality of service, rules, quotas, and how it is resized."""

import pytest

from controlplane.machinery import objects, podresize, podresources, strategy, usage
from controlplane.machinery.resources import named
from tests.unit.machinery.test_validate import made

STRATEGY = strategy.of(named("pods"))


def pod(resources, *containers, **spec):
    listed = [{"name": f"c{i}", "image": "i", "resources": r} for i, r in enumerate(containers or ({},))]
    return made("pods", spec={"containers": listed, "resources": resources, **spec})


def faults(obj):
    return [f"{c.field}: {c.message}" for c in STRATEGY.validate(obj)]


def test_requests_come_from_containers_then_from_limits_and_only_beside_limits():
    found = pod({"limits": {"cpu": "2", "memory": "1Gi"}}, {"requests": {"cpu": "300m"}}, {"limits": {"cpu": ".5"}})
    assert found["spec"]["resources"] == {"limits": {"cpu": "2", "memory": "1Gi"},
                                          "requests": {"cpu": "800m", "memory": "1Gi"}}
    bare = pod({"requests": {"cpu": "1000m"}}, {"requests": {"memory": "1Gi"}})["spec"]["resources"]
    assert bare == {"requests": {"cpu": "1"}}
    huge = pod({"requests": {"cpu": "1"}}, {"limits": {"hugepages-2Mi": "4Mi", "cpu": "1"}})["spec"]["resources"]
    assert huge == {"limits": {"hugepages-2Mi": "4Mi"}, "requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}}


@pytest.mark.parametrize(("resources", "container", "want"), [
    ({"limits": {"cpu": "1", "memory": "1Gi"}}, {}, "Guaranteed"),
    ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"requests": {"cpu": "100m"}}, "Burstable"),
    ({"requests": {"cpu": "1"}}, {"limits": {"cpu": "1", "memory": "1Gi"}}, "Burstable"),
    ({}, {"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed")])
def test_what_the_pod_states_decides_its_quality_of_service(resources, container, want):
    assert pod(resources, container)["status"]["qosClass"] == want


@pytest.mark.parametrize(("resources", "container", "want"), [
    ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}, ""),
    ({"claims": [{"name": "a"}]}, {}, "resources.claims: Forbidden: claims cannot be set for Resources at pod-level"),
    ({"limits": {"ephemeral-storage": "1Gi"}}, {}, 'resources.limits[ephemeral-storage]: Unsupported value: '
     '"ephemeral-storage": supported values: "cpu", "hugepages-", "memory"'),
    ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1100m"}}, 'resources.requests[cpu]: Invalid value: "1": must be '
     "greater than or equal to aggregate container requests of 1100m"),
    ({"limits": {"memory": "1Gi"}}, {"limits": {"memory": "2Gi"}, "requests": {"memory": "1Gi"}},
     'spec.resources.containers[0][memory].limits: Invalid value: "2Gi": must be less than or equal to pod limits of '
     "1Gi"),
    ({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}, {}, "must be less than or equal to cpu limit of 1"),
    ({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}}, {}, "3Mi is not positive integer multiple of hugepages-2Mi")])
def test_rules(resources, container, want):
    found = faults(pod(resources, container))
    assert [f for f in found if want in f] if want else found == []


@pytest.mark.parametrize(("asked", "want"), [
    ([{"name": "a"}], ""), ([{"name": "a", "request": "r"}, {"name": "a", "request": "s"}], ""),
    ([{"name": ""}], "claims[0]: Required value"), ([{"name": "a"}, {"name": "a"}], 'Duplicate value: "a"'),
    ([{"name": "a"}, {"name": "a", "request": "r"}], 'claims[1]: Duplicate value: "a"'),
    ([{"name": "a", "request": "r"}, {"name": "a"}], 'claims[1]: Duplicate value: "a"'),
    ([{"name": "x"}], 'Not found: "x": must be one of the names in pod.spec.resourceClaims: a, b')])
def test_containers_use_claims_of_their_pod(asked, want):
    claims = [{"name": name, "resourceClaimName": name} for name in "ab"]
    found = faults(pod(None, {"claims": asked}, resourceClaims=claims))
    assert [f for f in found if want in f] if want else found == []


def test_a_quota_counts_the_pod_and_what_it_has_not_given_back():
    obj = pod({"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}, {"requests": {"cpu": "1", "memory": "1Gi"}})
    used = usage.of("pods", obj, 0)
    assert {n: str(used[n]) for n in ("requests.cpu", "limits.cpu", "requests.memory")} == {
        "requests.cpu": "2", "limits.cpu": "4", "requests.memory": "1Gi"}
    obj["status"] |= {"resources": {"requests": {"cpu": "3"}, "limits": {"cpu": "5"}},
                      "allocatedResources": {"cpu": "2"}}
    assert str(usage.of("pods", obj, 0)["requests.cpu"]) == "3" == str(podresources.requests(obj, resizing=True)["cpu"])
    assert str(podresources.requests(obj)["cpu"]) == "2" and str(usage.of("pods", obj, 0)["limits.cpu"]) == "5"
    assert usage.unstated(obj, ["limits.memory"]) == "" != usage.unstated(pod(None), ["limits.memory"])


RUNNING = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}}


def resized(change, old=None):
    """What /resize makes of a body, and what it says to it."""
    old = old or pod(objects.deep_copy(RUNNING), {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}, {})
    new = objects.deep_copy(old)
    change(new)
    podresize.prepare_resize(new, old)
    return new, [f"{c.field}: {c.message}" for c in podresize.resize_causes(new, old)]


def test_a_pod_is_resized_as_a_whole_and_nothing_else_of_it_changes():
    def larger(new):
        new["spec"]["resources"]["requests"]["cpu"] = "1500m"
        new["spec"]["nodeName"] = new["spec"]["containers"][0]["image"] = "other"
        new["metadata"]["labels"] = {"a": "b"}
    new, found = resized(larger)
    assert found == [] and new["spec"]["resources"]["requests"]["cpu"] == "1500m" and "labels" not in new["metadata"]
    assert new["spec"]["containers"][0]["image"] == "i" and "nodeName" not in new["spec"]
    assert new["metadata"]["generation"] == 2


@pytest.mark.parametrize(("change", "want"), [
    (lambda s: s["resources"]["requests"].pop("memory"), "spec.resources.requests: Forbidden: resource requests"),
    (lambda s: s.pop("resources"), "spec.resources.limits: Forbidden: resource limits cannot be removed"),
    (lambda s: s["resources"]["limits"].update({"hugepages-2Mi": "2Mi"}), "only cpu and memory resources are mutable"),
    (lambda s: s["resources"]["requests"].update(cpu="2", memory="2Gi"), "spec: Invalid value: \"Burstable\": Pod QOS"),
    (lambda s: s["resources"]["requests"].update(cpu="500m"), "must be greater than or equal to aggregate container"),
    (lambda s: s["containers"].reverse(), "spec.containers[0].name: Forbidden: containers may not be renamed or"),
    (lambda s: s["containers"].pop(), "spec.containers: Forbidden: containers may not be added or removed on resize"),
    (lambda s: s["containers"][0].update(resizePolicy=[{"resourceName": "cpu", "restartPolicy": "NotRequired"}]),
     "spec: Forbidden: only cpu and memory resources are mutable")])
def test_what_a_resize_may_not_do(change, want):
    _, found = resized(lambda new: change(new["spec"]))
    assert [f for f in found if want in f]


def test_pods_of_files_and_of_windows_keep_their_size():
    for field, words in (("annotations", "static pods cannot be resized"), ("os", "windows pods cannot be resized")):
        old = pod(None)
        if field == "os":
            old["spec"]["os"] = {"name": "windows"}
        else:
            old["metadata"]["annotations"] = {podresize.MIRROR: "x"}
        assert resized(lambda new: None, old)[1] == [f": Forbidden: {words}"]

"""Devices: which a request means, how many claims get together, and what is written before a pod is bound."""

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.controllers.runtime import Context
from controlplane.controllers.workloads.resourceclaims import ResourceClaims
from controlplane.machinery import objects
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.resources import named
from controlplane.scheduler import claims, extended
from controlplane.scheduler.allocation import Request, Search, Wanted
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.decider import Decider
from controlplane.scheduler.devices import Inventory, matches
from controlplane.scheduler.imagined import Cluster
from controlplane.scheduler.snapshot import NodeInfo
from tests.unit.scheduler.test_decisions import node, pod
from tests.unit.scheduler.test_scheduling import PODS, bench

DRIVER = "gpu.x.io"
CLASSES, SLICES, CLAIMS = (named(f"{kind}.resource.k8s.io") for kind in ("deviceclasses", "resourceslices",
                                                                       "resourceclaims"))


def device(name, memory="40Gi", **attributes):
    kinds = {bool: "bool", int: "int", str: "string"}
    return {"name": name, "capacity": {"memory": {"value": memory}},
            "attributes": {key: {kinds[type(value)]: value} for key, value in attributes.items()}}


def slice_(name, *devices, place=None, pool=None, **more):
    return {"metadata": {"name": name}, "spec": {
        "driver": DRIVER, "devices": list(devices), **(place or {"nodeName": name}), **more,
        "pool": {"name": name, "generation": 1, "resourceSliceCount": 1, **(pool or {})}}}


def a_class(name="gpu", *expressions, **more):
    selectors = [{"cel": {"expression": e}} for e in expressions]
    return {"metadata": {"name": name}, "spec": {"selectors": selectors, **more}}


GPU = a_class()


def request(name="r", *expressions, klass="gpu", **more):
    return {"name": name, "exactly": _part(klass, expressions, more)}


def alternative(name, *expressions, klass="gpu", **more):
    return {"name": name, **_part(klass, expressions, more)}


def _part(klass, expressions, more):
    return {"deviceClassName": klass, "allocationMode": "ExactCount", "selectors": [
        {"cel": {"expression": e}} for e in expressions], **more}


def claim(name, *requests, **more):
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {"devices": {"requests": list(requests), **more}}}


def using(name, *names):
    return pod(name, resourceClaims=[{"name": n, "resourceClaimName": n} for n in names])


def decided(wanted, nodes, stored, slices, classes=(GPU,)):
    decider = Decider(Cluster({"resourceclaims.resource.k8s.io": stored, "resourceslices.resource.k8s.io": slices,
                               "deviceclasses.resource.k8s.io": classes}))
    for name in nodes:
        decider.snapshot.set_node(node(name, labels={"rack": name}))
    return decider, decider.decide(decider.ask(wanted, Profile()), Profile())


def granted(wanted, nodes, stored, slices, classes=(GPU,)):
    """(node, the devices of each claim by request) or the message."""
    decider, found = decided(wanted, nodes, stored, slices, classes)
    if not found.node:
        return found.message
    given = decider.assume(wanted, found.node).devices.claims
    return found.node, [[(r["request"], r["device"]) for r in made["devices"]["results"]] for _, made in given if made]


def test_selectors_see_attributes_capacities_and_the_driver():
    import orjson
    blob = orjson.dumps({"name": "d", "attributes": {"model": {"string": "a100"}, "other.io/index": {"int": 3},
                                                     "firmware": {"version": "1.10.0"}, "ok": {"bool": True}},
                         "capacity": {"memory": {"value": "40Gi"}}})
    for expression in ('device.driver == "gpu.x.io"', 'device.attributes["gpu.x.io"].model == "a100"',
                       'device.attributes["other.io"].index > 2', 'device.attributes["gpu.x.io"].ok',
                       'device.attributes["gpu.x.io"].firmware.isGreaterThan(semver("1.9.0"))',
                       'device.capacity["gpu.x.io"].memory.compareTo(quantity("40Gi")) == 0',
                       '!("absent" in device.attributes["no.domain"])'):
        assert matches(expression, DRIVER, blob), expression
    with pytest.raises(ValueError, match="no such key"):
        matches('device.attributes["gpu.x.io"].absent == 1', DRIVER, blob)
    with pytest.raises(ValueError, match="bool"):
        matches("device.driver", DRIVER, blob)


def test_a_pod_goes_where_its_claims_find_devices():
    slices = [slice_("n1", device("small", "16Gi")), slice_("n2", device("a"), device("b"))]
    big = 'device.capacity["gpu.x.io"].memory.isGreaterThan(quantity("20Gi"))'
    two = claim("two", request("r", big, count=2))
    assert granted(using("p", "two"), ("n1", "n2"), [two], slices) == ("n2", [[("r", "a"), ("r", "b")]])
    taken = {**claim("had"), "status": {"allocation": {"devices": {"results": [
        {"driver": DRIVER, "pool": "n2", "device": "a", "request": "x"}]}}}}
    assert granted(using("p", "two"), ("n1", "n2"), [two, taken], slices) == \
        "0/2 nodes are available: 2 cannot allocate all claims."
    spy = claim("spy", request("r", big, adminAccess=True, allocationMode="All"))
    assert granted(using("p", "spy"), ("n2",), [spy, taken], slices) == ("n2", [[("r", "a"), ("r", "b")]])
    every = claim("every", request("r", allocationMode="All"))
    assert "cannot allocate" in granted(using("p", "every"), ("n2",), [every, taken], slices)
    assert granted(using("p", "every"), ("n2",), [every], slices) == ("n2", [[("r", "a"), ("r", "b")]])
    both = [claim("one", request()), claim("other", request())]
    assert granted(using("p", "one", "other"), ("n1", "n2"), both, slices) == ("n2", [[("r", "a")], [("r", "b")]])


def test_the_first_alternative_that_is_there_is_taken_and_constraints_look_back():
    slices = [slice_("n", device("a", numa=0), device("b", numa=1), device("c", numa=1))]
    choice = claim("c", {"name": "r", "firstAvailable": [
        alternative("best", 'device.attributes["gpu.x.io"].numa == 7'), alternative("good", count=2)]})
    assert granted(using("p", "c"), ("n",), [choice], slices) == ("n", [[("r/good", "a"), ("r/good", "b")]])
    for rule, devices in (("matchAttribute", ["b", "c"]), ("distinctAttribute", ["a", "b"])):
        one = claim("c", request("x"), request("y"), constraints=[{rule: "gpu.x.io/numa", "requests": ["x", "y"]}])
        assert [d for _, d in granted(using("p", "c"), ("n",), [one], slices)[1][0]] == devices
    other = claim("c", request("x", count=2), constraints=[{"matchAttribute": "gpu.x.io/absent"}])
    assert "cannot allocate" in granted(using("p", "c"), ("n",), [other], slices)


def test_tainted_shared_and_half_published_devices():
    bad = {**device("a"), "taints": [{"key": "broken", "effect": "NoSchedule", "value": "yes"}]}
    mine = claim("c", request())
    assert "cannot allocate" in granted(using("p", "c"), ("n",), [mine], [slice_("n", bad)])
    hardy = claim("c", request(tolerations=[{"key": "broken", "operator": "Exists"}]))
    assert granted(using("p", "c"), ("n",), [hardy], [slice_("n", bad)])[0] == "n"
    half = slice_("n", device("a"), pool={"resourceSliceCount": 2})
    assert "cannot allocate" in granted(using("p", "c"), ("n",), [mine], [half])
    newer = slice_("n", device("z"), pool={"generation": 2})
    assert granted(using("p", "c"), ("n",), [mine], [half, newer]) == ("n", [[("r", "z")]])
    part = {"consumesCounters": [{"counterSet": "card", "counters": {"memory": {"value": "30Gi"}}}]}
    card = slice_("n", {**device("p1"), **part}, {**device("p2"), **part},
                  sharedCounters=[{"name": "card", "counters": {"memory": {"value": "40Gi"}}}])
    assert granted(using("p", "c"), ("n",), [mine], [card])[0] == "n"
    assert "cannot allocate" in granted(using("p", "c"), ("n",), [claim("c", request(count=2))], [card])


def test_an_allocation_tells_where_its_devices_are_and_how_to_set_them_up():
    wide = {"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "rack", "operator": "In", "values": ["n1"]}]}]}}
    one = claim("c", request(), config=[{"requests": ["r"], "opaque": {"driver": DRIVER, "parameters": {"a": 1}}},
                                        {"requests": ["q"], "opaque": {"driver": DRIVER, "parameters": {"b": 1}}}])
    klass = a_class(config=[{"opaque": {"driver": DRIVER, "parameters": {"c": 1}}}])
    decider, found = decided(using("p", "c"), ("n1", "n2"), [one], [slice_("s", device("d"), place=wide)], [klass])
    ((_, made),) = decider.assume(using("p", "c"), found.node).devices.claims
    assert (found.node, made["nodeSelector"]) == ("n1", wide["nodeSelector"])
    assert [(c["source"], c["requests"], c["opaque"]["parameters"]) for c in made["devices"]["config"]] == [
        ("FromClass", ["r"], {"c": 1}), ("FromClaim", ["r"], {"a": 1})]
    again = decider.decide(decider.ask(using("q", "c"), Profile()), Profile())  # the same claim: the same place
    assert again.node == "n1"
    second = claim("d", request())
    decider.world._of["resourceclaims.resource.k8s.io"].append(second)
    assert "cannot allocate" in decider.decide(decider.ask(using("r", "d"), Profile()), Profile()).message


@pytest.mark.parametrize("wanted, stored, why", [
    (using("p", "c"), [], 'resourceclaim.resource.k8s.io "c" not found'),
    (using("p", "c"), [claim("c", request(klass="no"))], "request r: device class no does not exist"),
    (pod("p", resourceClaims=[{"name": "c", "resourceClaimTemplateName": "t"}]), [], "ResourceClaim not created yet")])
def test_what_is_missing_is_told(wanted, stored, why):
    assert why in decided(wanted, ("n",), stored, [])[1].message


def wanting(name, *counts, resource="x.io/gpu", inits=()):
    """A pod whose containers ask for so many; of `inits` each is a count and whether it goes on beside the others."""
    def container(called, count, **more):
        return {"name": called, "image": "i", "resources": {"requests": {"cpu": "1m", **({resource: str(count)}
                                                                                       if count else {})}}, **more}
    made = pod(name, initContainers=[container(f"i{at}", count, **({"restartPolicy": "Always"} if stays else {}))
                                     for at, (count, stays) in enumerate(inits)])
    made["spec"]["containers"] = [container(f"c{at}", count) for at, count in enumerate(counts)]
    return made


GPUS = {**a_class(), "spec": {"extendedResourceName": "x.io/gpu"}}


@asynccontextmanager
async def tended():
    """A bench with the controller of claims beside the scheduler."""
    async with bench() as made:
        controller = ResourceClaims(Context(made.client, made.informers, SYSTEM))
        task = asyncio.create_task(controller.run())
        for informer in controller.informers:
            informer.subscribe(lambda *_: made.changed.set())
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_an_extended_resource_comes_of_a_class_where_no_plugin_has_it():
    slices = [slice_("n2", device("a"), device("b"), device("c"))]
    for resource in ("x.io/gpu", "deviceclass.resource.kubernetes.io/gpu"):
        wanted = wanting("p", 2, 0, 1, resource=resource)
        decider, found = decided(wanted, ("n1", "n2"), [], slices, [GPUS])
        grant = decider.assume(wanted, found.node).devices
        ((made, allocation),) = grant.claims
        assert found.node == "n2" and [(r["request"], r["device"]) for r in allocation["devices"]["results"]] == [
            ("container-0-request-1", "a"), ("container-0-request-1", "b"), ("container-2-request-1", "c")]
        assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-p"
        assert grant.mappings == [
            {"containerName": f"c{at}", "resourceName": resource, "requestName": f"container-{at}-request-1"}
            for at in (0, 2)]
        other = decider.decide(decider.ask(wanting("q", 1), Profile()), Profile())
        assert "2 cannot allocate all claims" in other.message  # what is being written is taken already
    assert "Insufficient x.io/gpu" in decided(wanting("p", 1), ("n2",), [], slices, [GPU])[1].message
    decider, _ = decided(wanting("p", 1), ("n2",), [], [], [GPUS])
    plugin = node("n3")
    plugin["status"]["allocatable"]["x.io/gpu"] = "1"
    decider.snapshot.set_node(plugin)
    found = decider.decide(decider.ask(wanting("p", 1), Profile()), Profile())
    assert found.node == "n3" and decider.assume(wanting("p", 1), "n3").devices.claims == []
    found = decider.decide(decider.ask(wanting("q", 1), Profile()), Profile())
    assert "1 Insufficient x.io/gpu" in found.message and "1 cannot allocate all claims" in found.message


def test_containers_that_do_not_run_together_share_devices():
    def told(*counts, inits):
        requests, mappings = extended.requested(wanting("p", *counts, inits=inits), {"x.io/gpu": GPUS})
        return ({r["name"]: r["exactly"]["count"] for r in requests},
                sorted((m["containerName"], m["requestName"]) for m in mappings))
    assert told(2, inits=[(1, False)]) == ({"container-1-request-1": 2}, [
        ("c0", "container-1-request-1"), ("i0", "container-1-request-1")])
    assert told(1, inits=[(3, False), (4, False)]) == ({"container-1-request-1": 3, "container-2-request-1": 1}, [
        ("c0", "container-2-request-1"), ("i0", "container-1-request-1"), ("i0", "container-2-request-1"),
        ("i1", "container-1-request-1"), ("i1", "container-2-request-1")])
    assert told(1, inits=[(1, True), (1, False)]) == ({"container-0-request-1": 1, "container-2-request-1": 1}, [
        ("c0", "container-2-request-1"), ("i0", "container-0-request-1"), ("i1", "container-2-request-1")])


def test_of_classes_of_one_resource_the_newest_counts():
    def dated(name, when):
        return {"metadata": {"name": name, "creationTimestamp": f"2026-01-0{when}T00:00:00Z"},
                "spec": {"extendedResourceName": "x.io/gpu"}}
    stored = [dated("a", 1), dated("c", 2), dated("b", 2)]
    assert objects.name(extended.classes(wanting("p", 1), stored)["x.io/gpu"]) == "b"
    assert extended.classes(wanting("p", 0), stored) == {}


def test_a_claim_for_extended_resources_is_made_with_the_pod_and_goes_with_it():
    async def run():
        async with tended() as made:
            await made.node("n1")
            await made.client.create(CLASSES, {**GPUS, "metadata": {"name": "gpu"}})
            wanted = wanting("first", 1)
            resources = {"requests": {"x.io/gpu": "1"}, "limits": {"x.io/gpu": "1"}}
            for name in ("first", "second"):
                await made.pod(name, restartPolicy="Never", containers=[
                    {**wanted["spec"]["containers"][0], "resources": resources}])
                await made.until(lambda name=name: "cannot allocate all claims" in made.message(name))
            await made.client.create(SLICES, slice_("n1", device("d")))
            await made.until(lambda: "n1" in (made.at("first"), made.at("second")))
            held, waits = sorted(("first", "second"), key=made.at, reverse=True)
            kept = made.informers.of(CLAIMS)
            await made.until(lambda: len(kept.items()) == 1)
            (one,) = kept.items()
            assert objects.annotations(one) == {extended.ANNOTATION: "true"} and made.at(waits) == ""
            assert objects.name(one).startswith(f"{held}-extended-resources-")
            assert objects.get(await made.client.get(PODS, held, "default"), "status.extendedResourceClaimStatus") == {
                "resourceClaimName": objects.name(one), "requestMappings": [
                    {"containerName": "c0", "resourceName": "x.io/gpu", "requestName": "container-0-request-0"}]}
            await made.client.patch(PODS, held, {"status": {"phase": "Succeeded"}}, "default", "merge", "status")
            await made.until(lambda: made.at(waits) == "n1")
            await made.until(lambda: [objects.controller_of(c)["name"] for c in kept.items()] == [waits])
    asyncio.run(run())


def test_a_claim_that_an_attempt_left_behind_is_replaced():
    wanted = wanting("p", 1)
    left = {**extended.claim(wanted, []), "status": {"allocation": {"devices": {"results": [
        {"driver": DRIVER, "pool": "n1", "device": "a", "request": "x"}]}}}}
    left["metadata"] = {**left["metadata"], "name": "p-extended-resources-x", "uid": "left"}
    decider, found = decided(wanted, ("n1",), [left], [slice_("n1", device("a"))], [GPUS])
    grant = decider.assume(wanted, found.node).devices
    assert found.node == "n1" and grant.stale == [left] and len(grant.claims) == 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_a_search_gives_no_device_twice_and_finds_what_is_there(numas, counts):
    inventory = Inventory([slice_("n", *(device(f"d{i}", numa=numa) for i, numa in enumerate(numas)))])
    rule = [{"matchAttribute": "gpu.x.io/numa"}]
    wanted = [Wanted(claim(f"c{i}", constraints=rule), [[Request("r", {"count": count}, a_class())]])
              for i, count in enumerate(counts)]
    found = Search(wanted, NodeInfo("n"), inventory, set()).run()
    ways = itertools.product(set(numas), repeat=len(counts))  # which part of the machine serves which claim
    possible = any(all(sum(count for count, at in zip(counts, way) if at == one) <= numas.count(one) for one in numas)
                   for way in ways)
    assert (found is not None) == possible
    if found is None:
        return
    given_out = [r["device"] for made in found for r in made["devices"]["results"]]
    assert len(given_out) == len(set(given_out)) == sum(counts)
    for made in found:
        assert len({numas[int(r["device"][1:])] for r in made["devices"]["results"]}) == 1


def test_claims_are_written_before_the_pod_is_bound_and_wait_for_devices():
    async def run():
        async with bench() as made:
            await made.node("n1")
            await made.node("n2")
            await made.client.create(CLASSES, a_class("gpu", f'device.driver == "{DRIVER}"'))
            for name in ("one", "two"):
                one = claim(name, request())
                del one["metadata"]["uid"]
                await made.client.create(CLAIMS, one)
            first = await made.pod("first", resourceClaims=[{"name": "c", "resourceClaimName": "one"}])
            await made.until(lambda: "cannot allocate all claims" in made.message("first"))
            await made.client.create(SLICES, slice_("n2", device("d")))
            await made.until(lambda: made.at("first") == "n2")
            held = await made.client.get(CLAIMS, "one", "default")
            assert held["metadata"]["finalizers"] == [claims.FINALIZER]
            assert objects.get(held, "status.allocation.devices.results") == [
                {"request": "r", "driver": DRIVER, "pool": "n2", "device": "d"}]
            assert objects.get(held, "status.reservedFor") == [
                {"resource": "pods", "name": "first", "uid": objects.uid(first)}]
            await made.pod("shares", resourceClaims=[{"name": "c", "resourceClaimName": "one"}])
            await made.until(lambda: made.at("shares") == "n2")
            assert len(objects.get(await made.client.get(CLAIMS, "one", "default"), "status.reservedFor")) == 2
            await made.pod("late", resourceClaims=[{"name": "c", "resourceClaimName": "two"}])
            await made.until(lambda: "cannot allocate all claims" in made.message("late"))
            status = {"allocation": None, "reservedFor": None}  # as the controller does it when the last pod has ended
            await made.client.patch(CLAIMS, "one", {"status": status}, "default", "merge", "status")
            await made.until(lambda: made.at("late") == "n2")
    asyncio.run(run())


def test_a_claim_of_a_template_lives_as_long_as_its_pod():
    async def run():
        async with tended() as made:
            await made.node("n1")
            await made.client.create(CLASSES, a_class())
            await made.client.create(SLICES, slice_("n1", device("d")))
            await made.client.create(named("resourceclaimtemplates.resource.k8s.io"), {
                "metadata": {"name": "t", "namespace": "default"},
                "spec": {"spec": {"devices": {"requests": [request()]}}}})
            entry = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}
            for name in ("first", "second"):  # there is one device: the second waits for the end of the first
                await made.pod(name, restartPolicy="Never", **entry)
                await made.until(lambda name=name: made.at(name) or "cannot allocate" in made.message(name))
            assert (made.at("first"), made.at("second")) == ("n1", "")
            await made.client.patch(PODS, "first", {"status": {"phase": "Succeeded"}}, "default", "merge", "status")
            await made.until(lambda: made.at("second") == "n1")
            kept = made.informers.of(CLAIMS)
            await made.until(lambda: [objects.controller_of(one)["name"] for one in kept.items()] == ["second"])
            await made.client.delete(CLAIMS, objects.name(kept.items()[0]), "default")  # in use: it stays, marked
            await made.until(lambda: objects.deleting(kept.items()[0]))
            await made.client.delete(PODS, "second", "default", grace=0)
            await made.until(lambda: not kept.items())
    asyncio.run(run())

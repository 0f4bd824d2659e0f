"""Hints by zones' shares of the CPUs: even enough or none, stable, and told."""

import asyncio
import math

from hypothesis import given
from hypothesis import strategies as st

from controlplane.controllers.services import backends, slices, topology
from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster
from tests.unit.controllers.samples import pod, service

NODES, NOW = named("nodes"), parse_rfc3339("2026-01-01T01:00:00Z")
AUTO = {"service.kubernetes.io/topology-mode": "Auto"}


def node(name, zone, cpu="4", ready="True", labels=None):
    return {"metadata": {"name": name, "labels": {**({topology.ZONE: zone} if zone else {}), **(labels or {})}},
            "status": {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}}


def test_shares_are_of_the_cpus_of_ready_workers():
    nodes = [node("a", "x", "3"), node("b", "y", "500m"), node("c", "y", "500m"), node("d", "z", ready="False"),
             node("e", "w", labels={"node-role.kubernetes.io/control-plane": ""})]
    assert topology.shares(nodes) == {"x": 0.75, "y": 0.25}
    assert topology.shares([*nodes, node("f", "")]) == topology.shares(nodes[:1]) == topology.UNKNOWN


@given(st.dictionaries(st.sampled_from("wxyz"), st.integers(1, 8), min_size=2),
       st.lists(st.sampled_from("uwxyz"), min_size=1, max_size=40))
def test_no_zone_is_left_with_more_than_a_fifth_too_much(cpus, zones):
    wanted = {zone: cpu / sum(cpus.values()) for zone, cpu in cpus.items()}
    places = {(f"e{n}",): zone for n, zone in enumerate(zones)}
    hints, why = topology.allocate(places, wanted, {})
    assert bool(hints) != bool(why)
    if hints:
        assert hints.keys() == places.keys()
        for zone, share in wanted.items():
            have = sum(one == zone for one in hints.values())
            assert have >= math.floor(share * len(zones) / 1.2)  # the last half endpoint is not worth moving
        assert topology.allocate(places, wanted, hints)[0] == hints


def test_a_zone_gives_what_it_has_too_much_of_and_takes_it_back():
    wanted, places = {"x": 0.5, "y": 0.5}, {(f"e{n}",): "x" if n < 5 else "y" for n in range(6)}
    hints, why = topology.allocate(places, wanted, {})
    assert (sorted(hints.values()), why) == (["x"] * 3 + ["y"] * 3, "")
    assert topology.allocate({("a",): "x"}, wanted, {})[1] == "Insufficient number of endpoints (1 endpoints, 2 zones)"
    assert topology.allocate(places, {}, {})[1].startswith("Insufficient Node information")
    assert "overload threshold" in topology.allocate(dict(list(places.items())[:3]), wanted, {})[1]
    assert topology.allocate({**places, ("e0",): ""}, wanted, {})[1] == topology.NO_ZONE


def test_only_ready_endpoints_get_hints_and_the_annotation_goes_before_the_field():
    one = service("s")
    one["metadata"]["annotations"], one["spec"]["trafficDistribution"] = AUTO, "PreferClose"
    pods = [pod(f"p{n}", f"n{n % 2}", ip=f"10.0.0.{n + 1}", ready=NOW) for n in range(8)]
    pods[7]["status"]["conditions"] = []
    zone_of = {"n0": "x", "n1": "y"}.get

    def plan(shares, current=()):
        return slices.plan(one, backends.backends(one, pods), list(current), zone_of, shares)
    made = plan({"x": 0.5, "y": 0.5})
    entries = made.create[0]["endpoints"]
    assert made.hints == {"IPv4": topology.ENABLED}
    assert [objects.get(e, "hints.forZones", None) is None for e in entries] == [False] * 7 + [True]
    current = [{**made.create[0], "metadata": {**made.create[0]["metadata"], "name": "s-1"}}]
    again = plan({"x": 0.5, "y": 0.5}, current)
    assert not (again.create or again.update or again.delete or again.hints)
    without = plan(topology.UNKNOWN, current)
    assert "hints" not in without.update[0]["endpoints"][0] and without.hints == {"IPv4": topology.NO_NODES}
    one["metadata"]["annotations"] = {}
    assert plan(topology.UNKNOWN, current).update[0]["endpoints"][0]["hints"] == {"forZones": [{"name": "x"}]}


def test_hints_come_with_the_nodes():
    async def main():
        async with cluster() as made:
            for name, zone in (("n0", "x"), ("n1", "y")):
                await made.client.create(NODES, node(name, zone))
            wanted = {"metadata": {"name": "s", "annotations": AUTO}, "spec": {"selector": {"app": "x"},
                                                                              "ports": [{"port": 80}]}}
            await made.client.create(named("services"), wanted, "default")
            for number in range(4):
                one = pod(f"p{number}", f"n{number % 2}", ip=f"10.0.0.{number + 1}", ready=NOW)
                one["metadata"].pop("uid")
                one["spec"]["containers"][0]["image"] = "i"
                await made.client.create(PODS, one, "default")
                await made.client.patch(PODS, f"p{number}", {"status": one["status"]}, "default", "merge", "status")
            kept = made.of("endpointslices.discovery.k8s.io")

            def zones():
                return sorted(objects.get(e, "hints.forZones", [{"name": ""}])[0]["name"] for s in kept.items()
                              if objects.labels(s).get(slices.SERVICE_NAME) == "s" for e in s["endpoints"])
            await made.until(lambda: zones() == ["x", "x", "y", "y"])
            await made.client.delete(NODES, "n1")  # one zone is left: there is nothing to be even about
            await made.until(lambda: zones() == [""] * 4)
    asyncio.run(main())

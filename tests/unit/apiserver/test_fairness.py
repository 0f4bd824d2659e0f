"""Priority and fairness: which flow, whose seat, and that nobody is lost on the way."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver.authentication.authn import User
from controlplane.apiserver.config import Options
from controlplane.apiserver.context import Context
from controlplane.apiserver.flow import fairness, flowdefaults
from controlplane.apiserver.flow.fairness import Asked, Level
from controlplane.apiserver.flow.flowcontrol import FlowControl
from controlplane.apiserver.request import build
from controlplane.machinery.clock import FakeClock, settle
from controlplane.machinery.errors import TooManyRequests
from controlplane.machinery.resources import BUILTIN
from controlplane.store.cache import Cache
from controlplane.store.memory import MemoryLog
from tests.unit.apiserver.harness import serving

SCHEMAS = sorted(flowdefaults.schemas(), key=fairness.precedence)
LEVELS = {o["metadata"]["name"]: o for o in flowdefaults.levels()}


@pytest.mark.parametrize("expected, asked", [
    ("exempt", Asked("admin", ("system:masters",), "list", "", "pods", "default")),
    ("probes", Asked("system:anonymous", ("system:unauthenticated",), "get", path="/healthz")),
    ("system-node-high", Asked("system:node:a", ("system:nodes",), "patch", "", "nodes/status")),
    ("system-nodes", Asked("system:node:a", ("system:nodes",), "create", "", "events", "default")),
    ("system-leader-election",
     Asked("system:kube-scheduler", (), "update", "coordination.k8s.io", "leases", "kube-system")),
    ("kube-controller-manager", Asked("system:kube-controller-manager", (), "list", "", "pods")),
    ("kube-system-service-accounts",
     Asked("system:serviceaccount:kube-system:dns", ("system:serviceaccounts",), "list", "", "services")),
    ("service-accounts", Asked("system:serviceaccount:a:b", ("system:serviceaccounts",), "list", "", "pods", "a")),
    ("global-default", Asked("jane", ("system:authenticated",), "list", "", "pods", "a")),
])
def test_default_schemas_classify_as_upstream(expected, asked):
    assert fairness.choose(SCHEMAS, asked)["metadata"]["name"] == expected


def test_shares_follow_the_configuration():
    seats = fairness.shares(LEVELS.values(), 600)
    assert seats["workload-low"] == 245 and seats["catch-all"] == 13 and "exempt" not in seats


def limited(seats, queues=4, longest=2, hand=2, lendable=0):
    return Level("l", {"type": "Limited", "limited": {
        "lendablePercent": lendable, "limitResponse": {"type": "Queue", "queuing": {
            "queues": queues, "handSize": hand, "queueLengthLimit": longest}}}}, seats)


def test_one_flows_flood_leaves_room_for_another():
    level = limited(1, queues=32, longest=10)
    flood = [level.arrive("flood", f"flood{i}", [level]) for i in range(50)]
    assert flood.count(True) == 1 and flood.count(None) == 20 and flood.count(False) == 29
    assert level.arrive("quiet", "quiet", [level]) is None
    turn = []
    for _ in range(3):
        level.leave()
        turn.append(level.next_ticket([level]))
    assert "quiet" in turn  # after at most one of each queue of the flood


def test_idle_seats_are_lent_and_no_more():
    lender, borrower = limited(4, lendable=50), limited(1)
    both = [lender, borrower]
    assert [borrower.arrive("f", i, both) for i in range(5)] == [True, True, True, None, None]
    assert [lender.arrive("g", i, both) for i in range(4)] == [True] * 4  # its own seats stay its own


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=60))
def test_seats_and_queues_stay_within_their_bounds(steps):
    level = limited(2)
    running = waiting = 0
    for number, (arrives, flow) in enumerate(steps):
        if arrives:
            match level.arrive(flow, number, [level]):
                case True: running += 1
                case None: waiting += 1
        elif running:
            level.leave()
            running -= 1
            if level.next_ticket([level]) is not None:
                running, waiting = running + 1, waiting - 1
        assert (level.executing, level.waiting) == (running, waiting)
        assert running <= 2 and waiting <= 4 * 2
        assert not waiting or running == 2  # nobody waits while a seat is free


@given(st.text(max_size=20))
def test_a_hand_has_different_cards(flow):
    dealt = fairness.hand(flow, 64, 8)
    assert len(set(dealt)) == 8 and all(0 <= card < 64 for card in dealt)
    assert dealt == fairness.hand(flow, 64, 8)


def asked_by(name):
    request = build("POST", "/api/v1/namespaces/default/configmaps", {}, BUILTIN)
    request.user = User(name, groups=("system:authenticated",))
    return request


def test_a_waiter_is_seated_refused_in_time_or_leaves_without_a_trace():
    async def main():
        clock = FakeClock()
        cache = Cache(MemoryLog(), clock)
        await cache.open()
        flows = FlowControl(Context(Options(), cache, clock=clock), seats=1)
        flow = flows.flow(asked_by("jane"))
        flow.level.seats = 1
        for level in flows.levels():
            level.lendable = 0
        first = await flows.enter(asked_by("jane"), flow)
        second = asyncio.create_task(flows.enter(asked_by("jane"), flow))
        third = asyncio.create_task(flows.enter(asked_by("jane"), flow))
        await settle()
        assert flow.level.waiting == 2
        second.cancel()
        await settle()
        assert flow.level.waiting == 1
        flows.leave(first)
        seat = await third
        assert (flow.level.executing, flow.level.waiting) == (1, 0)
        flow.level._longest = 0
        with pytest.raises(TooManyRequests):
            await flows.enter(asked_by("jane"), flow)
        flows.leave(seat)
        assert flow.level.executing == 0
        await cache.close()
    asyncio.run(main())


def test_answers_tell_their_flow_and_their_id():
    async def main():
        mine = {"Audit-ID": "mine"}
        async with serving() as api, api.session.get(api.url + "/api/v1/namespaces", headers=mine) as got:
            assert got.headers["Audit-Id"] == "mine"
            if BUILTIN.of(flowdefaults.API_VERSION, "FlowSchema") is not None:
                for header, path in (("X-Kubernetes-PF-FlowSchema-UID", "flowschemas"),
                                     ("X-Kubernetes-PF-PriorityLevel-UID", "prioritylevelconfigurations")):
                    _, found = await api.call("GET", f"/apis/{flowdefaults.API_VERSION}/{path}")
                    assert got.headers[header] in [i["metadata"]["uid"] for i in found["items"]]
            _, metrics = await api.call("GET", "/metrics")
            assert 'apiserver_flowcontrol_dispatched_requests_total{priority_level="global-default"} ' in metrics
            async with api.session.get(api.url + "/nonsense") as other:
                assert len(other.headers["Audit-Id"]) == 36
    asyncio.run(main())

"""CPUs of their own: who gets which, what is left, and what a restart remembers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kubelet.compute.cpumanager import FILE, CpuManager, assign, listed, parse, take
from agent.kubelet.pressure import keeping
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import Finding
from tests.unit.agent.pods import pod

CORES = {cpu: (0, cpu // 2) for cpu in range(8)}  # four cores with two threads each


def asks(name: str, cpus: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "resources": {"limits": {"cpu": cpus, "memory": "64Mi"}}, **more}


def of(uid: str, *containers: dict[str, Any], **spec: Any) -> dict[str, Any]:
    made = pod(*containers)
    made["metadata"]["uid"] = uid
    made["spec"].update(spec)
    return made


@given(st.frozensets(st.integers(0, 300)))
def test_sets_are_written_as_the_kernel_does(cpus: frozenset[int]) -> None:
    assert parse(listed(cpus)) == cpus


@given(st.integers(0, 8), st.frozensets(st.integers(0, 7)))
def test_what_is_taken_was_free_and_divides_as_few_cores_as_can_be(count: int, free: frozenset[int]) -> None:
    if count > len(free):
        with pytest.raises(ValueError, match="not enough cpus available"):
            take(count, free, CORES)
        return
    taken = take(count, free, CORES)
    assert len(taken) == count and taken <= free
    whole = sum({2 * c, 2 * c + 1} <= free for c in range(4))
    assert sum({2 * c, 2 * c + 1} <= taken for c in range(4)) >= min(count // 2, whole)


def test_only_whole_cpus_of_guaranteed_pods_are_given_and_init_containers_use_those_to_come() -> None:
    free = frozenset(range(1, 8))
    mixed = of("a", asks("one", "2"), asks("half", "500m"), initContainers=[
        asks("first", "3"), asks("side", "1", restartPolicy="Always")])
    made = assign(mixed, free, CORES)
    assert set(made) == {"one", "first", "side"} and made["one"] < made["first"]
    assert not made["side"] & (made["one"] | made["first"]) and (len(made["first"]), len(made["one"])) == (3, 2)
    burstable = of("b", asks("c", "2"))
    burstable["spec"]["containers"][0]["resources"]["requests"] = {"cpu": "1"}
    assert assign(burstable, free, CORES) == {}


def test_assignments_outlive_the_agent_and_end_with_their_pod(tmp_path: Path) -> None:
    cores, alive = {0: (0, 0), 1: (0, 1)}, {"a"}

    def manager() -> CpuManager:
        return CpuManager(tmp_path, cores, frozenset({0}), FakeClock())
    first = manager()
    assert first.admit(of("a", asks("c", "1")), alive.__contains__) is None
    assert (first.of("a", "c"), first.of("other", "c"), first.exclusive("a"), first.exclusive("a", "x")) == (
        "1", "0", True, False)
    again = manager()
    assert again.of("a", "c") == "1" and again.admit(of("b", asks("c", "1")), alive.__contains__) == (
        "UnexpectedAdmissionError", "Allocate failed due to not enough cpus available to satisfy request: requested=1, "
        "available=0, which is unexpected")
    alive.clear()
    assert again.admit(of("b", asks("c", "1")), alive.__contains__) is None and again.of("a", "c") == "0"
    cores[2] = (0, 2)
    with pytest.raises(Finding, match="doesn't match with CPUs in state"):
        manager()
    (tmp_path / FILE).write_text("{}")
    with pytest.raises(Finding, match="cannot be read"):
        manager()


def test_policies_this_node_does_not_have_are_refused_with_a_sentence() -> None:
    def flags(*arguments: str) -> keeping.Keeping:
        parser = argparse.ArgumentParser()
        keeping.add_flags(parser)
        return keeping.of(parser.parse_args(arguments))
    made = flags("--cpu-manager-policy=static", "--reserved-cpus=0,2", "--kube-reserved=cpu=500m")
    assert (made.static_cpus, made.reserved_cpus, made.reserved("cpu")) == (True, frozenset({0, 2}), 2000)
    assert flags("--cpu-manager-policy=static", "--kube-reserved=cpu=1500m").reserved_cpus == frozenset({0, 1})
    for wrong, why in ((["--cpu-manager-policy=static"], "requires systemreserved.cpu"),
                       (["--cpu-manager-policy-options=full-pcpus-only=true"], "has no options here"),
                       (["--topology-manager-policy=restricted"], "only none is"),
                       (["--memory-manager-policy=Static"], "only none is")):
        with pytest.raises(Finding) as told:
            flags(*wrong)
        assert why in str(told.value)

"""What systemd is asked for a pod's slice, and what becomes of its answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from agent.kubelet.compute import slices
from agent.kubelet.compute.slices import ABSENT, THERE, Slices, properties
from agent.kubelet.host.dbus import Refused, message, parse
from agent.kubelet.model import LinuxResources


def test_arrays_structs_and_variants_are_written_as_the_bus_wants_them() -> None:
    whole = message(1, 1, {3: "X"}, "sba(sv)", ("a.slice", True, [("M", ("t", 5)), ("D", ("s", "x"))]))
    _, fields, body, _ = parse(whole)  # type: ignore[misc]
    assert fields[8] == "sba(sv)"
    assert body == (b"\7\0\0\0a.slice\0" b"\1\0\0\0" b"\x2a\0\0\0" + bytes(4)  # the array's length, to an eighth
                    + b"\1\0\0\0M\0\1t\0" + bytes(7) + b"\5" + bytes(7) + b"\1\0\0\0D\0\1s\0\0\0\0\1\0\0\0x\0")


def test_limits_are_named_by_the_hierarchy_and_none_is_said() -> None:
    limits = LinuxResources(cpu_shares=512, cpu_quota=50_000, cpu_period=100_000, memory_limit=1 << 20, pids=9)
    assert {n: v for n, (_, v) in properties(limits, v2=True)} == {
        "CPUWeight": 20, "MemoryMax": 1 << 20, "CPUQuotaPerSecUSec": 500_000, "TasksMax": 9}
    none = (1 << 64) - 1
    assert {n: v for n, (_, v) in properties(LinuxResources(), v2=False)} == {
        "CPUShares": 1024, "MemoryLimit": none, "CPUQuotaPerSecUSec": none, "TasksMax": none}
    small = dict(properties(LinuxResources(cpu_quota=2_500, cpu_period=100_000), v2=True))
    assert small["CPUQuotaPerSecUSec"] == ("t", 30_000), "systemd's own file would say 2 % for 2.5, and a reload obeys"


def test_a_slice_that_is_there_is_changed_and_one_that_is_gone_is_no_error(monkeypatch: Any, tmp_path: Path) -> None:
    asked: list[str] = []

    class Bus:
        def __init__(self, path: Path) -> None: ...

        async def __aenter__(self) -> Bus:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def call(self, destination: str, path: str, interface: str, member: str, *_: Any) -> bytes:
            asked.append(member)
            if member in ("StartTransientUnit", "StopUnit"):
                raise Refused("no", THERE if member == "StartTransientUnit" else ABSENT)
            return b""

    monkeypatch.setattr(slices, "Bus", Bus)
    (tmp_path / "a.slice.d").mkdir()
    kept = Slices(v2=True, bus=tmp_path / "none", control=tmp_path)
    asyncio.run(kept.set({"a.slice": LinuxResources()}))
    asyncio.run(kept.end(["a.slice"]))
    assert asked == ["Subscribe", "StartTransientUnit", "SetUnitProperties", "StopUnit"]
    assert not list(tmp_path.iterdir())

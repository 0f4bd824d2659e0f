"""What the running cluster costs while 30 pods do nothing: resident memory and CPU of every process of ours."""

from __future__ import annotations

import asyncio
from argparse import Namespace
from pathlib import Path
from time import monotonic

import psutil

from controlplane.client import config, rest
from controlplane.hosts import running
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from tests.bench.pods import TOGETHER, clear, have_image, space, start

SETTLE_SECONDS = 10.0  # start-up work (status, first lease, garbage collection) must not count as idle
NOT_OURS = ("containerd",)  # the same under every Kubernetes; shown, not counted


def processes(paths: Paths) -> dict[str, int]:
    rows = running.processes(paths)
    if rows is None:
        raise Finding("no cluster runs here to measure", fix="./pelamis up --demo")
    found = {r["name"]: r["pid"] for r in rows if r["pid"]}
    found["supervisor"] = int((paths.run / "supervisor.lock").read_text())
    return found


def cpu(pids: dict[str, int]) -> dict[str, float]:
    return {name: sum(psutil.Process(pid).cpu_times()[:2]) for name, pid in pids.items()}


def resident(pid: int) -> float:
    """RSS in MB (10⁶ bytes), shared libraries counted in each process, as `ps` does."""
    return psutil.Process(pid).memory_info().rss / 1e6


def proportional(pid: int) -> float:
    """PSS in MB: shared pages split among those who share them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


async def _measure(paths: Paths, seconds: float) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []

    def note(what: str, figure: float, unit: str, aim: str = "") -> None:
        rows.append({"area": "idle", "what": what, "figure": figure, "unit": unit, "aim": aim})
    await have_image(paths)
    async with rest.Client(config.load(paths.admin_kubeconfig)) as client:
        names = [f"idle-{n}" for n in range(TOGETHER)]
        async with space(client):
            await start(client, names)
            await asyncio.sleep(SETTLE_SECONDS)
            pids = processes(paths)
            before, at = cpu(pids), monotonic()
            await asyncio.sleep(seconds)
            after, took = cpu(pids), monotonic() - at
            used = {name: 100 * (after[name] - before[name]) / took for name in pids}
            for name, pid in pids.items():
                note(f"{name}, resident", resident(pid), "MB")
                note(f"{name}, of one core", used[name], "%")
            ours = [n for n in pids if n not in NOT_OURS]
            note("all of ours, resident", sum(resident(pids[n]) for n in ours), "MB", "≤ 250")
            note("all of ours, proportional", sum(proportional(pids[n]) for n in ours), "MB")
            note("all of ours, of one core", sum(used[n] for n in ours), "%", "≤ 3")
            await clear(client, names)
    return rows


def measure(args: Namespace) -> list[dict[str, object]]:
    return asyncio.run(_measure(Paths.from_environment(), args.idle_seconds))

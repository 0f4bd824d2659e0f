"""Two hundred cluster-hours of trouble in a CI run, and proof that the rules notice when something is wrong."""

import asyncio
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from controlplane.controllers import runtime
from controlplane.controllers.workloads.deployments import rollout
from controlplane.scheduler import table
from tests.simulation import run
from tests.simulation.virtual import Loop

HOURS, SEEDS = 70, (11, 12, 13)  # together more than 200 cluster-hours


def simulate(*arguments):
    done = subprocess.run([sys.executable, "-m", "controlplane.cli", "simulate", "-o", "json", *map(str, arguments)],
                          capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def together(*calls):
    """Their answers, in order: each is a process of its own, and a machine has more cores than one."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda arguments: simulate(*arguments), calls))


@pytest.fixture(scope="module")
def stories():
    return dict(zip(SEEDS, together(*(("--seed", seed, "--nodes", 10, "--hours", HOURS) for seed in SEEDS))))


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_recovers(seed, stories):
    code, report, told = stories[seed]
    assert report["broken"] == [], told
    assert code == 0
    assert report["hours"] >= HOURS
    assert report["faults"] > 20
    assert report["restarts"] > 1


def test_the_same_seed_tells_the_same_story():
    one, other = together(*[("--seed", 3, "--nodes", 5, "--hours", 7)] * 2)
    assert one == other


def report_of(seed):
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(run.simulate(loop, seed, 5, 7, run.default_documents(), lambda text: None))


@pytest.mark.parametrize("target, name, spoilt, rule", [
    (runtime.Pending, "settled", lambda self, key, informer: True, "never wanted more than"),
    (rollout, "max_surge", lambda deployment: 3, "are allowed"),
    (table.Table, "best", lambda self: iter(()), "not settled"),
])
def test_a_broken_component_is_noticed(target, name, spoilt, rule, monkeypatch):
    monkeypatch.setattr(target, name, spoilt)
    assert any(rule in broken for seed in (1, 2, 3) for broken in report_of(seed)["broken"])


def test_a_story_with_a_broken_rule_tells_how_to_hear_it_again(monkeypatch, capsys):
    monkeypatch.setattr(table.Table, "best", lambda self: iter(()))
    monkeypatch.setattr(sys, "argv", ["simulate", "--seed", "2", "--nodes", "3", "--hours", "1"])
    assert run.main() == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["broken"]
    assert told.err.endswith("again: pelamis simulate --seed 2 --nodes 3 --hours 1\n")

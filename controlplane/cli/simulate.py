"""`pelamis simulate [-f app.yaml] [--nodes N] [--seed S] [--hours H]`: live through days of trouble in seconds.

Runs the real API server, controllers and scheduler on a virtual clock with model nodes: pods are killed, nodes lost and
drained, versions rolled, answers lost and components killed, all drawn from the seed. Tells whether all recovered and
which rule was broken when; the same seed gives the same story. Nothing of a running cluster is touched. Exit code 3
when a rule was broken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from controlplane.cli.output import bad, columns, good, say
from controlplane.machinery.errors import Finding

BROKEN = 3
EXAMPLES = ("simulate -f app.yaml --nodes 5 --hours 48 --seed 7",)


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("simulate", help="live through days of trouble in seconds, on a virtual clock")
    parser.add_argument("-f", "--filename", action="append", default=[], metavar="FILE",
                        help="the manifests to live with (default: a few workloads of ours)")
    parser.add_argument("--nodes", type=int, default=20, help="model nodes (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="of everything that happens (default 1)")
    parser.add_argument("--hours", type=float, default=24.0, help="cluster hours to live through (default 24)")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.add_argument("--verbose", action="store_true", help="tell each act")
    parser.set_defaults(run=run, checkout=True)


def command(args: argparse.Namespace) -> list[str]:
    """The process of one simulation: its own, for its clock and its order of sets are not ours."""
    made = [sys.executable, "-P", "-m", "tests.simulation.run", "--seed", str(args.seed), "--nodes", str(args.nodes),
            "--hours", f"{args.hours:g}"]
    for name in args.filename:
        if not Path(name).is_file():
            raise Finding(f"there is no file {name}")
        made += ["-f", str(Path(name).resolve())]
    return made + (["--verbose"] if args.verbose else [])


def run(args: argparse.Namespace) -> int:
    if args.nodes < 1:
        raise Finding("a cluster needs a node", fix="--nodes 1 or more")
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command(args), env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": root},
                          stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    if not lines:
        raise Finding("the simulation did not come to an end", f"exit code {done.returncode}",
                      "the lines above tell where it stopped")
    report = json.loads(lines[-1])
    if args.output == "json":
        print(json.dumps(report, indent=2))
        return BROKEN if report["broken"] else 0
    say(columns([[key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
                 for key, value in report.items() if key != "broken"]))
    for rule in report["broken"]:
        say(bad("● ") + rule)
    if not report["broken"]:
        say(good("every rule held: counts agree, no surge, no broken budget, no orphan, no writing at rest"))
    return BROKEN if report["broken"] else 0

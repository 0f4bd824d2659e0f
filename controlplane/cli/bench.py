"""`pelamis bench [AREA…]`: measures, and prints a table for each area. Asserts nothing: timings on shared machines are
noise, so what else the machine did is told with them.

Areas: `api` starts an API server of its own on loopback, `controllers` and `scheduler` controllers too; `pods`, `node`,
`idle` and `services` use the cluster that runs on this machine; `proxy` works in network namespaces of its own. Without
an area all are measured, and those that cannot be here are named with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from contextlib import redirect_stdout
from typing import Any

from controlplane.cli import preflight
from controlplane.cli.output import columns, say
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import Finding

AREAS = ("api", "controllers", "scheduler", "pods", "node", "idle", "services", "proxy")
NEEDS_ROOT = {"pods", "node", "idle", "services", "proxy"}
EXAMPLES = ("bench api --seconds 2", "bench pods idle --output json")
Figure = dict[str, Any]  # area, what, figure, unit, aim


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bench", help="measure speed and memory")
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each API measurement (default 5)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="length of the idle measurement (default 60)")
    parser.add_argument("--kubelet", metavar="FILE", default="",
                        help="also measure this kubelet binary with the pods of area `node`")
    parser.add_argument("--kube-proxy", metavar="FILE", help="a kube-proxy to measure beside ours, for area `proxy`")
    parser.set_defaults(run=run, checkout=True)


def machine() -> dict[str, Any]:
    """What the figures were taken with and on."""
    from controlplane.hosts import product
    return {"version": product.version(), "kernel": platform.release(), "python": platform.python_version(),
            "cores": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1)}


def table(figures: list[Figure]) -> str:
    """The figures of one area as aligned text, numbers to the right."""
    shown = [f"{row['figure']:,.1f}" for row in figures]
    width = max(map(len, shown))
    return columns([["WHAT", "FIGURE".rjust(width), "UNIT", "AIM"], *(
        [str(row["what"]), figure.rjust(width), str(row["unit"]), str(row.get("aim") or "")]
        for row, figure in zip(figures, shown))])


def run(args: argparse.Namespace) -> int:
    from importlib import import_module
    unknown = [area for area in args.areas if area not in AREAS]
    if unknown:
        raise Finding(f"there is nothing called {unknown[0]} to measure", fix=f"one of {', '.join(AREAS)}")
    if NEEDS_ROOT & set(args.areas or AREAS):
        preflight.check_root()
    found: list[Figure] = []
    skipped: dict[str, str] = {}
    on, text = machine(), args.output == "text"
    if text:
        say(f"Pelamis {on['version']}, Python {on['python']}, Linux {on['kernel']}, {on['cores']} cores with a load of "
            f"{on['load']}")
    for area in args.areas or AREAS:
        module, begun = import_module(f"tests.bench.{area}"), SYSTEM.monotonic()
        if text:
            say(f"\n{area}: {' '.join((module.__doc__ or '').partition(chr(10) * 2)[0].split())}")
        try:
            with redirect_stdout(sys.stdout if text else sys.stderr):  # some areas draw what they see
                figures = module.measure(args)
        except Finding as finding:
            if args.areas:
                raise
            skipped[area] = str(finding)
            figures = []
        found += figures
        if text:
            say(table(figures) if figures else f"not measured: {skipped[area]}")
            say(f"({SYSTEM.monotonic() - begun:.0f} s)")
    if not text:
        print(json.dumps({"machine": on, "figures": found, "skipped": skipped}, indent=1))
    return 0

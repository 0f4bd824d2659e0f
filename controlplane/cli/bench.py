"""`pelamis bench [AREA…]`: measures, and prints one table. Asserts nothing: timings on shared machines are noise.

Areas: `api` starts an API server of its own on loopback, `controllers` controllers too; `pods`, `node`, `idle`
and `services` use the cluster that runs on this machine; `proxy` works in network namespaces of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from controlplane.cli.output import columns, say
from controlplane.machinery.errors import Finding

AREAS = ("api", "controllers", "scheduler", "pods", "node", "idle", "services", "proxy")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("bench", help="measure speed and memory")
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}; default: all")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each API measurement (default 5)")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="length of the idle measurement (default 60)")
    parser.add_argument("--kubelet", metavar="FILE", default="",
                        help="also measure this kubelet binary with the pods of area `node`")
    parser.add_argument("--kube-proxy", metavar="PATH", help="a kube-proxy to measure beside ours, for proxy")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from importlib import import_module
    rows: list[dict[str, object]] = []
    for area in args.areas or AREAS:
        if area not in AREAS:
            raise Finding(f"there is nothing called {area} to measure", fix=f"one of {', '.join(AREAS)}")
        rows += import_module(f"tests.bench.{area}").measure(args)
    table = [["AREA", "WHAT", "FIGURE", "UNIT", "AIM"]]
    table += [[str(r["area"]), str(r["what"]), f"{r['figure']:,.1f}", str(r["unit"]), str(r.get("aim", ""))]
              for r in rows]
    say(columns(table))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    return 0

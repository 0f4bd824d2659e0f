"""`pelamis status`: one line per component, with the reason when one does not run; exit code 1 when one does not."""

from __future__ import annotations

import argparse
import json

from controlplane.cli.output import bad, columns, good, say
from controlplane.machinery.paths import Paths


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("status", help="say what runs, and why something does not")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.set_defaults(run=run)


def age(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    return f"{whole // 60}m" if whole < 7200 else f"{whole // 3600}h"


def run(args: argparse.Namespace) -> int:
    from controlplane.hosts import running
    rows = running.processes(Paths.from_environment())
    healthy = bool(rows) and all(r["state"] == "running" for r in rows or [])
    if args.output == "json":
        print(json.dumps({"running": rows is not None, "healthy": healthy, "components": rows or []}, indent=2))
        return 0 if healthy else 1
    if rows is None:
        say("nothing runs here; start it with ./pelamis up")
        return 1
    table = [["COMPONENT", "STATE", "PID", "FOR", "RESTARTS", "REASON"]]
    table += [[r["name"], r["state"], str(r["pid"] or "-"), age(r["seconds"]), str(r["restarts"]), r["reason"]]
              for r in rows]
    header, *lines = columns(table).splitlines()
    say(header)
    for row, line in zip(rows, lines):
        say(line.replace(row["state"], (good if row["state"] == "running" else bad)(row["state"]), 1))
    return 0 if healthy else 1

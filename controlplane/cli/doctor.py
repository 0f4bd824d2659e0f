"""`pelamis doctor [--fix]`: what is wrong with this host or will be, why it matters, and the command that mends it."""

from __future__ import annotations

import argparse
import json
import subprocess
from dataclasses import asdict
from typing import TYPE_CHECKING

from controlplane.cli.output import bad, coloured, good, say
from controlplane.machinery.paths import Paths

if TYPE_CHECKING:
    from controlplane.doctor.checks import Diagnosis

FIX_SECONDS = 120  # a service that starts anew
EXAMPLES = ("doctor --fix", "doctor -o json")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("doctor", help="find what is wrong with this host, and what mends it")
    parser.add_argument("--fix", action="store_true", help="run the fixes that cannot do harm")
    parser.add_argument("--output", "-o", choices=["text", "json"], default="text")
    parser.set_defaults(run=run, root=True)


def findings(paths: Paths) -> list[Diagnosis]:
    """Everything found on this host, problems first."""
    from controlplane.cli import preflight
    from controlplane.doctor import checks, cluster, gather
    from controlplane.doctor.checks import PROBLEM, Diagnosis
    from controlplane.machinery.errors import Finding
    found: list[Diagnosis] = []
    for check in (preflight.check_kernel, lambda: preflight.check_disk(paths)):
        try:
            check()
        except Finding as finding:
            found.append(Diagnosis("preflight", PROBLEM, finding.fact, finding.because, finding.fix))
    return found + checks.examine(gather.host(paths), cluster.node(paths))


def run(args: argparse.Namespace) -> int:
    from controlplane.doctor.checks import PROBLEM
    paths = Paths.from_environment()
    found = findings(paths)
    if args.fix and any(d.safe for d in found):
        for diagnosis in (d for d in found if d.safe):
            _fix(diagnosis)
        found = findings(paths)
    problems = [d for d in found if d.level == PROBLEM]
    if args.output == "json":
        print(json.dumps({"healthy": not problems, "findings": [asdict(d) for d in found]}, indent=2))
        return 1 if problems else 0
    for diagnosis in found:
        mark = bad("problem") if diagnosis.level == PROBLEM else coloured("warning", "33")
        say(f"{mark}  {diagnosis.fact}")
        if diagnosis.because:
            say(f"         {diagnosis.because}")
        say(f"    fix: {diagnosis.fix}")
    if not found:
        say(good("Nothing is wrong with this host."))
    elif not problems:
        say(good("No problems") + f", {len(found)} warning{'s' if len(found) > 1 else ''}.")
    return 1 if problems else 0


def _fix(diagnosis: Diagnosis) -> None:
    say(f"  {diagnosis.fact}: {diagnosis.fix}")
    done = subprocess.run(["sh", "-c", diagnosis.fix], capture_output=True, text=True, timeout=FIX_SECONDS)
    if done.returncode:
        say(f"    {bad('failed')}: {(done.stderr or done.stdout).strip()[-300:]}")

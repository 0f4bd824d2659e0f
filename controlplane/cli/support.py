"""`pelamis support`: state, logs, rules and versions of this host and its cluster in one file, without secrets."""

from __future__ import annotations

import argparse
from pathlib import Path

from controlplane.cli.output import say, step


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("support", help="collect what others need to help, without secrets, in one file")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.tar.gz")
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    from controlplane.hosts import support
    from controlplane.machinery.paths import Paths
    output = args.output or Path(support.default_name())
    with step("collecting"):
        files = support.collect(Paths.from_environment())
        support.write(output, files)
    say(f"{output}: {len(files)} files. Secrets, config maps' values, variables' values and tokens are not in it.")
    return 0

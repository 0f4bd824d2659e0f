"""`pelamis reset`: stops everything, undoes every change `install` made to this host, and proves it."""

from __future__ import annotations

import argparse

from controlplane.cli.output import bad, good, say, step


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("reset", help="undo `install`: leave this host as it was, but for what is yours")
    parser.add_argument("--keep-packages", action="store_true", help="leave Debian packages installed")
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    from controlplane.hosts import belongings, census, commands, reset
    from controlplane.hosts.services import Services
    layout, services = commands.layout(), Services()
    before = reset.first(layout)
    if before is None and not layout.paths.ledger.exists():
        say("nothing of ours is on this host")
        return 0
    reset.stop(layout, services, step)
    findings = reset.undo_all(layout, services, lambda line: say(f"  {line}"),
                              ("package",) if args.keep_packages else ())
    for finding in findings:
        say(f"  {bad('not undone')}: {finding}")
    if findings:
        say("run the same command again when that is mended")
        return 1
    kept = belongings.found(layout.paths)
    for thing in kept:
        say(f"kept: {thing.path}, {thing.told}")
    if before is None:
        return 0
    now = census.take(layout.paths.root)
    lines, same = reset.proof(before, now, [str(thing.path.relative_to(layout.paths.root)) for thing in kept])
    say()
    say("This host before the install and now:")
    for line in lines:
        say(f"  {line}")
    but = "" if reset.proof(before, now)[1] else ", but for what was kept"
    say(good(f"This host is as it was{but}.") if same else bad("This host is not as it was: see above."))
    return 0 if same else 1

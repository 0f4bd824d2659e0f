"""`pelamis store check|compact`: the health and the size of the cluster's store."""

from __future__ import annotations

import argparse

from controlplane.cli.output import good, say
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("store", help="check the store, or give its free pages back")
    parser.add_argument("verb", choices=["check", "compact"])
    parser.set_defaults(run=run, root=True)


def run(args: argparse.Namespace) -> int:
    from controlplane.store import backup
    store = Paths.from_environment().store
    if not store.exists():
        raise Finding(f"there is no store at {store}", "this host is no server, or nothing was started on it yet",
                      "run it on the server")
    if args.verb == "compact":
        before, after = backup.compact(store)
        say(f"{before >> 10} KiB before, {after >> 10} KiB now")
        return 0
    found = backup.health(store)
    if found.problems:
        raise Finding(f"the store {store} is damaged", "; ".join(found.problems),
                      "pelamis snapshot restore puts the newest snapshot back and keeps the damaged file beside it")
    say(good("the store is sound") + f": {found.objects} objects, revision {found.revision}, history since "
        f"{found.compacted}")
    say(f"{found.size >> 10} KiB, of which {found.free >> 10} KiB are free, and {found.log >> 10} KiB not yet merged")
    return 0

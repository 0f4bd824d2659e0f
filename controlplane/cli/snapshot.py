"""`pelamis snapshot save|list|verify|restore`: backups of the cluster's store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from controlplane.cli.output import columns, good, say, step
from controlplane.machinery.clock import SYSTEM, rfc3339
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths

if TYPE_CHECKING:
    from controlplane.store.backup import Snapshot

EXAMPLES = ("snapshot save --output /mnt/backup", "snapshot list", "snapshot restore")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("snapshot", help="back up the store, and put a backup back")
    verbs = parser.add_subparsers(dest="verb", metavar="save|list|verify|restore", required=True)
    save = verbs.add_parser("save", help="take a snapshot now, while the cluster runs")
    save.add_argument("--output", type=Path, metavar="FOLDER", help="where (default: /var/lib/pelamis/snapshots)")
    save.add_argument("--scheduled", action="store_true", help="also forget old ones by the policy, as the timer does")
    verbs.add_parser("list", help="the snapshots of this server, newest first")
    for verb, text in (("verify", "look at every page of a snapshot"), ("restore", "put a snapshot back")):
        chosen = verbs.add_parser(verb, help=text)
        chosen.add_argument("file", nargs="?", type=Path, help="a file, or a name from the list (default: the newest)")
    parser.set_defaults(run=run, root=True)


def folder(paths: Paths) -> Path:
    return paths.lib / "snapshots"


def run(args: argparse.Namespace) -> int:
    paths = Paths.from_environment()
    return {"save": _save, "list": _list, "verify": _verify, "restore": _restore}[args.verb](paths, args)


def _save(paths: Paths, args: argparse.Namespace) -> int:
    from controlplane.store import backup
    from netsetup.ledger import Ledger
    if args.output is None:
        Ledger(paths.ledger).make_directory(folder(paths), 0o700)
    made = backup.save(paths.store, args.output or folder(paths), SYSTEM.now())
    say(f"saved revision {made.revision}, {made.size >> 10} KiB: {made.path}")
    if args.scheduled:
        for old in backup.to_forget(backup.listed(made.path.parent), backup.Policy()):
            old.path.unlink()
            say(f"forgot {old.path.name}")
    return 0


def _list(paths: Paths, args: argparse.Namespace) -> int:
    from controlplane.store import backup
    rows = [[s.path.name, rfc3339(s.time), str(s.revision), str(s.size >> 10)] for s in backup.listed(folder(paths))]
    if rows:
        say(columns([["SNAPSHOT", "TAKEN", "REVISION", "KIB"], *rows]))
    else:
        say(f"there is no snapshot in {folder(paths)}; pelamis snapshot save takes one")
    return 0


def _chosen(paths: Paths, file: Path | None) -> Path:
    from controlplane.store import backup
    found: list[Snapshot] = backup.listed(folder(paths))
    if file is None:
        if not found:
            raise Finding(f"there is no snapshot in {folder(paths)}", fix="pelamis snapshot save")
        return found[0].path
    return file if file.exists() else folder(paths) / file.name


def _verify(paths: Paths, args: argparse.Namespace) -> int:
    from controlplane.store import backup
    file = _chosen(paths, args.file)
    found = backup.health(file)
    if found.problems:
        raise Finding(f"{file} is damaged", "; ".join(found.problems), "pelamis snapshot list; take another")
    say(good(f"{file.name} is sound") + f": {found.objects} objects at revision {found.revision}")
    return 0


def _restore(paths: Paths, args: argparse.Namespace) -> int:
    from controlplane.hosts.layout import Layout
    from controlplane.hosts.services import Services
    from controlplane.store import backup
    file = _chosen(paths, args.file)
    services = Services() if Layout(paths).installed else None
    if services is not None:
        with step("stopping the API server"):
            services.stop("pelamis-controllers.service", "pelamis-apiserver.service")
    try:
        found, kept = backup.restore(file, paths.store)
    finally:
        if services is not None:
            with step("starting it again"):
                services.start("pelamis-apiserver.service", "pelamis-controllers.service")
    say(good(f"restored {file.name}") + f": {found.objects} objects at revision {found.revision}")
    if kept is not None:
        say(f"what was there before is kept: {kept}")
    say("Pods that the snapshot does not know are ended, those it knows and that are gone are made anew.")
    return 0

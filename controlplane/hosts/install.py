"""A node of a cluster on this host, run by systemd: from nothing to started services, through the ledger.

Owns the order: look before anything is changed, then note what the host is like, packages, program, users, files,
units, last the start. Every step may be interrupted and done again; each changes nothing when it is done already. What
fails before anything was started leaves nothing behind. `server` makes a cluster of one node, `agent` a node of a
cluster that is there: it gets its credentials first, so that a wrong token leaves nothing behind either. Called by the
commands `install` and `upgrade`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from controlplane.cli import control, node, preflight, settings
from controlplane.cli.settings import Settings
from controlplane.hosts import census, options, prepare, product, running, units
from controlplane.hosts.layout import TARGET, USERS, Layout, unit
from controlplane.hosts.services import Services
from controlplane.machinery import files
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.ledger import Ledger

Step = Callable[[str], AbstractContextManager[None]]


def look(paths: Paths, wanted: Settings | None) -> Settings | None:
    """Raise Finding for whatever stands in the way; the settings of a node that is installed already."""
    preflight.check_all(paths)
    if control.status(paths) is not None or control.survivors(paths):
        raise Finding("a cluster started by `pelamis up` runs here", "it would hold the same ports and files",
                      "./pelamis down, then run the command again")
    layout = Layout(paths)
    kept = settings.load(layout.settings)
    if kept is None and not layout.installed:
        preflight.check_ports(None if wanted is None or not wanted.server else (10250,))
    if kept is not None and wanted is not None and kept.server != wanted.server:
        raise Finding(f"this host is {'a node of ' + kept.server if kept.server else 'a server'} already",
                      "one host belongs to one cluster", "pelamis reset, then run the command again")
    return kept


def not_an_upgrade(layout: Layout, services: Services) -> None:
    """Raises Finding when another version runs here: that is for `upgrade`, which looks after it."""
    if layout.installed not in ("", layout.version) and services.state(unit("agent")).active == "active":
        raise Finding(f"version {layout.installed} runs here, and this is {layout.version}",
                      "an install would not look whether the other version works", "./pelamis upgrade")


@contextmanager
def whole(layout: Layout, services: Services, say: prepare.Say) -> Iterator[None]:
    """What fails on a host that had nothing of ours leaves nothing: every change is undone. An install that was
    interrupted before is left for the next run to go on with."""
    if layout.paths.ledger.exists():
        yield
        return
    try:
        yield
    except (Finding, OSError):
        from controlplane.hosts import reset
        say("undoing what was done so far")
        for finding in reset.undo_all(layout, services, lambda line: None):
            say(f"not undone: {finding}")
        raise


def put(layout: Layout, wanted: Settings, services: Services, step: Step, source: Path = product.SOURCE,
        bundled: Path | None = None) -> None:
    """Everything on the disk, nothing started. `layout.version` is the program's in `source`; packages come from the
    unpacked bundle `bundled`, or from Debian."""
    ledger = Ledger(layout.paths.ledger)
    note(layout)
    if layout.paths.root == Path("/"):
        _packages(ledger, not layout.installed, wanted, step, bundled)
    with step(f"installing version {layout.version}"):
        product.install(layout, ledger, source)
        product.use(layout, ledger)
    with step("making users, configuration and certificates"):
        _users(ledger, wanted, services)
        node.prepare(layout.paths, wanted, ledger)
        settings.save(layout.settings, wanted)
        _own(layout, wanted, services)
        options.write(layout, running.components(layout, wanted))
    with step("writing systemd units"):
        write_units(layout, wanted, ledger)
        services.reload()


def write_units(layout: Layout, wanted: Settings, ledger: Ledger) -> None:
    """Unit files, the links that enable them, and the runtime folder's entry."""
    files = units.render(layout, wanted, running.components(layout, wanted))
    ledger.make_directory(layout.units)
    for name, text in files.items():
        _file(layout.units / name, text, ledger)
    ledger.make_directory(layout.tmpfiles.parent)
    _file(layout.tmpfiles, units.tmpfiles(), ledger)
    for folder, name in units.wants(list(files)):
        ledger.make_directory(layout.units / folder)
        product.link(layout.units / folder / name, layout.units / name, ledger)


def start(layout: Layout, services: Services, step: Step, say: prepare.Say) -> Settings:
    """Start, or start anew what runs in another version. Returns the settings as they are now."""
    now = prepare.prepare(layout, services, say)
    with step("starting the services"):
        services.start(TARGET, *units.TIMERS[:1 if now.server else 2])
        running.wait(layout, services)
    return now


def note(layout: Layout) -> None:
    """Keep what the host is like before anything is done to it, for the proof at the end."""
    if layout.before.exists():
        return
    found = census.take(layout.paths.root)
    ledger = Ledger(layout.paths.ledger)
    ledger.make_directory(layout.before.parent)
    ledger.record("file", path=layout.before)
    files.write(layout.before, json.dumps(found).encode(), files.PUBLIC)


def _packages(ledger: Ledger, new: bool, wanted: Settings, step: Step, bundled: Path | None) -> None:
    from controlplane.cli import packages
    lacking = packages.missing(new=new, foreign=bool(wanted.runtime))
    if lacking:
        with step(f"installing {', '.join(lacking)} from {bundled or 'Debian'}"), packages.as_welcome(lacking):
            if bundled is not None:
                from controlplane.hosts import bundle
                bundle.install_packages(bundled, lacking, ledger)
            else:
                packages.install(lacking, ledger)


def _users(ledger: Ledger, wanted: Settings, services: Services) -> None:
    for user in () if wanted.server else USERS.values():
        if not services.has_user(user):
            ledger.record("user", name=user)
            services.add_user(user)


def _own(layout: Layout, wanted: Settings, services: Services) -> None:
    """The store is the API server's alone."""
    if not wanted.server:
        os.chmod(layout.paths.store.parent, 0o700)
        services.own(layout.paths.store.parent, USERS["apiserver"])


def _file(path: Path, text: str, ledger: Ledger) -> None:
    if not path.exists() or path.read_text() != text:
        ledger.write_file(path, text.encode())

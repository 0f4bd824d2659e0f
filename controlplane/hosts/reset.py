"""A host as it was before the install: everything stopped, every change undone, and the proof printed.

Owns the order: agent, pods, services, then the ledger newest first. Promises that what is the user's is kept, that it
may be interrupted and run again, and that the proof is a comparison with what the host was like before the first
change. Called by the command `reset`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from controlplane.cli import down, settings
from controlplane.hosts import belongings, census
from controlplane.hosts.census import Census
from controlplane.hosts.layout import TARGET, Layout, unit
from controlplane.hosts.services import Services
from controlplane.hosts.units import TIMERS
from controlplane.machinery.errors import Finding
from netsetup.ledger import Ledger

Say = Callable[[str], None]
Step = Callable[[str], AbstractContextManager[None]]
SLICE = "kubepods.slice"  # where systemd keeps the pods' groups, when it does
AUTHORS = ("controllers", "apiserver", "prepare", "snapshot")


def stop(layout: Layout, services: Services, step: Step) -> None:
    """Stop the agent, the pods it would start again, and the rest."""
    with step("stopping the agent"):
        services.stop(*TIMERS, unit("agent"))
    theirs = _runtime(layout)
    if theirs or services.state(unit("containerd")).active == "active":
        with step("stopping the pods"):
            asyncio.run(down.stop_pods(layout.paths, theirs))
    with step("stopping the services"):
        services.stop(TARGET, *map(unit, AUTHORS), unit("containerd"))
        down.kill_shims(layout.paths)
        services.stop(SLICE)
    from agent.proxy.cleanup import cleanup
    cleanup()


def _runtime(layout: Layout) -> str:
    """The socket of a runtime that is not our own; "" for ours, and when the node was not whole yet."""
    try:
        kept = settings.load(layout.settings)
    except Finding:
        return ""
    return kept.runtime if kept else ""


def first(layout: Layout) -> Census | None:
    """What the host was like before; None when nobody noted it."""
    try:
        return json.loads(layout.before.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # torn: the install was cut off while it wrote this, before it changed anything else


def undo_all(layout: Layout, services: Services, say: Say, keep: tuple[str, ...] = ()) -> list[Finding]:
    """Undo the ledger; what could not be undone. What is the user's stays where it is."""
    ledger = Ledger(layout.paths.ledger)
    ledger.undo(keep=keep, say=say, spare=[thing.path for thing in belongings.found(layout.paths)])
    services.control("daemon-reload", check=False)
    services.control("reset-failed", check=False)
    return ledger.findings


def proof(before: Census, after: Census, kept: Sequence[str] = ()) -> tuple[list[str], bool]:
    """Lines that show the host before and after, and whether they are the same but for what is kept (paths below the
    root, and the folders on the way to them). Pure."""
    def expected(line: str) -> bool:
        sign, path = line[:2], line[2:]
        return sign == "+ " and any(path == name or path.startswith((name + "/", name + " "))
                                    or name.startswith(path + "/") for name in kept)
    found = {section: left for section, lines in census.differences(before, after).items()
             if (left := [line for line in lines if not expected(line)])}
    lines = []
    for section in before:
        lines.append(f"{section}: {len(before[section])} before, {len(after.get(section, []))} after, "
                     + ("different" if section in found else "the same"))
        lines += [f"  {line}" for line in found.get(section, ())]
    return lines, not found

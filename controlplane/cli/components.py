"""The processes of a node, as data: what `up` hands to the supervisor and what systemd units would say.

Owns `Component` and how a list of them is written to and read from the file the supervisor starts from. Decides nothing
at run time and starts nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from controlplane.machinery import files


@dataclass(frozen=True, slots=True)
class Component:
    """One process. `notify`: it says READY=1 on NOTIFY_SOCKET; `after`: names that must be ready before it starts;
    `reloads`: on SIGHUP it takes certificates that were renewed."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    notify: bool = True
    after: tuple[str, ...] = ()
    stop_seconds: float = 10.0
    reloads: bool = False


def write(path: Path, components: list[Component]) -> None:
    files.write(path, render(components).encode(), files.PUBLIC)


def render(components: list[Component]) -> str:
    return json.dumps([asdict(c) for c in components], indent=1) + "\n"


def read(path: Path) -> list[Component]:
    rows = json.loads(path.read_text())
    return [Component(**{**row, "argv": tuple(row["argv"]), "after": tuple(row["after"])}) for row in rows]

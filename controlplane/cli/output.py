"""What people see while a command works: steps with their time, plain sentences, colour only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from controlplane.machinery.clock import SYSTEM


def coloured(text: str, code: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{code}m{text}\033[0m"


def good(text: str) -> str:
    return coloured(text, "32")


def bad(text: str) -> str:
    return coloured(text, "31")


def say(text: str = "") -> None:
    print(text, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """`text …` while it runs, then `done` and the seconds it took; on a failure it says so and the error goes on."""
    begun = SYSTEM.monotonic()
    print(f"  {text} … ", end="", flush=True)
    try:
        yield
    except BaseException:
        print(bad("failed"), flush=True)
        raise
    took = SYSTEM.monotonic() - begun
    print(good("done") + (f" ({took:.1f} s)" if took >= 0.1 else ""), flush=True)


def columns(rows: list[list[str]]) -> str:
    """Rows as aligned text, the first being the header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("   ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in rows)

"""Where a process's log goes and how a line looks: plain text, for a person's eyes or for the journal.

Owns the one form of all daemons' lines. Promises no colour, and that the journal, which keeps the time itself, gets
each line's priority instead: `journalctl -p warning` then shows what matters. Called by the `__main__` of every
daemon.

Upstream: sd-daemon(3), systemd.exec(5) on JOURNAL_STREAM.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

PLAIN = "%(asctime)s %(levelname).1s %(name)s %(message)s"
PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog's numbers
DEBUG = 7


class ForJournal(logging.Formatter):
    """Each line begins with its priority, those of a traceback too: the journal takes every line for itself."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        mark = next((number for level, number in PRIORITIES if record.levelno >= level), DEBUG)
        return "\n".join(f"<{mark}>{line}" for line in super().format(record).splitlines())


def journaled(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether a descriptor is the connection to the journal that systemd says this process has."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def setup(level: int = logging.INFO) -> None:
    """Log to standard error from now on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ForJournal() if journaled(os.environ, 2) else logging.Formatter(PLAIN))
    logging.basicConfig(level=level, handlers=[handler])

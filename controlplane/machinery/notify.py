"""A process tells its service manager how it is: systemd's protocol, one datagram per word.

Owns the words READY, STOPPING and WATCHDOG. Promises to do nothing at all when no service manager listens, and to send
the watchdog's sign of life only when one is asked for, from the process's own event loop: a loop that hangs is silent,
and is restarted. Called by the `__main__` of every daemon.

Upstream: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from controlplane.machinery.clock import SYSTEM, Clock

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
SIGNS_PER_TIMEOUT = 3  # of life within the watchdog's time: one may be late, and one lost


def notify(state: str) -> None:
    """Tell `state` to the service manager, when there is one that listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            logging.getLogger("notify").warning("cannot tell %s: %s", state, error)


def interval(environment: Mapping[str, str], pid: int) -> float:
    """Seconds between signs of life, 0 when none are asked of this process. Pure."""
    asked, whose = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not asked.isdigit() or (whose and whose != str(pid)):
        return 0.0
    return int(asked) / 1e6 / SIGNS_PER_TIMEOUT


async def live(clock: Clock = SYSTEM) -> None:
    """Give signs of life until cancelled; returns at once when nobody asks for them."""
    seconds = interval(os.environ, os.getpid())
    while seconds > 0:
        notify(ALIVE)
        await clock.sleep(seconds)

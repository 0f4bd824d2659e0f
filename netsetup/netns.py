"""Work inside another network namespace, without forking.

Owns the one way in: a throw-away thread enters the namespace, does its work and ends, so no thread of ours is ever left
in the wrong place. What the work opens there (a netlink socket, a listening socket) stays bound to that namespace.
Forking instead would copy a process that holds gRPC threads. Needs CAP_SYS_ADMIN.

Called by `links` and the CNI daemon, from a worker thread: `inside` blocks for as long as the work takes.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

CLONE_NEWNET = 0x40000000
T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def inside(descriptor: int, work: Callable[[], T]) -> T:
    """`work()` run in the namespace of an open descriptor; its result, or the exception it raised."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.setns(descriptor, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), "setns")
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def inside_path(path: str, work: Callable[[], T]) -> T:
    """As `inside`, for a namespace file such as `/run/netns/x` or `/proc/1/ns/net`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return inside(descriptor, work)
    finally:
        os.close(descriptor)

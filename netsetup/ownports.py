"""Which netlink sockets are this process' and its tools': whose changes of nf_tables are our own doing.

Owns the numbers. The kernel names with each change the socket that asked for it: of a tool that is its process id. Too
old ones are forgotten; what is taken for a stranger's by mistake is looked at once, for nothing.

Told by `xtables` and `nftables`; asked by `agent.proxy.guard`. Safe among threads.
"""

from __future__ import annotations

from collections import deque

_KEPT: deque[int] = deque(maxlen=512)  # a full load in chunks starts some hundred processes


def add(port: int) -> None:
    _KEPT.append(port)


def is_own(port: int) -> bool:
    return port in _KEPT

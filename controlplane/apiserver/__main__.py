"""`python -m controlplane.apiserver`: one apiserver process.

Owns the process: flags, logging, signals, the exit code (0 after a clean stop, 1 with a Finding on stderr) and telling
the service manager that it is ready. Everything else is the server's.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from controlplane.apiserver import config
from controlplane.apiserver.config import Options
from controlplane.apiserver.server import Server
from controlplane.machinery import logs, tlsbuffer
from controlplane.machinery.errors import Finding
from controlplane.machinery.notify import READY, STOPPING, live, notify
from controlplane.store.log import Log


def open_log(options: Options) -> Log:
    if options.storage == "memory":
        from controlplane.store.memory import MemoryLog
        return MemoryLog()
    from controlplane.store.sqlite import SqliteLog
    assert options.storage_path is not None
    options.storage_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return SqliteLog(options.storage_path)


async def run(options: Options) -> int:
    """Serve until a signal, or until the store fails. Returns the exit code."""
    server = Server(options, open_log(options))
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await server.start()
    loop.add_signal_handler(signal.SIGHUP, server.reload)  # before: the start itself reads them, or is begun anew
    notify(READY)
    watchdog = asyncio.ensure_future(live())
    waits = [asyncio.ensure_future(event.wait()) for event in (stop, server.broken)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in (*waits, watchdog):
        task.cancel()
    notify(STOPPING)
    await server.stop()
    return 1 if server.broken.is_set() else 0


def main() -> int:
    tlsbuffer.shrink()
    logs.setup()
    try:
        return asyncio.run(run(config.parse(sys.argv[1:])))
    except Finding as finding:
        print(finding, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""What a process tells its service manager, and when."""

import asyncio
import socket

from controlplane.machinery import notify
from controlplane.machinery.clock import FakeClock


def test_signs_of_life_are_given_to_whom_asks_this_process_only():
    assert notify.interval({}, 7) == 0
    assert notify.interval({"WATCHDOG_USEC": "30000000"}, 7) == 10
    assert notify.interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 7) == 0


def test_words_reach_the_listener(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify.notify(notify.READY)
        assert listener.recv(99) == b"READY=1"
        asyncio.run(notify.live())  # nobody asks: it ends
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")

        async def main():
            task = asyncio.create_task(notify.live(FakeClock()))
            assert await asyncio.to_thread(listener.recv, 99) == b"WATCHDOG=1"
            task.cancel()
        asyncio.run(main())
    notify.notify(notify.STOPPING)  # the listener is gone: no error

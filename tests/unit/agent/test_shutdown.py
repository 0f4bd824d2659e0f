"""A host that goes down: heard of over a bus, pods ended by importance, and the lock let go when they have."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from types import SimpleNamespace
from typing import Any

from agent.kubelet.admit import CRITICAL, Place, judge
from agent.kubelet.host.dbus import message, parse
from agent.kubelet.host.logind import Logind
from agent.kubelet.host.shutdown import MESSAGE, Shutdown, phases
from agent.kubelet.pressure.keeping import Keeping
from controlplane.machinery.clock import SYSTEM
from netsetup.ledger import Ledger
from tests.unit.agent.pods import pod, seen, up


def test_a_message_is_read_as_it_was_written():
    whole = message(1, 7, {1: "/a/b", 3: "Member", 5: 42}, "ss", ("one", "three"))
    assert parse(whole[:-1]) is None
    kind, fields, body, length = parse(whole + b"l")  # type: ignore[misc]
    assert (kind, fields, length) == (1, {1: "/a/b", 3: "Member", 5: 42, 8: "ss"}, len(whole))
    assert body == b"\3\0\0\0one\0\5\0\0\0three\0"


class Bus:
    """A bus with a logind on it: agrees to everything, hands out one lock, and says that the host goes down."""

    def __init__(self, path) -> None:
        self.path, self.asked, self.waits = path, list[tuple[str, bytes]](), 5
        self.held, lock = os.pipe()
        self.lock = lock

    def listen(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.setblocking(False)
        self.listener.bind(str(self.path))
        self.listener.listen()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        peer, _ = await loop.sock_accept(self.listener)
        data = b""
        while b"NEGOTIATE_UNIX_FD\r\n" not in data:
            data += await loop.sock_recv(peer, 4096)
        await loop.sock_sendall(peer, b"OK 0123\r\nAGREE_UNIX_FD\r\n")
        while b"BEGIN\r\n" not in data:
            data += await loop.sock_recv(peer, 4096)
        data = data.partition(b"BEGIN\r\n")[2]
        serial = 0
        while serial < 6:
            while (found := parse(data)) is None:
                data += await loop.sock_recv(peer, 4096)
            serial += 1
            data = data[found[3]:]
            self.asked.append((str(found[1][3]), found[2]))
            reply = message(2, serial, {5: serial})
            if found[1][3] == "KillUnit":
                self.waits = 20
            if found[1][3] == "Get":
                reply = message(2, serial, {5: serial}, "v", (("t", self.waits * 1_000_000),))
            if found[1][3] == "Inhibit":
                socket.send_fds(peer, [reply], [self.lock])
                os.close(self.lock)
            else:
                await loop.sock_sendall(peer, reply)
        signal = bytearray(message(4, 9, {1: "/org/freedesktop/login1", 3: "PrepareForShutdown"}))
        struct.pack_into("<I", signal, 4, 4)  # a body of one boolean
        await loop.sock_sendall(peer, bytes(signal) + struct.pack("<I", 1))
        self.peer = peer


def test_the_host_waits_for_its_pods(tmp_path):
    ended = []

    class Worker(SimpleNamespace):
        async def emptied(self) -> None:
            assert not self.seen.containers

        def doom(self, reason: str, text: str, grace: float, mark: Any) -> None:
            ended.append((self.pod["metadata"]["name"], reason, text, grace))
            self.seen = seen()

    def worker(name: str, priority: int = 0) -> Any:
        made = pod()
        made["metadata"].update(name=name, uid=name)
        made["spec"]["priority"] = priority
        return Worker(pod=made, seen=seen(up("c")), active=True)

    async def main() -> None:
        bus, ledger = Bus(tmp_path / "bus"), Ledger(tmp_path / "ledger")
        dropin = tmp_path / "logind.conf.d/99-kubelet.conf"
        bus.listen()
        serving = asyncio.create_task(bus.serve())
        workers, states = [worker("dns", CRITICAL), worker("web")], list[bool]()
        shutdown = Shutdown(Keeping(shutdown=20.0, shutdown_critical=5.0), lambda: workers,
                            lambda: states.append(shutdown.going), SYSTEM, ledger, dropin)
        async with Logind(bus.path) as bound:
            following = asyncio.create_task(shutdown._follow(bound))
            await serving
            async with asyncio.timeout(10):  # the pipe ends when the last holder of the lock lets go
                assert await asyncio.to_thread(os.read, bus.held, 1) == b""
            following.cancel()
        assert [name for name, _ in bus.asked] == ["Hello", "AddMatch", "Get", "KillUnit", "Get", "Inhibit"]
        assert states == [True] and b"shutdown\0" in bus.asked[5][1] and b"delay\0" in bus.asked[5][1]
        assert "InhibitDelayMaxSec=20\n" in dropin.read_text()
        ledger.undo()
        assert not dropin.parent.exists()
        assert ended == [("web", "Terminated", MESSAGE, 15.0), ("dns", "Terminated", MESSAGE, 5.0)]

    asyncio.run(main())
    assert judge(pod(), [], Place("n", closing=True)) == ("NodeShutdown",
                                                         "Pod was rejected as the node is shutting down.")


def test_pods_end_by_the_priorities_that_were_given():
    def of(name: str, priority: int) -> dict[str, Any]:
        made = pod()
        made["metadata"]["uid"], made["spec"]["priority"] = name, priority
        return made
    pods = [of("dns", CRITICAL), of("low", -5), of("web", 0), of("queue", 9_999), of("base", 10_000)]
    keeping = Keeping(shutdown_by_priority=((10_000, 30.0), (0, 60.0)))
    assert phases(pods, keeping) == [(60.0, ["low", "web", "queue"]), (30.0, ["dns", "base"])]
    assert keeping.shutdown_seconds == 90.0
    assert phases(pods, Keeping(shutdown=20.0, shutdown_critical=5.0)) == [
        (15.0, ["low", "web", "queue", "base"]), (5.0, ["dns"])]

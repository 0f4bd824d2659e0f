"""Network namespaces that play nodes, pods and outsiders; made per test module and removed even after a failure."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from netsetup import netns

_numbers = itertools.count()


class Namespace:
    """A named network namespace and a thread that lives in it."""

    def __init__(self, label: str) -> None:
        self.name = f"pt{os.getpid()}-{next(_numbers)}-{label}"
        self.path = f"/run/netns/{self.name}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._thread = ThreadPoolExecutor(1, initializer=self._enter)
        self.sh("ip link set lo up")
        self._servers: list[socket.socket] = []

    def _enter(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        assert netns._libc.setns(descriptor, netns.CLONE_NEWNET) == 0
        os.close(descriptor)

    def background(self, main: Callable[[], Any]) -> Future[Any]:
        """Run a coroutine function on a loop of its own, on a second thread inside. One that a test which failed left
        running keeps nobody from ending."""
        future: Future[Any] = Future()

        def work() -> None:
            try:
                self._enter()
                future.set_result(asyncio.run(main()))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=work, daemon=True).start()
        return future

    def run(self, work: Callable[..., Any], *args: Any) -> Any:
        """Do `work` on the thread inside."""
        return self._thread.submit(work, *args).result(timeout=120)

    def sh(self, command: str, check: bool = True) -> str:
        done = self.run(lambda: subprocess.run(command, shell=True, capture_output=True, text=True))
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def serve(self, label: str, port: int = 8080) -> None:
        """TCP: greets with `label|client address`, then echoes. UDP on the next port: answers the same greeting."""
        stream = self.run(lambda: socket.create_server(("::", port), family=socket.AF_INET6, backlog=256,
                                                       dualstack_ipv6=True))
        packets = self.run(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        packets.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        packets.bind(("::", port + 1))
        self._servers += [stream, packets]

        def plain(address: str) -> str:
            return address.removeprefix("::ffff:")

        def talk(peer: socket.socket, address: tuple[str, int]) -> None:
            with peer:
                try:
                    peer.sendall(f"{label}|{plain(address[0])}".encode())
                    while data := peer.recv(4096):
                        peer.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            try:
                while True:
                    threading.Thread(target=talk, args=stream.accept(), daemon=True).start()
            except OSError:
                pass

        def answer() -> None:
            try:
                while True:
                    _, address = packets.recvfrom(4096)
                    if not address:
                        return  # shut down
                    packets.sendto(f"{label}|{plain(address[0])}".encode(), address)
            except OSError:
                pass

        for work in (accept, answer):
            threading.Thread(target=work, daemon=True).start()

    def connect(self, address: str, port: int, timeout: float = 2.0) -> socket.socket:
        return self.run(lambda: socket.create_connection((address, port), timeout))

    def tcp(self, address: str, port: int, timeout: float = 2.0) -> str:
        """`label|source as the server saw it`, REFUSED, TIMEOUT or the error's text."""
        try:
            with self.connect(address, port, timeout) as link:
                return link.recv(100).decode()
        except ConnectionRefusedError:
            return "REFUSED"
        except TimeoutError:
            return "TIMEOUT"
        except OSError as error:
            return str(error.strerror)

    def udp_socket(self, family: int = socket.AF_INET) -> socket.socket:
        link = self.run(lambda: socket.socket(family, socket.SOCK_DGRAM))
        link.settimeout(1.0)
        return link

    def close(self) -> None:
        for server in self._servers:
            try:
                server.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            server.close()
        self._thread.shutdown(wait=True)
        subprocess.run(["ip", "netns", "del", self.name], check=False)


def ask(link: socket.socket, address: str, port: int) -> str:
    """One UDP question on an existing socket."""
    try:
        link.sendto(b"x", (address, port))
        return link.recv(100).decode()
    except TimeoutError:
        return "TIMEOUT"
    except ConnectionRefusedError:
        return "REFUSED"


@pytest.fixture(scope="module")
def make_namespace() -> Iterator[Callable[[str], Namespace]]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    made: list[Namespace] = []

    def make(label: str) -> Namespace:
        made.append(Namespace(label))
        return made[-1]

    try:
        yield make
    finally:
        for namespace in reversed(made):
            namespace.close()

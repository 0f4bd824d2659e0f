"""One nf_tables table of ours, written by netlink.

Owns the encoding of tables, chains, sets and elements, and a socket that owns the table: the kernel lets nobody else
change it, `nft flush ruleset` passes it by, and it stays when this process ends, for the next one to adopt. A batch is
one transaction: all of it or nothing, and packets see either the old or the new state. Kernels that know no owners get
a plain table. No binary is called and nothing is read back before a write, so a change of one element costs
microseconds. Not thread safe.

Called by `agent.proxy.nftables` and `undo`. Constants are named as in linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from netsetup import ownports
from netsetup.nftexpr import DROP, GOTO, number, verdict
from netsetup.rtnetlink import NLMSG_DONE, NLMSG_ERROR, attribute, attributes, framed, nested

NETLINK_NETFILTER, SUBSYSTEM = 12, 10
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, DELCHAIN, NEWRULE, GETRULE, DELRULE = range(9)
NEWSET, GETSET, DELSET, NEWSETELEM, GETSETELEM, DELSETELEM = range(9, 15)
BATCH_BEGIN, BATCH_END = 0x10, 0x11
REQUEST, ACK, CREATE, APPEND, DUMP, DUMP_INTERRUPTED = 1, 4, 0x400, 0x800, 0x300, 0x10
OWNER, PERSIST = 2, 4
SET_MAP, SET_TIMEOUT, SET_EVAL = 8, 0x10, 0x20
DATA_VERDICT = 0xFFFFFF00
IPV4, IPV6, PROTOCOL, PORT, INDEX = 7, 8, 12, 13, 19  # data types, which only matter to who prints them
ELEMENTS_BYTES = 60000  # of one message: an attribute's length has 16 bits
MARGIN = 500  # bytes: one element that leads to a chain is smaller
SNDBUF, RCVBUF = 128 << 20, 8 << 20  # bytes: a batch is one send, of 60 bytes per element
ATTEMPTS = 10  # to read what is changed meanwhile: a read takes a tenth of a second at most
TIMEOUT = 60.0  # seconds for one batch: a hundred thousand elements take a fraction of a second
SO_SNDBUFFORCE, SO_RCVBUFFORCE, NETLINK_CAP_ACK, SOL_NETLINK = 32, 33, 10, 270

Value = bytes | str | None  # of an element: a map's data, the chain to go to ("" to drop), None in a plain set


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain hooks in: `kind` `nat` or `filter`; `hook` 0 prerouting … 4 postrouting."""

    kind: str
    hook: int
    priority: int


@dataclass(frozen=True, slots=True)
class Set:
    """A set, or with `data` a map. `key` and `data`: the types of their parts; data () with `verdicts`: to verdicts.

    `timeout` in seconds: elements are put in by packets, and forgotten. `size`: how many elements it may hold; where
    that is known the kernel need not make room again and again while it is filled."""

    key: tuple[int, ...]
    data: tuple[int, ...] = ()
    verdicts: bool = False
    timeout: int = 0
    size: int = 65535


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule's expressions. `protocol`: what an xtables target in it needs the packet to be, 0 for anything; `comment`:
    kept beside it, of 254 bytes at most."""

    expressions: bytes
    protocol: int = 0
    comment: str = ""


def width(kinds: Iterable[int]) -> int:
    return sum(16 if kind == IPV6 else 4 for kind in kinds)


def _joined(kinds: Iterable[int]) -> int:
    code = 0
    for kind in kinds:
        code = code << 6 | kind
    return code


class Table:
    """One table of one family, and the batch being made for it. Use `commit` to send it."""

    def __init__(self, name: str, family: int = 4) -> None:
        self.name, self.family = name, family
        self._domain = socket.AF_INET6 if family == 6 else socket.AF_INET
        self._named = attribute(1, name)
        self._messages: list[bytes] = []
        self._sequence = 0
        self._sets = 0
        self.flags = OWNER | PERSIST
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        for option, size in ((SO_SNDBUFFORCE, SNDBUF), (SO_RCVBUFFORCE, RCVBUF)):
            try:
                self.socket.setsockopt(socket.SOL_SOCKET, option, size)
            except PermissionError:
                pass  # a user namespace's root: batches are bounded by what it has
        self.socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self.socket.settimeout(TIMEOUT)
        self.socket.bind((0, 0))
        ownports.add(self.socket.getsockname()[0])

    def close(self) -> None:
        self.socket.close()

    # -- what a batch holds ---------------------------------------------------------------------------------------

    def create(self) -> None:
        self._add(NEWTABLE, CREATE, self._named, number(2, self.flags))

    def destroy(self) -> None:
        self._add(DELTABLE, 0, self._named)

    def chain(self, name: str, hook: Hook | None = None) -> None:
        more = [nested(4, number(1, hook.hook), attribute(2, struct.pack(">i", hook.priority))),
                attribute(7, hook.kind)] if hook else []
        self._add(NEWCHAIN, CREATE, self._named, attribute(3, name), *more)

    def flush(self, chain: str) -> None:
        self._add(DELRULE, 0, self._named, attribute(2, chain))

    def delete_chain(self, name: str) -> None:
        self._add(DELCHAIN, 0, self._named, attribute(3, name))

    def rules(self, chain: str, rules: Iterable[Rule | bytes]) -> None:
        named = attribute(2, chain)
        for rule in rules:
            if isinstance(rule, bytes):
                rule = Rule(rule)
            parts = [self._named, named, nested(4, rule.expressions)]
            if rule.protocol:
                parts.append(_only(rule.protocol))
            if rule.comment:
                text = rule.comment.encode() + b"\0"
                parts.append(attribute(7, bytes((0, len(text))) + text))
            self._add(NEWRULE, CREATE | APPEND, *parts)

    def set(self, name: str, spec: Set) -> None:
        self._sets += 1
        flags = (SET_MAP if spec.data or spec.verdicts else 0) | (SET_TIMEOUT | SET_EVAL if spec.timeout else 0)
        parts = [self._named, attribute(2, name), number(3, flags), number(4, _joined(spec.key)),
                 number(5, width(spec.key))]
        if spec.verdicts:
            parts += [number(6, DATA_VERDICT), number(7, 16)]
        elif spec.data:
            parts += [number(6, _joined(spec.data)), number(7, width(spec.data))]
        parts.append(nested(9, number(1, spec.size)))
        parts.append(number(10, self._sets))
        if spec.timeout:
            parts.append(attribute(11, struct.pack(">Q", spec.timeout * 1000)))
        self._add(NEWSET, CREATE, *parts)

    def delete_set(self, name: str) -> None:
        self._add(DELSET, 0, self._named, attribute(2, name))

    def add(self, name: str, elements: Iterable[tuple[bytes, Value]]) -> None:
        self._elements(NEWSETELEM, CREATE, name, list(elements))

    def remove(self, name: str, keys: Iterable[bytes]) -> None:
        self._elements(DELSETELEM, 0, name, [(key, None) for key in keys])

    def _elements(self, kind: int, flags: int, name: str, elements: list[tuple[bytes, Value]]) -> None:
        for body in _encoded(elements):
            self._add(kind, flags, self._named, attribute(2, name), nested(3, body))

    def _add(self, kind: int, flags: int, *parts: bytes) -> None:
        self._messages.append(self._message(SUBSYSTEM << 8 | kind, flags, self._domain, b"".join(parts)))

    def _message(self, kind: int, flags: int, domain: int, body: bytes, resource: int = 0) -> bytes:
        self._sequence += 1
        return struct.pack("=IHHIIBBH", 20 + len(body), kind, REQUEST | flags, self._sequence, 0, domain, 0,
                           resource) + body

    # -- sending --------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """Forget the batch."""
        self._messages = []

    def commit(self) -> None:
        """Send the batch. Raises OSError with the first refusal; then nothing of it was done."""
        messages, self._messages = self._messages, []
        if not messages:
            return
        resource = socket.htons(SUBSYSTEM)
        begin = self._message(BATCH_BEGIN, 0, 0, b"", resource)
        # Every kernel acknowledges an ordinary message; not every one the end of a batch. An empty query comes last.
        end = self._message(BATCH_END, 0, 0, b"", resource)
        probe = self._message(SUBSYSTEM << 8 | GETTABLE, ACK, self._domain, self._named)
        last = self._sequence
        self.socket.send(b"".join([begin, *messages, end]))
        self.socket.send(probe)
        failed = 0
        while True:
            done = False
            for kind, _, sequence, body in framed(self.socket.recv(1 << 18)):
                if kind != NLMSG_ERROR:
                    done = done or sequence == last
                    continue
                failed = failed or (-struct.unpack_from("=i", body)[0] if sequence != last else 0)
                done = done or sequence == last
            if done:
                break
        self._drain()
        if failed:
            raise OSError(failed, os.strerror(failed), f"nf_tables table {self.name}")

    def _drain(self) -> None:
        self.socket.setblocking(False)
        try:
            while True:
                self.socket.recv(1 << 18)
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(TIMEOUT)

    # -- reading --------------------------------------------------------------------------------------------------

    def holds(self) -> int:
        """How many chains and sets the table holds; -1 when there is no table."""
        self.socket.send(self._message(SUBSYSTEM << 8 | GETTABLE, 0, self._domain, self._named))
        for kind, _, _, body in framed(self.socket.recv(1 << 16)):
            if kind == NLMSG_ERROR:
                number_ = -struct.unpack_from("=i", body)[0]
                if number_ != errno.ENOENT:
                    raise OSError(number_, os.strerror(number_), f"nf_tables table {self.name}")
                return -1
            return int(struct.unpack(">I", attributes(body, 4)[3])[0])
        return -1

    def elements(self, name: str) -> dict[bytes, Value]:
        """A set's elements. Raises OSError ENOENT without the set."""
        found: dict[bytes, Value] = {}
        for parts in self._dump(GETSETELEM, self._named + attribute(2, name)):
            for _, element in _nested(parts.get(3, b"")):
                given = attributes(element, 0)
                found[attributes(given[1], 0)[1]] = _value(given.get(2))
        return found

    def chains(self) -> dict[str, tuple[bytes, ...]]:
        """Every chain that has rules, with the expressions of each. Raises OSError."""
        found: dict[str, tuple[bytes, ...]] = {}
        for parts in self._dump(GETRULE, self._named):
            name = _text(parts[2])
            found[name] = (*found.get(name, ()), parts.get(4, b""))
        return found

    def uses(self) -> dict[tuple[str, str], int]:
        """Of every chain (table, chain) of the family, also others': how many rules it has and how many lead to it.

        Raises OSError."""
        return {(_text(parts[1]), _text(parts[3])): struct.unpack(">I", parts[6])[0]
                for parts in self._dump(GETCHAIN, b"")}

    def _dump(self, kind: int, body: bytes) -> list[dict[int, bytes]]:
        """What the kernel has, all at one time: it tells when somebody changed something while it answered."""
        for _ in range(ATTEMPTS):
            self.socket.send(self._message(SUBSYSTEM << 8 | kind, DUMP, self._domain, body))
            found, steady = self._answers()
            if steady:
                return found
        raise OSError(errno.EINTR, "rules change faster than they can be read", f"nf_tables table {self.name}")

    def _answers(self) -> tuple[list[dict[int, bytes]], bool]:
        found: list[dict[int, bytes]] = []
        steady = True
        while True:
            for answer, flags, _, content in framed(self.socket.recv(1 << 18)):
                steady = steady and not flags & DUMP_INTERRUPTED
                if answer == NLMSG_DONE:
                    return found, steady
                if answer == NLMSG_ERROR:
                    failed = -struct.unpack_from("=i", content)[0]
                    raise OSError(failed, os.strerror(failed), f"nf_tables table {self.name}")
                found.append(attributes(content, 4))


def _nested(data: bytes) -> Iterable[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x7FFF, data[offset + 4:offset + length]
        offset += (length + 3) & ~3


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()


def _value(data: bytes | None) -> Value:
    """An element's data as `add` takes it."""
    if data is None:
        return None
    parts = attributes(data, 0)
    return parts[1] if 1 in parts else _text(attributes(parts[2], 0).get(2, b""))


_KEY = struct.Struct("=HHHHHH")
_PLAIN = struct.Struct("=HHHH")


def _encoded(elements: list[tuple[bytes, Value]]) -> Iterator[bytes]:
    """The lists of elements of one set, each as large as an attribute may be.

    Elements of a set have the same sizes, unless they lead to chains; so all that surrounds keys and data is made once.
    Keys and data have whole words: nothing needs padding."""
    if not elements:
        return
    key, value = elements[0]
    if isinstance(value, str):
        yield from _leading(elements)
        return
    size, data = len(key), len(value) if value is not None else 0
    between = _PLAIN.pack(8 + data, 0x8002, 4 + data, 1) if data else b""
    head = _KEY.pack(12 + size + len(between) + data, 0x8001, 8 + size, 0x8001, 4 + size, 1)
    many = ELEMENTS_BYTES // (len(head) + size + len(between) + data)
    for start in range(0, len(elements), many):
        part = elements[start:start + many]
        yield head + head.join([k + between + v if isinstance(v, bytes) else k for k, v in part])


def _leading(elements: list[tuple[bytes, Value]]) -> Iterator[bytes]:
    """The same of elements that lead to chains."""
    made: list[bytes] = []
    room = ELEMENTS_BYTES
    for key, value in elements:
        body, size = _target(str(value)), len(key)
        made.append(_KEY.pack(12 + size + len(body), 0x8001, 8 + size, 0x8001, 4 + size, 1) + key + body)
        room -= len(made[-1])
        if room < MARGIN:
            yield b"".join(made)
            made, room = [], ELEMENTS_BYTES
    yield b"".join(made)


@lru_cache(maxsize=1024)  # of the few shared chains that most elements lead to
def _target(chain: str) -> bytes:
    """The data of an element that leads to a chain; "" drops."""
    return nested(2, verdict(GOTO, chain) if chain else verdict(DROP))


@lru_cache(maxsize=8)
def _only(protocol: int) -> bytes:
    """What an xtables target is told of the packets that come to it."""
    return nested(5, number(1, protocol), number(2, 0))


def delete(name: str, families: Sequence[int] = (4, 6)) -> int:
    """Remove the table of each family; how many there were. Raises OSError."""
    gone = 0
    for family in families:
        table = Table(name, family)
        try:
            if table.holds() < 0:
                continue
            for flags in (OWNER | PERSIST, 0):
                table.flags = flags
                table.create()
                table.destroy()
                try:
                    table.commit()
                    gone += 1
                    break
                except OSError:
                    if not flags:
                        raise
        finally:
            table.close()
    return gone

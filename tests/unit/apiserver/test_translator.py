"""WebSockets translated to SPDY: the framings whatever the cuts, and a client and a node on both ends of a server."""

import asyncio
import contextlib
import json
import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver.request import Query
from controlplane.apiserver.streaming import spdy, websocket
from controlplane.apiserver.streaming.translation import COMMAND, FORWARD, Command, Tunnel, of
from controlplane.apiserver.streaming.tunnel import status_of
from controlplane.machinery.errors import BadRequest
from tests.unit.apiserver.test_streams import BULK, Node, forgotten, playing

PODS = "GET /api/v1/namespaces/ns/pods/p"
ASKED = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
         "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: ")
STATUS = b'{"status":"Failure","reason":"NonZeroExitCode"}'


def message(data, opcode=websocket.BINARY):
    """What a client sends: masked."""
    plain, mask = websocket.frame(opcode, data), os.urandom(4)
    head = len(plain) - len(data)
    return plain[:1] + bytes((plain[1] | 0x80,)) + plain[2:head] + mask + websocket.unmask(mask, data)[0]


def cut(data, sizes):
    for size in sizes:
        yield data[:size]
        data = data[size:]
    yield data


@given(st.lists(st.binary(max_size=300), max_size=5), st.lists(st.integers(0, 200), max_size=20))
def test_messages_are_read_whatever_the_cuts(contents, sizes):
    reader, seen = websocket.Reader(), []
    for part in cut(b"".join(map(message, contents)), sizes):
        for piece in reader.feed(part):
            if piece.first:
                seen.append(b"")
            seen[-1] += piece.data
    assert seen == contents


@pytest.mark.parametrize("broken", [b"\x82\x01a", b"\xf2\x80\0\0\0\0", b"\x80\x80\0\0\0\0", b"\x09\x80\0\0\0\0",
                                    b"\x89\xfe\0\0\0\0\0\0"])
def test_what_no_client_may_send_is_refused(broken):
    with pytest.raises(ValueError, match="frame"):
        list(websocket.Reader().feed(broken))


@given(st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=300), st.booleans()), max_size=5),
       st.lists(st.integers(0, 200), max_size=20))
def test_frames_are_read_whatever_the_cuts(sent, sizes):
    stream = b"".join(spdy.data(*one) + spdy.control(spdy.PING, b"\0\0\0\2") for one in sent)
    reader, seen = spdy.Reader(), []
    for part in cut(stream, sizes):
        for frame in reader.feed(part):
            if frame.kind == spdy.PING:
                seen.append(None)
            elif seen and seen[-1]:
                assert seen[-1][0] == frame.stream and not seen[-1][2]
                seen[-1] = (frame.stream, seen[-1][1] + frame.data, frame.last)
            else:
                seen.append((frame.stream, frame.data, frame.last))
    assert seen == [one for each in sent for one in (each, None)]


def test_streams_are_opened_as_the_protocol_has_it():
    assert zlib.adler32(spdy.DICTIONARY) == 0xe3c6a7c2  # of draft 3.1
    opener, inflate = spdy.Opener(), zlib.decompressobj(zdict=spdy.DICTIONARY)
    for number, name in ((1, b"error"), (3, b"stdin")):
        stream, opening = opener.open({"streamtype": name.decode()})
        assert stream == number and opening[:4] == b"\x80\x03\x00\x01"
        (frame,) = spdy.Reader().feed(opening)
        assert frame.stream == number
        block = inflate.decompress(frame.data[10:])
        assert block == b"\0\0\0\1\0\0\0\x0astreamtype" + len(name).to_bytes(4, "big") + name
    with pytest.raises(ValueError, match="SPDY"):
        list(spdy.Reader().feed(b"\x80\x02\0\1\0\0\0\0"))
    with pytest.raises(ValueError, match="SPDY"):
        list(spdy.Reader().feed(b"\x80\x03\0\1\0\xff\xff\xff"))


def test_channels_are_streams():
    command = Command({"stdin", "stdout", "stderr", "tty"})  # a terminal has no stderr
    assert [f.stream for f in spdy.Reader().feed(command.start())] == [1, 3, 5, 7]  # error, stdin, stdout, resize
    for stream in (1, 3, 5):
        assert command.from_node(spdy.control(spdy.SYN_REPLY, stream.to_bytes(4, "big"))) == (b"", b"")
    assert not command.ready
    ping = spdy.control(spdy.PING, b"\0\0\0\2")
    assert command.from_node(spdy.control(spdy.SYN_REPLY, b"\0\0\0\7") + ping) == (b"\x82\1\1", ping)
    assert command.ready
    sent = message(b"\0typed") + message(b'\4{"Width":1}') + message(b"\2no") + message(b"hi", websocket.PING)
    assert command.from_client(sent) == (spdy.data(3, b"typed") + spdy.data(7, b'{"Width":1}'), b"\x8a\2hi")
    assert command.from_client(message(b"\xff\0") + message(b"\0late")) == (spdy.data(3, b"", last=True), b"")
    assert command.from_node(spdy.data(5, b"out", last=True) + spdy.data(1, STATUS)) == (b"\x82\4\1out", b"")
    assert not command.over
    command.from_node(spdy.control(spdy.RST_STREAM, b"\0\0\0\1\0\0\0\5"))
    assert command.over and command.end() == websocket.frame(2, b"\3" + STATUS) + b"\x88\2\x03\xe8"
    assert not command.closed
    command.from_client(message(b"\x03\xe8", websocket.CLOSE))
    assert command.closed


def test_a_status_that_never_came_is_told():
    lost, done = Command({"stdout"}), Command({"stdout"})
    assert b"error reading from error stream" in lost.end()
    done.from_node(spdy.data(1, b"", last=True))
    assert json.loads(done.end()[3:-4])["status"] == "Success"


def test_only_what_runtimes_do_not_speak_is_translated():
    def chosen(subresource, offered, upgrade="websocket"):
        return of({"Upgrade": upgrade, "Sec-WebSocket-Key": "k", "Sec-WebSocket-Protocol": offered}, subresource,
                  Query("stdout=true"))

    assert isinstance(chosen("exec", f"a, {COMMAND}"), Command) and isinstance(chosen("portforward", FORWARD), Tunnel)
    assert chosen("exec", f"v4.channel.k8s.io,{COMMAND}").subprotocol == "v4.channel.k8s.io"
    assert chosen("attach", "").subprotocol == ""
    assert chosen("exec", "mine") is chosen("portforward", COMMAND) is chosen("attach", COMMAND, "SPDY/3.1") is None


def test_older_subprotocols_are_spoken():
    def play(subprotocol, sent, status):
        command = Command({"stdin", "stdout"}, subprotocol)
        heard = b""
        for stream in (1, 3, 5):
            heard += command.from_node(spdy.control(spdy.SYN_REPLY, stream.to_bytes(4, "big")))[0]
        typed = b"".join(command.from_client(part)[0] for part in cut(sent, [9, 1]))
        heard += command.from_node(spdy.data(5, b"out", last=True) + spdy.data(1, status, last=True))[0]
        return typed, heard + command.end()
    failed = b'{"status":"Failure","message":"no"}'
    typed, heard = play("v4.channel.k8s.io", message(b"\0typed") + message(b"\xff\0"), failed)
    assert typed == b"".join(spdy.data(3, part) for part in (b"ty", b"p", b"ed"))  # and nothing of closing
    assert heard == b"".join(websocket.frame(2, m) for m in (b"\1", b"\1out", b"\3" + failed)) + b"\x88\2\x03\xe8"
    typed, heard = play("base64.channel.k8s.io", message(b"0dHlwZWQ=", websocket.TEXT), failed)
    assert typed == spdy.data(3, b"typed")
    assert heard == b"".join(websocket.frame(1, m) for m in (b"1", b"1b3V0", b"3bm8=")) + b"\x88\2\x03\xe8"
    assert play("", b"", b'{"status":"Success"}')[1] == websocket.frame(2, b"\1") + websocket.frame(
        2, b"\1out") + b"\x88\2\x03\xe8"


def test_nodes_are_pinged_and_their_answers_not_answered():
    command = Command({"stdout"})
    assert [f.stream for f in spdy.Reader().feed(command.ping() + command.ping())] == [1, 3]
    assert command.from_node(command.ping()) == (b"", b"")


def test_ports_are_pairs_of_channels():
    forward = of({"Upgrade": "websocket", "Sec-WebSocket-Key": "k", "Sec-WebSocket-Protocol": "v4.channel.k8s.io"},
                 "portforward", Query("ports=80,8080"))
    inflate, opened = zlib.decompressobj(zdict=spdy.DICTIONARY), []
    for frame in spdy.Reader().feed(forward.start()):
        block = inflate.decompress(frame.data[10:])
        opened.append((frame.stream, *(word in block for word in (b"error", b"data", b"8080"))))
    assert opened == [(1, True, False, False), (3, False, True, False), (5, True, False, True), (7, False, True, True)]
    heard = [forward.from_node(spdy.control(spdy.SYN_REPLY, stream.to_bytes(4, "big")))[0] for stream in (1, 3, 5, 7)]
    assert heard == [b"", b"", b"", b"".join(websocket.frame(2, m) for m in (
        b"\0\x50\0", b"\1\x50\0", b"\2\x90\x1f", b"\3\x90\x1f"))] and forward.ready
    assert forward.from_client(message(b"\0one") + message(b"\2two") + message(b"\3no") + message(b"\x09no"))[0] \
        == spdy.data(3, b"one") + spdy.data(7, b"two")
    assert forward.from_node(spdy.data(7, b"back", last=True) + spdy.data(1, b"refused", last=True))[0] \
        == websocket.frame(2, b"\2back") + websocket.frame(2, b"\1refused")
    assert not forward.over
    forward.from_node(spdy.data(3, b"", last=True) + spdy.data(5, b"", last=True))
    assert forward.over and forward.end() == b"\x88\2\x03\xe8"


@pytest.mark.parametrize(("query", "why"), [
    ("", "is required"), ("ports=", "cannot be empty"), ("ports=80,x", 'parsing "x": invalid syntax'),
    ("ports=70000", "value out of range"), ("ports=0", 'port "0" must be > 0')])
def test_ports_stand_in_the_query(query, why):
    with pytest.raises(BadRequest, match=why):
        of({"Upgrade": "websocket", "Sec-WebSocket-Key": "k"}, "portforward", Query(query))


class Spdy(Node):
    """A kubelet that speaks SPDY: what comes on stdin goes to stdout, and stdin's end ends the command. A forwarded
    port echoes."""

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
            frames = spdy.Reader()
            while data := await reader.read(65536):
                if "/portForward" in head and "port=" not in head:
                    writer.write(data)
                else:
                    for frame in frames.feed(data):
                        self.answer(frame, writer)
                await writer.drain()
        writer.close()

    def answer(self, frame, writer):
        error, stdin, stdout = 1, 3, 5
        if frame.kind == spdy.SYN_STREAM:
            writer.write(spdy.control(spdy.SYN_REPLY, frame.data[:4]))
        elif frame.kind == spdy.DATA and frame.stream == stdin:
            writer.write(spdy.data(stdout, frame.data, frame.last))
            if frame.last:
                writer.write(spdy.data(error, STATUS, last=True))


async def received(reader):
    """The next message from the server: opcode and data."""
    head = await reader.readexactly(2)
    size = head[1]
    if size > 125:
        size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
    return head[0] & 15, await reader.readexactly(size)


def test_a_command_over_a_websocket(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect(f"{PODS}/exec?command=cat&stdin=true&stdout=true", f"{ASKED}{COMMAND}\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101") and f"Sec-WebSocket-Protocol: {COMMAND}".encode() in head
        assert node.heads[0].startswith("POST /exec/ns/p/c?command=cat&input=1&output=1 ")
        assert "X-Stream-Protocol-Version: v4.channel.k8s.io" in node.heads[0] and "WebSocket" not in node.heads[0]
        assert await received(reader) == (2, b"\1")
        content = os.urandom(BULK)

        async def send():
            for start in range(0, BULK, 32768):
                writer.write(message(b"\0" + content[start:start + 32768]))
                await writer.drain()
            writer.write(message(b"\xff\0"))

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            seen, status = bytearray(), b""
            while not status:
                _, data = await received(reader)
                if data[0] == 1:
                    seen += data[1:]
                else:
                    status = data
        assert seen == content and status == b"\3" + STATUS
        assert await received(reader) == (8, b"\x03\xe8")
        writer.write(message(b"\x03\xe8", websocket.CLOSE))
        assert await reader.read() == b""
        writer.close()
        await forgotten(server)

    playing(tmp_path, play, Spdy)


def test_a_forwarded_port_over_a_websocket(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect(f"{PODS}/portforward", f"{ASKED}{FORWARD}\r\n")
        assert f"Sec-WebSocket-Protocol: {FORWARD}".encode() in await reader.readuntil(b"\r\n\r\n")
        assert "X-Stream-Protocol-Version: portforward.k8s.io" in node.heads[0]
        writer.write(message(b"over") + message(b" and out"))
        seen = b""
        while seen != b"over and out":
            seen += (await received(reader))[1]
        writer.transport.abort()
        await forgotten(server)

    playing(tmp_path, play, Spdy)


class Port(Spdy):
    """A kubelet whose pod sends back what it gets on a port, and hangs up after `bye`."""

    def answer(self, frame, writer):
        error, port = 1, 3
        if frame.kind == spdy.SYN_STREAM:
            writer.write(spdy.control(spdy.SYN_REPLY, frame.data[:4]))
        elif frame.kind == spdy.DATA and frame.stream == port and frame.data:
            writer.write(spdy.data(port, frame.data, last=frame.data == b"bye"))
            if frame.data == b"bye":
                writer.write(spdy.data(error, b"", last=True))


def test_ports_over_a_websocket_reach_a_node_that_speaks_spdy(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect(f"{PODS}/portforward?ports=80", f"{ASKED}v4.channel.k8s.io\r\n")
        assert b"Sec-WebSocket-Protocol: v4.channel.k8s.io" in await reader.readuntil(b"\r\n\r\n")
        assert node.heads[0].startswith("POST /portForward/ns/p?port=80 ")
        assert "X-Stream-Protocol-Version: portforward.k8s.io" in node.heads[0] and "WebSocket" not in node.heads[0]
        assert [await received(reader) for _ in range(2)] == [(2, b"\0\x50\0"), (2, b"\1\x50\0")]
        for content in (b"there", b"bye"):
            writer.write(message(b"\0" + content))
            assert await received(reader) == (2, b"\0" + content)
        assert await received(reader) == (8, b"\x03\xe8")
        writer.write(message(b"\x03\xe8", websocket.CLOSE))
        assert await reader.read() == b""
        writer.close()
        await forgotten(server)

    playing(tmp_path, play, Port)


def test_a_refused_websocket_is_answered(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect(f"{PODS}/portforward", f"{ASKED}{FORWARD}\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
        assert await reader.readexactly(9) == b"not here\n"
        writer.close()

    playing(tmp_path, play)


def test_a_node_that_is_lost_ends_the_command_with_a_status(tmp_path, monkeypatch):
    monkeypatch.setattr("controlplane.apiserver.server.STOP_SECONDS", 0.1)
    taken = []

    class Dying(Spdy):
        async def serve(self, reader, writer):
            taken.append(writer)
            await super().serve(reader, writer)

    async def play(node, connect, server, listener):
        for ending in (lambda: taken[-1].transport.abort(), None):
            reader, writer = await connect(f"{PODS}/attach?stdin=true&stdout=true", f"{ASKED}{COMMAND}\r\n")
            await reader.readuntil(b"\r\n\r\n")
            assert await received(reader) == (2, b"\1")
            if ending is None:
                await server.stop()
            else:
                ending()
                assert b"error reading from error stream" in (await received(reader))[1]
                assert (await received(reader))[0] == websocket.CLOSE
                writer.close()
        assert await reader.read() == b""
        writer.close()

    playing(tmp_path, play, Dying)


async def told(reader):
    """What a refused client is told: after the answer and a sign of life, the status and the goodbye."""
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    assert await received(reader) == (2, b"\1")
    _, status = await received(reader)
    assert status[:1] == b"\3" and await received(reader) == (8, b"\x03\xe8")
    return json.loads(status[1:])


@pytest.mark.parametrize(("answer", "why"), [
    (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "before it accepted the streams"),
    (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nnot here\n", "unable to upgrade connection: not here"),
])
def test_a_refusal_is_told_as_the_subprotocol_has_it(tmp_path, answer, why):
    class Refusing(Node):
        async def serve(self, reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

    async def play(node, connect, server, listener):
        reader, writer = await connect(f"{PODS}/exec?stdout=true", f"{ASKED}{COMMAND}\r\n")
        status = await told(reader)
        assert (status["reason"], status["code"]) == ("InternalError", 500) and why in status["message"]
        assert why in status["details"]["causes"][0]["message"]
        writer.write(message(b"\x03\xe8", websocket.CLOSE))
        assert await reader.read() == b""
        writer.close()
        reader, writer = await connect(f"{PODS}/exec?stdout=true", f"{ASKED}v4.channel.k8s.io\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).split()[1] in (b"500", b"403")  # no subprotocol was agreed on yet
        writer.close()
        listener.close()
        reader, writer = await connect(f"{PODS}/exec?stdout=true", f"{ASKED}{COMMAND}\r\n")
        assert 'error sending request: Post "https://127.0.0.1:' in (await told(reader))["message"]
        writer.transport.abort()
        await forgotten(server)

    playing(tmp_path, play, Refusing)


def test_a_nodes_own_status_is_passed_on():
    own = {"kind": "Status", "reason": "Forbidden", "code": 403}
    assert status_of(json.dumps(own).encode()) == own
    assert status_of(b"[]")["message"] == "Internal error occurred: unable to upgrade connection: []"

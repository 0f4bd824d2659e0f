"""Streams through a real server to a node that speaks TLS: tunnels, logs, refusals, and the proxies."""

import asyncio
import contextlib
import gzip
import ssl

import pytest

from controlplane.apiserver.config import Options
from controlplane.apiserver.request import Query
from controlplane.apiserver.server import Server
from controlplane.apiserver.streaming import websocket
from controlplane.apiserver.streaming.streams import (
    checked,
    container_of,
    kubelet_query,
    log_causes,
    port_name,
    split_name,
)
from controlplane.apiserver.streaming.tunnel import unchunked
from controlplane.machinery.errors import BadRequest, ServiceUnavailable
from controlplane.machinery.paths import Paths
from controlplane.pki.cluster import ensure
from tests.unit.apiserver.edge import put

EXEC = "/api/v1/namespaces/ns/pods/p/exec?command=sh&command=-c&stdin=true&stdout=true&stderr=false&tty=true"
SPDY = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
BULK = 3_000_000  # bytes: more than all buffers on the way hold
DEADLINE = 20.0


class Node:
    """A kubelet that answers by path, asks for the apiserver's certificate and remembers the heads it got."""

    def __init__(self, pki):
        self.heads = []
        self.peers = []
        self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.crt"))
        self.tls.load_cert_chain(pki / "kubelet.crt", pki / "kubelet.key")
        self.tls.verify_mode = ssl.CERT_REQUIRED

    async def serve(self, reader, writer):
        with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            self.peers.append(writer.get_extra_info("peercert"))
            path = head.split()[1]
            if path.startswith("/exec"):
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\nhi ")
                while data := await reader.read(65536):
                    if data == b"bye":
                        break
                    writer.write(data)
                    await writer.drain()
            elif path.startswith("/portForward"):
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
                             b"4\r\nnot \r\n5\r\nhere\n\r\n0\r\n\r\n")
            elif "waiting" in path:
                body = b'container "c" in pod "p" is waiting to start: ContainerCreating'
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            elif path.startswith("/pages"):
                page = b'<a href="/next">%b</a>' % (b"long" * (1 << 19) if path == "/pages/long" else b"short")
                packed = gzip.compress(page) if path == "/pages/packed" else page
                encoding = b"Content-Encoding: gzip\r\n" if packed is not page else b""
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n%b"
                             b"Content-Length: %d\r\n\r\n%b" % (encoding, len(packed), packed))
                await writer.drain()
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n")
                await writer.drain()
                await reader.read(1)  # a followed log: the rest comes when the apiserver has gone
        writer.close()


def playing(tmp_path, play, made=Node):
    """Run `play(node, connect, server)` with a server and a node behind it."""
    ensure(Paths(tmp_path), "n1", "127.0.0.1")
    pki = Paths(tmp_path).pki
    options = Options(secure_port=0, bind_address="127.0.0.1", storage="memory", advertise_address="127.0.0.1",
                      kubelet_client_certificate=pki / "apiserver-kubelet-client.crt",
                      kubelet_client_key=pki / "apiserver-kubelet-client.key",
                      kubelet_certificate_authority=pki / "ca.crt")

    async def run():
        from controlplane.store.memory import MemoryLog
        node, server = made(pki), Server(options, MemoryLog())
        listener = await asyncio.start_server(node.serve, "127.0.0.1", 0, ssl=node.tls)
        port = listener.sockets[0].getsockname()[1]
        await server.start()
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
               "spec": {"nodeName": "n1", "containers": [{"name": "c"}]}}
        machine = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "n"}, "status": {
            "addresses": [{"type": "Hostname", "address": "nowhere.invalid"},
                          {"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}
        await put(server.context, "pods", pod)
        await put(server.context, "nodes", machine)

        async def connect(request_line, headers=""):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{request_line} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic secret\r\n{headers}\r\n".encode())
            return reader, writer

        try:
            async with asyncio.timeout(DEADLINE):
                await play(node, connect, server, listener)
        finally:
            listener.close()
            await server.stop()
    asyncio.run(run())


async def forgotten(server):
    """Until the server keeps nothing of connections that were taken over; the caller's deadline bounds it."""
    while server._web.connections:  # noqa: ASYNC110 - the library tells nobody
        await asyncio.sleep(0.01)


def test_exec_is_a_tunnel_with_backpressure_and_an_end(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("POST " + EXEC, SPDY)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        assert await reader.readexactly(3) == b"hi "
        head = node.heads[0]
        assert head.startswith("POST /exec/ns/p/c?command=sh&command=-c&input=1&output=1&tty=1 HTTP/1.1")
        assert "X-Stream-Protocol-Version: v4.channel.k8s.io" in head and "secret" not in head
        assert "kube-apiserver-kubelet-client" in str(node.peers[0])

        async def send():
            writer.write(b"x" * BULK)
            await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(send())
            assert len(await reader.readexactly(BULK)) == BULK
        writer.write(b"bye")
        assert await reader.read() == b""  # the node ended it
        writer.close()
        await forgotten(server)

    playing(tmp_path, play)


def test_a_client_that_leaves_ends_the_nodes_side(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("POST " + EXEC, SPDY)
        await reader.readuntil(b"hi ")
        task = next(t for t in asyncio.all_tasks() if "Node.serve" in repr(t))
        writer.transport.abort()
        await task  # it reads until its connection ends
        await forgotten(server)

    playing(tmp_path, play)


def test_a_stop_ends_open_tunnels(tmp_path, monkeypatch):
    monkeypatch.setattr("controlplane.apiserver.server.STOP_SECONDS", 0.1)

    async def play(node, connect, server, listener):
        reader, writer = await connect("POST " + EXEC, SPDY)
        await reader.readuntil(b"hi ")
        await server.stop()
        assert await reader.read() == b""
        writer.close()

    playing(tmp_path, play)


def test_a_refused_upgrade_is_answered_and_the_connection_goes_on(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("POST /api/v1/namespaces/ns/pods/p/portforward?ports=80", SPDY)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403") and await reader.readexactly(9) == b"not here\n"
        assert node.heads[0].startswith("POST /portForward/ns/p?port=80 ")
        writer.close()
        reader, writer = await connect("GET /api/v1/namespaces/ns/pods/p/exec")
        assert b"400" in await reader.readline()
        writer.close()

    playing(tmp_path, play)


def test_logs_flow_as_they_come_and_errors_are_the_kubelets_words(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("GET /api/v1/namespaces/ns/pods/p/log?follow=true&tailLines=1")
        assert b"Content-Type: text/plain\r\n" in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"one\n") == b"4\r\none\n"  # although the log has not ended
        assert node.heads[0].startswith("GET /containerLogs/ns/p/c?follow=true&tailLines=1 ")
        writer.close()
        reader, writer = await connect("GET /api/v1/namespaces/ns/pods/p/log?sinceTime=waiting")
        answer = await reader.readuntil(b'"code":400}')
        assert b'"reason":"BadRequest"' in answer and b"is waiting to start: ContainerCreating" in answer
        writer.close()
        listener.close()
        await server.streams.close()
        reader, writer = await connect("GET /api/v1/namespaces/ns/pods/p/exec?command=a", SPDY)
        answer = await reader.readuntil(b'"code":500}')
        assert b"error dialing backend: dial tcp 127.0.0.1:" in answer and b"connect: connection refused" in answer
        writer.close()

    playing(tmp_path, play)


def test_logs_over_a_websocket(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("GET /api/v1/namespaces/ns/pods/p/log", (
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary.k8s.io\r\n"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head  # the example of RFC 6455
        assert await reader.readexactly(8) == b"\x82\x00\x82\x04one\n"
        writer.close()

    playing(tmp_path, play)
    assert websocket.frame(websocket.BINARY, b"x" * 200)[:4] == b"\x82\x7e\x00\xc8"


def test_the_proxy_to_a_node_passes_what_it_should(tmp_path):
    async def play(node, connect, server, listener):
        reader, writer = await connect("GET /api/v1/nodes/n1/proxy/metrics?a=b%20c")
        await reader.readuntil(b"one\n")
        assert node.heads[0].startswith("GET /metrics?a=b%20c ")
        assert "secret" not in node.heads[0] and "Accept-Encoding" not in node.heads[0]
        writer.close()
        reader, writer = await connect("GET /api/v1/nodes/n1/proxy?q=1")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 301 " in answer and b"Location: /api/v1/nodes/n1/proxy/?q=1\r\n" in answer
        writer.close()

    playing(tmp_path, play)


def test_links_of_proxied_pages_lead_back_through_the_proxy(tmp_path):
    async def play(node, connect, server, listener):
        for name in ("plain", "packed"):
            reader, writer = await connect(f"GET /api/v1/nodes/n1/proxy/pages/{name}")
            assert b"Content-Encoding" not in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readuntil(b"</a>") == b'<a href="/api/v1/nodes/n1/proxy/next">short</a>'
            writer.close()
        reader, writer = await connect("GET /api/v1/nodes/n1/proxy/pages/long")
        await reader.readuntil(b"\r\n\r\n")
        assert b'<a href="/next">longlong' in await reader.readuntil(b"longlong")
        writer.close()

    playing(tmp_path, play)


def test_options_of_logs_are_judged_before_a_node_is_asked():
    assert log_causes(Query("tailLines=0&limitBytes=1&sinceSeconds=1&follow=true")) == []
    found = log_causes(Query("tailLines=-1&limitBytes=0&sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z"))
    assert [(c.field, c.message.rpartition(": ")[2]) for c in found] == [
        ("tailLines", "must be greater than or equal to 0"), ("limitBytes", "must be greater than 0"),
        ("", "at most one of `sinceTime` or `sinceSeconds` may be specified")]
    with pytest.raises(BadRequest, match='parsing "many": invalid syntax'):
        log_causes(Query("tailLines=many"))


def test_which_container_is_meant():
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
                                               "initContainers": [{"name": "i"}]}}
    assert container_of(pod, "i") == "i"
    with pytest.raises(BadRequest, match="container x is not valid for pod p"):
        container_of(pod, "x")
    with pytest.raises(BadRequest, match=r"choose one of: \[a b\] or one of the init containers: \[i\]"):
        container_of(pod, "")
    pod["metadata"]["annotations"] = {"kubectl.kubernetes.io/default-container": "b"}
    assert container_of(pod, "") == "b"


def test_names_queries_and_ports():
    assert kubelet_query(Query("container=c&command=true&stdin=true&stdout=false")) == "?command=true&input=1"
    assert split_name("https:web:443", "pod") == ("https", "web", "443")
    assert split_name("web:http", "service") == ("", "web", "http")
    with pytest.raises(BadRequest, match=r'^invalid service request "ftp:web:1"$'):
        split_name("ftp:web:1", "service")
    service = {"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}}
    assert port_name(service, "80") == port_name(service, "http") == port_name(service, "") == "http"
    with pytest.raises(ServiceUnavailable, match='no service port "81" found for service "web"'):
        port_name(service, "81")
    with pytest.raises(BadRequest, match="address not allowed"):
        checked("169.254.169.254")
    assert unchunked(b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n") == b"abcd"

"""Whatever comes over a socket is answered with a right code or a closed connection: never a 500, a stack trace, or a
write that was answered with an error."""

import asyncio
import contextlib
import logging
import socket
import threading

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.apiserver.harness import config_map, serving

SECONDS = 5.0  # for one answer
# 503: a proxied backend that cannot be reached; 501 is the HTTP library's for unknown upgrades
RIGHT = {200, 201, 301, 304, 400, 401, 403, 404, 405, 406, 409, 410, 411, 413, 414, 415, 417, 422, 429, 431, 501, 503}


@pytest.fixture(scope="module")
def server():
    """(address, server): one server with a few objects, in a thread of its own."""
    ready, found = threading.Event(), {}

    async def main():
        async with serving() as api:
            for name in ("a", "b"):
                await api.made("/api/v1/namespaces/default/configmaps", config_map(name))
            found.update(server=api.server, loop=asyncio.get_running_loop(), stop=asyncio.Event())
            ready.set()
            await found["stop"].wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(20)
    yield ("127.0.0.1", found["server"].port), found["server"]
    found["loop"].call_soon_threadsafe(found["stop"].set)
    thread.join(20)


def exchange(address, data, half_close):
    """What the server sends back until it closes, or is silent after a whole answer."""
    with socket.create_connection(address, SECONDS) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
            if half_close:
                sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            sock.settimeout(SECONDS if half_close else 0.5)
            while piece := sock.recv(65536):
                answer += piece
                head, end, body = answer.partition(b"\r\n\r\n")
                if end and complete(head.lower(), body):
                    break
        return answer


def until_closed(address, data):
    """All the server sends until it closes the connection."""
    with socket.create_connection(address, SECONDS) as sock:
        sock.sendall(data)
        return b"".join(iter(lambda: sock.recv(65536), b""))


def complete(head, body):
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    return body.endswith(b"0\r\n\r\n")


def judge(server, answer, before, caplog):
    assert b"Traceback" not in answer and b'File "' not in answer
    failed = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert not failed, [r.getMessage() for r in failed]
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    if not answer:
        return 0
    assert answer.startswith(b"HTTP/1."), answer[:200]
    status = int(answer.split(b" ", 2)[1])
    assert status in RIGHT, answer[:2000]
    head, _, body = answer.partition(b"\r\n\r\n")
    if status >= 400 and b"application/json" in head and body.startswith(b"{"):
        told = orjson.loads(body)
        assert told["kind"] == "Status" and told["code"] == status and told["status"] == "Failure"
    if status >= 400 or status in (301, 304):
        assert server.cache.revision == before, answer
    return status


words = st.sampled_from([
    "api", "apis", "v1", "apps", "namespaces", "default", "configmaps", "a", "pods", "status", "log", "exec", "proxy",
    "watch", "deployments", "scale", "nodes", "", "..", "%2e%2e", "%00", "%zz", "é", "a" * 300, "openapi", "v3", "why",
    "events", "secrets", "services", "customresourcedefinitions", "apiextensions.k8s.io", "token", "finalize"])
paths = st.one_of(
    st.lists(words, max_size=8).map(lambda parts: "/" + "/".join(parts)),
    st.tuples(st.sampled_from(["configmaps", "pods", "secrets", "services", "events", "pods/a/log", "configmaps/a",
                               "pods/a/status", "services/a/proxy/x", "serviceaccounts/a/token", "pods/a/eviction"]),
              st.sampled_from(["default", "none", ""])).map(lambda p: f"/api/v1/namespaces/{p[1]}/{p[0]}"))
queries = st.lists(st.tuples(
    st.sampled_from(["limit", "continue", "resourceVersion", "resourceVersionMatch", "labelSelector", "fieldSelector",
                     "timeoutSeconds", "dryRun", "fieldValidation", "fieldManager", "force", "pretty", "command",
                     "container", "tailLines", "allowWatchBookmarks", "sendInitialEvents", "propagationPolicy"]),
    st.one_of(st.sampled_from(["0", "1", "-1", "99999999999999999999", "true", "Exact", "All", "a=b", "a in (", "%",
                               "NotOlderThan", "x" * 200, "metadata.name=a", "Strict", "e30", "=====", "%ff"]),
              st.text("ab=!,() %&\\", max_size=8))), max_size=3).map(
                  lambda pairs: "?" + "&".join(f"{k}={v}" for k, v in pairs).replace(" ", "+") if pairs else "")
methods = st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "get", "QUERY"])
types = st.sampled_from(["", "application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "t/p",
                         "application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml",
                         "application/strategic-merge-patch+json", "a/b; c", "\u00ff"])
leaves = st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=6),
                   st.sampled_from(["a", "v1", "ConfigMap", "Pod", "default"]))
values = st.recursive(leaves, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(
        ["metadata", "name", "namespace", "labels", "data", "spec", "containers", "image", "kind", "apiVersion", "op",
         "path", "value", "finalizers", "ports", "selector", "template", "$patch", "uid", "resourceVersion",
         "ownerReferences", "annotations", "managedFields", "generateName"]), inner, max_size=4)), max_leaves=10)


def encoded(value):
    try:
        return orjson.dumps(value)
    except (TypeError, orjson.JSONEncodeError):
        return str(value).encode("utf-8", "replace")


bodies = st.one_of(st.just(b""), values.map(encoded), st.binary(max_size=40), values.map(
    lambda v: encoded({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "f"}, "data": v})), values.map(
    lambda v: encoded({"kind": "Pod", "apiVersion": "v1", "metadata": v, "spec": v})),
    st.binary(max_size=30).map(lambda b: b"k8s\x00" + b), st.just(b"[" * 5000), st.just(b"a: &a [*a, *a]"),
    st.just(b'[{"op":"copy","from":"","path":"/data"}]'))
accepts = st.sampled_from(["", "*/*", "application/json;as=Table;v=v1;g=meta.k8s.io", "application/yaml", "text/html",
                           "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", ";;,", "a" * 900])
bounded = settings(max_examples=250, deadline=None, database=None, derandomize=True,
                   suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@bounded
@given(methods, paths, queries, types, accepts, bodies)
def test_any_request_is_answered_rightly(server, caplog, method, path, query, content_type, accept, body):
    address, running = server
    caplog.clear()
    head = f"{method} {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += "".join(f"{n}: {v}\r\n" for n, v in (("Content-Type", content_type), ("Accept", accept)) if v)
    before = running.cache.revision
    answer = exchange(address, head.encode("utf-8") + b"\r\n" + body, half_close=False)
    judge(running, answer, before, caplog)


@settings(bounded, max_examples=120)
@given(st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=30).map(lambda b: b"GET / HTTP/1.1\r\nHost: x\r\n" + b + b"\r\n\r\n"),
    st.sampled_from([
        b"POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"kind\":",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Encoding: deflate\r\nContent-Length: 2\r\n\r\n{}",
        b"DELETE /api/v1/namespaces/x HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.0\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40000 + b"\r\n\r\n",
        b"GET /api/v1/namespaces/default/pods/a/exec HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"])), st.booleans())
def test_broken_framing_is_refused_or_closed(server, caplog, data, half_close):
    address, running = server
    caplog.clear()
    before = running.cache.revision
    judge(running, exchange(address, data, half_close), before, caplog)
    assert b"HTTP/1.1 200" in exchange(  # and it serves on
        address, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", half_close=False)


HIDDEN = b"GET /api/v1/secrets HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("data", [
    POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length: 4, 4\r\n\r\nabcd", POST + b"Content-Length: +4\r\n\r\nabcd",
    POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", POST + b"Transfer-Encoding: x\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\n\r\n2;a=\nb\r\n{}\r\n0\r\n\r\n", POST + b"X: a\0b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b: c\r\n\r\n"])
def test_what_may_be_read_in_two_ways_is_one_refusal(server, caplog, data):
    """Nothing behind it on the connection is taken for a request, whatever a proxy in front made of it."""
    address, running = server
    caplog.clear()
    answer = until_closed(address, data + HIDDEN)
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 400 ")
    judge(running, answer, running.cache.revision, caplog)


def test_a_body_of_a_request_is_never_the_next_request(server, caplog):
    address, _ = server
    ending = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    for head in (b"GET /version", b"POST /nothing", b"DELETE /api/v1/namespaces/x"):
        head += b" HTTP/1.1\r\nHost: x\r\n"
        for framed in (b"Content-Length: %d\r\n\r\n%b" % (len(HIDDEN), HIDDEN),
                       b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)):
            answer = until_closed(address, head + framed + ending)
            assert answer.count(b"HTTP/1.1 ") == 2 and answer.endswith(b"ok"), answer
            assert b"SecretList" not in answer


def test_a_body_is_what_was_sent(server, caplog):
    """No compression is undone: a small body cannot become a large one, and what is passed on is whole."""
    address, running = server
    caplog.clear()
    import gzip
    body = gzip.compress(b'{"metadata":{"name":"packed"}}')
    head = POST + b"Connection: close\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = exchange(address, head + body, half_close=False)
    assert judge(running, answer, running.cache.revision, caplog) == 400


CREDENTIALS = ("Bearer .", "Bearer ..", "Bearer a.b.c", "Basic eDp5", "Bearer " + "x" * 9000,
               "Bearer abcdef.0123456789abcdef",
               "Bearer eyJhbGciOiJub25lIn0.e30.", "Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6W119.e30.AA", "Negotiate x", "é")


@bounded
@given(st.sampled_from(CREDENTIALS) | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=30),
       st.sampled_from(["Authorization", "Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Audit-ID",
                        "Impersonate-Extra-%zz", "X-Remote-User", "Sec-WebSocket-Protocol", "User-Agent"]))
def test_no_credential_breaks_it(server, caplog, value, name):
    address, running = server
    caplog.clear()
    head = f"GET /api/v1/namespaces/default HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{name}: {value}\r\n\r\n"
    judge(running, exchange(address, head.encode("latin-1", "replace"), False), running.cache.revision, caplog)


@pytest.mark.parametrize("metadata", [b'"x"', b"[{}]", b"5", b"true"])
def test_an_applied_configuration_has_metadata_or_none(server, caplog, metadata):
    address, running = server
    caplog.clear()
    body = b'{"apiVersion":"v1","kind":"ConfigMap","metadata":%b}' % metadata
    head = (b"PATCH /api/v1/namespaces/default/configmaps/a?fieldManager=f HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/apply-patch+yaml\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert judge(running, exchange(address, head + body, False), running.cache.revision, caplog) == 400

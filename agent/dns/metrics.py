"""The DNS server's figures, in the text format that Prometheus reads, under CoreDNS's names where both have one.

Owns a small HTTP server on the DNS address: `/metrics` and `/health`, which costs nothing while nobody asks. `render`
is pure.

Called by `dns`.
"""

from __future__ import annotations

import asyncio

from agent.dns.responder import Responder

REQUEST_LIMIT = 8192  # bytes of a request's head
REQUEST_SECONDS = 5.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(responder: Responder) -> str:
    """All figures."""
    forwarder, lines = responder.forwarder, []

    def metric(name: str, kind: str, about: str, samples: list[tuple[str, float]]) -> None:
        lines.extend([f"# HELP {name} {about}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{labels} {value:g}" for labels, value in samples)

    metric("coredns_dns_requests_total", "counter", "Questions by protocol and type.",
           [(f'{{proto="{p}",type="{t}"}}', n) for (p, t), n in sorted(responder.requests.items())])
    metric("coredns_dns_responses_total", "counter", "Replies by result.",
           [(f'{{rcode="{code}"}}', n) for code, n in sorted(responder.responses.items())])
    metric("coredns_cache_hits_total", "counter", "Replies of other servers given once more.", [("", forwarder.hits)])
    metric("coredns_cache_misses_total", "counter", "Questions put to other servers.", [("", forwarder.misses)])
    metric("coredns_cache_entries", "gauge", "Replies of other servers that are kept.", [("", len(forwarder))])
    metric("coredns_proxy_healthcheck_failures_total", "counter", "Questions another server left unanswered.",
           [("", forwarder.failures)])
    return "\n".join([*lines, ""])


async def serve(responder: Responder, address: str, port: int) -> None:
    """Until cancelled. Raises OSError when the port is taken."""
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            known = {b"/metrics": lambda: render(responder), b"/health": lambda: "OK", b"/ready": lambda: "OK"}
            body = known[path]().encode() if path in known else b"404 page not found\n"
            status = "200 OK" if path in known else "404 Not Found"
            writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
                         "Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, address, port, limit=REQUEST_LIMIT)
    async with server:
        await server.serve_forever()

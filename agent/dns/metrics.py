"""The DNS server's figures, in the text format that Prometheus reads, under CoreDNS's names where both have one.

Owns the pages `/metrics`, `/health` and `/ready` on the DNS address. `render` is pure.

Called by `dns`.
"""

from __future__ import annotations

from agent import pages
from agent.dns.responder import Responder
from agent.pages import Page


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
    await pages.serve({"/metrics": lambda: Page(render(responder), kind=pages.METRICS), "/health": lambda: Page("OK"),
                       "/ready": lambda: Page("OK")}, address, port)

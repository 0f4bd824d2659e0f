"""What `pelamis trace` reads from its arguments and says at its end."""

from __future__ import annotations

import pytest

from controlplane.cli import trace
from controlplane.machinery.errors import Finding

SERVICE = {"metadata": {"name": "web"},
           "spec": {"ports": [{"port": 80, "name": "http"}, {"port": 53, "protocol": "UDP"}]}}


def test_targets() -> None:
    assert trace.parse_target("web:80", "a") == trace.Target("a", "web", "80")
    assert trace.parse_target("web.b.svc.cluster.local:http", "a") == trace.Target("b", "web", "http")
    for text in ("web", ":80", "web:"):
        with pytest.raises(Finding):
            trace.parse_target(text, "a")
    assert trace.port_number(SERVICE, "http", "tcp") == trace.port_number(SERVICE, "80", "tcp") == 80
    with pytest.raises(Finding, match=r"it has http\(80\)"):
        trace.port_number(SERVICE, "53", "tcp")


def test_ends() -> None:
    owners = {"10.1.0.2": "pod a/web"}
    said = trace.verdict({"10.1.0.2:80", "10.1.0.3:80 masqueraded"}, owners, True)
    assert said == ["delivered to 10.1.0.2:80, pod a/web",
                    "delivered to 10.1.0.3:80, no pod that is known (the receiver sees this node's address)"]
    assert "no ready endpoints" in trace.verdict({"REJECT"}, {}, False)[0]

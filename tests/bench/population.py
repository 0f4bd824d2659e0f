"""The Services and EndpointSlices that proxies are measured with: as many as asked for, all alike.

Called by `proxy` and `peerproxy`.
"""

from __future__ import annotations

from typing import Any

PODS = "10.128.0.0/9"
SERVER, HERE = "10.0.0.2", "10.0.0.1"
ENDPOINTS = 5


def service(number: int) -> dict[str, Any]:
    """At an address anywhere in 10.96.0.0/16, as the API gives them out."""
    whole = (number * 40503 + 1) % 2**16  # an odd factor: no two alike
    ip = f"10.96.{whole >> 8}.{whole & 255}"
    return {"metadata": {"namespace": f"ns{number % 20}", "name": f"s{number}"}, "spec": {
        "clusterIP": ip, "type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP"}]}}


def slice_of(number: int, shift: int = 0) -> dict[str, Any]:
    """All endpoints lead to the one server there is; they differ by port, as the kernel does not mind."""
    return {"metadata": {"namespace": f"ns{number % 20}", "name": f"s{number}-x"}, "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": [
                {"addresses": [SERVER if n == 0 and not shift else f"10.{128 + n}.{number // 250}.{number % 250 + 1}"],
                 "nodeName": "other"} for n in range(shift, shift + ENDPOINTS)]}

"""CONNECT: exec, attach, port-forward and proxying, as admission sees them.

Owns the options object that stands for such a request (PodExecOptions and its kin), made of its query. Called by the
handlers before a stream begins; a log is read, not connected to, and is not admitted.

Upstream: k8s.io/apiserver/pkg/endpoints/handlers/rest.go (ConnectResource).
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver import admission
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing.writes import Writes
from controlplane.machinery.resources import Resource, Subresource

_FLAGS = ("stdin", "stdout", "stderr", "tty")


def options(request: Request, sub: Subresource) -> dict[str, Any]:
    """The options object of a connection. Pure."""
    version = f"{sub.group}/{sub.version}" if sub.group else sub.version or "v1"
    made: dict[str, Any] = {"kind": sub.kind, "apiVersion": version}
    query = request.query
    if sub.name in ("exec", "attach"):
        made |= {flag: True for flag in _FLAGS if query.flag(flag)}
        if query.get("container"):
            made["container"] = query.get("container")
        if sub.name == "exec":
            made["command"] = query.all("command")
    elif sub.name == "portforward":
        if ports := [int(port) for text in query.all("ports") for port in text.split(",") if port.isdigit()]:
            made["ports"] = ports
    elif sub.name == "proxy":
        made["path"] = "/" + request.rest
    return made


async def admit(writes: Writes, request: Request, resource: Resource, sub: Subresource) -> None:
    """The admission chain for a connection. Raises ApiError."""
    if sub.name != "log":
        await writes.admit(admission.of_request(request, resource, admission.CONNECT, request.name,
                                                options(request, sub), None, False))

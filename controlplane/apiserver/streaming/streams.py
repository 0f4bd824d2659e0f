"""From a pod to the node it runs on: logs, exec, attach, port-forward, and the proxies to pods, nodes and services.

Owns the questions before a byte flows: which pod, which container, which node, under which address, with which query;
and upstream's words when one has no answer. Exec, attach and port-forward become raw tunnels (`tunnel`), logs and
proxied requests plain streams (`forward`). Promises: the node is always asked over TLS with the server's own
certificate and checked against the authority; the client's credentials go no further. Permission was decided before;
only the second half of it, that a GET which upgrades also needs `create`, is asked here. Called by the handlers.

Upstream: k8s.io/kubernetes/pkg/registry/core/pod/{rest,strategy.go}.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode

from controlplane.apiserver.authorization.access import attributes_of
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Query, Request
from controlplane.apiserver.response import Answer, Response
from controlplane.apiserver.services import servicebackends
from controlplane.apiserver.streaming import forward, translation, tunnel
from controlplane.apiserver.streaming.tunnel import Backend
from controlplane.machinery.errors import (
    ApiError,
    BadRequest,
    Cause,
    Invalid,
    NotFound,
    ServiceUnavailable,
    forbidden,
    invalid,
)
from controlplane.store.cache import key_of

KUBELET_PORT = 10250
ADDRESSES = ("InternalIP", "ExternalIP", "InternalDNS", "Hostname", "ExternalDNS")  # names of nodes seldom resolve
DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
_RENAMED = {"stdin": "input", "stdout": "output", "stderr": "error", "ports": "port"}
_LOG_OPTIONS = ("follow", "limitBytes", "previous", "sinceSeconds", "sinceTime", "stream", "tailLines", "timestamps")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII).fullmatch
_SAFE = "/~!$&'()*+,;=:@-._"
Object = dict[str, Any]


class Streams:
    """`close` ends the connections it keeps to backends."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tls: ssl.SSLContext | None = None
        self._forwarder = forward.Forwarder()

    async def close(self) -> None:
        await self._forwarder.close()

    async def handle(self, request: Request) -> Answer:
        """Serve a streaming subresource until it ends. Raises ApiErrors as long as nothing was written."""
        match request.plural, request.subresource:
            case "pods", "log":
                return await self._log(request)
            case "pods", "exec" | "attach" | "portforward":
                return await self._upgrade(request)
            case _, "proxy":
                return await self._proxy(request)
        raise NotFound.path()

    async def _upgrade(self, request: Request) -> Answer:
        if not request.headers.get("Upgrade"):
            raise BadRequest("Upgrade request required")
        if request.method == "GET" and self._context.authorizer is not None:
            self._context.authorizer.authorize(replace(attributes_of(request), verb="create"))
        pod = self._pod(request)
        sub = request.subresource
        path = f"/{'portForward' if sub == 'portforward' else sub}/{request.namespace}/{request.name}"
        if sub != "portforward":
            path += "/" + container_of(pod, request.query.get("container"))
        node = (pod.get("spec") or {}).get("nodeName")
        if not node:
            raise BadRequest(f"pod {request.name} does not have a host assigned")
        return await tunnel.run(request, self._kubelet(node), path + kubelet_query(request.query), (),
                                translation.of(request.headers, sub, request.query))

    async def _log(self, request: Request) -> Answer:
        if causes := log_causes(request.query):
            raise Invalid.of("PodLogOptions", request.name, causes)
        pod = self._pod(request)
        container = container_of(pod, request.query.get("container"))
        node = (pod.get("spec") or {}).get("nodeName")
        if not node:
            return Response(200, b"", "text/plain")  # nothing has run, so nothing was logged
        options = urlencode([(k, v) for k, v in request.query if k in _LOG_OPTIONS and v])
        target = f"/containerLogs/{request.namespace}/{request.name}/{container}" + (f"?{options}" if options else "")
        backend = self._kubelet(node)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            from controlplane.apiserver.streaming import weblogs
            return await weblogs.serve(request, await self._forwarder.get(backend, target))
        return forward.text(await self._forwarder.get(backend, target))

    async def _proxy(self, request: Request) -> Answer:
        if request.path.endswith("/proxy") and request.method in ("GET", "HEAD"):
            query = f"?{request.raw_query}" if request.raw_query else ""
            return Response(301, b"", "", [("Location", quote(request.path, _SAFE) + "/" + query)])
        backend = self._proxied(request)
        target = "/" + quote(request.rest, _SAFE) + (f"?{request.raw_query}" if request.raw_query else "")
        if request.headers.get("Upgrade"):
            return await tunnel.run(request, backend, target)
        root = quote(request.path[:len(request.path) - len(request.rest)].rstrip("/"), _SAFE)
        return await self._forwarder.pass_on(request, backend, target, root)

    def _proxied(self, request: Request) -> Backend:
        scheme, name, port = split_name(request.name, request.plural.removesuffix("s"))
        tls = self._insecure() if scheme == "https" else None
        if request.plural == "nodes":
            if scheme == "http" or (port and port != str(KUBELET_PORT)):
                return Backend(address_of(self._object("nodes", "", name))[0], _number(port or KUBELET_PORT), tls)
            return self._kubelet(name)
        if request.plural == "services":
            found = servicebackends.ready(self._context.cache, request.namespace, name,
                                          port_name(self._object("services", request.namespace, name), port))
            if not found:
                raise ServiceUnavailable(f'no endpoints available for service "{name}"')
            return Backend(checked(found[0][0]), found[0][1], tls)
        pod = self._object("pods", request.namespace, name)
        host = checked((pod.get("status") or {}).get("podIP") or "")
        declared = [p for c in (pod.get("spec") or {}).get("containers") or () for p in c.get("ports") or ()]
        return Backend(host, _number(port or (declared[0]["containerPort"] if declared else 80)), tls)

    def _object(self, plural: str, namespace: str, name: str) -> Object:
        item = self._context.cache.get(key_of(plural, namespace, name))
        if item is None:
            raise NotFound.of(plural, name)
        return item.obj

    def _pod(self, request: Request) -> Object:
        return self._object("pods", request.namespace, request.name)

    def _kubelet(self, node: str) -> Backend:
        host, port = address_of(self._object("nodes", "", node))
        return Backend(host, port, self._kubelet_tls())

    async def ask(self, node: str, target: str, limit: int) -> bytes:
        """A kubelet's answer to a GET, of at most `limit` bytes. Raises ApiError."""
        answer = await self._forwarder.get(self._kubelet(node), target)
        return await forward.whole(answer, limit, f"node {node} answers {target} with more than {limit} bytes")

    def _kubelet_tls(self) -> ssl.SSLContext:
        """How this server speaks to kubelets: made once, at first use. Without an authority they are not verified, as
        upstream does."""
        if self._tls is None:
            options = self._context.options
            authority = options.kubelet_certificate_authority
            made = ssl.create_default_context(cafile=str(authority)) if authority else _unverified()
            if options.kubelet_client_certificate is not None:
                made.load_cert_chain(options.kubelet_client_certificate, options.kubelet_client_key)
            self._tls = made
        return self._tls

    def reload(self) -> None:
        """Show kubelets the certificate that is on the disk now, on connections made from now on."""
        self._tls = None

    def _insecure(self) -> ssl.SSLContext:
        """For `https:` targets of the proxies: pods and services have certificates nobody here can know."""
        return _unverified()


def _unverified() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def address_of(node: Object) -> tuple[str, int]:
    """Address and port of a node's kubelet. Raises ApiError 500 when it has told none yet."""
    seen = node.get("status") or {}
    found = {a.get("type"): a.get("address") for a in reversed(seen.get("addresses") or ())}
    host = next((found[kind] for kind in ADDRESSES if found.get(kind)), "")
    if not host:
        raise ApiError(f"no preferred addresses found; known addresses: {sorted(found.items())}", reason="")
    port = ((seen.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or KUBELET_PORT
    return host, int(port)


def container_of(pod: Object, asked: str) -> str:
    """The container meant: the asked one, the annotated default, the only one. Raises BadRequest."""
    spec, metadata = pod.get("spec") or {}, pod.get("metadata") or {}
    names = {kind: [c["name"] for c in spec.get(kind) or ()] for kind in
             ("containers", "initContainers", "ephemeralContainers")}
    if asked:
        if not any(asked in found for found in names.values()):
            raise BadRequest(f"container {asked} is not valid for pod {metadata.get('name')}")
        return asked
    default: str = (metadata.get("annotations") or {}).get(DEFAULT_CONTAINER, "")
    if default in names["containers"]:
        return default
    if len(names["containers"]) == 1:
        return str(names["containers"][0])
    text = f"a container name must be specified for pod {metadata.get('name')}"
    if names["containers"]:
        text += f", choose one of: [{' '.join(names['containers'])}]"
        if names["initContainers"]:
            text += f" or one of the init containers: [{' '.join(names['initContainers'])}]"
    raise BadRequest(text)


def log_causes(query: Query) -> list[Cause]:
    """What is wrong with the options of a log. Raises BadRequest for what is no number. Pure."""
    found: list[Cause] = []
    for option, least in (("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)):
        if not (text := query.get(option)):
            continue
        if not _NUMBER(text):
            raise BadRequest(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        if int(text) < least:
            found.append(invalid(option, int(text), f"must be greater than {'' if least else 'or equal to '}0"))
    if query.get("sinceSeconds") and query.get("sinceTime"):
        found.append(forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"))
    return found


def kubelet_query(query: Query) -> str:
    """The query of an upgrade as kubelets read it: other names, `1` for true, nothing for false."""
    pairs = [(_RENAMED.get(k, k), "1" if v == "true" and k != "command" else v) for k, v in query
             if k != "container" and (k == "command" or v not in ("", "false", "0"))]
    return "?" + urlencode(pairs) if pairs else ""


def split_name(text: str, kind: str) -> tuple[str, str, str]:
    """Scheme, name and port of `[scheme:]name[:port]`; `kind` is what it names. Raises BadRequest."""
    parts = text.split(":")
    if len(parts) == 1:
        return "", parts[0], ""
    if len(parts) == 2:
        return "", parts[0], parts[1]
    if len(parts) == 3 and parts[0] in ("http", "https", ""):
        return parts[0], parts[1], parts[2]
    raise BadRequest(f'invalid {kind} request "{text}"')


def _number(port: str | int) -> int:
    if not str(port).isdigit() or not 1 <= int(port) <= 65535:
        raise BadRequest(f'invalid port "{port}"')
    return int(port)


def port_name(service: Object, port: str) -> str:
    """What the endpoints call a port of a Service; `port` is a name, a number of the Service or "". Pure. Raises
    ServiceUnavailable."""
    declared = (service.get("spec") or {}).get("ports") or []
    entry = next((p for p in declared if port in (p.get("name", ""), str(p.get("port")))), None)
    if entry is None and not port and len(declared) == 1:
        entry = declared[0]
    if entry is None:
        raise ServiceUnavailable(f'no service port "{port}" found for service "{service["metadata"]["name"]}"')
    return entry.get("name") or ""


def checked(address: str) -> str:
    """An address the proxy may connect to: never the host's own loopback or link-local services. Raises BadRequest."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise BadRequest("address not allowed") from None
    if parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or parsed.is_multicast:
        raise BadRequest("address not allowed")
    return address

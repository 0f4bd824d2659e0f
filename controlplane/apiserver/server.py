"""The listener: connections in, requests to the pipeline, and a stop that loses nothing.

Owns the sockets, TLS (client certificates are asked for, not demanded; HTTP/1.1 only), the start order (store,
bootstrap, listen) and the stop order (stop accepting, end watches, finish what runs, close the store). It decides
nothing about requests. Called by `__main__`, and by tests in their own process over loopback.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import socket
import ssl
from typing import Any

from aiohttp import web

from controlplane.apiserver import bootstrap, expiry, request
from controlplane.apiserver.authorization import rolebootstrap
from controlplane.apiserver.config import Options
from controlplane.apiserver.context import Context
from controlplane.apiserver.flow import flowcontrol
from controlplane.apiserver.handlers import Handlers
from controlplane.apiserver.pipeline import Edge, Pipeline
from controlplane.apiserver.podmetrics import RESOURCES
from controlplane.apiserver.policies.typechecking import TypeChecks
from controlplane.apiserver.protocol import Listener
from controlplane.apiserver.recording import changelog
from controlplane.apiserver.recording.logfile import LogFile
from controlplane.apiserver.response import Answer
from controlplane.apiserver.services.allocator import Allocator
from controlplane.apiserver.services.serviceaddresses import Mirror
from controlplane.apiserver.services.serviceranges import Ranges
from controlplane.apiserver.writing.writes import Writes
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import BUILTIN, Registry
from controlplane.store.cache import Cache
from controlplane.store.log import Log
from controlplane.store.watch import Closed

LOG = logging.getLogger("apiserver")
IDLE_SECONDS = 600.0  # an idle connection is kept this long: kubelets and controllers come back every ten seconds
STOP_SECONDS = 10.0  # given to requests in flight when the server stops
BACKLOG = 1024  # connections waiting to be accepted: a whole cluster reconnects at once after a restart
MAX_HEADER = 16384  # bytes of one header line: bearer tokens are long


class Server:
    """One apiserver. `await start()`, `await stop()`; `port` is the bound port."""

    def __init__(self, options: Options, log: Log, registry: Registry = BUILTIN, clock: Clock = SYSTEM) -> None:
        self.options = options
        self.broken = asyncio.Event()  # the store can take no more writes: stop
        self.cache = Cache(log, clock, self._on_fault)
        kinds = Registry([*registry, *RESOURCES])  # custom kinds come and go in it
        self.context = Context(options, self.cache, kinds, clock)
        self.allocator = Allocator(options.service_networks, options.service_node_port_range, clock)
        self.port = 0
        self.handlers: Handlers
        self.pipeline: Pipeline
        self.streams: Any = None
        self.authenticator: Any = None
        self._web: web.Server
        self._listeners: list[asyncio.Server] = []
        self._context: ssl.SSLContext | None = None
        self._chores: asyncio.Task[None] | None = None
        self._states: dict[Any, dict[str, Any]] = {}

    def _on_fault(self, error: Exception) -> None:
        LOG.critical("the store has failed, stopping: %s", error)
        self.broken.set()

    def _assemble(self) -> None:
        """Make the handlers and the edge."""
        from controlplane.apiserver import chain
        from controlplane.apiserver.aggregation.aggregator import Aggregator
        from controlplane.apiserver.authentication.authn import Authenticator
        from controlplane.apiserver.authentication.tokens import Issuer
        from controlplane.apiserver.authorization.authz import Authorizer
        from controlplane.apiserver.authorization.reviews import Reviews
        from controlplane.apiserver.crd.definitions import Definitions
        from controlplane.apiserver.describing.discovery import Discovery
        from controlplane.apiserver.describing.openapi import OpenAPI
        from controlplane.apiserver.health import Health
        from controlplane.apiserver.streaming.streams import Streams
        from controlplane.apiserver.why import Why
        context = self.context
        authorizer = context.authorizer = Authorizer(context)
        authenticator = self.authenticator = Authenticator(context)
        self.chain = chain.standard(context)
        writes = Writes(context, self.chain, self.allocator)
        self.streams = Streams(context)
        self.handlers = Handlers(context, writes, Reviews(context, authenticator), self.streams)
        self.definitions = Definitions(context, self.handlers.watches.close)
        self.aggregator = context.aggregator = Aggregator(context)
        health, why = Health(context), Why(context)
        edges: list[Edge] = [Discovery(context), OpenAPI(context), health, Issuer(context, authenticator.tokens), why]
        self.pipeline = Pipeline(context, authenticator, authorizer, self.handlers, edges, health.metrics)
        self.pipeline.on_refusal = why.note
        health.metrics.in_flight = lambda: self.pipeline.in_flight
        health.metrics.levels = self.pipeline.flows.levels
        self._keep_records()
        health.add("store", lambda: "it takes no more writes" if self.broken.is_set() else "")

    def _keep_records(self) -> None:
        """Open the logs that were asked for. Raises Finding."""
        options, clock = self.options, self.context.clock
        if options.audit_log_path and options.audit_policy_file is not None:
            from controlplane.apiserver.recording import audit
            policy = audit.load(options.audit_policy_file)
            self.pipeline.audit = audit.Auditor(policy, LogFile(
                options.audit_log_path, options.audit_log_maxsize, options.audit_log_maxbackup,
                options.audit_log_maxage, clock), clock)
        if options.change_log_path:
            self.context.changes = changelog.ChangeLog(LogFile(options.change_log_path, clock=clock), clock)

    async def start(self) -> None:
        """Open the store, bootstrap, listen. Raises Finding."""
        tls = self._tls()
        listening = self._bind()  # an occupied port is told before the store is touched
        try:
            await self.cache.open()
            self._assemble()
            self.definitions.load()
            address = self._advertised()
            ranges = Ranges(self.context, self.allocator)
            ranges.load()
            await bootstrap.ensure(self.context, self.allocator, address)
            if "RBAC" in self.options.authorization_mode:
                await rolebootstrap.ensure(self.context)
            await flowcontrol.ensure(self.context)
            await self.aggregator.load()
            mirror = Mirror(self.context, self.allocator)
            mirror.load()
            await mirror.all()
            self._chores = asyncio.create_task(self._housekeeping(address, mirror, ranges), name="housekeeping")
            self._web = Listener(self._handle,  # type: ignore[arg-type]  # our answers have what it calls
                                 handler_cancellation=True, access_log=None,
                                 keepalive_timeout=IDLE_SECONDS, max_field_size=MAX_HEADER,
                                 max_line_size=MAX_HEADER, lingering_time=1.0,
                                 auto_decompress=False)  # a body is what was sent, also when it is passed on
            loop = asyncio.get_running_loop()
            self._listeners = [await loop.create_server(self._web, sock=sock, ssl=tls, backlog=BACKLOG)
                               for sock in listening]
        except BaseException:
            for sock in listening:
                sock.close()
            raise
        gc.collect()
        gc.freeze()  # what exists now lives as long as the server: collections need not look at it again
        LOG.info("serving on %s:%d, storage at revision %d", self.options.bind_address, self.port,
                 self.cache.revision)

    async def _housekeeping(self, address: str, mirror: Mirror, ranges: Ranges) -> None:
        """What runs beside the requests; a fault in it is told and stops the server, which starts anew."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(expiry.keep(self.context))
                group.create_task(self.authenticator.legacy.run())
                if self.authenticator.oidc is not None:
                    group.create_task(self.authenticator.oidc.run())
                group.create_task(self.definitions.run())
                group.create_task(self.aggregator.run())
                group.create_task(flowcontrol.tell(self.context))
                group.create_task(TypeChecks(self.context).run())
                group.create_task(bootstrap.keep(self.context, address))
                group.create_task(mirror.run())
                group.create_task(ranges.run())
        except* Closed:
            pass  # the cache was closed under it: the server stops
        except* Exception as faults:
            if not self.context.draining:
                self._on_fault(faults.exceptions[0])

    def _bind(self) -> list[socket.socket]:
        """Listening sockets; no certain address means all addresses of both families."""
        options, made = self.options, []
        everywhere = ipaddress.ip_address(options.bind_address).is_unspecified
        self.port = options.secure_port
        try:
            for address in ("0.0.0.0", "::") if everywhere else (options.bind_address,):
                if ":" in address and everywhere and not socket.has_dualstack_ipv6():
                    continue
                made.append(socket.create_server((address, self.port), backlog=BACKLOG, family=(
                    socket.AF_INET6 if ":" in address else socket.AF_INET)))
                self.port = made[0].getsockname()[1]
        except OSError as error:
            for sock in made:
                sock.close()
            raise Finding(f"cannot listen on {options.bind_address}:{options.secure_port}: {error.strerror}", "",
                          f"find who holds it with `ss -ltnp sport = :{options.secure_port}`, or give another "
                          "--secure-port") from None
        return made

    def reload(self) -> None:
        """Take what was renewed on the disk, for connections made from now on; those that are there stay."""
        try:
            if self._context is not None:
                self._context.load_cert_chain(self.options.tls_cert_file or "", self.options.tls_private_key_file)
        except (OSError, ssl.SSLError) as error:
            LOG.warning("cannot take the renewed certificate %s, the old one serves on: %s",
                        self.options.tls_cert_file, error)
            return
        self.streams.reload()
        self.aggregator.proxy.reload()
        LOG.info("took the certificates that are on the disk now")

    def _tls(self) -> ssl.SSLContext | None:
        options = self.options
        if options.tls_cert_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(options.tls_cert_file, options.tls_private_key_file)
            if options.client_ca_file is not None:
                context.load_verify_locations(options.client_ca_file)
                context.verify_mode = ssl.CERT_OPTIONAL
            if options.requestheader_client_ca_file is not None:
                context.load_verify_locations(options.requestheader_client_ca_file)
                context.verify_mode = ssl.CERT_OPTIONAL
        except (OSError, ssl.SSLError) as error:
            raise Finding(f"cannot use the certificates: {error}", "", "check --tls-cert-file, "
                          "--tls-private-key-file and --client-ca-file; `pelamis up` makes them anew") from None
        self._context = context
        return context

    def _advertised(self) -> str:
        """The address members of the cluster use; without one given, that of the route out."""
        address = self.options.advertise_address
        if not address and not ipaddress.ip_address(self.options.bind_address).is_unspecified:
            address = self.options.bind_address
        if not address:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(("192.0.2.1", 9))  # sends nothing: a route lookup
                    address = probe.getsockname()[0]
                except OSError:
                    address = "127.0.0.1"
        return address

    async def _handle(self, raw: web.BaseRequest) -> Answer:
        protocol = raw.protocol
        state = self._states.get(protocol)
        if state is None:
            self._states = {p: s for p, s in self._states.items() if p.transport is not None}
            state = self._states[protocol] = {}
        made = request.build(raw.method, raw.raw_path, raw.headers,
                             self.context.registry, raw, state)
        return await self.pipeline.serve(made)

    async def stop(self) -> None:
        """Stop cleanly. Every accepted write is on disk when this returns."""
        self.context.draining = True
        for listener in self._listeners:
            listener.close()
            self.handlers.watches.close()
            self._web.pre_shutdown()
            await self._web.shutdown(STOP_SECONDS)
            await self.streams.close()
            await self.aggregator.close()
            await self.chain.close()
        if self._chores is not None:
            self._chores.cancel()
            await asyncio.gather(self._chores, return_exceptions=True)
        await self.cache.close()
        for record in (self.pipeline.audit, self.context.changes) if self._listeners else ():
            if record is not None:
                await record.close()
        LOG.info("stopped at revision %d", self.cache.revision)

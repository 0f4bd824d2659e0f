"""The agent's side of CNI: answers the shim on a unix socket.

Owns the node's pod network: addresses (`ipam`), links (`links`), host ports and the node-wide rules they rest on. Every
command is idempotent and may be cut short at any instruction: an ADD that is repeated gives the same address and a
whole link, a DEL of what is gone succeeds, and what a killed agent left behind is found by `collect`. It keeps nothing
that a restart needs outside the `ipam` folder; running pods do not notice a restart. Kernel work runs on one worker
thread, so the event loop stays free and wiring is one at a time.

The agent creates one `Daemon`, runs `run()`, calls `configure` when the node's pod CIDR is known, and `collect` with
the ids of the sandboxes the runtime lists.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup import addresses, flows, links, masquerade, sysctls, xtables
from netsetup.cni import hostports, install, wire
from netsetup.cni.wire import Call, CniError
from netsetup.ipam import ExhaustedError, Holding, Ipam, companion
from netsetup.ipam import Network as Range
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

log = logging.getLogger(__name__)
BACKLOG = 256  # calls waiting in the kernel: more pods than start at once on one node
READ_SECONDS = 10.0  # the shim sends at once; a client that does not is not the shim


@dataclass(slots=True)
class Family:
    """One address family: this node's range of pods, the cluster's, and where rules go."""

    own: Range
    cluster: str
    backend: xtables.Backend


@dataclass(slots=True)
class Network:
    """What `configure` makes. Of two families `ipam` gives out the first's addresses; the other's follow from them."""

    ipam: Ipam
    mtu: int
    host: RtNetlink
    families: list[Family]

    def beside(self, address: str) -> str:
        """The address of the second family that belongs to one of the first; "" with one family."""
        return companion(address, self.ipam.network, self.families[1].own) if self.families[1:] else ""

    def port_holders(self, family: Family, holdings: Collection[Holding]) -> list[Holding]:
        """Those that map ports, with their addresses of this family."""
        found = [held for held in holdings if held.ports]
        return found if family is self.families[0] else [
            replace(held, address=self.beside(held.address)) for held in found]


class Daemon:
    """Create, then `run()`; calls are refused with "try again later" until `configure` has been called."""

    def __init__(self, paths: Paths, ledger: Ledger, clock: Clock = SYSTEM) -> None:
        self._paths, self._ledger, self._clock = paths, ledger, clock
        self._network: Network | None = None
        self._aside = False  # somebody else gives new pods their network
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="cni")
        self.listening = asyncio.Event()

    async def run(self) -> None:
        """Serve until cancelled."""
        socket = self._paths.cni_socket
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self._serve, str(socket), backlog=BACKLOG)
        socket.chmod(0o600)
        self.listening.set()
        try:
            async with server:
                await server.serve_forever()
        finally:
            self.listening.clear()
            self._worker.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the block runs: for whoever removes pods without an agent, as `down` does."""
        task = asyncio.create_task(self.run())
        waiting = asyncio.create_task(self.listening.wait())
        try:
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            yield
        finally:
            waiting.cancel()
            task.cancel()
            await asyncio.gather(task, waiting, return_exceptions=True)

    async def configure(self, pod_cidr: str, cluster_cidr: str = "10.244.0.0/16", mtu: int = 0) -> list[Finding]:
        """Open the node's range and set up what pods need from the host; the configuration is written last.

        `pod_cidr` and `cluster_cidr` are of IPv4, of IPv6, or of both with a comma between. `mtu` 0: that of the
        link the default route leaves by. Beside somebody else's configuration nothing is set up for new pods.
        Returns what a person should know. Raises Finding when the host cannot carry pods at all."""
        return await self._do(lambda: self._configure(pod_cidr, cluster_cidr, mtu))

    async def collect(self, live: Collection[str]) -> list[str]:
        """Free what sandboxes that are not in `live` still hold; the container ids freed."""
        return await self._do(lambda: self._collect(set(live)))

    async def repair(self) -> None:
        """Put back the node-wide rules if somebody removed them. Raises xtables.RestoreError."""
        await self._do(self._repair)

    @property
    def configured(self) -> bool:
        return self._network is not None

    # -- on the worker thread -------------------------------------------------------------------------------------

    def _configure(self, pod_cidr: str, cluster_cidr: str, mtu: int) -> list[Finding]:
        mtu = mtu or addresses.uplink_mtu()
        own, clusters = _ranges(pod_cidr), _ranges(cluster_cidr)
        families = [Family(one, str(next((c for c in clusters if c.version == one.version), one)),
                           xtables.detect(one.version)) for one in own]
        problems = sysctls.apply(self._ledger, any(family.own.version == 6 for family in families))
        self._ledger.record("link", prefix=links.PREFIX)
        if self._network:
            self._network.host.close()
        self._network = Network(Ipam(self._paths.ipam, str(own[0])), mtu, RtNetlink(), families)
        foreign = install.foreign(self._paths)
        self._aside = foreign is not None
        try:
            self._repair()
        except xtables.RestoreError as error:
            self._network = None
            raise Finding("iptables does not take the rules of the pod network", str(error),
                          "check that the kernel has the nat table and the matches mark and addrtype") from error
        if foreign is None:
            install.write_configuration(self._paths, self._ledger, mtu)
            return problems
        install.withdraw_configuration(self._paths)
        return [*problems, Finding(f"pods get their network from {foreign}", "somebody put it there: ours steps aside",
                                   f"remove {foreign} if Pelamis shall give pods their network")]

    def _repair(self) -> None:
        network = self._network
        if network is None:
            return
        holdings = network.ipam.holdings()
        for family in network.families:
            if self._aside and not holdings:
                masquerade.remove(family.backend)
                continue
            masquerade.apply(family.backend, self._ledger, str(family.own), family.cluster)
            if any(held.ports for held in holdings):
                hostports.apply(family.backend, self._ledger, network.port_holders(family, holdings))

    def _collect(self, live: set[str]) -> list[str]:
        network = self._network
        if network is None:
            return []
        freed = []
        for held in network.ipam.stale(live, self._clock.now()):
            self._remove(network, held.container, held.interface)
            freed.append(held.container)
        known = {links.host_name(h.container, h.interface) for h in network.ipam.holdings()}
        for name in links.present(network.host):
            if name not in known:
                links.unwire(network.host, name)
        if freed and self._aside:
            self._repair()  # these may have been the last to need any rule
        return freed

    def _remove(self, network: Network, container: str, interface: str) -> None:
        """The address is freed last: until then nobody else can be given a route to it."""
        held = network.ipam.of(container, interface)
        links.unwire(network.host, links.host_name(container, interface))
        if held is None:
            return
        self._forget_flows(network, held.address)
        if held.ports:
            rest = [h for h in network.ipam.holdings() if h != held]
            gone = [hostports.chain_name(container, mapping) for mapping in held.ports]
            for family in network.families:
                hostports.apply(family.backend, self._ledger, network.port_holders(family, rest), gone)
        network.ipam.release(container, interface)

    def _forget_flows(self, network: Network, address: str) -> None:
        for one in (address, network.beside(address)):
            try:
                if one:
                    flows.forget_address(one)
            except OSError as error:
                log.debug("connections of %s stay until their time-out: %s", one, error)

    def _remove_unconfigured(self, call: Call) -> None:
        """A DEL needs no range: a node that goes down takes its pods down without being configured first."""
        try:
            with RtNetlink() as host:
                links.unwire(host, links.host_name(call.container, call.interface))
                for folder in self._paths.ipam.glob("*_*"):
                    ipam = Ipam(self._paths.ipam, folder.name.replace("_", "/"))
                    if ipam.of(call.container, call.interface):
                        only = Family(ipam.network, "", xtables.detect(ipam.network.version))
                        self._remove(Network(ipam, 0, host, [only]), call.container, call.interface)
        except (OSError, xtables.RestoreError) as error:
            raise CniError(wire.TRY_LATER, f"failed to take down the pod's link: {error}") from error

    def _add(self, network: Network, call: Call) -> dict[str, Any]:
        try:
            held = network.ipam.take(call.container, call.interface, self._clock.now(), call.port_mappings)
        except ExhaustedError as error:
            raise CniError(wire.TRY_LATER, f"failed to allocate for range 0: {error}") from error
        spec = links.Wire(call.container, call.netns, held.address, call.interface, network.mtu,
                          network.beside(held.address), *call.bandwidth)
        try:
            links.wire(network.host, spec)
            for family in network.families if held.ports else ():
                hostports.apply(family.backend, self._ledger, network.port_holders(family, network.ipam.holdings()))
        except (OSError, xtables.RestoreError) as error:
            self._remove(network, call.container, call.interface)
            raise CniError(wire.BROKEN, f"failed to set up the pod's link {spec.host}: {error}") from error
        return wire.added(call, spec.addresses, spec.host, _mac(spec.mac), _mac(links.HOST_MAC))

    def _check(self, network: Network, call: Call) -> None:
        held: Holding | None = network.ipam.of(call.container, call.interface)
        if held is None:
            raise CniError(wire.UNKNOWN_CONTAINER, f"no address is held by {call.container}/{call.interface}")
        try:
            network.host.link(links.host_name(call.container, call.interface))
        except OSError as error:
            raise CniError(wire.BROKEN, f"the pod's link is missing: {error}") from error

    def _loopback(self, call: Call) -> dict[str, Any] | None:
        if call.command == "ADD":
            try:
                links.loopback_up(call.netns)
            except OSError as error:
                raise CniError(wire.BROKEN, f"failed to bring up the loopback interface: {error}") from error
            return wire.loopback(call)
        return None

    def _handle(self, call: Call) -> dict[str, Any] | None:
        if call.command == "VERSION":
            return wire.versions(call.version)
        if call.plugin == "loopback":
            return self._loopback(call)
        network = self._network
        if network is None and call.command == "DEL":
            self._remove_unconfigured(call)
            return None
        if network is None:
            code = wire.NOT_AVAILABLE if call.command == "STATUS" else wire.TRY_LATER
            raise CniError(code, "the pod network is not configured yet", "the node has no pod CIDR")
        if call.command == "ADD":
            return self._add(network, call)
        if call.command == "DEL":
            try:
                self._remove(network, call.container, call.interface)
            except (OSError, xtables.RestoreError) as error:
                raise CniError(wire.TRY_LATER, f"failed to take down the pod's link: {error}") from error
        elif call.command == "CHECK":
            self._check(network, call)
        elif call.command == "GC":
            self._collect(wire.valid_attachments(call))
        return None

    # -- on the event loop ----------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = wire.VERSION
        try:
            async with asyncio.timeout(READ_SECONDS):
                data = await _read_all(reader)
            call = wire.parse(data)
            version = call.version
            reply = wire.answer(await self._do(lambda: self._handle(call)))
        except CniError as error:
            log.warning("CNI call refused: %s", error)
            reply = wire.failure(error, version)
        except (OSError, TimeoutError, Finding) as error:
            log.warning("CNI call failed: %s", error)
            reply = wire.failure(CniError(wire.IO_FAILURE, str(error) or "the call was not sent in time"), version)
        try:
            writer.write(reply)
            await writer.drain()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
        finally:
            writer.close()


def _ranges(text: str) -> list[Range]:
    """The ranges of a text with commas, IPv4 first: a pod's first address is of it where there are two families."""
    return sorted((ipaddress.ip_network(part) for part in text.split(",")), key=lambda network: network.version)


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    while part := await reader.read(65536):
        data += part
        if len(data) > wire.REQUEST_LIMIT:
            raise CniError(wire.BAD_CONTENT, f"the call is longer than {wire.REQUEST_LIMIT} bytes")
    return bytes(data)


def _mac(raw: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in raw)

"""Write maps into the kernel's nf_tables: all of them, or exactly the elements that changed.

Owns the table `pelamis-proxy` of one family. Each call is one transaction, so there is no instant in which a service
that answers before and after does not answer. The table belongs to this process' socket where the kernel knows owners;
then nobody else can change it, and whether it is intact is one small question. It outlives the process.

Called by `side`, on the proxy's worker thread.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from agent.proxy.maps import MapChange
from agent.proxy.nftchains import BASE, TABLE, Chains, sets
from netsetup import nftables, xtables
from netsetup.ledger import Ledger
from netsetup.nftables import Set, Table, Value

LEAST = 4096  # elements a set has room for at first, afterwards twice as many as there are when all is loaded
NO_OWNERS = (errno.EINVAL, errno.EOPNOTSUPP)


class Writer:
    """The kernel's side of one family."""

    tells = True  # a loss is heard of by `guard`

    def __init__(self, chains: Chains, ledger: Ledger | None = None) -> None:
        self._chains, self._ledger, self._family = chains, ledger, chains.family
        self._table: Table | None = None
        self._counts: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._holds = -1

    def bare(self) -> bool:
        """A load is one transaction, and quick: nobody need stand in."""
        return False

    def load(self, everything: MapChange) -> None:
        """Make the table hold exactly this, whatever it held before. Raises OSError."""
        if self._ledger:
            self._ledger.record("nftables", table=TABLE)
        table = self._open()
        clients = self._clients(table, everything)
        self._counts = {name: len(everything.add.get(name, ())) for name in sets(self._family)}
        self._sizes = {name: max(LEAST, 2 * count) for name, count in self._counts.items()}
        try:
            self._fill(table, everything, clients)
        except OSError as error:
            if error.errno not in NO_OWNERS or not table.flags:
                raise
            table.flags = 0  # a kernel before 5.12 (owners) or 6.9 (tables that stay)
            self._fill(table, everything, clients)
        self._holds = table.holds()

    def _clients(self, table: Table, everything: MapChange) -> dict[str, list[bytes]]:
        """Who is bound to which endpoint by affinity: a load forgets nobody, only their time begins anew."""
        if not everything.remembered or table.holds() < 0:
            return {}
        found = {}
        for name in everything.remembered:
            try:
                found[name] = list(table.elements(name))
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
        return found

    def _fill(self, table: Table, everything: MapChange, clients: dict[str, list[bytes]]) -> None:
        table.create()  # adopt it, for only the owner may remove it
        table.destroy()
        table.create()
        for name, spec in sets(self._family).items():
            table.set(name, replace(spec, size=self._sizes[name]))
        base = self._chains.base()
        for name in base:
            table.chain(name, BASE.get(name))
        self._chains_of(table, everything)
        for name, rules in base.items():
            table.rules(name, rules)
        for name, elements in everything.add.items():
            table.add(name, elements.items())
        for name, keys in clients.items():
            table.add(name, ((key, None) for key in keys))
        table.commit()

    def fits(self, change: MapChange) -> bool:
        """Whether the sets have room for a change; otherwise everything is to be loaded, into larger ones."""
        return all(self._counts[name] + len(more) <= self._sizes[name] for name, more in change.add.items())

    def apply(self, change: MapChange) -> None:
        """Only what changed. Raises OSError; then only `load` makes things right again."""
        table = self._open()
        for name in change.dead | change.chains.keys():
            table.chain(name)
            table.flush(name)
        for name, keys in change.remove.items():
            table.remove(name, keys)
            self._counts[name] -= len(keys)
        for name in sorted(change.dead, key=_leading):
            table.delete_chain(name)
        for name in change.forgotten:
            table.delete_set(name)
        self._chains_of(table, change)
        for name, elements in change.add.items():
            table.add(name, elements.items())
            self._counts[name] += len(elements)
        table.commit()
        if change.chains or change.dead:
            self._holds = table.holds()

    def _chains_of(self, table: Table, change: MapChange) -> None:
        address = nftables.IPV6 if self._family == 6 else nftables.IPV4
        for name, seconds in change.remembered.items():
            table.set(name, Set((address,), timeout=seconds))
        for name in change.chains:
            table.chain(name)
        for name, rules in change.chains.items():
            table.rules(name, rules)

    def suspicious(self) -> bool:
        """Whether `intact` is worth its cost: always, it is small."""
        return True

    def intact(self) -> bool:
        """Whether the table still holds what was written."""
        table = self._open()
        if table.holds() != self._holds:
            return False
        return bool(table.flags) or all(len(table.elements(name)) == count for name, count in self._counts.items())

    def leave(self) -> None:
        """Take away what the other writer left: its rules would see every packet too."""
        for variant in xtables.BACKENDS:
            backend = xtables.Backend(variant, self._family)
            if backend.present and ":KUBE-SERVICES " in backend.save():
                xtables.remove_from(backend, PROXY_CHAINS)

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _open(self) -> Table:
        if self._table is None:
            self._table = Table(TABLE, self._family)
        self._table.drop()
        return self._table


# The chains of the iptables writer; those of host ports, which are somebody else's, also begin with KUBE-.
PROXY_CHAINS = ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ",
                "KUBE-FORWARD", "KUBE-FIREWALL", "KUBE-PROXY-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-",
                "KUBE-SEP-", "KUBE-IPS-")


def read(family: int = 4) -> tuple[dict[str, tuple[bytes, ...]], dict[str, dict[bytes, Value]]] | None:
    """(chains, sets) of the table as the kernel has it; None when there is none. Raises OSError."""
    table = Table(TABLE, family)
    try:
        if table.holds() < 0:
            return None
        chains = table.chains()
        names = [*sets(family), *(f"had-{c.removeprefix('end-')}" for c in chains if c.startswith("end-"))]
        return chains, {name: table.elements(name) for name in names}
    finally:
        table.close()


def _leading(name: str) -> tuple[bool, str]:
    """Chains of endpoints last: the others go to them."""
    return name.startswith("end-"), name

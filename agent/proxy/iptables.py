"""Write chains into iptables: all of them, or exactly those that changed.

Owns the batches. `batches` is pure: chains in an order in which nothing refers to what does not exist yet, in pieces
the nf_tables variant can digest (its restore is quadratic in the chains of one batch). Chains of a service go first,
the chains that lead to them after, deletions last: at no instant does a rule lead nowhere. Chains that do not change
are not mentioned and keep their counters. `Writer` runs them; what others put into the tables is left alone.

iptables-restore writes; but for the nf_tables variant, chains whose rules `compat` knows are sent to the kernel by
ourselves, if the iptables that is installed prints such rules as they are meant (`parts` tells which).

Called by `proxy`, on its worker thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from agent.proxy import compat, rules
from agent.proxy.cleanup import PREFIX
from agent.proxy.nftchains import TABLE
from agent.proxy.rules import DEPTH, Chain, Change, Hook, Rules
from netsetup import nftables, xtables
from netsetup.ledger import Ledger

CHUNK = 1500  # chains and rules of one nf_tables batch: larger ones cost iptables-restore more than they save
SENT = 10_000  # rules of one batch that we send ourselves: what the kernel keeps twice until it is in
TRIAL, TRIAL_TARGET = "KUBE-PROXY-TRIAL", "KUBE-PROXY-TRIED"  # chains, there for a moment
POLICY_TABLE = "mangle"  # where network policies have their rules: a loss there is noticed here as well
# What may be named by whom: a chain only leads to chains of a lower rank (branches: to a longer prefix).
_RANKS = ("KUBE-MARK-MASQ", "KUBE-SEP-", "KUBE-SV", "KUBE-EXT-", "KUBE-FW-", "KUBE-NODEPORTS")
_BRANCH = len(_RANKS)
MASQUERADE = ("nat", "KUBE-MARK-MASQ")  # rules of others lead there as well: the number of uses proves nothing
CHAIN_ENTRIES = 2  # of a legacy table for a chain without rules: its head and its end
log = logging.getLogger(__name__)


def rank(chain: Chain) -> tuple[int, int]:
    """Where in the order a chain is written: the chains it leads to come before it."""
    table, name = chain
    side = 1 if table == "filter" else 0
    for index, prefix in enumerate(_RANKS):
        if name.startswith(prefix):
            return side, index
    if name.startswith("KUBE-IPS-"):
        bits = name.split("-")[2]  # no number: what another version left
        return side, _BRANCH + (DEPTH - int(bits) if bits.isdigit() else 0)
    return side, _BRANCH + DEPTH


def batches(change: Change, chunk: int = 0, hooks: Sequence[Hook] = ()) -> list[str]:
    """iptables-restore texts, to be applied in order. `chunk`: chains and rules per batch, 0 for one batch.

    `hooks` are put in when what they lead to is there."""
    order = sorted(change.write, key=lambda c: (rank(c), c[1]))
    dead = sorted(change.delete, key=lambda c: (rank(c), c[1]), reverse=True)  # first those that lead to others
    if not chunk or len(dead) + sum(1 + len(lines) for lines in change.write.values()) <= chunk:
        return [_text({c: change.write[c] for c in order}, dead, hooks)] if change or hooks else []
    made: list[dict[Chain, Rules]] = [{}]
    room = chunk
    for chain in order:
        if room <= 0:
            made.append({})
            room = chunk
        made[-1][chain] = change.write[chain]
        room -= 1 + len(change.write[chain])
    gone = [dead[start:start + chunk] for start in range(0, len(dead), chunk)]
    return [*(_text(part, hooks=hooks if part is made[-1] else ()) for part in made), *(_text({}, d) for d in gone)]


def parts(change: Change) -> Iterator[tuple[bool, Change]]:
    """A change in pieces, to be done in order; whether each can be sent as it is, or goes by iptables-restore."""
    places = {chain: place for place, chain in enumerate(_followed(change.write))}
    sent = {chain for chain, lines in change.write.items() if chain[0] == "nat" and all(map(compat.knows, lines))}
    order = sorted(change.write, key=lambda c: (rank(c), c in sent, places[c]))
    gone = {chain for chain in change.delete if chain[0] == "nat"}
    for known, chains in groupby(order, key=sent.__contains__):
        part = Change({chain: change.write[chain] for chain in chains})
        if known and len(part.write) == len(change.write):
            part.delete, gone = gone, set()  # all of it in one transaction
        yield known, part
    if gone:
        yield True, Change(delete=gone)
    if others := {chain for chain in change.delete if chain[0] != "nat"}:
        yield False, Change(delete=others)


def _followed(write: Mapping[Chain, Rules]) -> list[Chain]:
    """Chains in the order in which the kernel comes to them when it checks a table. What was put next to each other in
    memory it goes through in three quarters of the time."""
    found: dict[Chain, None] = {}
    ahead = sorted(write, key=lambda c: (rank(c), c[1]))
    while ahead:
        chain = ahead.pop()
        if chain in write and chain not in found:
            found[chain] = None
            ahead += [(chain[0], line.rpartition("-j ")[2]) for line in reversed(write[chain])]
    return list(found)


def _text(write: dict[Chain, Rules], dead: Iterable[Chain] = (), hooks: Sequence[Hook] = ()) -> str:
    out: list[str] = []
    for table in rules.TABLES:
        chains = [(name, lines) for (of, name), lines in write.items() if of == table]
        gone = [name for of, name in dead if of == table]
        put = [f"-I {chain} 1 {rule}" for of, chain, rule in hooks if of == table]
        if not chains and not gone and not put:
            continue
        out.append(f"*{table}")
        out += [f":{name} - [0:0]" for name, _ in chains]
        out += [f":{name} - [0:0]" for name in gone]
        out += [f"-A {name} {rule}" for name, lines in chains for rule in lines]
        out += put
        out += [f"-X {name}" for name in gone]
        out.append("COMMIT")
    return "\n".join([*out, ""])


def listed(saved: str) -> dict[Chain, Rules]:
    """What an iptables-save text tells: every chain with its rules. Pure."""
    found: dict[Chain, list[str]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("-A "):
            name, _, rule = line[3:].partition(" ")
            found[table, name].append(rule)
        elif line.startswith(":"):
            found[table, line[1:].partition(" ")[0]] = []
        elif line.startswith("*"):
            table = line[1:]
    return {chain: tuple(lines) for chain, lines in found.items()}


def _missing(have: Mapping[Chain, Rules]) -> list[Hook]:
    return [(table, chain, rule) for table, chain, rule in rules.HOOKS if rule not in have.get((table, chain), ())]


class Writer:
    """The kernel's side. Not thread safe: one worker at a time."""

    def __init__(self, backend: xtables.Backend, ledger: Ledger | None = None) -> None:
        self.backend, self._ledger = backend, ledger
        self.tells = backend.is_nft  # a loss is heard of by `guard`
        self._chunk = CHUNK if self.tells else 0
        self._sends: bool | None = None if self.tells else False  # not known until it was tried
        self._written: dict[Chain, Rules] = {}
        self._entries: list[int] | None = None
        self._table: nftables.Table | None = None

    def bare(self) -> bool:
        """Whether nothing leads to any service now, and a load of many would take seconds."""
        return self.tells and not (self.backend.rules("nat", "KUBE-SERVICES") and all(
            rule in (self.backend.rules(table, chain) or ())
            for table, chain, rule in rules.HOOKS if rule.endswith("-j KUBE-SERVICES") and table == "nat"))

    def load(self, everything: dict[Chain, Rules]) -> None:
        """Make the kernel hold exactly these chains, whatever it held before; those that are right stay untouched.

        Raises OSError or xtables.RestoreError."""
        if self._ledger:
            self._ledger.record("iptables", prefix=PREFIX, family=self.backend.family)
        self._written = {}
        if self._sends is None:
            self._sends = self._understood()
        have = listed(self.backend.save())
        stale = {chain for chain in have if chain[1].startswith(rules.OWN_PREFIXES)} - everything.keys()
        wrong = {chain: lines for chain, lines in everything.items() if have.get(chain) != lines}
        self._write(Change(wrong, stale), _missing(have))
        self._written = everything
        self._entries = self._legacy_entries()

    def apply(self, change: Change) -> None:
        """Only what changed. Raises OSError or xtables.RestoreError; then only `load` makes things right again."""
        self._write(change)
        for chain, lines in change.write.items():
            self._grow(chain[0], len(lines) - self._entries_of(chain))
        for chain in change.delete:
            self._grow(chain[0], -self._entries_of(chain) - CHAIN_ENTRIES)
            self._written.pop(chain, None)
        self._written |= change.write

    def _write(self, change: Change, hooks: Sequence[Hook] = ()) -> None:
        if not self._sends:
            self._restore(change, hooks)
            return
        for known, part in parts(change):
            if known:
                self._send(part)
            else:
                self._restore(part)
        if hooks:
            self._restore(Change(), hooks)

    def _restore(self, change: Change, hooks: Sequence[Hook] = ()) -> None:
        """Each batch by a process of its own: one that outlived us would not write for long."""
        for text in batches(change, self._chunk, hooks):
            self.backend.restore(text)

    def _send(self, change: Change) -> None:
        """By our own messages. Raises OSError."""
        table, waiting = self._open(), 0
        table.create()  # or leave it as it is
        for (_, name), lines in change.write.items():
            table.chain(name)
            table.flush(name)
            table.rules(name, map(compat.rule, lines))
            waiting += len(lines)
            if waiting >= SENT:
                table.commit()
                waiting = 0
        for _, name in change.delete:
            table.flush(name)
        for _, name in change.delete:
            table.delete_chain(name)
        table.commit()

    def _understood(self) -> bool:
        """Whether the iptables installed here tells of what we send what it would tell of the same rules of its own."""
        rules = compat.specimens(self.backend.family, TRIAL_TARGET)
        tried = Change({("nat", TRIAL_TARGET): (), ("nat", TRIAL): rules})
        try:
            self._send(tried)
            same = self.backend.rules("nat", TRIAL) == list(rules)
            self._send(Change(delete=set(tried.write)))
        except OSError as error:
            log.info("rules cannot be sent to nf_tables, iptables-restore writes all of them: %s", error)
            return False
        return same

    def _entries_of(self, chain: Chain) -> int:
        """How many entries of a legacy table the rules of a chain are now, less two if the chain is to be made."""
        return len(self._written[chain]) if chain in self._written else -CHAIN_ENTRIES

    def _grow(self, table: str, entries: int) -> None:
        """What a legacy table should hold now; that it holds something else means that somebody else wrote too."""
        if self._entries is not None:
            self._entries[rules.TABLES.index(table)] += entries

    def fits(self, change: Change) -> bool:
        """Chains grow as they must."""
        return True

    def suspicious(self) -> bool:
        """Whether `intact` is worth its cost: always with nf_tables, else when the tables' sizes are not as left."""
        entries = self._legacy_entries()
        if entries is None or entries == self._entries:
            return entries is None
        self._entries = entries
        return True

    def _legacy_entries(self) -> list[int] | None:
        if self.tells:
            return None
        others = [t for t in xtables.legacy_tables(self.backend.family) if t == POLICY_TABLE]
        return [xtables.legacy_entries(table, self.backend.family) for table in (*rules.TABLES, *others)]

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
            self._table = None

    def _open(self) -> nftables.Table:
        """iptables' own table, which is nobody's property. Stays open: to close a socket takes the kernel 10 ms."""
        if self._table is None:
            self._table = nftables.Table("nat", self.backend.family)
            self._table.flags = 0
        self._table.drop()
        return self._table

    def intact(self) -> bool:
        """Whether every chain still has its rules and every hook is in place: what a foreign flush destroys."""
        return self._used() if self.tells else self._saved_whole()

    def _used(self) -> bool:
        """The kernel counts for each chain the rules in it and those that lead to it, hooks among them: to ask for the
        numbers takes a twentieth of the time of reading the rules."""
        known = Counter({chain: len(lines) for chain, lines in self._written.items()})
        known.update((table, line.rpartition("-j ")[2])
                     for (table, _), lines in self._written.items() for line in lines)
        known.update((table, rule.rpartition("-j ")[2]) for table, _, rule in rules.HOOKS)
        uses = self._open().uses()
        whole = all(uses.get(chain, -1) >= known[chain] for chain in self._written)
        return whole and bool(self.backend.rules(*MASQUERADE))

    def _saved_whole(self) -> bool:
        have = listed(self.backend.save())
        return not _missing(have) and all(chain in have and len(have[chain]) == len(lines)
                                          for chain, lines in self._written.items())

    def leave(self) -> None:
        """Take away rules of an earlier run in the other variant or mode: they would see every packet too."""
        nftables.delete(TABLE, (self.backend.family,))
        for variant in xtables.BACKENDS:
            other = xtables.Backend(variant, self.backend.family)
            same = variant == ("nft" if self.tells else "legacy")
            # Saved without naming a table: naming one would make the kernel create it, and hook it into every packet.
            if not same and other.present and ":KUBE-SERVICES " in other.save():
                xtables.remove_from(other, PREFIX)

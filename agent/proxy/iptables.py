"""Write chains into the kernel by iptables-restore: all of them, or exactly those that changed.

Owns the batches. `batches` is pure: chains in an order in which nothing refers to what does not exist yet, in pieces
the nf_tables variant can digest (its restore is quadratic in the chains of one batch). Chains of a service go first,
the chains that lead to them after, deletions last: at no instant does a rule lead nowhere. Chains that do not change
are not mentioned and keep their counters. `Writer` runs them; what others put into the tables is left alone.

Called by `proxy`, on its worker thread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing

from agent.proxy import rules
from agent.proxy.cleanup import PREFIX
from agent.proxy.nftchains import TABLE
from agent.proxy.rules import DEPTH, Chain, Change, Hook, Rules
from netsetup import nftables, xtables
from netsetup.ledger import Ledger

CHUNK = 1500  # chains and rules of one nf_tables batch: larger ones cost iptables-restore more than they save
POLICY_TABLE = "mangle"  # where network policies have their rules: a loss there is noticed here as well
# What may be named by whom: a chain only leads to chains of a lower rank (branches: to a longer prefix).
_RANKS = ("KUBE-MARK-MASQ", "KUBE-SEP-", "KUBE-SV", "KUBE-EXT-", "KUBE-FW-", "KUBE-NODEPORTS")
_BRANCH = len(_RANKS)
MASQUERADE = ("nat", "KUBE-MARK-MASQ")  # rules of others lead there as well: the number of uses proves nothing
CHAIN_ENTRIES = 2  # of a legacy table for a chain without rules: its head and its end


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
    parts: list[dict[Chain, Rules]] = [{}]
    room = chunk
    for chain in order:
        if room <= 0:
            parts.append({})
            room = chunk
        parts[-1][chain] = change.write[chain]
        room -= 1 + len(change.write[chain])
    gone = [dead[start:start + chunk] for start in range(0, len(dead), chunk)]
    return [*(_text(part, hooks=hooks if part is parts[-1] else ()) for part in parts), *(_text({}, d) for d in gone)]


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
        self._written: dict[Chain, Rules] = {}
        self._entries: list[int] | None = None

    def load(self, everything: dict[Chain, Rules], urgent: Callable[[], dict[Chain, Rules]] | None = None) -> None:
        """Make the kernel hold exactly these chains, whatever it held before; those that are right stay untouched.

        `urgent` makes the part of them that comes first, where a load takes many steps and nothing leads to any service
        (at first, and after a flush); rules that are in force serve until the load is done. Raises
        xtables.RestoreError."""
        if self._ledger:
            self._ledger.record("iptables", prefix=PREFIX, family=self.backend.family)
        self._written = {}
        have = listed(self.backend.save())
        if urgent and self._chunk and not have.get(("nat", "KUBE-SERVICES")):
            part = urgent()
            self._restore(Change(part), _missing(have))
            have = listed(self.backend.save())
        stale = {chain for chain in have if chain[1].startswith(rules.OWN_PREFIXES)} - everything.keys()
        wrong = {chain: lines for chain, lines in everything.items() if have.get(chain) != lines}
        self._restore(Change(wrong, stale), _missing(have))
        self._written = everything
        self._entries = self._legacy_entries()

    def apply(self, change: Change) -> None:
        """Only what changed. Raises xtables.RestoreError; then only `load` makes things right again."""
        self._restore(change)
        for chain, lines in change.write.items():
            self._grow(chain[0], len(lines) - self._entries_of(chain))
        for chain in change.delete:
            self._grow(chain[0], -self._entries_of(chain) - CHAIN_ENTRIES)
            self._written.pop(chain, None)
        self._written |= change.write

    def _restore(self, change: Change, hooks: Sequence[Hook] = ()) -> None:
        """Each batch by a process of its own: one that outlived us would not write for long."""
        for text in batches(change, self._chunk, hooks):
            self.backend.restore(text)

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
        """Nothing is held open."""

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
        with closing(nftables.Table("nat", self.backend.family)) as table:
            uses = table.uses()
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

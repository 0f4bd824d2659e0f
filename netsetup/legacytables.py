"""Look into the legacy tables of iptables, and clean them, where no `iptables-legacy` binary is there to do it.

Owns the only use of the library python-iptables: it speaks to the kernel through libiptc, so it sees rules that no
installed tool shows, such as those another version of a distribution left behind. The library is not thread safe, swaps
standard output while it reads a rule, keeps tables for the life of the process and takes a quarter of a millisecond for
each rule; so it lives in a helper process of one thread that asks one thing and ends, and never writes service rules.
Without the library (it is the extra `legacy`) nothing is known and nothing cleaned.

Called by `xtables`, and by tests that want a second opinion. `python -m netsetup.legacytables` is the helper.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

HELPER_SECONDS = 60  # for cleaning some thousand rules
TABLES = ("filter", "nat", "mangle", "raw")


def available() -> bool:
    return importlib.util.find_spec("iptc") is not None


def chains(prefix: str, family: int = 4, tables: tuple[str, ...] = TABLES) -> dict[str, dict[str, int]]:
    """By table, the chains of this prefix with their numbers of rules; "" for all. Raises OSError."""
    return _ask("chains", prefix, family, tables)


def remove(prefix: str, family: int = 4, tables: tuple[str, ...] = TABLES) -> int:
    """Remove chains of this prefix and the jumps to them; how many chains went. Raises OSError."""
    return int(_ask("remove", prefix, family, tables))


def _ask(what: str, prefix: str, family: int, tables: tuple[str, ...]) -> Any:
    if not available():
        return {} if what == "chains" else 0
    command = [sys.executable, "-m", "netsetup.legacytables", what, prefix, str(family), ",".join(tables)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HELPER_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"looking at legacy iptables took longer than {HELPER_SECONDS} s") from error
    if done.returncode:
        raise OSError(f"legacy iptables: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- inside the helper ---------------------------------------------------------------------------------------------

def _table(name: str, family: int) -> Any:
    import iptc
    table = iptc.Table6(name) if family == 6 else iptc.Table(name)
    table.autocommit = False  # else every single call reads and writes the whole table
    table.refresh()
    return table


def _look(prefix: str, family: int, tables: list[str]) -> dict[str, dict[str, int]]:
    return {name: {chain.name: len(chain.rules) for chain in _table(name, family).chains
                   if chain.name.startswith(prefix)} for name in tables}


def _clean(prefix: str, family: int, tables: list[str]) -> int:
    gone = 0
    for name in tables:
        table = _table(name, family)
        ours = [chain for chain in table.chains if chain.name.startswith(prefix)]
        for chain in table.chains:
            for rule in [r for r in chain.rules if r.target is not None and r.target.name.startswith(prefix)]:
                chain.delete_rule(rule)
        for chain in ours:
            chain.flush()
        for chain in ours:
            table.delete_chain(chain)
        if ours:
            table.commit()
        gone += len(ours)
    return gone


if __name__ == "__main__":
    TASKS = {"chains": _look, "remove": _clean}
    print(json.dumps(TASKS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4].split(","))))

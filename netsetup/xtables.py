"""The host's iptables: which backend is in use, restoring a batch, saving, and removing chains by prefix.

Owns every call of an iptables binary. Two backends may exist on one host (`legacy`, `nft`); rules must go where the
host's other rules are, or two firewalls see each packet in an order nobody planned. `detect` picks the one that holds
more rules and falls back to the plain `iptables`. Everything waits for the xtables lock with `-w` and never reads or
writes rules one at a time. Never called on the event loop: callers use a thread.

Called by `agent.proxy.iptables`, `cni.hostports`, `masquerade` and `undo`.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import struct
import subprocess
from contextlib import closing
from dataclasses import dataclass

from controlplane.machinery.errors import Finding
from netsetup import nftables, ownports

LOCK_WAIT = 5  # seconds for the xtables lock: others hold it for one batch, not longer
COMMAND_TIMEOUT = 120  # seconds for one batch: a full load of thousands of chains on a busy machine stays below
BACKENDS = ("nft", "legacy")
PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
TABLES = ("filter", "nat", "mangle", "raw", "security")
IPT_SO_GET_INFO = 64
INFO_SIZE = 84  # struct ipt_getinfo: name, valid hooks, entry and underflow of five hooks, number of entries, size
_libc = ctypes.CDLL(None, use_errno=True)
_CHAIN = re.compile(r"^:(\S+) ", re.M)


class RestoreError(Exception):
    """iptables-restore refused a batch; nothing of the failed table was applied. The text is its complaint."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One variant of iptables of one family. `variant`: `nft`, `legacy` or "" for whatever `iptables` is."""

    variant: str
    family: int = 4

    def command(self, tool: str) -> str | None:
        stem = "ip6tables" if self.family == 6 else "iptables"
        name = "-".join(part for part in (stem, self.variant, tool) if part)
        return shutil.which(name, path=PATH)

    @property
    def present(self) -> bool:
        return self.command("restore") is not None

    @property
    def is_nft(self) -> bool:
        """Whether batches end in nf_tables, whose restore is slow with many chains in one batch."""
        if self.variant:
            return self.variant == "nft"
        return b"nf_tables" in _run([self.command("") or "iptables", "--version"]).stdout

    def save(self, table: str = "") -> str:
        """`iptables-save`, of one table or all; "" when the kernel has no such table."""
        command = self.command("save")
        if command is None:
            return ""
        done = _run([command, *(["-t", table] if table else [])])
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""

    def rules(self, table: str, chain: str) -> list[str] | None:
        """The rules of one chain, each without the chain's name; None without such a chain."""
        done = _run([self.command("") or "iptables", "-w", str(LOCK_WAIT), "-t", table, "-S", chain])
        own = f"-A {chain} "
        lines = done.stdout.decode(errors="replace").splitlines()
        return [line.removeprefix(own) for line in lines if line.startswith(own)] if done.returncode == 0 else None

    def restore(self, text: str) -> None:
        """Apply a batch, leaving alone what it does not name. Raises RestoreError; each table is all or nothing."""
        command = self.command("restore")
        if command is None:
            raise Finding(f"{'ip6tables' if self.family == 6 else 'iptables'}-restore is not installed",
                          "the service proxy programs the host's firewall with it", "install the package iptables")
        done = _run([command, "--noflush", "-w", str(LOCK_WAIT)], text.encode())
        if done.returncode:
            raise RestoreError(done.stderr.decode(errors="replace").strip()[:2000])


def _run(command: list[str], data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The data is given as a file: a full load has many megabytes, and a pipe hands them over in small pieces."""
    with os.fdopen(os.memfd_create("rules"), "wb+") as file:
        file.write(data)
        file.seek(0)
        with subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            ownports.add(running.pid)
            try:
                out, complaint = running.communicate(timeout=COMMAND_TIMEOUT)
            except subprocess.TimeoutExpired as error:
                running.kill()
                raise RestoreError(f"{command[0]} did not finish within {COMMAND_TIMEOUT} s") from error
    return subprocess.CompletedProcess(command, running.returncode, out, complaint)


def detect(family: int = 4) -> Backend:
    """The backend that holds KUBE-IPTABLES-HINT or more rules than the other; else the host's default."""
    plain = Backend("", family)
    default = Backend("nft" if plain.present and plain.is_nft else "legacy", family)
    if default.variant == "nft" and default.present and not legacy_tables(family):
        return default  # whatever it holds, the other holds nothing: to read thousands of rules would take a second
    counts: dict[str, int] = {}
    for variant in BACKENDS:
        backend = Backend(variant, family)
        if not backend.present:
            continue
        text = backend.save()
        if "KUBE-IPTABLES-HINT" in text:
            return backend
        counts[variant] = text.count("\n-A ")
    if len(counts) == 2 and counts["nft"] != counts["legacy"]:
        return Backend(max(counts, key=counts.__getitem__), family)
    if counts:
        return default if default.variant in counts else Backend(next(iter(counts)), family)
    return plain


def legacy_entries(table: str, family: int = 4) -> int:
    """How many entries a legacy table holds, by one getsockopt (microseconds); -1 when it cannot be told."""
    info = ctypes.create_string_buffer(table.encode(), INFO_SIZE)
    length = ctypes.c_uint32(INFO_SIZE)
    domain, level = (socket.AF_INET6, socket.IPPROTO_IPV6) if family == 6 else (socket.AF_INET, socket.IPPROTO_IP)
    try:
        with socket.socket(domain, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as link:
            failed = _libc.getsockopt(link.fileno(), level, IPT_SO_GET_INFO, info, ctypes.byref(length))
    except OSError:
        return -1
    return -1 if failed else struct.unpack_from("=I", info.raw, INFO_SIZE - 8)[0]


def legacy_tables(family: int = 4) -> list[str]:
    """The legacy tables that exist here; asking for any other would make the kernel create it."""
    try:
        with open(f"/proc/thread-self/net/{'ip6' if family == 6 else 'ip'}_tables_names") as file:
            return file.read().split()
    except OSError:
        return []


def removal(saved: str, prefix: str | tuple[str, ...]) -> str:
    """The batch that removes, from an `iptables-save` text, every chain named `prefix…` and every jump to one. Pure."""
    out: list[str] = []
    given = "|".join(re.escape(one) for one in ([prefix] if isinstance(prefix, str) else prefix))
    for block in re.split(r"^(?=\*)", saved, flags=re.M):
        if not block.startswith("*"):
            continue
        table = block.split("\n", 1)[0]
        ours = [name for name in _CHAIN.findall(block) if name.startswith(prefix)]
        if not ours:
            continue
        jump = re.compile(rf"^-A (?!{given})(.*-[jg] (?:{given}).*)$", re.M)
        out.append(table)
        out += [f":{name} - [0:0]" for name in ours]
        out += [f"-D {rule}" for rule in jump.findall(block)]
        out += [f"-X {name}" for name in ours]
        out.append("COMMIT")
    return "\n".join([*out, ""]) if out else ""


def remove_chains(prefix: str, family: int = 4) -> int:
    """Remove chains of `prefix` and the jumps to them from both backends; how many chains went. Raises Finding."""
    removed = 0
    for variant in BACKENDS:
        backend = Backend(variant, family)
        if backend.present:
            removed += remove_from(backend, prefix)
        elif variant == "legacy" and (tables := legacy_tables(family)):
            removed += _remove_unseen(prefix, family, tables)
    return removed


def _remove_unseen(prefix: str, family: int, tables: list[str]) -> int:
    """As `remove_chains`, where the kernel has legacy tables that no installed binary shows."""
    from netsetup import legacytables
    try:
        return legacytables.remove(prefix, family, tuple(t for t in tables if t in legacytables.TABLES))
    except OSError as error:
        raise Finding(f"could not remove the {prefix}* chains from legacy iptables", str(error),
                      "install iptables-legacy and remove them by hand, or reboot") from error


def remove_from(backend: Backend, prefix: str | tuple[str, ...]) -> int:
    """As `remove_chains`, from one backend."""
    batch = removal(backend.save(), prefix)
    if batch:
        try:
            backend.restore(batch)
        except RestoreError as error:
            raise Finding(f"could not remove the {prefix}* chains from iptables-{backend.variant}", str(error),
                          "remove them by hand, or reboot") from error
    return batch.count("\n-X ")


def ensure(backend: Backend, table: str, chains: dict[str, list[str]], hooks: list[tuple[str, str]]) -> bool:
    """Make `chains` hold exactly their rules and put missing jumps (`(chain, rule)`) first in their chain.

    One batch, and none when the kernel already has it as written. True when something was changed."""
    missing = [(chain, rule) for chain, rule in hooks if rule not in (backend.rules(table, chain) or ())]
    wrong = {chain: rules for chain, rules in chains.items() if backend.rules(table, chain) != rules}
    if not missing and not wrong:
        return False
    out = [f"*{table}", *(f":{chain} - [0:0]" for chain in wrong)]
    out += [f"-A {chain} {rule}" for chain, rules in wrong.items() for rule in rules]
    out += [f"-I {chain} 1 {rule}" for chain, rule in missing]
    backend.restore("\n".join([*out, "COMMIT", ""]))
    return True


def absent_tables(family: int = 4) -> list[str]:
    """The nf_tables variant's tables that do not exist: whoever writes the first rule makes them."""
    backend = Backend("nft", family)
    if not backend.present:
        return []
    saved = backend.save()
    return [table for table in TABLES if f"*{table}\n" not in saved]


def drop_if_empty(table: str, family: int = 4) -> bool:
    """Delete a table of the nf_tables variant that holds nothing but empty built-in chains. Raises OSError."""
    block = Backend("nft", family).save(table)
    chains = [line.split()[1] for line in block.splitlines() if line.startswith(":")]
    if f"*{table}\n" not in block or "\n-A " in block or any(policy != "ACCEPT" for policy in chains):
        return False
    with closing(nftables.Table(table, family)) as found:
        if found.holds() >= 0:  # iptables-save shows a table also where there is none
            found.destroy()
            found.commit()
    return True

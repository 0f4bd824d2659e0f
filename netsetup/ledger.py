"""The ledger: every change this node makes to its host, written down before it is made.

Owns one append-only file of JSON lines (by default `/var/lib/pelamis/ledger.jsonl`) and a `backup` folder beside it.
`record` is called before the change; it notes what undoing needs (the old value of a sysctl, the old content of a
file) and is on disk when it returns. `undo` walks the entries newest first, tolerates what is already gone, may be
interrupted and run again, and keeps what it could not undo, naming it as a `Finding`. An identical change is recorded
once, so the first, true old value survives repeated starts; things made by the hundred (a veth per pod) are recorded
once by their prefix. Several processes may write: each append holds a lock on the file. A torn last line (the host lost
power in the middle of a write) is ignored, for its change was never made.

Called by the command line (`up`, `down --purge`), the agent and everything in `netsetup` that touches the host.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding

Entry = dict[str, Any]

# The fields that make two entries of a kind the same change; everything else describes how to undo it.
IDENTITY: dict[str, tuple[str, ...]] = {
    "directory": ("path",), "file": ("path",), "symlink": ("path",), "mount": ("target",), "cgroup": ("path",),
    "link": ("name", "prefix"), "route": ("destination", "table", "protocol"), "address": ("address", "device"),
    "sysctl": ("key",), "iptables": ("family", "prefix"), "netns": ("name", "prefix"), "package": ("name",),
    "user": ("name",),
    "nftables": ("table",),
}
BACKUP_LIMIT = 4 << 20  # bytes of one replaced file: configuration is small; more than this is not ours to replace


class Ledger:
    """The ledger at `path`. Opening it reads nothing and creates nothing; the first `record` creates the file."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.backups = self.path.parent / "backup"
        self.findings: list[Finding] = []

    def record(self, kind: str, **what: Any) -> None:
        """Note one change before making it. Kinds and their fields:

        `directory(path, known=)` (removed with all below it, but for the paths that were `known` in it), `file(path)`,
        `symlink(path)`, `mount(target)`, `cgroup(path)`, `link(name=|prefix=)`,
        `route(destination, table=, protocol=, device=, gateway=)`, `address(address, device)`,
        `sysctl(key)` (`net/ipv4/ip_forward`), `iptables(prefix, family=4)` (chains of that prefix in every table, the
        jumps to them, and tables that only exist because of them), `nftables(table)` (of both families),
        `netns(name=|prefix=)`, `package(name, along=, known=)` (the Debian packages installed in the same go, and
        whether its configuration was there before), `user(name)`.
        A directory that exists already is not ours and is not recorded (but see `share_directory`). Raises OSError when
        the ledger cannot be written: then the change must not be made.
        """
        if kind not in IDENTITY:
            raise ValueError(f"the ledger knows no kind {kind!r}")
        entry = _entry(kind, what)
        if kind == "iptables":
            entry.setdefault("family", 4)
        self._open_folder()
        with self._locked() as fd:
            known, number = _live(self._lines())
            if any(_same(entry, old) for old in known.values()):
                return
            if not self._complete(entry, number + 1):
                return
            _append(fd, {"n": number + 1, **entry})

    def forget(self, kind: str, **what: Any) -> None:
        """Note that a change was taken back by whoever made it: what comes to be there later is another's."""
        wanted = _entry(kind, what)
        with self._locked() as fd:
            for number, entry in _live(self._lines())[0].items():
                if _same(wanted, entry):
                    _append(fd, {"undone": number})

    def entries(self) -> list[Entry]:
        """The changes not yet undone, oldest first."""
        return list(_live(self._lines())[0].values())

    def undo(self, keep: Container[str] = (), say: Callable[[str], None] | None = None,
             spare: Collection[Path] = ()) -> list[str]:
        """Undo every entry, newest first, and return a line for each one undone (also handed to `say` at once).

        An entry whose kind, path or name is in `keep` stays, and of a folder what lies below a path in `spare`. What
        failed stays too and is in `findings` afterwards.
        When nothing is left the ledger and its backups go as well."""
        from netsetup import undo as steps
        self.findings, done = [], []
        for entry in reversed(self.entries()):
            subject = next((str(entry[k]) for k in IDENTITY[entry["kind"]] if entry.get(k)), "")
            if entry["kind"] in keep or subject in keep:
                continue
            if self._holds_me(entry) and len(self.entries()) > 1:
                continue  # the folder of the ledger goes last, and only when nothing needs the ledger any more
            try:
                line = steps.undo({**entry, "spare": spare}, self.backups)
            except Finding as finding:
                self.findings.append(finding)
                continue
            except (OSError, ValueError) as error:
                self.findings.append(Finding(f"could not undo {entry['kind']} {subject}", str(error),
                                             "mend the cause and run the same command again"))
                continue
            done.append(line)
            if say:
                say(line)
            if self.path.exists():
                with self._locked() as fd:
                    _append(fd, {"undone": entry["n"]})
        if self.path.exists() and not self.entries():
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.backups, ignore_errors=True)
        return done

    # -- changes made and recorded in one call ------------------------------------------------------------------

    def make_directory(self, path: Path | str, mode: int = 0o755) -> None:
        """Create `path`; the topmost folder that did not exist is recorded, so that all of it goes again."""
        path = Path(path)
        missing = [p for p in (path, *path.parents) if not p.exists()]
        if missing:
            self.record("directory", path=missing[-1])
            path.mkdir(mode=mode, parents=True, exist_ok=True)

    def share_directory(self, path: Path) -> None:
        """Make `path`; one that others made before stays, with what is in it now: only what comes later is ours."""
        if not path.exists():
            self.make_directory(path)
        elif not any(e["kind"] == "directory" and path.is_relative_to(e["path"]) for e in self.entries()):
            self.record("directory", path=path, known=[str(p) for p in (path, *sorted(path.rglob("*")))])

    def write_file(self, path: Path | str, data: bytes, mode: int = 0o644) -> None:
        """Write a file outside our own folders atomically, keeping what was there for `undo`."""
        path = Path(path)
        self.record("file", path=path)
        staged = path.with_name(f".{path.name}.new")
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as out:
            os.fchmod(descriptor, mode)
            out.write(data)
            out.flush()
            os.fsync(descriptor)
        os.replace(staged, path)

    def set_sysctl(self, key: str, value: str | int) -> bool:
        """Set `net/ipv4/ip_forward` style `key`; True when it changed. A value already right is not recorded."""
        path = Path("/proc/sys") / key
        if path.read_text().strip() == str(value):
            return False
        self.record("sysctl", key=key)
        path.write_text(f"{value}\n")
        return True

    # -- inside ---------------------------------------------------------------------------------------------------

    def _open_folder(self) -> None:
        """Make the ledger's own folder: the one thing made before it is recorded, for there is no file to record in."""
        missing = [p for p in (self.path.parent, *self.path.parent.parents) if not p.exists()]
        if missing:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with self._locked() as fd:
                _append(fd, {"n": 1, "kind": "directory", "path": str(missing[-1])})

    def _holds_me(self, entry: Entry) -> bool:
        return entry["kind"] == "directory" and self.path.absolute().is_relative_to(entry["path"])

    def _complete(self, entry: Entry, number: int) -> bool:
        """Add to `entry` what undoing it needs; False when the change would create nothing of ours."""
        kind = entry["kind"]
        if kind == "directory":
            return "known" in entry or not os.path.lexists(entry["path"])
        if kind == "file":
            entry["backup"] = self._backup(Path(entry["path"]), number)
        elif kind == "symlink":
            entry["old"] = os.readlink(entry["path"]) if os.path.islink(entry["path"]) else None
        elif kind == "iptables":
            from netsetup import xtables
            entry["absent"] = xtables.absent_tables(entry["family"])
        elif kind == "sysctl":
            entry["old"] = (Path("/proc/sys") / entry["key"]).read_text().strip()
        return True

    def _backup(self, path: Path, number: int) -> str | None:
        if not path.exists():
            return None
        if path.stat().st_size > BACKUP_LIMIT:
            raise Finding(f"{path} is larger than {BACKUP_LIMIT} bytes", "it would be replaced, and could not be kept",
                          "move it away first")
        self.backups.mkdir(mode=0o700, exist_ok=True)
        name = f"{number}-{path.name}"
        shutil.copy2(path, self.backups / name)
        with open(self.backups / name, "rb") as copy:
            os.fsync(copy.fileno())
        return name

    @contextmanager
    def _locked(self) -> Iterator[int]:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _lines(self) -> Iterator[Entry]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        for line in text.split(b"\n"):
            try:
                entry = json.loads(line) if line.strip() else None
            except ValueError:
                continue  # torn by a crash: its change was never made
            if isinstance(entry, dict):
                yield entry


def _append(fd: int, entry: Entry) -> None:
    line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        line = b"\n" + line  # close a torn line, or this entry would be lost with it
    os.write(fd, line)
    os.fsync(fd)


def _live(lines: Iterator[Entry]) -> tuple[dict[int, Entry], int]:
    """Entries by number without those undone, and the highest number ever given."""
    found: dict[int, Entry] = {}
    highest = 0
    for line in lines:
        if "undone" in line:
            found.pop(line["undone"], None)
        elif "n" in line and line.get("kind") in IDENTITY:
            found[line["n"]] = line
            highest = max(highest, line["n"])
    return found, highest


def _entry(kind: str, what: dict[str, Any]) -> Entry:
    return {"kind": kind, **{k: str(v) if isinstance(v, Path) else v for k, v in what.items()}}


def _same(a: Entry, b: Entry) -> bool:
    return a["kind"] == b["kind"] and all(a.get(k) == b.get(k) for k in IDENTITY[a["kind"]])

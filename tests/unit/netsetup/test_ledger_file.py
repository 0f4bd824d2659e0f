"""The ledger's file: written before the change, deduplicated, torn-line proof, undone newest first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.machinery.errors import Finding
from netsetup import undo as steps
from netsetup import xtables
from netsetup.ledger import Ledger


def test_undo_brings_back_the_tree_as_it_was(tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "etc").mkdir(parents=True)
    (host / "etc/app.conf").write_text("theirs")
    (host / "bin").symlink_to("usr")
    before = sorted(str(p) for p in host.rglob("*"))

    ledger = Ledger(host / "var/lib/pelamis/ledger.jsonl")
    ledger.make_directory(host / "etc/pelamis/cni/net.d")
    ledger.write_file(host / "etc/app.conf", b"ours")
    ledger.write_file(host / "etc/app.conf", b"ours again")  # must not back up our own content
    ledger.write_file(host / "etc/new.conf", b"ours", mode=0o600)
    ledger.record("symlink", path=host / "bin")
    (host / "bin").unlink()
    (host / "bin").symlink_to("elsewhere")
    (host / "var/lib/pelamis/state").write_text("grows later")

    lines = Ledger(ledger.path).undo()
    assert lines and not ledger.findings
    assert sorted(str(p) for p in host.rglob("*")) == before
    assert (host / "etc/app.conf").read_text() == "theirs"
    assert (host / "bin").readlink() == Path("usr")
    assert Ledger(ledger.path).undo() == []  # again: nothing left, nothing raised


def test_a_torn_last_line_is_ignored_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("link", prefix="pel")
    with open(ledger.path, "ab") as out:
        out.write(b'{"n":2,"kind":"file","pa')
    ledger.record("package", name="conntrack", along=["conntrack"])
    assert [e["kind"] for e in ledger.entries()] == ["link", "package"]
    ledger.record("link", prefix="pel")
    assert len(ledger.entries()) == 2


def test_undo_goes_newest_first_keeps_what_failed_and_can_be_repeated(tmp_path: Path, monkeypatch) -> None:
    ledger = Ledger(tmp_path / "pelamis/ledger.jsonl")
    for key in ("a", "b", "c"):
        ledger.record("package", name=key)
    order: list[str] = []
    broken = {"b"}

    def package(entry: dict, _: Path) -> str:
        order.append(entry["name"])
        if entry["name"] in broken:
            raise Finding("package manager is locked")
        return entry["name"]

    monkeypatch.setitem(steps.STEPS, "package", package)
    assert ledger.undo() == ["c", "a"]
    assert order == ["c", "b", "a"] and [f.fact for f in ledger.findings] == ["package manager is locked"]
    assert [e.get("name") for e in ledger.entries()] == [None, "b"]  # its own folder stays while it is needed
    assert ledger.undo(keep={"b"}) == []
    broken.clear()
    assert ledger.undo()[0] == "b"
    assert not ledger.path.parent.exists()


def test_what_exists_is_not_ours(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    (tmp_path / "theirs").mkdir()
    ledger.record("directory", path=tmp_path / "theirs")
    ledger.make_directory(tmp_path / "theirs")
    assert ledger.entries() == []
    ledger.record("directory", path=tmp_path / "ours")
    assert json.loads(ledger.path.read_text())["path"] == str(tmp_path / "ours")
    with pytest.raises(ValueError):
        ledger.record("mood", name="x")


def test_removal_names_only_our_chains_and_jumps() -> None:
    saved = """# Generated
*filter
:FORWARD DROP [1:2]
:DOCKER - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j DOCKER
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -j ACCEPT
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -j KUBE-SVC-A
COMMIT
"""
    assert xtables.removal(saved, "KUBE-") == """*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-D PREROUTING -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-A
COMMIT
"""
    assert xtables.removal("*nat\n:DOCKER - [0:0]\nCOMMIT\n", "KUBE-") == ""


def test_of_a_folder_that_was_there_only_what_came_later_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "etc/pelamis"
    (folder / "cni/net.d").mkdir(parents=True)
    (folder / "pki").mkdir()
    (folder / "pki/ca.crt").write_text("theirs")
    before = sorted(tmp_path.rglob("*"))
    ledger = Ledger(tmp_path / "lib/ledger.jsonl")
    for path in (folder, folder, folder / "cni"):  # once is enough, and what is below is part of it
        ledger.share_directory(path)
    assert len(ledger.entries()) == 2, "and the ledger's own folder"
    ledger.share_directory(tmp_path / "new")
    for made in ("node.json", "cni/net.d/10.conflist", "pki/front/ca.key", "manifests/x.yaml"):
        (folder / made).parent.mkdir(parents=True, exist_ok=True)
        (folder / made).write_text("ours")
    (folder / "link").symlink_to(tmp_path)
    ledger.undo()
    assert not ledger.findings and sorted(tmp_path.rglob("*")) == before

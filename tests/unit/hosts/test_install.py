"""An install that is killed at any change can be done again, and undone: nothing is left, volumes' data is kept."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from controlplane.cli import node
from controlplane.cli.settings import Settings
from controlplane.hosts import belongings, census, install, options, prepare, product, reset, running, units
from controlplane.hosts.layout import Layout
from controlplane.hosts.services import State
from controlplane.machinery.paths import Paths
from netsetup import ledger as ledgers
from netsetup import undo
from netsetup.ledger import Ledger

WANTED = Settings("lab-1", "192.168.56.10")


class FakeServices:
    """A host's users and service manager, which a reset of this process leaves alone."""

    def __init__(self):
        self.users, self.reloads = set(), 0

    def control(self, *arguments, check=True):
        return ""

    def reload(self):
        self.reloads += 1

    def has_user(self, name):
        return name in self.users

    def add_user(self, name):
        self.users.add(name)

    def own(self, folder, user):
        assert user in self.users

    def state(self, unit):
        return State(unit, "active", "running", 1, 0, "success")


class Killed(BaseException):
    pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A layout in a tree of its own, its services and the program's source."""
    source, root = tmp_path / "source", tmp_path / "root"
    project = '[project]\nversion = "1.2.3"\ndependencies = []\n'
    for file, text in (("pyproject.toml", project), ("pelamis", "#!/bin/sh\n"), ("agent/__init__.py", "")):
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(text)
    for folder in ("etc/systemd/system", "etc/tmpfiles.d", "usr/local/bin", "var/lib", "run"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(product, "_environment", lambda folder: folder.mkdir())
    monkeypatch.setattr(census, "take", tree)
    services = FakeServices()

    def prepare(paths, settings, ledger):
        ledger.share_directory(paths.etc)
        for folder in (paths.lib, paths.run, paths.store.parent, paths.kubelet):
            ledger.make_directory(folder)
        return False

    def forget(entry, backups):
        services.users.discard(entry["name"])
        return "removed user"
    monkeypatch.setattr(node, "prepare", prepare)
    monkeypatch.setitem(undo.STEPS, "user", forget)
    return Layout(Paths(root), product.version(source)), services, source


def tree(root):
    return {"files": sorted(str(p.relative_to(root)) for p in Path(root).rglob("*"))}


def put(host):
    layout, services, source = host
    install.put(layout, WANTED, services, lambda text: nullcontext(), source)


def test_what_an_install_leaves(host):
    layout, services, _ = host
    put(host)
    assert layout.installed == layout.version and layout.version.startswith("1.2.3+")
    assert layout.command.resolve() == layout.folder / "pelamis"
    assert services.users == {"pelamis-apiserver", "pelamis-controllers"} and services.reloads == 1
    assert (layout.units / "multi-user.target.wants/pelamis.target").is_symlink()
    text = (layout.paths.etc / "apiserver.conf").read_text()
    assert "--audit-policy-file" in text and text.rstrip().endswith('FLAGS=""')
    (layout.paths.etc / "apiserver.conf").write_text('FLAGS="--anonymous-auth=false"\n')
    put(host)
    assert "anonymous-auth=false" in (layout.paths.etc / "apiserver.conf").read_text(), "a person's file is kept"
    assert "--audit-policy-file" in (layout.paths.etc / "apiserver.conf.new").read_text()


@pytest.mark.parametrize("name", options.PARSERS)
def test_every_flag_of_a_process_is_explained(host, name):
    layout, _, _ = host
    put(host)
    text = (layout.paths.etc / f"{name}.conf").read_text()
    flags = {word for action in options.PARSERS[name](layout)._actions for word in action.option_strings[-1:]}
    assert len(flags) > 5
    assert [flag for flag in flags - {"--help"} if not re.search(rf"(?m)^# {flag}(=.+)?\n#     \S+ \S+", text)] == []


def test_killed_at_every_change(host, monkeypatch):
    layout, services, _ = host
    before = tree(layout.paths.root)
    kill_at, done = 0, False
    append = ledgers._append
    while not done:
        kill_at += 1
        count = 0

        def counted(fd, entry):
            nonlocal count
            append(fd, entry)
            count += 1
            if count == kill_at:  # noqa: B023 - the loop's own
                raise Killed
        with monkeypatch.context() as patched:
            patched.setattr(ledgers, "_append", counted)
            try:
                put(host)
                done = True
            except Killed:
                pass
        if kill_at % 2:
            put(host)  # run again, or given up: both must do
            assert layout.installed
        assert not reset.undo_all(layout, services, lambda line: None)
        assert tree(layout.paths.root) == before, kill_at
        assert not services.users
    assert kill_at > 15


def test_what_is_the_users_is_kept(host):
    layout, services, _ = host
    before = census.take(layout.paths.root)
    put(host)
    data = layout.paths.volumes / "pvc-1/data"
    data.parent.mkdir(parents=True)
    data.write_text("precious")
    pod, flags = layout.paths.manifests / "mine.yaml", layout.paths.etc / "agent.conf"
    pod.parent.mkdir()
    pod.write_text("kind: Pod")
    assert belongings.ours("agent.conf", flags), "as we wrote it"
    flags.write_text(flags.read_text().replace('FLAGS=""', 'FLAGS="--v=2"'))
    kept = belongings.found(layout.paths)
    assert not reset.undo_all(layout, services, lambda line: None)
    assert data.read_text() == "precious" and pod.read_text() == "kind: Pod" and "--v=2" in flags.read_text()
    assert {thing.path for thing in kept} == {data.parent, pod, flags} and "8 bytes" in kept[0].told
    assert {p for p in layout.paths.etc.rglob("*") if p.is_file()} == {pod, flags}
    left = {p for p in layout.paths.lib.rglob("*") if p.is_file()}
    assert left == {data}
    names = [str(thing.path.relative_to(layout.paths.root)) for thing in kept]
    assert reset.proof(before, census.take(layout.paths.root), names)[1]
    assert not reset.proof(before, census.take(layout.paths.root), names[1:])[1]
    put(host)
    assert not reset.undo_all(layout, services, lambda line: None)
    assert {p for p in layout.paths.lib.rglob("*") if p.is_file()} == {data}, "also after an install on top of it"
    assert {p for p in layout.paths.etc.rglob("*") if p.is_file()} == {pod, flags}


def test_a_census_tells_what_changed():
    before = {"links": ["lo", "eth0"], "users": ["root"]}
    assert census.differences(before, before) == {}
    assert census.differences(before, {"links": ["lo", "cni0"], "users": ["root"]}) == {"links": ["- eth0", "+ cni0"]}
    ours = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n"
    idle = "\n\tchain INPUT {\n\t\ttype filter hook input priority filter; policy accept;\n\t}\n"
    assert "INPUT" not in census._ruleset(ours + idle + "}\n") and "FORWARD" in census._ruleset(ours + idle + "}\n")
    assert census._ruleset("table ip nat {" + idle + "}\n") == ""
    loaded = {"settings": ["net/a = 1"]}
    assert census.differences(loaded, {"settings": ["net/a = 1", "net/netfilter/b = 7"]}) == {}
    assert census.differences(loaded, {"settings": ["net/a = 2"]}) == {"settings": ["- net/a = 1", "+ net/a = 2"]}
    lines, same = reset.proof(before, before)
    assert same and lines == ["links: 2 before, 2 after, the same", "users: 1 before, 1 after, the same"]


def test_a_census_passes_over_what_comes_by_itself(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("")
    (tmp_path / "opt/tool/__pycache__").mkdir(parents=True)
    (tmp_path / "opt/tool/__pycache__/tool.cpython-313.pyc").write_bytes(b"")
    (tmp_path / "opt/tool/tool.py").write_text("")
    assert [line.split()[0] for line in census.take(tmp_path)["files"]] == ["opt/tool/tool.py"]
    assert census._steady("services", "session-4.scope transient -") == ""
    assert census._steady("services", "ssh.service enabled enabled") == "ssh.service"



def test_units_without_root_get_credentials_and_no_file_of_ours(host):
    layout, services, _ = host
    texts = units.render(layout, WANTED, running.components(layout, WANTED))
    for name in ("apiserver", "controllers"):
        text = texts[f"pelamis-{name}.service"]
        command = text.partition("ExecStart=")[2].partition("\nRestart=")[0]
        assert str(layout.paths.etc) not in command
        assert f"User=pelamis-{name}" in text and "NoNewPrivileges=yes" in text
        assert "ExecReload=/bin/kill -HUP $MAINPID" in text
    lent = {}
    services.lend = lambda copy, data, user: (copy.parent.mkdir(parents=True, exist_ok=True), copy.write_bytes(data),
                                              lent.update({copy.name: user}))
    for component in node.components(layout.paths, WANTED, "python", {}):
        for original in units.credentials(layout, component)[1].values():
            original.parent.mkdir(parents=True, exist_ok=True)
            original.write_text(original.name)
    assert prepare.lend(layout, WANTED, services) and not prepare.lend(layout, WANTED, services), "once is enough"
    assert lent["apiserver.key"] == "pelamis-apiserver" and lent["ca.key"] == "pelamis-controllers"
    words = texts["pelamis-apiserver.service"].split()
    key = next(w for w in words if w.startswith("--tls-private-key-file=")).partition("=")[2]
    assert Path(key).read_text() == "apiserver.key"
    agent = texts["pelamis-agent.service"]
    assert "${NODE_IP}" in agent and WANTED.node_ip not in agent, "the address is found out at each start"
    assert "KillMode=process" in agent and "KillMode=process" in texts["pelamis-containerd.service"]
    joined = Settings("lab-2", "192.168.56.11", server="https://192.168.56.10:6443", runtime="/run/crio/crio.sock")
    texts = units.render(layout, joined, running.components(layout, joined))
    assert "pelamis-apiserver.service" not in texts and "pelamis-containerd.service" not in texts
    assert "--rotate-certificates" in texts["pelamis-agent.service"]
    assert "unix:///run/crio/crio.sock" in texts["pelamis-agent.service"]
    assert Ledger(layout.paths.ledger).entries() == [], "rendering changes nothing"

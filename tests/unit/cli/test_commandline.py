"""What the command says to lines that mean nothing, to whoever is not root, and to whoever asks for help."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from controlplane.cli import __main__ as command
from controlplane.cli import bench, preflight
from controlplane.cli.control import CHECKOUT
from controlplane.machinery.errors import Finding


def said(capsys, *words):
    """(exit code, standard output, standard error) of a command line."""
    try:
        code = command.main(list(words))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("words", "fact", "fix"), [
    (("upp",), 'there is no command "upp"; did you mean up?', "pelamis --help"),
    (("frobnicate",), 'there is no command "frobnicate"\n', "pelamis --help"),
    (("up", "--dmeo"), "up knows no --dmeo; did you mean --demo?", "pelamis up --help"),
    (("install", "server", "--nodeip=1"), "install knows no --nodeip=1; did you mean --node-ip?",
     "pelamis install --help"),
    (("install",), "required: server|agent", "pelamis install --help"),
    (("--frob",), "knows no --frob", "pelamis --help")])
def test_lines_that_mean_nothing(capsys, words, fact, fix):
    code, out, error = said(capsys, *words)
    assert (code, out, error.count("\n")) == (2, "", 2) and fact in error and f"fix: {fix}" in error, error


def test_help_is_given_however_it_is_asked_for(capsys):
    code, out, error = said(capsys)
    assert (code, error) == (0, "") and said(capsys, "help") == said(capsys, "--help") == (0, out, "")
    for name in command.COMMANDS:
        assert f"\n  {name} " in out
        assert said(capsys, "help", name) == (0, told := said(capsys, name, "--help")[1], "")
        assert told.startswith(f"usage: pelamis {name} ") and told.partition("\n\n")[2][0].isupper(), told
    assert said(capsys, "version") == said(capsys, "--version") and "Kubernetes v1." in said(capsys, "version")[1]


def test_examples_are_command_lines_that_can_be_parsed():
    import importlib
    import shlex
    for name in command.COMMANDS:
        for line in getattr(importlib.import_module(f"controlplane.cli.{name}"), "EXAMPLES", ()):
            assert command.parse(shlex.split(line)).command == name


def test_whoever_is_not_root_is_told_the_line_for_root(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PELAMIS_ROOT", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "argv", ["pelamis", "up", "--node-name", "a b"])
    code, _, error = said(capsys, "up", "--node-name", "a b")
    assert code == 1 and error == ("pelamis: this needs root: it looks at, or changes, what belongs to the whole "
                                   "machine\n  fix: sudo ./pelamis up --node-name 'a b'\n")
    monkeypatch.setattr("controlplane.cli.status.run", refused)
    code, _, error = said(capsys, "status")
    assert code == 1 and "only root may read /etc/secret" in error and "fix: sudo" in error
    monkeypatch.setattr(preflight, "is_root", lambda: True)
    with pytest.raises(PermissionError):
        command.main(["status"])


def refused(args):
    raise PermissionError(13, "Permission denied", "/etc/secret")


def test_what_lies_in_the_folder_of_the_caller_is_not_taken_for_ours(tmp_path):
    venv, project = tmp_path / "venv", CHECKOUT / "pyproject.toml"
    for name, text in (("venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
                       ("venv/.installed-base", f"{hashlib.sha256(project.read_bytes()).hexdigest()}  {project}"),
                       ("here/controlplane/__init__.py", "raise SystemExit('somebody else')")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (venv / "bin/python").chmod(0o755)
    done = subprocess.run([CHECKOUT / "pelamis", "version"], cwd=tmp_path / "here", capture_output=True,
                          text=True, env={**os.environ, "PELAMIS_VENV": str(venv)})
    assert done.returncode == 0 and done.stdout.startswith("Pelamis ") and not done.stderr, done


def test_a_measurement_says_what_was_measured_and_on_what(capsys, monkeypatch):
    from tests.bench import api, pods
    figures = [{"area": "api", "what": "GET", "figure": 12345.678, "unit": "/s", "aim": "≥ 6,000"},
               {"area": "api", "what": "create", "figure": 9.0, "unit": "/s"}]
    monkeypatch.setattr(api, "measure", lambda args: figures)
    monkeypatch.setattr(bench, "AREAS", ("api", "pods"))
    monkeypatch.setattr(pods, "measure", missing)
    monkeypatch.setattr(preflight, "is_root", lambda: True)
    code, out, _ = said(capsys, "bench")
    assert code == 0 and "cores with a load of" in out and "api: The API server by itself" in out
    assert "GET      12,345.7   /s     ≥ 6,000\ncreate        9.0   /s\n" in out
    assert "not measured: no cluster runs here" in out
    told = json.loads(said(capsys, "bench", "-o", "json")[1])
    assert told["figures"] == figures and told["machine"]["cores"] and list(told["skipped"]) == ["pods"]
    code, _, error = said(capsys, "bench", "pods")
    assert code == 1 and "no cluster runs here" in error
    code, _, error = said(capsys, "bench", "api", "moon")
    assert code == 1 and "nothing called moon to measure\n  fix: one of api, pods" in error


def missing(args):
    raise Finding("no cluster runs here to measure pods on", "", "./pelamis up")

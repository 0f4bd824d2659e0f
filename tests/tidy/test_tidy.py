"""The repository lints itself: style, types, import contracts, sizes, purity, promises that must not be left open."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("controlplane", "agent", "netsetup", "cri_proto")
MODULE_LINES = 400  # a module is one noun; beyond this it is two
FUNCTION_LINES = 60  # a function fits a screen
BIN = Path(sys.executable).parent
# What must not stand in the product: work left open, swallowed errors, waiting by guess.
BANNED = re.compile(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError|except( Exception)?:\s*pass\b")
# A docstring that says "Pure" is held to it, unless it goes on to say what is excepted.
PURE = re.compile(r"\bPure\b(?!,? (but|apart))")
IMPURE = {"aiohttp", "asyncio", "grpc", "os", "psutil", "pyroute2", "random", "secrets", "select", "shutil", "signal",
          "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time", "uuid"}
# Markers that an unfinished merge leaves behind.
CONFLICT = re.compile(r"^(<{7}|>{7}|={7})( |$)", re.MULTILINE)


def sources(*folders):
    return [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py")) if "_pb2" not in p.name]


def run(*command):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_ruff():
    run(BIN / "ruff", "check", "--no-cache", ".")


def test_types():
    run(sys.executable, "-m", "mypy", *PACKAGES)


def test_import_contracts():
    run(BIN / "lint-imports", "--no-cache")


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_module(path):
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES, "a module this long is more than one noun"
    assert not BANNED.search(text), BANNED.search(text)
    assert not CONFLICT.search(text)
    if text.strip():
        tree = ast.parse(text)
        docstring = ast.get_docstring(tree)
        assert docstring, "each module opens with what it owns and promises"
        assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                    and node.end_lineno - node.lineno >= FUNCTION_LINES], "a function this long does several things"
        assert not PURE.search(docstring) or not imported(tree) & IMPURE, "a module that decides does no I/O"


def imported(tree):
    """The top-level names of every package a module imports, wherever in it."""
    whole = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in whole + parts}


def test_no_test_sleeps_to_synchronise():
    guesses = [f"{p.relative_to(ROOT)}:{n}" for p in sources("tests") if p != Path(__file__)
               for n, line in enumerate(p.read_text().splitlines(), 1)
               if re.search(r"\b(time|asyncio)\.sleep\(\s*[1-9]", line)]
    assert not guesses


def test_readme_names_only_commands_that_exist():
    from controlplane.cli.__main__ import COMMANDS
    named = set(re.findall(r"\./pelamis (\w+)", (ROOT / "README.md").read_text()))
    assert named <= set(COMMANDS)
    assert {"up", "test"} <= named

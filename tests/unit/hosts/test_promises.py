"""The table of promises in docs/hosts.md names tests that are there."""

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
TABLE = (TESTS.parent / "docs/hosts.md").read_text().partition("## What is promised")[2]


def test_each_promise_has_its_test():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ") and "What hurts" not in line]
    assert len(rows) == 14
    for row in rows:
        named = re.findall(r"`([^`]+)`", row.rpartition("|")[0].split("|")[2])
        files = [name for name in named if ".py" in name]
        assert files, row
        last = ""
        for name in named:
            file, _, test = name.partition("::")
            if file.endswith(".py") or file == "…":
                last = last if file == "…" else file
                found = list(TESTS.glob(last.replace("…/", "**/")))
                assert found, name
                assert not test or f"def {test}(" in found[0].read_text(), name

"""Debian packages for images and bundles: one call of apt for all that lack, and an update where its lists are old."""

import pytest

from agent.image import debian
from controlplane.machinery.errors import Finding

# An apt whose lists know no package before an update.
APT = """#!/bin/sh
echo "$*" >> {folder}/calls
case $1 in
update) touch {folder}/lists;;
download) [ -e {folder}/lists ] || {{ echo "E: no such package" >&2; exit 100; }}
    shift 3; for package; do [ $package = nothing ] || touch "${{package%:*}}_1%3a2_all.deb"; done;;
esac
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What apt was asked, as a function."""
    program = tmp_path / "bin/apt-get"
    program.parent.mkdir()
    program.write_text(APT.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return lambda: [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]


def test_one_call_for_all_that_lack(tmp_path, calls):
    folder = tmp_path / "debs"
    found = debian.fetch_all(["runc", "libc6", "runc"], folder)
    assert [path.name for path in found] == ["runc_1%3a2_all.deb", "libc6_1%3a2_all.deb", "runc_1%3a2_all.deb"]
    assert calls() == ["download", "update", "download"], "the lists were old"
    assert debian.fetch_all(["libc6", "conntrack:amd64"], folder)[0] == found[1]
    assert calls()[3:] == ["download"] and debian.fetch("runc", folder) == found[0] and len(calls()) == 4


def test_a_package_that_does_not_come(tmp_path, calls):
    with pytest.raises(Finding, match="did not download nothing"):
        debian.fetch_all(["runc", "nothing"], tmp_path / "debs")

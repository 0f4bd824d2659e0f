"""What a bundle's wheels become: the libraries of an environment, without pip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from controlplane.cli import wheels


def test_a_wheel_must_be_for_this_python_and_machine():
    def fits(name: str) -> bool:
        return not wheels.misfit(name, (3, 11), "x86_64")
    assert fits("idna-3.10-py3-none-any.whl") and fits("six-1-py2.py3-none-any.whl")
    assert fits("grpcio-1.7-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")
    assert fits("cryptography-45-cp37-abi3-manylinux_2_34_x86_64.whl")
    assert not fits("grpcio-1.7-cp313-cp313-manylinux_2_17_x86_64.whl")
    assert not fits("grpcio-1.7-cp311-cp311-manylinux_2_17_aarch64.whl")


def test_members_go_where_python_looks():
    assert wheels.target("one/__init__.py") == "one/__init__.py"
    assert wheels.target("one-1.data/purelib/one/more.py") == "one/more.py"
    assert wheels.target("one-1.data/scripts/one") == ""
    assert wheels.target("one-1.dist-info/RECORD") == "one-1.dist-info/RECORD"


def test_nothing_is_unpacked_when_one_wheel_does_not_fit(tmp_path: Path):
    for name in ("good-1-py3-none-any.whl", "other-1-cp27-cp27-linux_x86_64.whl"):
        with zipfile.ZipFile(tmp_path / name, "w") as wheel:
            wheel.writestr("never_unpacked.py", "")
    done = subprocess.run([sys.executable, wheels.__file__, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "other-1" in done.stderr and "another Python" in done.stderr
    wheels.unpack([tmp_path / "good-1-py3-none-any.whl"], tmp_path / "site")
    assert (tmp_path / "site/never_unpacked.py").exists()

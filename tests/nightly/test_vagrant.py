"""The Vagrant lab: valid wherever Vagrant is; really made where a box and a provider are, too."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "vagrant"
UP_SECONDS = 3600  # emulated processors
NODES = 3


def vagrant(*arguments: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["vagrant", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(autouse=True)
def there():
    if shutil.which("vagrant") is None:
        pytest.skip("needs vagrant: apt-get install vagrant")


def test_the_vagrantfile_is_valid():
    assert "validated successfully" in vagrant("validate", "--ignore-provider").stdout


def test_a_lab_from_up_to_destroy():
    if not os.environ.get("PELAMIS_VAGRANT"):
        pytest.skip("needs a box and a provider: set PELAMIS_VAGRANT=1 where `vagrant up` can work")
    try:
        vagrant("up", seconds=UP_SECONDS)
        nodes = subprocess.run(["kubectl", f"--kubeconfig={FOLDER}/kubeconfig", "get", "nodes", "--no-headers"],
                               capture_output=True, text=True, check=True).stdout
        assert nodes.count(" Ready ") == NODES, nodes
    finally:
        vagrant("destroy", "-f")

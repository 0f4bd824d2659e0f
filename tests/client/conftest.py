"""One cluster for the whole tier: starting it is the slow part, and users too do everything on one cluster."""

import os
import shutil

import pytest

from tests.client.cluster import Cluster, fetch_kubectls


@pytest.fixture(scope="session", autouse=True)
def _every_kubectl():
    fetch_kubectls()


@pytest.fixture(scope="session")
def cluster():
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes a network namespace and runs containers")
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl on PATH: apt-get install kubernetes-client")
    made = Cluster()
    try:
        made.pelamis("up", "--demo", "--node-ip", "192.168.77.10", "--node-name", "lab-1")
        yield made
    finally:
        made.close()

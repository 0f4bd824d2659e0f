"""One Vagrant lab of three machines for this folder: emulated, they take minutes to make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.client.cluster import kubectls
from tests.nightly.lab import Lab, obstacle


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """A server and two agents, made by `vagrant up`, with the demo's image on each."""
    if why := obstacle():
        pytest.skip(why)
    if not kubectls():
        pytest.skip("needs kubectl on PATH: apt-get install kubernetes-client")
    made = Lab("bookworm", agents=2)
    try:
        made.up()
        yield made
    finally:
        made.close()

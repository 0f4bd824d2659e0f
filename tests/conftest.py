"""What all tests share: properties are judged by what they find, never by how long a busy machine takes to find it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("pelamis", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pelamis")

HERE = Path(__file__).parent
REAL = {"kernel", "node", "client", "host"}  # the tiers with kernels, runtimes and hosts that other work can stall
ATTEMPTS = 2  # as upstream's own end-to-end jobs give; the summary names every test that needed the second


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.relative_to(HERE).parts[0] in REAL:
            item.add_marker(pytest.mark.flaky(reruns=ATTEMPTS - 1))

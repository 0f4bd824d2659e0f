"""Five minutes of kills: what the node tier tries for a moment, for as long as rare moments need to come."""

from __future__ import annotations

import pytest

from tests.node.conftest import host  # noqa: F401 - a fixture
from tests.node.rig import Host
from tests.node.test_faults import assault

pytestmark = pytest.mark.node
SECONDS = 300.0


def test_nothing_is_lost_or_doubled_in_five_minutes(host: Host) -> None:  # noqa: F811 - the fixture
    assault(host, SECONDS)

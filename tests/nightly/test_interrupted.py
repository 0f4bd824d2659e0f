"""A server's install and reset, killed after every single change: what tests/host does at a few of them."""

from __future__ import annotations

import itertools

import pytest

from controlplane.hosts import census
from tests.host.machine import Machine, Segment, obstacle
from tests.host.test_interrupted import STARTED, given_up, kept_data, killed, seen, sweep

pytestmark = pytest.mark.host
INSTALL = ("install", "server")
LEAST = 30  # changes of an install: fewer would mean that they are not looked at


def test_killed_after_every_change() -> None:
    if why := obstacle():
        pytest.skip(why)
    segment, machine = Segment(), None
    try:
        machine = Machine(segment, 1)
        before = seen(machine)
        for line in itertools.count(1):
            if not given_up(machine, before, line, *INSTALL):
                break
        assert line > LEAST
        assert given_up(machine, before, STARTED, *INSTALL)
        assert sweep(machine, 1, *INSTALL) > LEAST
        assert killed(machine, STARTED, *INSTALL)
        machine.pelamis(*INSTALL)
        assert kept_data(machine, 1) > LEAST
        assert census.differences(before, seen(machine)) == {}
    finally:
        if machine is not None:
            machine.close()
        segment.close()

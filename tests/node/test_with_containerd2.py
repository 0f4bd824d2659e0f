"""On containerd 2.x, whatever the host's own containerd is: the tests that rest on what its releases do differently.

The whole tier runs on every release by night. Here it is the dialect of the configuration, pulls and mirrors, events
and exits, image volumes, streams, and a restart.

This module and the one of crun come after the others: gRPC's threads stay in the network of the first host they saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from controlplane.machinery.errors import Finding
from tests.node.rig import Host
from tests.node.test_images import (  # noqa: F401
    test_a_mirror_stands_in_for_a_registry,
    test_pulling_from_a_registry_and_its_failures,
)
from tests.node.test_podextras import (  # noqa: F401
    test_a_runtime_class_chooses_the_handler,
    test_an_image_is_mounted_as_a_volume_and_goes_with_its_pod,
)
from tests.node.test_podlife import test_resources_change_under_a_running_container  # noqa: F401
from tests.node.test_runtime import (  # noqa: F401
    test_a_container_lives_and_dies,
    test_containers_and_events_survive_a_restart_of_containerd,
    test_exits_execs_and_out_of_memory_are_told_apart,
)
from tests.node.test_serve import test_exec_by_websocket_tells_output_and_exit_code  # noqa: F401

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A host with containerd 2.x."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        made = Host(version="2")
    except Finding as error:
        pytest.skip(f"containerd 2.x is not to be had: {error}")
    try:
        yield made
    finally:
        made.close()

"""`--cloud-provider=external` on the command line reaches every process that must know of it, on every node."""

import argparse
import json

from agent.kubelet import config
from controlplane.cli import node, preflight, up
from controlplane.cli.settings import Settings
from controlplane.controllers.__main__ import parser as controllers
from controlplane.hosts import membership
from controlplane.machinery.paths import Paths


def test_a_cloud_elsewhere_is_told_to_agents_and_controllers(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "node_ip", lambda wanted, family: wanted)
    paths = Paths(tmp_path)
    commands = argparse.ArgumentParser()
    up.register(commands.add_subparsers())
    for flags, cloud, provider_id in (["--cloud-provider=external"], "external", ""), ([], "", None):
        made = up.decide(paths, commands.parse_args(["up", "--node-ip=192.0.2.7", "--node-name=n", *flags]))
        given = {one.name: [a for a in one.argv if a.startswith("--")] for one in node.components(paths, made)}
        assert config.parse(given["agent"], paths).cloud == provider_id
        assert controllers(paths).parse_args(given["controllers"]).cloud_provider == cloud


def test_nodes_that_join_are_told_of_the_cloud():
    (_, told), *_ = membership.wanted(Settings("n", "192.0.2.7", cloud_provider="external"), b"", "1")
    assert json.loads(told["data"]["pelamis"])["cloud_provider"] == "external"

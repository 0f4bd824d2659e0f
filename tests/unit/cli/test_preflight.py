"""What must be true of a machine is looked at before anything is changed, and told with its fix."""

import pytest

from controlplane.cli import preflight
from controlplane.hosts import prepare
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths


def test_too_little_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "LEAST_DISK", 1 << 60)
    with pytest.raises(Finding, match="MiB are free on the disk of") as told:
        preflight.check_disk(Paths(tmp_path))
    assert "free some space" in told.value.fix


def test_not_root_is_named(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Finding, match="this needs root"):
        preflight.check_root()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(Finding, match=r"192\.0\.2\.1 is not an address of this machine"):
        preflight.node_ip("192.0.2.1")


def test_an_address_is_given_up_for_one_that_others_reach():
    assert prepare.address("192.168.56.10", ["10.0.2.15", "192.168.56.10"], pytest.fail) == "192.168.56.10"
    assert prepare.address("192.168.56.10", ["192.168.56.99"], lambda: "192.168.56.99") == "192.168.56.99"
    with pytest.raises(Finding, match=r"does not have 192\.168\.56\.10 any more, only 10\.0\.2\.15"):
        prepare.address("192.168.56.10", ["10.0.2.15"], lambda: "10.0.2.15")


def test_the_address_all_virtualbox_machines_share_is_not_taken():
    assert preflight.beyond_nat("10.0.2.15", ["10.0.2.15", "192.168.56.11"]) == "192.168.56.11"
    assert preflight.beyond_nat("10.0.2.15", ["10.0.2.15"]) == "10.0.2.15", "better than none"
    assert preflight.beyond_nat("10.1.2.3", ["10.1.2.3", "192.168.56.11"]) == "10.1.2.3"

"""Joining: whom a host believes, which certificates a node may have unasked, and when it renews them."""

import argparse
import base64

import pytest

from controlplane.cli.settings import Settings
from controlplane.client import certificates
from controlplane.controllers.access import certificaterules as rules
from controlplane.controllers.access.certificaterules import Request
from controlplane.hosts import joining, membership
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import Finding
from controlplane.pki import leaves
from controlplane.pki.authority import Authority

NODE, PROXY = "system:node:lab-2", "system:kube-proxy"
SERVING = ["digital signature", "server auth"]
CLIENT = ["digital signature", "client auth"]


@pytest.mark.parametrize(("signer", "user", "request_", "usages", "expected"), [
    (rules.KUBELET_SERVING, NODE, Request(NODE, ("system:nodes",), ("lab-2",), ("10.0.0.2",)), SERVING,
     "selfnodeserver"),
    (rules.KUBELET_SERVING, NODE, Request(NODE, ("system:nodes",), ("lab-1",), ()), SERVING, ""),
    (rules.KUBELET_SERVING, NODE, Request(NODE, ("system:nodes",), ("lab-2",), ("10.0.0.1",)), SERVING, ""),
    (rules.KUBELET_SERVING, "jane", Request(NODE, ("system:nodes",), ("lab-2",), ()), SERVING, ""),
    (rules.CLIENT, NODE, Request(PROXY, ()), CLIENT, "nodeproxyclient"),
    (rules.CLIENT, NODE, Request(PROXY, ("system:masters",)), CLIENT, ""),
    (rules.CLIENT, NODE, Request("kubernetes-admin", ()), CLIENT, ""),
    (rules.CLIENT, "jane", Request(PROXY, ()), CLIENT, ""),
    (rules.KUBELET_CLIENT, NODE, Request(NODE, ("system:nodes",)), CLIENT, "selfnodeclient"),
    (rules.KUBELET_CLIENT, "system:bootstrap:abc", Request(NODE, ("system:nodes",)), CLIENT, "nodeclient")])
def test_what_nodes_get_without_people(signer, user, request_, usages, expected):
    csr = {"spec": {"signerName": signer, "username": user, "usages": usages}}
    found = rules.approvals(csr, request_, taken={"10.0.0.1"})
    assert (found[0][0] if found else "") == expected


def test_certificates_are_due_long_before_they_end(tmp_path):
    day, clock = 86400.0, FakeClock()
    authority = Authority.create(tmp_path, clock)
    wanted = certificates.of_node("lab-2", "10.0.0.2")
    stored = {w.file: authority.issue(w.common_name, w.organizations, sans=w.sans).certificate for w in wanted}
    assert leaves.names(stored["kubelet"]) == {"lab-2", "10.0.0.2"}
    assert certificates.due(wanted, stored, clock.now()) == []
    assert certificates.due(wanted, stored, clock.now() + 240 * day) == []
    assert len(certificates.due(wanted, stored, clock.now() + 250 * day)) == 3
    moved = certificates.of_node("lab-2", "10.0.0.9")
    assert [w.file for w in certificates.due(moved, stored, clock.now())] == ["kubelet"]
    assert [w.file for w in certificates.due(wanted, {}, clock.now())] == ["node", "kubelet", "kube-proxy"]


def test_the_cluster_says_of_itself_what_a_node_needs_and_no_secret(tmp_path):
    ca = Authority.create(tmp_path).pem
    made = membership.wanted(Settings("lab-1", "10.0.0.1", service_range="10.32.0.0/16"), ca, "1")
    info = made[0][1]["data"]
    assert "10.32.0.0/16" in info["pelamis"] and "PRIVATE" not in str(made)
    assert base64.b64encode(ca).decode() in info["kubeconfig"] and "https://10.0.0.1:6443" in info["kubeconfig"]
    assert membership.ca_hash(ca) == membership.ca_hash(ca) != membership.ca_hash(Authority.create(tmp_path / "b").pem)
    secret = membership.secret("abcdef", "0123456789abcdef", 1_700_000_000.0, "")
    assert secret["stringData"]["expiration"] == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize(("server", "token", "hash_", "fact"), [
    ("http://10.0.0.1", "abcdef.0123456789abcdef", "sha256:" + "0" * 64, "is no server"),
    ("https://10.0.0.1", "abcdef", "sha256:" + "0" * 64, "no token"),
    ("https://10.0.0.1", "abcdef.0123456789abcdef", "sha256:12", "no hash")])
def test_flags_that_cannot_work(server, token, hash_, fact):
    with pytest.raises(Finding, match=fact):
        joining.asked(argparse.Namespace(server=server, token=token, ca_cert_hash=hash_))
    assert "timedatectl" in joining.unreachable("https://a:1", "certificate is not yet valid").fix
    assert "another cluster" in joining.unreachable("https://a:1", "certificate verify failed: self-signed").fact
    moved = joining.unreachable("https://a:1", "verify failed: IP address mismatch")
    assert "does not name https://a:1" in moved.fact and "pelamis-prepare" in moved.fix
    assert "port 6443" in joining.unreachable("https://a:1", "Connect call failed").fix
    assert joining.server_of("https://lab-1") == "https://lab-1:6443"

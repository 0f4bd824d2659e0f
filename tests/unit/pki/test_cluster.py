"""The PKI: what `ensure` makes verifies in a TLS handshake, stays when it fits, and is renewed when it does not."""

import asyncio
import base64
import ssl
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from controlplane.machinery.clock import SYSTEM, FakeClock
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from controlplane.pki import leaves
from controlplane.pki.authority import Authority, Pair
from controlplane.pki.cluster import ensure


def bring_up(root: Path, ip: str = "192.0.2.7", clock=SYSTEM):
    return ensure(Paths(root), "n1", ip, clock=clock)


def test_a_second_run_changes_nothing_and_secrets_are_private(tmp_path):
    first = bring_up(tmp_path)
    assert {"apiserver", "apiserver-kubelet-client", "admin", "controller-manager", "scheduler", "kube-proxy", "node",
            "front-proxy-client",
            "kubelet"} == set(first.certificates)
    before = {p: p.read_bytes() for p in Paths(tmp_path).etc.rglob("*") if p.is_file()}
    second = bring_up(tmp_path)
    assert (second.certificates, second.kubeconfigs) == ({}, [])
    assert before == {p: p.read_bytes() for p in Paths(tmp_path).etc.rglob("*") if p.is_file()}
    for path in before:
        private = path.suffix in (".key", ".kubeconfig")
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if private else 0o644), path


def test_leaves_are_renewed_when_they_age_move_or_lose_their_key(tmp_path):
    clock = FakeClock()
    bring_up(tmp_path, clock=clock)
    moved = bring_up(tmp_path, "192.0.2.8", clock)
    assert moved.certificates == {"apiserver": "lacks 192.0.2.8", "kubelet": "lacks 192.0.2.8"}
    assert moved.kubeconfigs == ["admin"]
    pki = Paths(tmp_path).pki
    (pki / "admin.key").write_bytes((pki / "node.key").read_bytes())  # as after a crash between the two writes
    assert bring_up(tmp_path, "192.0.2.8", clock).certificates == {"admin": "its key is another's"}
    asyncio.run(clock.advance(243 * 86400))
    assert bring_up(tmp_path, "192.0.2.8", clock).certificates == {}
    asyncio.run(clock.advance(86400))
    aged = bring_up(tmp_path, "192.0.2.8", clock)
    assert len(aged.certificates) == 9 and set(aged.certificates.values()) == {"expires soon"}


def test_another_authority_replaces_every_leaf_and_a_lost_key_is_told(tmp_path):
    bring_up(tmp_path)
    pki = Paths(tmp_path).pki
    Authority.create(pki)
    assert set(bring_up(tmp_path).certificates.values()) == {"signed by another authority"}
    (pki / "ca.key").unlink()
    with pytest.raises(Finding, match=r"ca\.key is missing"):
        bring_up(tmp_path)


def test_subjects_and_names(tmp_path):
    bring_up(tmp_path)
    certificate = x509.load_pem_x509_certificate((Paths(tmp_path).pki / "apiserver.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {str(n.value) for n in names} == {
        "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
        "localhost", "n1", "127.0.0.1", "::1", "192.0.2.7", "10.96.0.1"}
    node = x509.load_pem_x509_certificate((Paths(tmp_path).pki / "node.crt").read_bytes())
    assert node.subject.rfc4514_string() == "CN=system:node:n1,O=system:nodes"
    leaf = leaves.Leaf("x", "who", ("a",))
    authority = Authority.load(Paths(tmp_path).pki)
    assert authority is not None
    other = authority.issue("who", ("b",))
    assert leaves.fault(leaf, other, authority.certificate, SYSTEM.now()) == "names another subject"
    assert leaves.fault(leaf, Pair(b"junk", b"junk"), authority.certificate, SYSTEM.now()) == "unreadable"


def test_a_client_with_the_admin_kubeconfig_meets_the_apiserver_certificate(tmp_path):
    """A real handshake: both ends verify each other with nothing but what `ensure` wrote."""
    bring_up(tmp_path)
    paths = Paths(tmp_path)
    config = yaml.safe_load(paths.admin_kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://192.0.2.7:6443"
    ca = base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
    for part in ("certificate", "key"):
        (tmp_path / part).write_bytes(base64.b64decode(config["users"][0]["user"][f"client-{part}-data"]))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cadata=ca)
    server.load_cert_chain(paths.pki / "apiserver.crt", paths.pki / "apiserver.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cadata=ca)
    client.load_cert_chain(tmp_path / "certificate", tmp_path / "key")

    async def meet() -> str:
        met: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def serve(reader, writer):
            met.set_result(str(writer.get_extra_info("peercert")["subject"]))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server) as listener:
            port = listener.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client,
                                                           server_hostname="kubernetes.default.svc")
            await reader.read()
            writer.close()
            return await asyncio.wait_for(met, 5)

    assert "kubernetes-admin" in asyncio.run(meet())

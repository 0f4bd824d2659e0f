"""The controllers around access: roles that gather others' rules, certificates, bootstrap tokens."""

import asyncio
import base64
import time
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from controlplane.controllers.access import certificaterules as rules
from controlplane.controllers.access.certificaterules import Request
from controlplane.machinery.clock import rfc3339
from controlplane.machinery.resources import named
from controlplane.pki.authority import Authority, new_key, subject
from tests.unit.controllers.cluster import cluster

ROLES = named("clusterroles.rbac.authorization.k8s.io")
CSRS = named("certificatesigningrequests.certificates.k8s.io")


def role(name, *resources, labels=None, **more):
    rules = [{"verbs": ["get"], "apiGroups": [""], "resources": [r]} for r in resources]
    return {"metadata": {"name": name, "labels": labels or {}}, "rules": rules, **more}


def test_a_role_gathers_the_rules_of_those_it_selects():
    async def play():
        async with cluster(kubelet=False) as made:
            roles = made.of("clusterroles.rbac.authorization.k8s.io")
            gathers = {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}

            def gathered():
                found = roles.get("", "all")
                return [rule["resources"][0] for rule in (found or {}).get("rules") or ()]
            await made.client.create(ROLES, role("all", aggregationRule=gathers))
            await made.client.create(ROLES, role("b", "pods", "secrets", labels={"to": "all"}))
            await made.client.create(ROLES, role("a", "services", "pods", labels={"to": "all"}))
            await made.client.create(ROLES, role("c", "nodes"))
            await made.until(lambda: gathered() == ["services", "pods", "secrets"])
            await made.client.patch(ROLES, "all", {"rules": []}, kind="merge")
            await made.until(lambda: gathered() == [])
            await made.until(lambda: gathered() == ["services", "pods", "secrets"])
            await made.client.delete(ROLES, "a")
            await made.until(lambda: gathered() == ["pods", "secrets"])
    asyncio.run(play())


# --- certificates and bootstrap tokens -------------------------------------------------------------------------------

NODE = Request("system:node:n1", ("system:nodes",))
CLIENT_USAGES = ["digital signature", "client auth"]


@pytest.mark.parametrize(("request_", "signer", "usages", "expected"), [
    (NODE, rules.KUBELET_CLIENT, CLIENT_USAGES, ""),
    (NODE, rules.KUBELET_CLIENT, ["client auth"], "usages did not match"),
    (replace(NODE, organizations=("system:masters",)), rules.KUBELET_CLIENT, CLIENT_USAGES, "subject organization"),
    (replace(NODE, name="jane"), rules.KUBELET_CLIENT, CLIENT_USAGES, "subject common name"),
    (replace(NODE, ips=("10.0.0.1",)), rules.KUBELET_CLIENT, CLIENT_USAGES, "IP subjectAltNames are not allowed"),
    (NODE, rules.KUBELET_SERVING, ["digital signature", "server auth"], "DNS or IP subjectAltName is required"),
    (replace(NODE, dns=("n1",)), rules.KUBELET_SERVING, ["digital signature", "server auth"], ""),
    (replace(NODE, dns=("n1",), uris=("x:y",)), rules.KUBELET_SERVING, CLIENT_USAGES, "URI subjectAltNames"),
    (Request("jane", ("dev",)), rules.CLIENT, CLIENT_USAGES, ""),
    (Request("jane", ("dev",)), rules.CLIENT, ["server auth"], "usages did not match"),
    (Request("jane", ()), rules.LEGACY, ["server auth"], "")])
def test_what_each_signer_signs(request_, signer, usages, expected):
    found = rules.fault(request_, signer, usages)
    assert found.startswith(expected) and bool(found) == bool(expected)


def test_no_node_serves_for_others_services_or_the_api():
    def node(name, address):
        return {"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}}

    def piece(namespace, service, address):
        return {"metadata": {"name": "x", "namespace": namespace, "labels": {rules.SERVICE_NAME: service}},
                "endpoints": [{"addresses": [address]}]}
    service = {"metadata": {"name": "s"}, "spec": {"clusterIPs": ["10.96.0.1"], "externalIPs": ["1.1.1.1"]},
               "status": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}]}}}
    taken = rules.addresses_of_others("system:node:n1", [node("n1", "10.0.0.1"), node("n2", "10.0.0.2")], [service],
                                      [piece("default", "kubernetes", "10.0.0.9"), piece("default", "web", "10.2.0.1")])
    assert taken == {"10.0.0.2", "10.96.0.1", "1.1.1.1", "2.2.2.2", "10.0.0.9"}


def test_requests_are_forgotten_in_their_time():
    now, hour = 1_700_000_000.0, 3600

    def csr(*conditions):
        made = [{"type": t, "status": "True", "lastUpdateTime": rfc3339(now - age)} for t, age in conditions]
        return {"metadata": {"creationTimestamp": rfc3339(now - 2 * hour)}, "status": {"conditions": made}}
    assert rules.forget_after(csr(), now) == 22 * hour
    assert rules.forget_after(csr(("Denied", hour - 60)), now) == 60
    assert rules.forget_after(csr(("Approved", 600), ("Failed", hour)), now) == 0


def test_requests_for_pods_are_forgotten(monkeypatch):
    monkeypatch.setattr(rules, "POD_REQUEST_SECONDS", 1.0)
    kind = named("podcertificaterequests.certificates.k8s.io")
    text = x509.CertificateSigningRequestBuilder().subject_name(subject("p", ())).sign(new_key(), hashes.SHA256())
    stub = base64.b64encode(text.public_bytes(serialization.Encoding.DER)).decode()
    spec = {"signerName": "example.com/lab", **dict.fromkeys(("podName", "serviceAccountName", "nodeName", "podUID",
                                                              "serviceAccountUID", "nodeUID"), "x")}

    async def play():
        async with cluster(kubelet=False) as made:
            seen = set()
            made.of(kind.name).subscribe(lambda event, old, new: seen.add(event))
            await made.client.create(kind, {"metadata": {"name": "r"}, "spec": spec | {"stubPKCS10Request": stub}},
                                     "default")
            await made.until(lambda: {"ADDED", "DELETED"} <= seen)
    asyncio.run(play())


def pem_request(name, *organizations, dns=()):
    key = new_key()
    made = x509.CertificateSigningRequestBuilder().subject_name(subject(name, organizations))
    if dns:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(d) for d in dns]), critical=False)
    return base64.b64encode(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)).decode()


def asked(name, request, signer, usages, **spec):
    return {"metadata": {"name": name}, "spec": {"request": request, "signerName": signer, "usages": usages, **spec}}


def test_requests_become_certificates(tmp_path):
    Authority.create(tmp_path)

    async def play():
        async with cluster(kubelet=False, signing_certificate=tmp_path / "ca.crt",
                           signing_key=tmp_path / "ca.key") as made:
            requests, client = made.of(CSRS.name), made.client
            node = pem_request("system:node:n1", "system:nodes")
            await client.create(CSRS, asked("node", node, rules.KUBELET_CLIENT, CLIENT_USAGES))
            await client.create(CSRS, asked("jane", pem_request("jane", "dev"), rules.CLIENT, CLIENT_USAGES,
                                            expirationSeconds=3600))
            await client.create(CSRS, asked("bad", pem_request("jane"), rules.KUBELET_SERVING, ["server auth"]))

            def status(name, field):
                return ((requests.get("", name) or {}).get("status") or {}).get(field)
            await made.until(lambda: status("node", "certificate"))  # whoever asks here may have it
            assert status("node", "conditions")[0]["reason"] == "AutoApproved"
            assert not status("jane", "conditions")
            for name in ("jane", "bad"):
                approval = {"status": {"conditions": [{"type": "Approved", "status": "True"}]}}
                await client.patch(CSRS, name, approval, kind="merge", subresource="approval")
            text = await made.until(lambda: status("jane", "certificate"))
            await made.until(lambda: len(status("bad", "conditions") or ()) == 2)
            failed = next(c for c in status("bad", "conditions") if c["type"] == "Failed")
            assert failed["reason"] == "SignerValidationFailed" and "organization" in failed["message"]
            assert not status("bad", "certificate")
            issued = x509.load_pem_x509_certificate(base64.b64decode(text))
            authority = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
            issued.verify_directly_issued_by(authority)
            assert issued.subject == subject("jane", ["dev"])
            lasts = issued.not_valid_after_utc - issued.not_valid_before_utc
            assert lasts.total_seconds() == 3600 + 300
            usage = issued.extensions.get_extension_for_class(x509.KeyUsage).value
            assert usage.digital_signature and not usage.key_encipherment and not usage.key_cert_sign
    asyncio.run(play())


def test_expired_bootstrap_tokens_go():
    def token(name, seconds):
        data = {"expiration": rfc3339(time.time() + seconds), "token-id": name}
        return {"metadata": {"name": f"bootstrap-token-{name}", "namespace": "kube-system"},
                "type": "bootstrap.kubernetes.io/token", "stringData": data}

    async def play():
        async with cluster(kubelet=False) as made:
            secrets = named("secrets")
            for name, seconds in (("old", -10), ("young", 3600)):
                await made.client.create(secrets, token(name, seconds))
            held = next(c for c in made.manager.controllers if c.name == "token-cleaner").secrets
            await made.until(lambda: [s["metadata"]["name"] for s in held.items()] == ["bootstrap-token-young"])
            assert held.get("kube-system", "bootstrap-token-young")["data"].keys() == {"expiration"}
    asyncio.run(play())

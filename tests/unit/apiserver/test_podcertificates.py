"""PodCertificateRequests over the wire: who may ask for which pod, who may answer, and what an answer must be."""

from __future__ import annotations

import asyncio
import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.unit.apiserver.harness import serving

PATH = "/apis/certificates.k8s.io/v1beta1/namespaces/default/podcertificaterequests"
SIGNER = "example.com/lab"
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def stub(key):
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.DER)).decode()


def issued(public, hours=24, refresh=12):
    """A status with a certificate for a key; the signer signs itself."""
    signer, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    end = NOW + datetime.timedelta(hours=hours)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(public).serial_number(
        7).not_valid_before(NOW).not_valid_after(end).add_extension(
        x509.SubjectAlternativeName([x509.DNSName("lab")]), critical=True).sign(signer, hashes.SHA256())
    at = [t.strftime("%Y-%m-%dT%H:%M:%SZ") for t in (NOW, NOW + datetime.timedelta(hours=refresh), end)]
    return {"conditions": [condition("Issued")], "certificateChain": made.public_bytes(
        serialization.Encoding.PEM).decode(), "notBefore": at[0], "beginRefreshAt": at[1], "notAfter": at[2]}


def condition(kind):
    return {"type": kind, "status": "True", "reason": "Test", "message": "m",
            "lastTransitionTime": "2030-01-01T00:00:00Z"}


@pytest.fixture
def play(tmp_path):
    (tmp_path / "tokens.csv").write_text('root,root,1,"system:masters"\nn1,system:node:n1,2,"system:nodes"\n'
                                         'n2,system:node:n2,3,"system:nodes"\nlab,lab,4,labs\n')

    def run(story):
        async def inner():
            async with serving(token_auth_file=tmp_path / "tokens.csv", authorization_mode=("Node", "RBAC")) as api:
                async def call(who, method, path, body=None, **more):
                    return await api.call(method, path, body, headers={"Authorization": f"Bearer {who}"}, **more)
                uids = {}
                for plural, body in (
                        ("nodes", {"metadata": {"name": "n1"}}),
                        ("namespaces/default/serviceaccounts", {"metadata": {"name": "app"}}),
                        ("namespaces/default/pods", {"metadata": {"name": "p"}, "spec": {
                            "nodeName": "n1", "serviceAccountName": "app", "containers": [{"name": "c", "image": "i"}],
                            "volumes": [{"name": "v", "projected": {"sources": [{"podCertificate": {
                                "signerName": SIGNER, "keyType": "ECDSAP256", "credentialBundlePath": "b"}}]}}]}})):
                    status, made = await call("root", "POST", f"/api/v1/{plural}", body)
                    assert status == 201, made
                    uids[plural.rpartition("/")[2]] = made["metadata"]["uid"]
                await story(call, {"signerName": SIGNER, "podName": "p", "podUID": uids["pods"], "nodeName": "n1",
                                   "nodeUID": uids["nodes"], "serviceAccountName": "app",
                                   "serviceAccountUID": uids["serviceaccounts"]})
        asyncio.run(inner())
    return run


def asked(name, spec, **changes):
    return {"metadata": {"name": name}, "spec": spec | changes}


def test_a_node_asks_for_its_own_pods_and_for_what_they_mount(play):
    key = ec.generate_private_key(ec.SECP256R1())

    async def story(call, spec):
        spec = spec | {"stubPKCS10Request": stub(key)}
        status, made = await call("n1", "POST", PATH, asked("a", spec))
        assert (status, made["spec"]["maxExpirationSeconds"]) == (201, 86400), made
        for changes, why in (({"podUID": "other"}, "with this UID not found"), ({"nodeName": "n2"}, "another node's"),
                             ({"signerName": "example.com/other"}, "not found in pod spec volumes"),
                             ({"serviceAccountUID": "other"}, "ServiceAccountUID does not match")):
            status, told = await call("n1", "POST", PATH, asked("x", spec, **changes))
            assert status == 403 and why in told["message"], told
        assert (await call("n2", "POST", PATH, asked("x", spec)))[0] == 403
        for who, path, code in (("n1", f"{PATH}/a", 200), ("n2", f"{PATH}/a", 403), ("n1", PATH, 403),
                                ("n1", f"{PATH}?fieldSelector=spec.nodeName%3Dn1", 200),
                                ("n2", f"{PATH}?fieldSelector=spec.nodeName%3Dn1", 403)):
            assert (await call(who, "GET", path))[0] == code, (who, path)
        broken = base64.b64encode(base64.b64decode(spec["stubPKCS10Request"])[:-8] + b"\1" * 8).decode()
        for changes, why in (({"stubPKCS10Request": broken}, "spec.stubPKCS10Request: Invalid value"),
                             ({"maxExpirationSeconds": 60}, "must be in the range [3600, 7862400]"),
                             ({"pkixPublicKey": "AA=="}, "must be empty if spec.stubPKCS10Request is set"),
                             ({"stubPKCS10Request": stub(ec.generate_private_key(ec.SECP256K1()))}, "supported types"),
                             ({"unverifiedUserAnnotations": {"plain": "x"}}, "must be domain-prefixed")):
            status, told = await call("root", "POST", PATH, asked("x", spec, **changes))
            assert status == 422 and why in told["message"], told
    play(story)


def test_an_older_request_proves_its_key_by_a_signature(play):
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    async def story(call, spec):
        for proof, code in ((spec["podUID"], 201), ("another", 422)):
            signed = base64.b64encode(key.sign(proof.encode(), ec.ECDSA(hashes.SHA256()))).decode()
            status, told = await call("n1", "POST", PATH, asked(
                f"old-{code}", spec, pkixPublicKey=base64.b64encode(public).decode(), proofOfPossession=signed,
                stubPKCS10Request=""))
            assert status == code, told
    play(story)


def test_only_who_may_sign_answers_and_only_with_what_was_asked_for(play):
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    async def story(call, spec):
        rules = [{"verbs": ["get", "update"], "apiGroups": ["certificates.k8s.io"],
                  "resources": ["podcertificaterequests", "podcertificaterequests/status"]}]
        rbac = "/apis/rbac.authorization.k8s.io/v1"

        async def grant(name, rules):
            assert (await call("root", "POST", f"{rbac}/clusterroles", {
                "metadata": {"name": name}, "rules": rules}))[0] == 201
            await call("root", "POST", f"{rbac}/clusterrolebindings", {
                "metadata": {"name": name}, "subjects": [{"kind": "User", "name": "lab"}],
                "roleRef": {"kind": "ClusterRole", "name": name}})
        await grant("reader", rules)
        _, made = await call("n1", "POST", PATH, asked("a", spec | {"stubPKCS10Request": stub(key)}))

        async def answer(status, who="lab"):
            return await call(who, "PUT", f"{PATH}/a/status", made | {"status": status})
        good = issued(key.public_key())
        status, told = await answer(good)
        assert status == 403 and f'is not permitted to "sign" for signer "{SIGNER}"' in told["message"], told
        await grant("signer", [{"verbs": ["sign"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
                                "resourceNames": ["example.com/*"]}])
        for wrong, why in ((issued(other.public_key()), "not issued to the requested public key"),
                           (issued(key.public_key(), hours=48), "must not exceed spec.maxExpirationSeconds"),
                           (issued(key.public_key(), refresh=24), "at least 10 minutes before status.notAfter"),
                           (good | {"notAfter": "2030-01-01T23:00:00Z"}, "the time encoded in the leaf"),
                           (good | {"conditions": []}, "must not be set unless the Issued condition is"),
                           ({"conditions": [condition("Issued")]}, "must be set for issued certificates"),
                           ({"conditions": [condition("Denied"), condition("Failed")]}, "at most one condition")):
            status, told = await answer(wrong)
            assert status == 422 and why in told["message"], told
        status, made = await answer(good)
        assert status == 200 and made["status"]["certificateChain"] == good["certificateChain"], made
        status, told = await answer({"conditions": [condition("Denied")]})
        assert status == 422 and 'immutable after the "Issued" condition is set' in told["message"], told
    play(story)

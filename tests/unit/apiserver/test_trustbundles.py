"""ClusterTrustBundles over the wire: what they may hold, how they are named, and who may attest a signer."""

from __future__ import annotations

import asyncio
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from controlplane.apiserver.writing.trustbundles import faults
from controlplane.machinery.validate.volumes import volumes
from tests.unit.apiserver.harness import serving

PATH = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles"
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def anchor(authority=True):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(
        7).not_valid_before(NOW).not_valid_after(NOW + datetime.timedelta(days=1)).add_extension(
        x509.BasicConstraints(authority, None), critical=True).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode()


FIRST, LEAF = anchor(), anchor(authority=False)


@pytest.mark.parametrize(("bundle", "why"), [
    ("", "at least one trust anchor must be provided"),
    ("-----BEGIN CERTIFICATE-----\n***\n-----END CERTIFICATE-----\n",
     "at least one trust anchor must be provided"),
    (f"words before\n{FIRST}and between\n{FIRST}", "duplicate trust anchor (indices [0 1])"),
    (FIRST + LEAF, "entry 1 does not have the CA bit set"),
    (FIRST.replace("CERTIFICATE", "X509 CRL"), "entry 0 has bad block type: X509 CRL"),
    (FIRST.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nKey: value\n\n"),
     "entry 0 has PEM block headers"),
    ("-----BEGIN CERTIFICATE-----\naGk=\n-----END CERTIFICATE-----\n", "entry 0 does not parse as X.509")])
def test_bundles_hold_authorities_once(bundle, why):
    assert [c.message for c in faults(bundle)] == [f'Invalid value: "<value omitted>": {why}']


def test_a_bundle_is_as_good_as_its_anchors_and_no_larger_than_a_mebibyte():
    assert faults(FIRST + "\n" + anchor()) == []
    assert [c.message for c in faults("x" * (1 << 20) + "x")] == ["Too long: may not be more than 1048576 bytes"]


@pytest.mark.parametrize(("source", "why"), [
    ({"path": "a"}, "Required value: either name or signerName must be specified"),
    ({"path": "a", "name": "x", "signerName": "a.b/c"}, "only one of name and signerName may be used"),
    ({"name": "x"}, "clusterTrustBundle.path: Required value"),
    ({"path": "../a", "name": "x"}, "must not contain '..'"),
    ({"path": "a", "name": "a:b:c"}, None),
    ({"path": "a", "name": "a:B"}, "not a valid clustertrustbundlename: a lowercase RFC 1123 subdomain"),
    ({"path": "a", "name": "x", "labelSelector": {}}, "labelSelector must be unset if name is specified"),
    ({"path": "a", "signerName": "x"}, "must be a fully qualified domain and path of the form"),
    ({"path": "a", "signerName": "a.b/C"}, 'validating label "C": a lowercase RFC 1123 subdomain'),
    ({"path": "a", "signerName": "a.b/c", "labelSelector": {"matchLabels": {"-": "x"}}}, "labelSelector.matchLabels"),
    ({"path": "token", "signerName": "a.b/c"}, "conflicting duplicate paths")])
def test_a_volume_names_a_bundle_or_a_signer(source, why):
    wrong, _ = volumes([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}},
                                                                {"clusterTrustBundle": source}]}}], "v")
    assert [why in f"{c.field}: {c.message}" for c in wrong] == [True] if why else wrong == []


@pytest.fixture
def play(tmp_path):
    (tmp_path / "tokens.csv").write_text('root,root,1,"system:masters"\nlab,lab,2,labs\n'
                                         'pod,system:serviceaccount:a:b,3,system:serviceaccounts\n')

    def run(story):
        async def inner():
            async with serving(token_auth_file=tmp_path / "tokens.csv", authorization_mode=("Node", "RBAC")) as api:
                async def call(who, method, path, body=None, **more):
                    return await api.call(method, path, body, headers={"Authorization": f"Bearer {who}"}, **more)
                await story(call)
        asyncio.run(inner())
    return run


def bundle(name, signer="", text=FIRST):
    return {"metadata": {"name": name}, "spec": {"trustBundle": text, **({"signerName": signer} if signer else {})}}


def test_names_follow_signers_which_stay(play):
    async def story(call):
        for body, why in ((bundle("a:b"), 'without signer name must not have ":" in its name'),
                          (bundle("x", "a.b/c"), "for signerName a.b/c must be named with prefix a.b:c:"),
                          (bundle("a.b:c:", "a.b/c"), "a lowercase RFC 1123 subdomain"),
                          (bundle("a.b:c:x", "a.b/c", LEAF), "CA bit")):
            status, answer = await call("root", "POST", PATH, body)
            assert status == 422 and why in answer["message"], answer
        for body in (bundle("plain"), bundle("a.b:c:x", "a.b/c")):
            status, made = await call("root", "POST", PATH, body)
            assert status == 201, made
        made["spec"]["signerName"] = ""
        made["metadata"]["name"] = "a.b:c:x"
        status, answer = await call("root", "PUT", f"{PATH}/a.b:c:x", made)
        assert status == 422 and "spec.signerName: Invalid value: \"\": field is immutable" in answer["message"]
        status, found = await call("pod", "GET", f"{PATH}?fieldSelector=spec.signerName%3Da.b/c")
        assert status == 200 and [i["metadata"]["name"] for i in found["items"]] == ["a.b:c:x"]
    play(story)


def test_only_who_attests_a_signer_changes_its_bundles(play):
    async def story(call):
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        rules = [{"apiGroups": ["certificates.k8s.io"], "resources": ["clustertrustbundles"], "verbs": ["*"]}]
        await call("root", "POST", f"{rbac}/clusterroles", {"metadata": {"name": "lab"}, "rules": rules})
        await call("root", "POST", f"{rbac}/clusterrolebindings", {
            "metadata": {"name": "lab"}, "subjects": [{"kind": "User", "name": "lab"}],
            "roleRef": {"kind": "ClusterRole", "name": "lab", "apiGroup": "rbac.authorization.k8s.io"}})
        assert (await call("lab", "POST", PATH, bundle("plain")))[0] == 201
        status, answer = await call("lab", "POST", PATH, bundle("a.b:c:x", "a.b/c"))
        assert status == 403 and 'user not permitted to attest for signerName "a.b/c"' in answer["message"]
        assert (await call("root", "POST", PATH, bundle("a.b:c:x", "a.b/c")))[0] == 201
        merge = {"content_type": "application/merge-patch+json"}
        for body, code in (({"metadata": {"labels": {"a": "b"}}}, 403), ({"metadata": {"finalizers": ["a.b/c"]}}, 200)):
            assert (await call("lab", "PATCH", f"{PATH}/a.b:c:x", body, **merge))[0] == code
        rules.append({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["a.b/*"],
                      "verbs": ["attest"]})
        await call("root", "PATCH", f"{rbac}/clusterroles/lab", {"rules": rules}, **merge)
        status, answer = await call("lab", "PATCH", f"{PATH}/a.b:c:x", {"metadata": {"labels": {"a": "b"}}}, **merge)
        assert status == 200, answer
    play(story)

"""Certificate signing requests over the wire: whose they are, who may decide, and what cannot change any more."""

import asyncio
import base64

import pytest

from controlplane.pki.authority import new_key
from tests.unit.apiserver.harness import serving

CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
SIGNER = "kubernetes.io/kube-apiserver-client"


def pem(name, *organizations):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    from controlplane.pki.authority import subject
    request = x509.CertificateSigningRequestBuilder().subject_name(subject(name, organizations))
    return request.sign(new_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    from controlplane.pki.authority import Authority
    return base64.b64encode(Authority.create(tmp_path_factory.mktemp("ca")).pem).decode()


def asked(name, text=None, **spec):
    request = base64.b64encode(text or pem("jane")).decode()
    return {"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": request, "signerName": SIGNER, "usages": ["client auth"], **spec}}


def condition(kind, **more):
    return {"type": kind, "status": "True", "reason": "ByTest", **more}


@pytest.fixture
def play(tmp_path):
    (tmp_path / "tokens.csv").write_text('root,root,1,"system:masters"\njane,jane,2,dev\nann,ann,3\n')

    def run(story):
        async def inner():
            async with serving(token_auth_file=tmp_path / "tokens.csv", authorization_mode=("RBAC",)) as api:
                async def call(who, method, path, body=None, **more):
                    return await api.call(method, path, body, headers={"Authorization": f"Bearer {who}"}, **more)
                rbac = "/apis/rbac.authorization.k8s.io/v1"
                rules = [{"verbs": ["*"], "apiGroups": ["certificates.k8s.io"], "resources": [
                    "certificatesigningrequests", "certificatesigningrequests/approval",
                    "certificatesigningrequests/status"]}]
                await call("root", "POST", f"{rbac}/clusterroles", {"metadata": {"name": "csr"}, "rules": rules})
                for name, role, user in (("a", "csr", "jane"), ("b", "csr", "ann"),
                                         ("c", "system:certificates.k8s.io:kube-apiserver-client-approver", "ann")):
                    await call("root", "POST", f"{rbac}/clusterrolebindings", {
                        "metadata": {"name": name}, "subjects": [{"kind": "User", "name": user}],
                        "roleRef": {"kind": "ClusterRole", "name": role}})
                await story(call)
        asyncio.run(inner())
    return run


def test_who_asks_is_written_down_and_only_approvers_decide(play, issued):
    async def story(call):
        body = asked("r", username="root", groups=["system:masters"])
        body["status"] = {"conditions": [condition("Approved")]}
        status, made = await call("jane", "POST", CSRS, body)
        assert status == 201 and "status" not in made
        assert (made["spec"]["username"], made["spec"]["uid"]) == ("jane", "2")
        assert made["spec"]["groups"] == ["dev", "system:authenticated"]
        approved = {**made, "status": {"conditions": [condition("Approved")], "certificate": "eA=="}}
        status, refused = await call("jane", "PUT", f"{CSRS}/r/approval", approved)
        assert status == 403 and refused["message"].endswith(
            'user not permitted to approve requests with signerName "kubernetes.io/kube-apiserver-client"')
        _, ignored = await call("jane", "PUT", f"{CSRS}/r/status", {**approved, "status": {
            "conditions": [condition("Approved")]}})
        assert "conditions" not in ignored.get("status", {})
        _, seen = await call("ann", "GET", f"{CSRS}/r")
        status, done = await call("ann", "PUT", f"{CSRS}/r/approval", {**seen, "status": approved["status"]})
        assert status == 200 and "certificate" not in done["status"]
        only, = done["status"]["conditions"]
        assert only["type"] == "Approved" and only["lastUpdateTime"] and only["lastTransitionTime"]
        both = {**done, "status": {"conditions": [only, condition("Denied")]}}
        assert (await call("ann", "PUT", f"{CSRS}/r/approval", both))[0] == 422
        _, refused = await call("ann", "PUT", f"{CSRS}/r/approval", {**done, "status": {}})
        assert 'updates may not remove a condition of type "Approved"' in refused["message"]
        signed = {"status": {"certificate": issued}}
        patch = {"content_type": "application/merge-patch+json"}
        assert (await call("ann", "PATCH", f"{CSRS}/r/status", signed, **patch))[0] == 403
        status, done = await call("root", "PATCH", f"{CSRS}/r/status", signed, **patch)
        assert status == 200 and done["status"]["certificate"] == issued and done["status"]["conditions"] == [only]
        status, _ = await call("root", "PATCH", f"{CSRS}/r/status", {"status": {"certificate": "eQ=="}}, **patch)
        assert status == 422
        _, kept = await call("root", "PATCH", f"{CSRS}/r", {"spec": {"usages": ["any"]}}, **patch)
        assert kept["spec"] == made["spec"] and kept["status"] == done["status"]
    play(story)


def test_what_is_no_request_is_refused(play):
    async def story(call):
        async def causes(**spec):
            status, told = await call("jane", "POST", CSRS, asked("r", **spec))
            assert status == 422, told
            return [c["field"] for c in told["details"]["causes"]]

        assert await causes(usages=[]) == ["spec.usages"]
        assert await causes(usages=["client auth", "client auth", "x"]) == ["spec.usages[1]", "spec.usages[2]"]
        assert await causes(signerName="kubernetes.io/legacy-unknown") == ["spec.signerName"]
        assert await causes(signerName="nodomain") == ["spec.signerName"]
        assert await causes(expirationSeconds=10) == ["spec.expirationSeconds"]
        assert await causes(request="eA==") == ["spec.request"]
        status, refused = await call("jane", "POST", CSRS, asked("r", pem("jane", "system:masters")))
        assert status == 403 and "system:masters group is not allowed" in refused["message"]
    play(story)


def test_each_subresource_takes_metadata_and_conditions_of_its_own(play, issued):
    async def story(call):
        patch = {"content_type": "application/merge-patch+json"}
        _, made = await call("root", "POST", CSRS, asked("r", signerName="example.com/any"))
        _, read = await call("root", "GET", f"{CSRS}/r/approval")
        assert read == made
        change = {"metadata": {"annotations": {"a": "1"}}, "spec": {"usages": ["any"]},
                  "status": {"conditions": [condition("Looked")]}}
        status, seen = await call("root", "PATCH", f"{CSRS}/r/approval", change, **patch)
        assert status == 200 and seen["metadata"]["annotations"] == {"a": "1"} and seen["spec"] == made["spec"]
        seen["status"]["conditions"].append(condition("Approved"))
        _, seen = await call("root", "PUT", f"{CSRS}/r/approval", seen)
        assert [c["type"] for c in seen["status"]["conditions"]] == ["Looked", "Approved"]
        for bad, why in (("eA==", "must contain at least one"), (base64.b64encode(pem("x")).decode(), "only CERT")):
            status, told = await call("root", "PATCH", f"{CSRS}/r/status", {"status": {"certificate": bad}}, **patch)
            assert status == 422 and why in told["message"] and bad not in told["message"]
        change = {"metadata": {"annotations": {"b": "2"}}, "status": {"certificate": issued}}
        _, seen = await call("root", "PATCH", f"{CSRS}/r/status", change, **patch)
        assert seen["metadata"]["annotations"] == {"a": "1", "b": "2"} and seen["status"]["certificate"] == issued
        seen["status"]["conditions"] = [condition("Approved", reason="Other"), condition("Updated")]
        _, seen = await call("root", "PUT", f"{CSRS}/r/status", seen)
        assert [(c["type"], c["reason"]) for c in seen["status"]["conditions"]] == [
            ("Approved", "ByTest"), ("Updated", "ByTest")]
    play(story)

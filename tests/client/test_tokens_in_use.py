"""Tokens at work on a cluster: at the kubelet's API, for foreign audiences, in Secrets, and verified by a stranger."""

import base64
import json
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests import signer
from tests.client.cluster import NODE_IP, eventually

pytestmark = pytest.mark.client


@pytest.fixture
def space(cluster):
    cluster.kubectl("create", "namespace", "tokens")
    eventually(lambda: cluster.run("kubectl", "-n", "tokens", "get", "serviceaccount", "default",
                                   check=False).returncode == 0)
    yield "tokens"
    cluster.kubectl("delete", "namespace", "tokens")


def claims(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_a_scraper_reaches_the_kubelet_by_its_token(cluster, space):
    def code(path, token=""):
        header = ["-H", f"Authorization: Bearer {token}"] if token else []
        return cluster.run("curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", *header,
                           f"https://{NODE_IP}:10250{path}").stdout

    tokens = {}
    for name in ("scraper", "nobody"):
        cluster.kubectl("-n", space, "create", "serviceaccount", name)
        tokens[name] = cluster.kubectl("-n", space, "create", "token", name).strip()
    cluster.kubectl("create", "clusterrole", "scraper", "--verb=get", "--resource=nodes/metrics")
    cluster.kubectl("create", "clusterrolebinding", "scraper", "--clusterrole=scraper",
                    f"--serviceaccount={space}:scraper")
    for path in ("/metrics", "/metrics/resource", "/metrics/cadvisor", "/metrics/slis"):
        assert (code(path), code(path, "junk"), code(path, tokens["nobody"])) == ("401", "401", "403")
        assert code(path, tokens["scraper"]) == "200"
    assert code("/pods", tokens["scraper"]) == code("/logs/", tokens["scraper"]) == "403"
    cluster.kubectl("delete", "clusterrolebinding,clusterrole", "scraper")
    by_proxy = cluster.kubectl("get", "--raw", "/api/v1/nodes/lab-1:10250/proxy/metrics")
    assert 'kubelet_node_name{node="lab-1"} 1' in by_proxy
    assert "pelamis/" in cluster.kubectl("get", "--raw", "/api/v1/nodes/lab-1/proxy/logs/")


def test_a_mounted_token_is_good_for_its_audience_and_verified_by_strangers(cluster, space):
    import jwt
    sources = [{"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}}]
    cluster.kubectl("-n", space, "create", "-f", "-", input=json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "t", "projected": {"sources": sources}}],
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                            "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}}))
    cluster.kubectl("-n", space, "wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
    token = cluster.kubectl("-n", space, "exec", "p", "--", "cat", "/t/vault")

    def review(*audiences):
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "spec": {"token": token, "audiences": list(audiences)}}
        made = cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(body))
        return json.loads(made)["status"]
    assert review("vault")["user"]["username"] == f"system:serviceaccount:{space}:default"
    assert "authenticated" not in review()
    document = json.loads(cluster.kubectl("get", "--raw", "/.well-known/openid-configuration"))
    assert document["issuer"] == claims(token)["iss"] and document["jwks_uri"].endswith("/openid/v1/jwks")
    keys = jwt.PyJWKSet.from_dict(json.loads(cluster.kubectl("get", "--raw", "/openid/v1/jwks")))
    key = keys[jwt.get_unverified_header(token)["kid"]]
    verified = jwt.decode(token, key, document["id_token_signing_alg_values_supported"], audience="vault",
                          issuer=document["issuer"])
    assert verified["kubernetes.io"]["pod"]["name"] == "p"


def test_a_secret_gets_a_lasting_token_that_goes_with_it(cluster, space):
    cluster.kubectl("-n", space, "create", "-f", "-", input=json.dumps({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
        "metadata": {"name": "old", "annotations": {"kubernetes.io/service-account.name": "default"}}}))
    data = eventually(lambda: cluster.get("-n", space, "secret", "old").get("data"))
    assert data.keys() == {"token", "ca.crt", "namespace"}
    token = base64.b64decode(data["token"]).decode()

    def whoami():
        return cluster.run("kubectl", "auth", "whoami", f"--token={token}", "--kubeconfig=/dev/null", "-o", "json",
                           f"--server=https://{NODE_IP}:6443", "--insecure-skip-tls-verify", check=False)
    assert f"system:serviceaccount:{space}:default" in whoami().stdout
    cluster.kubectl("-n", space, "delete", "secret", "old")
    eventually(lambda: whoami().returncode != 0)


def test_every_namespace_trusts_the_cluster(cluster, space):
    def bundle():
        return cluster.get("-n", space, "configmap", "kube-root-ca.crt")["data"]["ca.crt"]
    right = eventually(bundle)
    cluster.kubectl("-n", space, "delete", "configmap", "kube-root-ca.crt")
    eventually(lambda: cluster.run("kubectl", "-n", space, "get", "configmap", "kube-root-ca.crt",
                                   check=False).returncode == 0)
    cluster.kubectl("-n", space, "patch", "configmap", "kube-root-ca.crt", "-p", '{"data":{"ca.crt":""}}')
    eventually(lambda: bundle() == right)


def test_a_pod_gets_a_certificate_from_a_signer_of_its_users(cluster, space):
    source = {"signerName": "example.com/lab", "keyType": "ED25519", "credentialBundlePath": "bundle.pem"}
    cluster.kubectl("-n", space, "create", "-f", "-", input=json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "certified"}, "spec": {
            "terminationGracePeriodSeconds": 0, "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
            "volumes": [{"name": "t", "projected": {"sources": [{"podCertificate": source}]}}],
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                            "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}}))
    request = eventually(lambda: cluster.get("-n", space, "podcertificaterequests")["items"])[0]
    assert request["spec"]["podName"] == "certified" and request["spec"]["maxExpirationSeconds"] == 86400
    request["status"] = signer.answer(request, time.time())
    cluster.kubectl("replace", "--subresource=status", "-f", "-", input=json.dumps(request))
    cluster.kubectl("-n", space, "wait", "--for=condition=Ready", "pod/certified", "--timeout=60s")
    bundle = cluster.kubectl("-n", space, "exec", "certified", "--", "cat", "/t/bundle.pem").encode()
    leaf = x509.load_pem_x509_certificate(bundle)
    assert serialization.load_pem_private_key(bundle, None).public_key() == leaf.public_key()
    assert "-----BEGIN PRIVATE KEY-----" in bundle.decode() and leaf.extensions[0].value[0].value == "certified"
    assert cluster.kubectl("-n", space, "exec", "certified", "--", "stat", "-Lc", "%a %u", "/t/bundle.pem").split() == [
        "640", "1000"]
    cluster.kubectl("-n", space, "delete", "pod", "certified")
    eventually(lambda: not cluster.get("-n", space, "podcertificaterequests")["items"])


def test_pods_follow_bundles_of_authorities(cluster, space):
    first, second, own = (signer.authority(name, time.time()) for name in ("first", "second", "own"))

    def bundle(name, text, of=""):
        cluster.kubectl("apply", "-f", "-", input=json.dumps({
            "apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": {"stage": "live"}},
            "spec": {"trustBundle": text, **({"signerName": of} if of else {})}}))

    def subjects(path):
        read = cluster.kubectl("-n", space, "exec", "trusts", "--", "cat", f"/t/{path}").encode()
        return sorted(c.subject.rfc4514_string() for c in x509.load_pem_x509_certificates(read)) if read else []
    bundle("lab-own", own)
    bundle("example.com:lab:1", first, "example.com/lab")
    by_signer = {"signerName": "example.com/lab", "labelSelector": {"matchLabels": {"stage": "live"}}}
    cluster.kubectl("-n", space, "create", "-f", "-", input=json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "trusts"}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "t", "projected": {"sources": [
                {"clusterTrustBundle": {"name": "lab-own", "path": "own.pem"}},
                {"clusterTrustBundle": {"name": "none", "path": "none.pem", "optional": True}},
                {"clusterTrustBundle": {**by_signer, "path": "lab.pem"}}]}}],
            "containers": [{"name": "c", "image": "busybox:1", "command": ["sleep", "3600"],
                            "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}}))
    cluster.kubectl("-n", space, "wait", "--for=condition=Ready", "pod/trusts", "--timeout=60s")
    assert (subjects("own.pem"), subjects("none.pem"), subjects("lab.pem")) == (["CN=own"], [], ["CN=first"])
    bundle("example.com:lab:2", second + first, "example.com/lab")
    eventually(lambda: subjects("lab.pem") == ["CN=first", "CN=second"])
    bundle("none", own)
    eventually(lambda: subjects("none.pem") == ["CN=own"])
    cluster.kubectl("delete", "clustertrustbundle", "lab-own", "none", "example.com:lab:1", "example.com:lab:2")
    cluster.kubectl("-n", space, "delete", "pod", "trusts")

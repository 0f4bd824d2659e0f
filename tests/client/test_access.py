"""Who may do what, as a user sees it: a pod's own credentials, roles by kubectl, certificates by request."""

import base64
import json

import pytest

from tests.client.cluster import NODE_IP, eventually

pytestmark = pytest.mark.client


@pytest.fixture
def space(cluster):
    cluster.kubectl("create", "namespace", "access")
    eventually(lambda: cluster.run("kubectl", "-n", "access", "get", "serviceaccount", "default",
                                   check=False).returncode == 0)
    yield "access"
    cluster.kubectl("delete", "namespace", "access")


def test_a_pod_speaks_to_the_api_as_its_account(cluster, space):
    def kubectl(*arguments):
        return cluster.kubectl("-n", space, *arguments)
    kubectl("create", "serviceaccount", "reader")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods")
    kubectl("create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={space}:reader")
    kubectl("run", "p", "--image=busybox:1", "--overrides", json.dumps({"spec": {"serviceAccountName": "reader"}}),
            "--command", "--", "sleep", "3600")
    kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=60s")
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert kubectl("exec", "p", "--", "cat", f"{folder}/namespace") == space
    assert "BEGIN CERTIFICATE" in kubectl("exec", "p", "--", "cat", f"{folder}/ca.crt")
    host = kubectl("exec", "p", "--", "sh", "-c", "echo $KUBERNETES_SERVICE_HOST").strip()
    token = kubectl("exec", "p", "--", "cat", f"{folder}/token")
    trust = cluster.host.paths.pki / "ca.crt"

    def ask(path, *more):
        done = cluster.run("curl", "-s", "--cacert", str(trust), "-H", f"Authorization: Bearer {token}", *more,
                           f"https://{host}:443{path}")  # by the address of the Service, as the pod would
        return json.loads(done.stdout)
    me = ask("/apis/authentication.k8s.io/v1/selfsubjectreviews", "-H", "Content-Type: application/json", "-d", "{}")
    info = me["status"]["userInfo"]
    assert info["username"] == f"system:serviceaccount:{space}:reader"
    assert set(info["groups"]) == {"system:serviceaccounts", f"system:serviceaccounts:{space}", "system:authenticated"}
    assert info["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    assert [p["metadata"]["name"] for p in ask(f"/api/v1/namespaces/{space}/pods")["items"]] == ["p"]
    assert ask(f"/api/v1/namespaces/{space}/secrets")["code"] == 403
    assert kubectl("exec", "p", "--", "sh", "-c", f"nc {host} 443 </dev/null && echo reached").strip() == "reached"
    kubectl("delete", "pod", "p", "--grace-period=0", "--force")
    eventually(lambda: ask(f"/api/v1/namespaces/{space}/pods").get("code") == 401)


def test_roles_by_kubectl(cluster, space):
    def may(*arguments):
        return cluster.run("kubectl", "-n", space, "auth", "can-i", *arguments, check=False).stdout.strip()
    assert cluster.get("clusterrole", "cluster-admin")["metadata"]["labels"] == {
        "kubernetes.io/bootstrapping": "rbac-defaults"}
    eventually(lambda: cluster.get("clusterrole", "view")["rules"])
    assert may("list", "pods", "--as=jane") == "no"
    cluster.kubectl("-n", space, "create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane")
    assert may("create", "deployments.apps", "--as=jane") == "yes"
    assert may("create", "rolebindings.rbac.authorization.k8s.io", "--as=jane") == "no"
    assert may("list", "pods", "--as=jane", "-n", "default") == "no"
    listed = may("--list", "--as=jane")
    assert "pods/exec" in listed and "selfsubjectreviews.authentication.k8s.io" in listed
    assert "pods.metrics.k8s.io" in listed  # gathered, as kubectl top needs it
    again = json.dumps({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {
        "name": "r", "namespace": space}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]})
    for _ in range(2):
        told = cluster.kubectl("auth", "reconcile", "-f", "-", input=again)
        assert "role.rbac.authorization.k8s.io/r reconciled" in told
    refused = cluster.fails("-n", space, "create", "clusterrolebinding", "x", "--clusterrole=cluster-admin",
                            "--user=jane", "--as=jane")
    assert 'User "jane" cannot create resource "clusterrolebindings"' in refused
    wide = cluster.kubectl("-n", space, "get", "rolebindings", "-o", "wide")
    assert "ClusterRole/edit" in wide and "jane" in wide


def test_a_user_by_certificate(cluster):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    from controlplane.pki.authority import key_pem, new_key, subject
    key = new_key()
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject("ann", ["dev"])).sign(key, hashes.SHA256())
    pem = asked.public_bytes(serialization.Encoding.PEM)
    cluster.kubectl("apply", "-f", "-", input=json.dumps({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": "ann"},
        "spec": {"request": base64.b64encode(pem).decode(), "usages": ["client auth"],
                 "signerName": "kubernetes.io/kube-apiserver-client"}}))
    assert "Pending" in cluster.kubectl("get", "csr", "ann")
    assert "approved" in cluster.kubectl("certificate", "approve", "ann")
    issued = eventually(lambda: cluster.get("csr", "ann")["status"].get("certificate"))
    assert "Approved,Issued" in cluster.kubectl("get", "csr", "ann")
    (cluster.root / "ann.crt").write_bytes(base64.b64decode(issued))
    (cluster.root / "ann.key").write_bytes(key_pem(key))
    own = cluster.root / "ann.kubeconfig"
    cluster.run("kubectl", "config", f"--kubeconfig={own}", "set-cluster", "c", f"--server=https://{NODE_IP}:6443",
                f"--certificate-authority={cluster.host.paths.pki}/ca.crt")
    cluster.run("kubectl", "config", f"--kubeconfig={own}", "set-credentials", "ann",
                f"--client-certificate={cluster.root}/ann.crt", f"--client-key={cluster.root}/ann.key")
    cluster.run("kubectl", "config", f"--kubeconfig={own}", "set-context", "x", "--cluster=c", "--user=ann")
    me = cluster.kubectl("auth", "whoami", "-o", "json", f"--kubeconfig={own}", "--context=x")
    info = json.loads(me)["status"]["userInfo"]
    assert info["username"] == "ann" and info["groups"] == ["dev", "system:authenticated"]

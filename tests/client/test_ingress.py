"""What an ingress controller needs of a cluster: class, Lease, watches, status, certificates, a webhook, traffic."""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent.image import demo

from .cluster import NODE_IP, eventually

edge = pytest.importorskip("tests.client.edge", reason="needs the kubernetes package with locks by Leases")
pytestmark = pytest.mark.client
HOST, SHOP = "shop.example", "shop"
RULES = [  # as stock controllers ask for
    {"apiGroups": [""], "resources": ["secrets", "services"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": ["list", "watch"]},
    {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
    {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}]


def pair(name: str) -> tuple[str, str]:
    """A certificate for `name` and this node, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject, day = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), datetime.timedelta(1)
    names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(NODE_IP))])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(
        key.public_key()).serial_number(
        x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day).add_extension(
        names, critical=False).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode(), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def of(kind: str, name: str, version: str = "v1", space: str = "", **content: object) -> dict[str, object]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, **({"namespace": space} if space else {})},
            **content}


def secret(certificate: tuple[str, str]) -> dict[str, object]:
    return of("Secret", "cert", space=SHOP, type="kubernetes.io/tls",
              stringData=dict(zip(("tls.crt", "tls.key"), certificate)))


def ingress(name: str, *paths: str, tls: bool = True) -> str:
    return json.dumps(of("Ingress", name, "networking.k8s.io/v1", SHOP, spec={
        **({"tls": [{"hosts": [HOST], "secretName": "cert"}]} if tls else {}),
        "rules": [{"host": HOST, "http": {"paths": [{
            "path": path, "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}
            for path in paths]}}]}))


def installed(certificate: tuple[str, str], hook: str) -> str:
    account = {"kind": "ServiceAccount", "name": "edge", "namespace": edge.SPACE}
    group = "rbac.authorization.k8s.io"
    default = of("IngressClass", edge.CLASS, "networking.k8s.io/v1", spec={"controller": "example.com/edge"})
    default["metadata"]["annotations"] = {"ingressclass.kubernetes.io/is-default-class": "true"}  # type: ignore[index]
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [
        of("Namespace", edge.SPACE), of("Namespace", SHOP), of("ServiceAccount", "edge", space=edge.SPACE),
        of("ClusterRole", "edge", f"{group}/v1", rules=RULES), default,
        of("ClusterRoleBinding", "edge", f"{group}/v1", subjects=[account],
           roleRef={"apiGroup": group, "kind": "ClusterRole", "name": "edge"}),
        of("Service", "nginx", space=edge.SPACE, spec={
            "selector": {"app": "nginx"}, "externalIPs": [NODE_IP],
            "ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]}),
        of("Service", "web", space=SHOP, spec={"selector": {"app": "web"}, "ports": [{"port": 80}]}),
        secret(certificate),
        of("ValidatingWebhookConfiguration", "edge", "admissionregistration.k8s.io/v1", webhooks=[{
            "name": "edge.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": SHOP}},
            "rules": [{"apiGroups": ["networking.k8s.io"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                       "resources": ["ingresses"]}],
            "clientConfig": {"url": f"https://{NODE_IP}:{edge.HOOK_PORT}/",
                             "caBundle": base64.b64encode(hook.encode()).decode()}}])]})


def test_an_ingress_controller_serves_its_class(cluster, tmp_path):
    first, second, (hook, hook_key) = pair(HOST), pair(HOST), pair("hook")
    (tmp_path / "hook.pem").write_text(hook + hook_key)
    running: dict[str, subprocess.Popen[bytes]] = {}

    def served(path: str = "/", scheme: str = "http", trust: str = "") -> str:
        (tmp_path / "ca.pem").write_text(trust)
        return cluster.run("curl", "-s", "-m", "2", "--cacert", f"{tmp_path}/ca.pem", "--resolve",
                           f"{HOST}:80:{NODE_IP}", "--resolve", f"{HOST}:443:{NODE_IP}", f"{scheme}://{HOST}{path}",
                           check=False).stdout.strip()

    def leader() -> str:
        return cluster.get("lease", "-n", edge.SPACE, edge.CLASS)["spec"]["holderIdentity"]

    try:
        cluster.kubectl("apply", "-f", "-", input=installed(first, hook))
        for space in (edge.SPACE, SHOP):
            eventually(lambda space=space: cluster.get("sa", "-n", space, "default"))
        cluster.kubectl("run", "nginx", "-n", edge.SPACE, f"--image={demo.NGINX}", "--labels=app=nginx")
        cluster.kubectl("run", "web-a", "-n", SHOP, f"--image={demo.DEMO}", "--labels=app=web")
        cluster.kubectl("wait", "-n", edge.SPACE, "pod/nginx", "--for=condition=Ready", "--timeout=60s")
        known = json.loads(cluster.kubectl("config", "view", "--raw", "-o", "json"))
        known["users"][0]["user"] = {"token": cluster.kubectl("create", "token", "edge", "-n", edge.SPACE).strip()}
        (tmp_path / "kubeconfig").write_text(json.dumps(known))
        for name in ("one", "two"):
            with (tmp_path / name).open("wb") as log:
                running[name] = subprocess.Popen(cluster.host.enter(
                    sys.executable, str(Path(edge.__file__)), name, "nginx", NODE_IP, f"{tmp_path}/hook.pem"),
                    env={**cluster.env, "KUBECONFIG": f"{tmp_path}/kubeconfig"}, stdout=log, stderr=log)
        eventually(lambda: cluster.kubectl("create", "-f", "-", input=ingress("shop", "/")), why="the webhook")
        made = eventually(lambda: (i := cluster.get("ingress", "-n", SHOP, "shop"))["status"]["loadBalancer"] and i)
        assert made["spec"]["ingressClassName"] == edge.CLASS  # the default one
        assert made["status"]["loadBalancer"] == {"ingress": [{"ip": NODE_IP}]}
        assert NODE_IP in cluster.kubectl("get", "ingress", "-n", SHOP)
        eventually(lambda: served() == "web-a")
        eventually(lambda: served("/", "https", first[0]) == "web-a")
        assert served("/", "https", second[0]) == ""

        cluster.kubectl("apply", "-f", "-", input=json.dumps(secret(second)))  # the certificate is renewed
        eventually(lambda: served("/", "https", second[0]) == "web-a")
        cluster.kubectl("run", "web-b", "-n", SHOP, f"--image={demo.DEMO}", "--labels=app=web")
        eventually(lambda: served() == "web-b")  # in turn, once its readiness came through the slice
        cluster.kubectl("delete", "pod", "-n", SHOP, "web-a", "--now")
        eventually(lambda: {served() for _ in range(4)} == {"web-b"})
        assert "nginx cannot serve this path" in cluster.fails("create", "-f", "-", input=ingress("bad", "/a;b"))

        lost = leader()
        running[lost].kill()
        eventually(lambda: leader() not in (lost, ""))
        eventually(lambda: cluster.kubectl("apply", "-f", "-", input=ingress("shop", "/", "/more/")), why="the webhook")
        eventually(lambda: served("/more/") == "web-b")
    finally:
        for process in running.values():
            process.kill()
            process.wait()
        for kind in ("validatingwebhookconfiguration", "ingressclass", "clusterrolebinding", "clusterrole"):
            cluster.kubectl("delete", kind, "edge", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", SHOP, edge.SPACE, "--ignore-not-found")

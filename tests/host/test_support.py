"""The support file of a real server: what is in it, and that none of the secrets that are on it is."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path

import pytest

from tests.host.conftest import Lab

pytestmark = pytest.mark.host
SECRET = "correct-horse-battery"
OBJECTS = f"""
apiVersion: v1
kind: Secret
metadata: {{name: hidden}}
stringData: {{password: {SECRET}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: hidden, annotations: {{kept: "yes"}}}}
data: {{url: "https://user:{SECRET}@db"}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hidden}}
spec:
  replicas: 0
  selector: {{matchLabels: {{app: hidden}}}}
  template:
    metadata: {{labels: {{app: hidden}}}}
    spec: {{containers: [{{name: a, image: none, env: [{{name: TOKEN, value: {SECRET}}}]}}]}}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: hidden}}
webhooks:
- name: hidden.example.org
  clientConfig: {{url: "https://127.0.0.1:1/", caBundle: CABUNDLE}}
  rules: [{{apiGroups: [none.example.org], apiVersions: [v1], operations: [CREATE], resources: [nones]}}]
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Ignore
"""
PARTS = {"doctor.json", "ledger.json", "node.json", "version", "etc/apiserver.conf", "host/addresses.txt",
         "host/routes.txt", "host/nftables.txt", "host/iptables.txt", "host/mounts.txt", "host/sockets.txt",
         "host/processes.txt", "host/packages.txt", "host/units.txt", "host/kernel.txt", "host/disks.txt",
         "logs/apiserver.log", "logs/controllers.log", "logs/agent.log", "logs/containerd.log", "logs/prepare.log",
         "cluster/nodes.json", "cluster/pods.json", "cluster/secrets.json", "cluster/configmaps.json",
         "cluster/deployments.apps.json", "cluster/events.json",
         "cluster/certificatesigningrequests.certificates.k8s.io.json",
         "cluster/validatingwebhookconfigurations.admissionregistration.k8s.io.json"}
MOST = 4 << 20


def secrets_of(lab: Lab, bundle: str, token: str) -> dict[str, str]:
    """Every secret that is on the server, by what it is."""
    etc = lab.server.root / "etc/pelamis"
    found = {"a value": SECRET, "an encoded value": base64.b64encode(SECRET.encode()).decode(), "a CA": bundle,
             "a bootstrap token": token, "its secret": token.partition(".")[2]}
    for key in [*etc.rglob("*.key"), *etc.glob("*.kubeconfig")]:
        text = key.read_text()
        lines = [line.strip() for line in text.splitlines() if "-----" not in line]
        found[str(key)] = max(lines, key=len).rpartition(": ")[2]
    return found


def test_what_is_in_it_and_what_is_not(lab: Lab, tmp_path: Path) -> None:
    ca = (lab.server.root / "etc/pelamis/pki/ca.crt").read_bytes()
    bundle = base64.b64encode(ca).decode()
    lab.kubectl("apply", "-f", "-", input=OBJECTS.replace("CABUNDLE", bundle))
    token = lab.server.pelamis("token", "create", "--token-only").stdout.strip()
    lab.server.run("logger", "-t", "pelamis-agent", f"joined with {token} and Bearer {SECRET}")
    try:
        lab.server.pelamis("support", "--output", "/root/support.tar.gz")
        file = lab.server.root / "root/support.tar.gz"
        assert file.stat().st_mode & 0o077 == 0 and file.stat().st_size < MOST
        with tarfile.open(file) as tar:
            parts = {name.partition("/")[2]: tar.extractfile(name).read().decode()  # type: ignore[union-attr]
                     for name in tar.getnames()}
    finally:
        lab.kubectl("delete", "secret/hidden", "configmap/hidden", "deployment/hidden",
                    "validatingwebhookconfiguration/hidden")
    assert not PARTS - parts.keys(), (PARTS - parts.keys(), [n for n in parts if n.endswith(".missing")])
    for what, secret in secrets_of(lab, bundle, token).items():
        assert len(secret) > 10, what
        where = [name for name, text in parts.items() if secret in text]
        assert not where, f"{what} is in {where}"
    maps = json.loads(parts["cluster/configmaps.json"])
    assert next(m for m in maps if m["metadata"]["name"] == "hidden")["metadata"]["annotations"] == {"kept": "yes"}
    assert "host1" in parts["cluster/nodes.json"] and '"findings"' in parts["doctor.json"]

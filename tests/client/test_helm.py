"""The real Helm: the chart it makes for everybody, with a custom kind and a hook, from install to uninstall."""

import json
import sys
from pathlib import Path

import pytest

from agent.image import demo

pytestmark = pytest.mark.client
HELM = Path(sys.executable).with_name("helm")  # from PyPI, as the project's other test tools
NAMESPACE = "apps"
HOLD = "120s"

DEFINITION = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: caches.helm.example.com}
spec:
  group: helm.example.com
  scope: Namespaced
  names: {kind: Cache, plural: caches}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
"""
CACHE = """
apiVersion: helm.example.com/v1
kind: Cache
metadata: {name: {{ include "web.fullname" . }}}
spec: {size: {{ .Values.cacheSize | default 1 }}}
"""
MIGRATION = """
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ include "web.fullname" . }}-migrate
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - {name: migrate, image: "BUSYBOX", command: [sh, -c, "echo migrated; exit {{ .Values.migration | default 0 }}"]}
"""


class Helm:
    """Helm on the cluster's host, its own files in `folder`."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.env = {f"HELM_{name}_HOME": str(folder / name) for name in ("CACHE", "CONFIG", "DATA")}

    def __call__(self, *arguments, fails=False):
        done = self.cluster.run(str(HELM), "-n", NAMESPACE, *arguments, env=self.env, check=not fails)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr if fails else done.stdout

    def chart(self):
        """The chart of `helm create`, its images ours, with a definition, an object of its kind and a migration."""
        self("create", str(self.folder / "web"))
        chart = self.folder / "web"
        (chart / "crds").mkdir()
        (chart / "crds/caches.yaml").write_text(DEFINITION)
        (chart / "templates/cache.yaml").write_text(CACHE)
        (chart / "templates/migration.yaml").write_text(MIGRATION.replace("BUSYBOX", demo.BUSYBOX))
        test = chart / "templates/tests/test-connection.yaml"
        assert "image: busybox\n" in test.read_text()
        test.write_text(test.read_text().replace("image: busybox\n", f"image: {demo.BUSYBOX}\n"))
        return chart


def test_a_release_from_install_to_uninstall(cluster, tmp_path):
    helm = Helm(cluster, tmp_path)
    chart = str(helm.chart())
    image, tag = demo.DEMO.rsplit(":", 1)
    values = ["--set", f"image.repository={image},image.tag={tag},ingress.enabled=true"]
    helm("install", "one", chart, *values, "--wait", "--timeout", HOLD, "--create-namespace")
    assert "Phase:          Succeeded" in helm("test", "one", "--timeout", HOLD)

    helm("upgrade", "one", chart, *values, "--set", "replicaCount=3,cacheSize=2", "--wait", "--timeout", HOLD)
    deployment = cluster.get("deployment", "one-web", "-n", NAMESPACE)
    assert deployment["status"]["availableReplicas"] == 3
    assert cluster.get("caches", "one-web", "-n", NAMESPACE)["spec"]["size"] == 2

    cluster.kubectl("scale", "deployment/one-web", "--replicas=2", "-n", NAMESPACE)  # what Helm did not do, it undoes
    refused = helm("upgrade", "one", chart, *values, "--set", "replicaCount=4,migration=1", "--atomic", "--timeout",
                   HOLD, fails=True)
    assert "BackoffLimitExceeded" in refused and "rolled back due to atomic being set" in refused
    assert cluster.get("deployment", "one-web", "-n", NAMESPACE)["spec"]["replicas"] == 3

    helm("rollback", "one", "1", "--wait", "--timeout", HOLD)
    assert cluster.get("caches", "one-web", "-n", NAMESPACE)["spec"]["size"] == 1
    statuses = [r["status"] for r in json.loads(helm("history", "one", "-o", "json"))]
    assert statuses == ["superseded", "superseded", "failed", "superseded", "deployed"]
    manifest = helm("get", "manifest", "one")
    assert cluster.run("kubectl", "diff", "-n", NAMESPACE, "-f", "-", input=manifest).stdout == ""
    assert "kind: Ingress" in helm("upgrade", "--install", "two", chart, *values, "--dry-run=server")

    helm("uninstall", "one", "--wait", "--timeout", HOLD)
    left = cluster.kubectl("get", "deployments,services,ingresses,serviceaccounts,caches,secrets", "-n", NAMESPACE,
                           "-o", "name").split()
    assert left == ["serviceaccount/default"], left
    cluster.kubectl("delete", "namespace", NAMESPACE)
    cluster.kubectl("delete", "crd", "caches.helm.example.com")

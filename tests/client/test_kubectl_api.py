"""The real kubectl against a real apiserver inside the test's process: TLS, client certificates, objects in memory.

No node takes part, so Pods stay Pending; what is tested is that every common command finds the API it expects.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager

import orjson
import pytest

from controlplane.machinery.paths import Paths
from tests.unit.apiserver.harness import serving

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]

SECONDS = 30.0  # for one command
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "busybox:%s", ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
"""


class Kubectl:
    """`await k("get pods")` gives stdout; a failure is an AssertionError with stderr, unless `fails`."""

    def __init__(self, api, folder, binary="", environment=None):
        self.api = api
        self._binary = binary or shutil.which("kubectl")
        self._config = str(Paths(folder).admin_kubeconfig)
        self._folder = folder
        self._environment = {"HOME": str(folder), "PATH": "/usr/bin:/bin", **(environment or {})}

    async def start(self, words):
        arguments = words.split() if isinstance(words, str) else words
        return await asyncio.create_subprocess_exec(
            self._binary, "--kubeconfig", self._config, "--server", self.api.url, *arguments,
            env=self._environment, cwd=self._folder, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)

    async def _run(self, words, stdin, fails):
        process = await self.start(words)
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate(stdin.encode())
        assert (process.returncode != 0) == fails, f"{words}\n{out.decode()}{err.decode()}"
        return out.decode(), err.decode()

    async def __call__(self, words, stdin="", fails=False):
        return (await self._run(words, stdin, fails))[1 if fails else 0]

    async def said(self, words, stdin="", fails=False):
        """All it printed, standard output and error."""
        return "".join(await self._run(words, stdin, fails))

    async def json(self, words):
        return orjson.loads(await self(words + " -o json"))


@asynccontextmanager
async def cluster(folder):
    async with serving(tls=folder, authorization_mode=("Node", "RBAC")) as api:
        yield Kubectl(api, folder)


def session(tmp_path, steps):
    async def main():
        async with cluster(tmp_path) as k:
            await steps(k)
    asyncio.run(main())


def test_create_get_describe_delete(tmp_path):
    async def steps(k):
        assert "Active" in await k("get namespaces")
        assert "configmap/a created" in await k("create configmap a --from-literal=x=1")
        assert 'configmaps "a" already exists' in await k("create configmap a", fails=True)
        assert 'configmaps "b" not found' in await k("get configmap b", fails=True)
        assert (await k("get configmap a -o jsonpath={.data.x}")) == "1"
        assert "x: " in await k("get configmap a -o yaml")
        assert "Data" in await k("describe configmap a")
        assert "created (server dry run)" in await k("create namespace n --dry-run=server")
        assert "namespace/n created" in await k("create namespace n")
        assert "created" in await k("create secret generic s --from-literal=p=w -n n")
        assert "a" in await k("get cm -A --sort-by=.metadata.name")
        assert 'configmap "a" deleted' in await k("delete configmap a")
        assert "may not be deleted" in await k("delete namespace default", fails=True)
        assert "deployments" in await k("api-resources --api-group=apps")
        assert "replicas" in await k("explain deployment.spec")
        assert "Server Version: " in await k("version")
    session(tmp_path, steps)


def test_apply_diff_scale_set_and_patch(tmp_path):
    async def steps(k):
        out = await k("apply -f -", DEPLOYMENT % (2, "1"))
        assert "deployment.apps/web created" in out and "service/web created" in out
        assert "unchanged" in await k("apply -f -", DEPLOYMENT % (2, "1"))
        out = await k("diff -f -", DEPLOYMENT % (3, "1"), fails=True)
        assert out == ""  # differences are on stdout and exit code 1; nothing went wrong
        assert "deployment.apps/web configured" in await k("apply -f -", DEPLOYMENT % (3, "1"))
        assert "scaled" in await k("scale deployment web --replicas=5")
        assert "image updated" in await k("set image deployment/web c=busybox:2")
        got = await k.json("get deployment web")
        assert got["spec"]["replicas"] == 5 and got["metadata"]["generation"] == 4
        assert got["spec"]["template"]["spec"]["containers"][0]["image"] == "busybox:2"
        assert "patched" in await k(["patch", "deployment", "web", "-p",
                                     '{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"x:3"}]}}}}'])
        assert "patched" in await k(["patch", "deployment", "web", "--type=json", "-p",
                                     '[{"op":"remove","path":"/metadata/labels/app"}]'])
        assert "labeled" in await k("label deployment web l=1")
        assert "annotate" in await k("annotate deployment web z=1")
        assert "web" in await k("get deployment -l l=1 -o name")
        assert "restarted" in await k("rollout restart deployment web")
        refused = await k(["patch", "deployment", "web", "-p", '{"spec":{"selector":{"matchLabels":{"q":"r"}}}}'],
                          fails=True)
        assert "field is immutable" in refused
        assert 'unknown field "spec.nonsense"' in await k(
            "apply -f -", DEPLOYMENT.replace("replicas:", "nonsense: 1\n  replicas:") % (1, "1"), fails=True)
        ports = (await k.json("get service web"))["spec"]["ports"]
        assert 30000 <= ports[0]["nodePort"] <= 32767
    session(tmp_path, steps)


def test_server_side_apply_tells_conflicts(tmp_path):
    async def steps(k):
        mine = "apply --server-side --field-manager=one -f -"
        assert "serverside-applied" in await k(mine, DEPLOYMENT % (2, "1"))
        refused = await k("apply --server-side --field-manager=two -f -", DEPLOYMENT % (4, "1"), fails=True)
        assert 'conflict with "one": .spec.replicas' in refused
        assert "serverside-applied" in await k("apply --server-side --force-conflicts --field-manager=two -f -",
                                               DEPLOYMENT % (4, "1"))
        assert (await k.json("get deployment web"))["spec"]["replicas"] == 4
        before = (await k.json("get deployment web"))["metadata"]["resourceVersion"]
        await k("apply --server-side --field-manager=two -f -", DEPLOYMENT % (4, "1"))
        assert (await k.json("get deployment web"))["metadata"]["resourceVersion"] == before
    session(tmp_path, steps)


def test_watch_and_wait_follow_changes(tmp_path):
    async def steps(k):
        await k("create configmap a --from-literal=x=1")
        watcher = await k.start("get configmap a -w --no-headers")
        async with asyncio.timeout(SECONDS):
            assert (await watcher.stdout.readline()).split()[:2] == [b"a", b"1"]
            await k(["patch", "configmap", "a", "-p", '{"data":{"y":"2"}}'])
            assert (await watcher.stdout.readline()).split()[:2] == [b"a", b"2"]
            waiting = await k.start("wait --for=delete configmap/a --timeout=20s")
            await k("delete configmap a")
            assert await waiting.wait() == 0
        watcher.terminate()
        await watcher.wait()
    session(tmp_path, steps)


def test_pods_nodes_and_rights(tmp_path):
    async def steps(k):
        await k("create serviceaccount default")
        assert "pod/p created" in await k("run p --image=busybox --labels=app=p")
        assert "Pending" in await k("get pods")
        assert "p" in await k("get pods --field-selector=status.phase=Pending -o name")
        assert 'field label not supported: spec.none' in await k("get pods --field-selector=spec.none=1", fails=True)
        assert "exposed" in await k("expose pod p --port=80")
        await k("create -f -", '{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}')
        assert "tainted" in await k("taint node n1 a=b:NoSchedule")
        assert "cordoned" in await k("cordon n1")
        assert (await k.json("get node n1"))["spec"]["unschedulable"] is True
        assert "uncordoned" in await k("uncordon n1")
        assert (await k("auth can-i create pods")).strip() == "yes"
        assert 'User "jane" cannot list' in await k("get pods --as=jane", fails=True)
        assert (await k("create token default")).count(".") == 2
        assert 'pod "p" force deleted' in await k("delete pod p --force")
        assert (await k("get pods -o name")) == ""
    session(tmp_path, steps)

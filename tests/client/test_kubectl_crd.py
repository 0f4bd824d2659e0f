"""kubectl of several releases with custom resources, against an apiserver inside the test's process."""

import asyncio
import shutil
from pathlib import Path

import orjson
import pytest

from controlplane.machinery.paths import Paths
from tests.client.cluster import kubectls
from tests.unit.apiserver.definitions import definition, schema, version
from tests.unit.apiserver.harness import serving

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]

SECONDS = 30.0  # for one command
TELLING = ("kubectl", "kubectl.1.27", "kubectl.1.30", "kubectl.1.33", "kubectl.1.36")
RELEASES = [k for k in kubectls() if Path(k).name in TELLING]
SPEC = {"type": "object", "description": "What the foo should be.", "required": ["color"], "properties": {
    "color": {"type": "string", "description": "Its color.", "enum": ["red", "blue"]},
    "replicas": {"type": "integer", "minimum": 0, "default": 1}, "size": {"x-kubernetes-int-or-string": True}},
    "x-kubernetes-validations": [{"rule": "self.color != 'blue' || self.replicas < 3", "message": "blue is rare"}]}
DEFINITION = definition(names={"shortNames": ["fo"], "categories": ["all"]}, versions=[version(
    schema=schema(SPEC), additionalPrinterColumns=[
        {"name": "Color", "type": "string", "jsonPath": ".spec.color"},
        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}],
    subresources={"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                                          "statusReplicasPath": ".status.replicas"}})])
FOO = """
apiVersion: ex.io/v1
kind: Foo
metadata: {name: a}
spec: {color: %s%s}
"""


class Kubectl:
    """`await k("get foos")` gives stdout; a failure is an AssertionError with stderr, unless `fails`."""

    def __init__(self, binary, api, folder):
        self._binary, self._api, self._folder = binary, api, folder

    async def __call__(self, words, stdin="", fails=False, both=False):
        arguments = words.split() if isinstance(words, str) else words
        process = await asyncio.create_subprocess_exec(
            self._binary, "--kubeconfig", str(Paths(self._folder).admin_kubeconfig), "--server", self._api.url,
            *arguments, env={"HOME": str(self._folder / Path(self._binary).name), "PATH": "/usr/bin:/bin",
                             "EDITOR": "sed -i s/red/blue/"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        async with asyncio.timeout(SECONDS):
            out, err = await process.communicate(stdin.encode())
        assert (process.returncode != 0) == fails, f"{words}\n{out.decode()}{err.decode()}"
        return (out + err).decode() if both else err.decode() if fails else out.decode()


async def life(k):
    await k("create -f -", orjson.dumps(DEFINITION).decode())
    assert "condition met" in await k("wait --for=condition=Established crd/foos.ex.io --timeout=20s")
    assert "foos" in await k("api-resources --api-group=ex.io")
    assert "Its color." in await k("explain foo.spec")
    assert "created" in await k("apply -f -", FOO % ("red", ", size: 5%"))
    assert "unchanged" in await k("apply -f -", FOO % ("red", ", size: 5%"))
    assert "configured" in await k("apply -f -", FOO % ("blue", ", size: 5"))
    assert "serverside-applied" in await k("apply --server-side --force-conflicts -f -", FOO % ("red", ""))
    assert (await k("get foo a -o jsonpath={.spec.size}")) == ""  # kubectl took over what it had applied before
    refused = await k("apply -f -", FOO % ("green", ""), fails=True)
    assert 'spec.color: Unsupported value: "green": supported values: "blue", "red"' in refused
    other = (FOO % ("red", ", zz: 1")).replace("a}", "b}")
    assert 'unknown field "spec.zz"' in await k("create -f -", other, fails=True)
    assert "created" in await k("create --validate=false -f -", other)
    lines = (await k("get fo -o wide")).splitlines()
    assert lines[0].split() == ["NAME", "COLOR", "REPLICAS", "AGE"] and lines[1].split()[:3] == ["a", "red", "1"]
    assert "foo.ex.io/a" in await k("get all -o name")
    assert "scaled" in await k("scale foo a --replicas=4")
    assert (await k("get foo a -o jsonpath={.spec.replicas}")) == "4"
    blue = ["patch", "foo", "a", "--type=merge", "-p", '{"spec":{"color":"blue"}}']
    assert "blue is rare" in await k(blue, fails=True)
    assert "edited" in await k("edit foo b")
    assert (await k("get foo b -o jsonpath={.spec.color}")) == "blue"
    assert "patched" in await k(["patch", "foo", "a", "--subresource=status", "--type=merge", "-p",
                                 '{"status":{"conditions":[{"type":"Ready","status":"True"}]}}'])
    assert "condition met" in await k("wait --for=condition=Ready foo/a --timeout=20s")
    assert "labeled" in await k("label foo a x=y")
    assert "Spec:" in await k("describe foo a")
    assert "deleted" in await k("delete foo -l x=y")
    assert "deleted" in await k("delete crd foos.ex.io")
    assert "foos" not in await k("api-resources")


@pytest.mark.parametrize("binary", RELEASES, ids=[Path(k).name for k in RELEASES])
def test_a_kinds_life(binary, tmp_path):
    async def main():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            await life(Kubectl(binary, api, tmp_path))
    asyncio.run(main())

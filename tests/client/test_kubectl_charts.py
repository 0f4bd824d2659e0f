"""Charts as installers apply them: installed, upgraded and removed by kubectl by either side's merge."""

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.client.charts import database, operator, web
from tests.client.test_kubectl_crd import RELEASES, Kubectl
from tests.unit.apiserver.harness import serving

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]
SERVER_SIDE = "--server-side --field-manager=installer"


async def applied(k, bundle, how, word):
    """Apply a bundle (its parts one after the other); every object is `word`."""
    for part in bundle.split("==="):
        told = await k(f"-n charts apply {how} -f -", part)
        assert len(told.splitlines()) == part.count("\nkind: ")
        assert not word or all(line.endswith(word) for line in told.splitlines()), told
        for line in told.splitlines():
            if line.startswith("customresourcedefinition"):
                await k(f"wait --for=condition=Established --timeout=20s {line.split()[0]}")


async def versions(k, bundle):
    return [await k(["-n", "charts", "get", "-f", "-", "-o", "jsonpath={.items[*].metadata.resourceVersion}"], part)
            for part in bundle.split("===")]


async def installed(k, how, release, done):
    for bundle in (web(release), database(release), operator(release)):
        await applied(k, bundle, how, done)
        before = await versions(k, bundle)
        await applied(k, bundle, how, "")  # kubectl may say "configured" where lists have defaults; nothing changes
        assert await versions(k, bundle) == before
    await applied(k, web(release, replicas=4), how, "")
    assert await k(f"-n charts get deployment {release}-web -o jsonpath={{.spec.replicas}}") == "4"
    await applied(k, operator(release, "true"), how, "")
    refused = operator(release, "true").split("===")[1].replace("replicas: 2", "replicas: 1")
    assert "the feature needs more than one" in await k(f"-n charts apply {how} -f -", refused, fails=True)
    listed = await k("-n charts get all,ingress,pdb,hpa,netpol,cm,secret -o name")
    for name in (f"statefulset.apps/{release}-db", f"cronjob.batch/{release}-backup", f"job.batch/{release}-migrate",
                 f"cache.{release}.example.com/first", f"poddisruptionbudget.policy/{release}-web"):
        assert name in listed.splitlines(), listed
    for bundle in (operator(release), database(release), web(release)):
        for part in reversed(bundle.split("===")):
            told = await k("-n charts delete --cascade=background --wait=false -f -", part)
            assert len(told.splitlines()) == part.count("\nkind: ")
    left = await k("-n charts get deployments,statefulsets,cronjobs,services,ingresses,pdb,hpa,roles -o name")
    assert release not in left, left


@pytest.mark.parametrize("binary", RELEASES, ids=[Path(k).name for k in RELEASES])
def test_charts_are_installed_upgraded_and_removed(binary, tmp_path):
    async def main():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            k = Kubectl(binary, api, tmp_path)
            await k("create namespace charts")
            await k("-n charts create serviceaccount default")
            await installed(k, "", "one", " created")
            await installed(k, SERVER_SIDE, "two", " serverside-applied")
    asyncio.run(main())

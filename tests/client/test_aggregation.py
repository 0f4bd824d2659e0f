"""kubectl with kinds of another API server behind a Service: found, listed, watched, explained, missed when away."""

import asyncio
import shutil
from pathlib import Path

import pytest
from aiohttp import web

from tests.client.test_kubectl_crd import RELEASES, Kubectl
from tests.unit.apiserver.harness import serving
from tests.unit.apiserver.test_aggregation import (
    GROUP,
    ROOT,
    api_service,
    backed,
    condition,
    extension,
    with_proxy,
)

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]
FLUNDER = {"apiVersion": f"{GROUP}/v1alpha1", "kind": "Flunder", "metadata": {
    "name": "f", "namespace": "default", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}}


def flunders(server):
    """What an extension says of its objects, in place of its echo."""
    answer = server.handle

    async def handle(raw):
        if raw.path == f"{ROOT}/namespaces/default/flunders" and not raw.query.get("watch"):
            server.asked.append((raw.path, raw.headers.copy()))
            return web.json_response({"apiVersion": FLUNDER["apiVersion"], "kind": "FlunderList",
                                      "metadata": {"resourceVersion": "7"}, "items": [FLUNDER]})
        if raw.path.endswith("/flunders/f"):
            return web.json_response(FLUNDER)
        return await answer(raw)
    return handle


@pytest.mark.parametrize("binary", RELEASES, ids=[Path(k).name for k in RELEASES])
def test_another_servers_kinds_by_kubectl(binary, tmp_path):
    async def main():
        async with serving(authorization_mode=("Node", "RBAC"), **with_proxy(tmp_path)) as api, extension(
                tmp_path, api.server.options.requestheader_client_ca_file, flunders) as server:
            k = Kubectl(binary, api, tmp_path)
            await backed(api, server.port)
            made = await api.made("/apis/apiregistration.k8s.io/v1/apiservices", api_service(server.bundle))
            name = made["metadata"]["name"]
            await condition(api, name, "Passed")
            row = (await k(f"get apiservice {name} --no-headers")).split()
            assert row[1:3] == ["default/api", "True"]
            assert "flunders" in await k(f"api-resources --api-group={GROUP}")
            assert (await k("get fl")).splitlines()[1].split()[0] == "f"
            assert server.asked[-1][1]["X-Remote-User"] == "kubernetes-admin"
            assert "Flunder" in await k("get flunder f -o yaml")
            told = await k("get --raw " + ROOT + "/namespaces/default/flunders")
            assert '"FlunderList"' in told
            await k("delete service api")
            await condition(api, name, "ServiceNotFound")
            assert "the server is currently unable to handle the request" in await k("get fl", fails=True)
            assert "False (ServiceNotFound)" in await k(f"get apiservice {name}")
            assert "namespace" in await k("get namespaces -o name")  # all else goes on
            await k(f"delete apiservice {name}")
    asyncio.run(main())

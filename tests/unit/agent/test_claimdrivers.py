"""Drivers of ResourceClaims on a node: heard of, and what they offered goes with them; who gets which device."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.kubelet.devices.claims import ClaimDevices, chosen, claims_of
from agent.kubelet.env import ConfigError
from agent.kubelet.model import ContainerSpec
from agent.kubelet.volumes import csidrivers
from agent.kubelet.volumes.csidrivers import Drivers
from controlplane.machinery.errors import NotFound
from cri_proto.messages import registration
from cri_proto.served import Served
from tests.unit.agent.pods import pod


class Api:
    """Objects by name; what is removed by selector is noted."""

    def __init__(self, **objects: Any) -> None:
        self.objects, self.removed = objects, asyncio.Queue[str]()

    async def get(self, resource: Any, name: str, namespace: str = "") -> Any:
        if name not in self.objects:
            raise NotFound.of(resource.plural, name)
        return self.objects[name]

    async def create(self, resource: Any, obj: Any) -> Any:
        self.objects[obj["metadata"]["name"]] = obj
        return obj

    async def delete_collection(self, resource: Any, fields: str) -> None:
        assert resource.plural == "resourceslices"
        self.removed.put_nowait(fields)


class Registrar:
    def __init__(self, *versions: str) -> None:
        self.versions, self.told = versions, asyncio.Queue[tuple[bool, str]]()

    async def GetInfo(self, request: Any, call: Any) -> Any:  # noqa: N802
        return registration.PluginInfo(type="DRAPlugin", name="d.example", endpoint="/d.sock",
                                       supported_versions=self.versions)

    async def NotifyRegistrationStatus(self, request: Any, call: Any) -> Any:  # noqa: N802
        self.told.put_nowait((request.plugin_registered, request.error))
        return registration.RegistrationStatusResponse()


def test_what_a_driver_offered_goes_a_while_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csidrivers, "WIPE_SECONDS", 0.05)
    root = Path(tempfile.mkdtemp(prefix="dra-"))  # sockets want short paths
    folder = root / "plugins_registry"
    folder.mkdir()

    async def body() -> None:
        api: Any = Api()
        drivers = Drivers(root, "n1", api, lambda: {"kind": "Node", "name": "n1"})
        running = asyncio.create_task(drivers.run())
        for registrar, told in ((Registrar("v9.DRAPlugin"), (False, "none of the services ['v9.DRAPlugin'] is "
                                                                    "v1.DRAPlugin")),
                                (Registrar("v1.DRAPlugin", "v1beta1.DRAPlugin"), (True, ""))):
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((Served(registration, "Registration", "pluginregistration.Registration",
                                                    lambda r=registrar: r),))
            server.add_insecure_port(f"unix://{folder}/{len(registrar.versions)}.sock")
            await server.start()
            async with asyncio.timeout(60):
                assert await registrar.told.get() == told
            if told[0]:
                assert drivers.claim_socket("d.example") == "/d.sock"
            await server.stop(None)
            (folder / f"{len(registrar.versions)}.sock").unlink(missing_ok=True)
        async with asyncio.timeout(60):
            assert await api.removed.get() == "spec.driver=d.example,spec.nodeName=n1"
        assert drivers.claim_socket("d.example") is None
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    try:
        asyncio.run(body())
    finally:
        shutil.rmtree(root)


def using(*claims: dict[str, str]) -> dict[str, Any]:
    return {"name": "c", "resources": {"claims": list(claims)}}


def test_a_container_gets_what_it_names() -> None:
    devices = [{"requests": ["a"], "cdi": ["k=1", "k=2"]}, {"requests": [], "cdi": ["k=3"]},
               {"requests": ["b"], "cdi": ["k=4"]}]
    claims = [{"own": "x", "drivers": {"d": devices}},
              {"own": "y", "drivers": {"e": [{"requests": [], "cdi": ["k=5"]}]}}]
    assert chosen(using({"name": "x", "request": "a"}), claims) == ("k=1", "k=2", "k=3")
    assert chosen(using({"name": "x", "request": "b"}, {"name": "y"}), claims) == ("k=3", "k=4", "k=5")
    assert chosen(using(), claims) == ()


def test_a_pods_claims_are_found_by_template_or_name_and_held_to_it(tmp_path: Path) -> None:
    made = pod(using({"name": "x"}))
    made["spec"]["resourceClaims"] = [{"name": "x", "resourceClaimTemplateName": "t"},
                                      {"name": "y", "resourceClaimName": "own"}]
    with pytest.raises(ConfigError, match='ResourceClaim for "x" of pod p not created yet'):
        list(claims_of(made))
    made["status"]["resourceClaimStatuses"] = [{"name": "x"}]  # its template made none
    assert list(claims_of(made)) == [("y", "own")]
    made["status"]["resourceClaimStatuses"] = [{"name": "x", "resourceClaimName": "own"}]

    async def refused(**objects: Any) -> str:
        api: Any = Api(**objects)
        with pytest.raises(ConfigError) as error:
            await ClaimDevices(api, tmp_path, lambda driver: None, cdi=True).fitted(
                ContainerSpec("c", "i"), made, made["spec"]["containers"][0])
        return str(error.value)
    claim: dict[str, Any] = {"metadata": {"uid": "claim"}, "status": {"allocation": {"devices": {"results": [
        {"driver": "d.example"}]}}}}
    assert "it does not exist" in asyncio.run(refused())
    assert "pod p(u) is not allowed to use ResourceClaim own(claim)" in asyncio.run(refused(own=claim))
    claim["status"]["reservedFor"] = [{"uid": "u"}]
    assert asyncio.run(refused(own=claim)) == ("Failed to prepare dynamic resources: DRA driver d.example is not "
                                               "registered on this node")
    assert not list(tmp_path.iterdir())  # nothing is to be given back

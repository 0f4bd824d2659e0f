"""Drivers of ResourceClaims on a node: heard of, and what they offered goes with them; who gets which device."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.kubelet.devices import drivers, registrar
from agent.kubelet.devices.claims import ClaimDevices, chosen, claims_of, entries
from agent.kubelet.devices.devices import Devices
from agent.kubelet.devices.health import Health
from agent.kubelet.env import ConfigError
from agent.kubelet.model import ContainerSpec
from agent.kubelet.registry import FOLDER, Registry
from agent.kubelet.specs import Node
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import NotFound
from cri_proto.messages import deviceplugin, drahealth, registration
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


class Plugin:
    """A plugin of any type, as the registry meets it."""

    def __init__(self, kind: str, name: str, *versions: str) -> None:
        self.kind, self.name, self.versions = kind, name, versions
        self.told = asyncio.Queue[tuple[bool, str]]()
        self.news = asyncio.Queue[Any]()  # what its stream says

    async def GetInfo(self, request: Any, call: Any) -> Any:  # noqa: N802
        return registration.PluginInfo(type=self.kind, name=self.name, supported_versions=self.versions)

    async def NotifyRegistrationStatus(self, request: Any, call: Any) -> Any:  # noqa: N802
        self.told.put_nowait((request.plugin_registered, request.error))
        return registration.RegistrationStatusResponse()

    async def NodeWatchResources(self, request: Any, call: Any) -> Any:  # noqa: N802
        while True:
            yield await self.news.get()

    async def GetDevicePluginOptions(self, request: Any, call: Any) -> Any:  # noqa: N802
        return deviceplugin.DevicePluginOptions(pre_start_required=True)

    async def ListAndWatch(self, request: Any, call: Any) -> Any:  # noqa: N802
        while True:
            yield await self.news.get()

    @asynccontextmanager
    async def at(self, socket: Path) -> AsyncIterator[None]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((
            Served(registration, "Registration", "pluginregistration.Registration", lambda: self),
            Served(drahealth, "DRAResourceHealth", drivers.HEALTH, lambda: self),
            Served(deviceplugin, "DevicePlugin", "v1beta1.DevicePlugin", lambda: self)))
        server.add_insecure_port(f"unix://{socket}")
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)
            socket.unlink(missing_ok=True)  # noqa: ASYNC240 - nothing else waits


@asynccontextmanager
async def node() -> AsyncIterator[tuple[Any, Devices, Path, asyncio.Queue[set[str]]]]:
    """An API, the devices of a node, its folder of plugins, and what is said to have changed."""
    root, api, told = Path(tempfile.mkdtemp(prefix="dra-")), Api(), asyncio.Queue[set[str]]()  # sockets: short paths
    (root / FOLDER).mkdir()
    devices = Devices(Node("n1", (), root, root), api, SYSTEM)  # type: ignore[arg-type]
    devices.changed = told.put_nowait
    running = asyncio.create_task(Registry(root, {
        drivers.KIND: devices.drivers, registrar.KIND: registrar.Registrar(devices)}).run())
    try:
        async with asyncio.timeout(60):
            yield api, devices, root / FOLDER, told
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        shutil.rmtree(root)


def test_what_a_driver_offered_goes_a_while_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "WIPE_SECONDS", 0.05)

    async def body() -> None:
        async with node() as (api, devices, folder, _):
            old = Plugin("DRAPlugin", "d.example", "v9.DRAPlugin")
            async with old.at(folder / "old.sock"):
                assert await old.told.get() == (False, "none of the services ['v9.DRAPlugin'] is v1.DRAPlugin")
            driver = Plugin("DRAPlugin", "d.example", "v1.DRAPlugin", "v1beta1.DRAPlugin")
            async with driver.at(folder / "d.sock"):
                assert await driver.told.get() == (True, "")
                assert devices.drivers.socket("d.example") == str(folder / "d.sock")
            assert await api.removed.get() == "spec.driver=d.example,spec.nodeName=n1"
            assert devices.drivers.socket("d.example") is None
    asyncio.run(body())


def heard(device: str, health: int, seconds: int = 0, message: str = "") -> Any:
    return drahealth.DeviceHealth(device=drahealth.DeviceIdentifier(pool_name="p", device_name=device), health=health,
                                  health_check_timeout_seconds=seconds, message=message)


def test_health_is_true_for_a_time() -> None:
    health = Health()
    assert health.hear([heard("a", 1), heard("b", 2, 90, "m" * 2000)], 1000.0)
    assert health.of("p", "a") == ("Healthy", "") and health.of("p", "c") == ("Unknown", "")
    word, message = health.of("p", "b")
    assert (word, len(message), message[-3:]) == ("Unhealthy", 1024, "...") and health.due() == 1030.0
    assert not health.hear([heard("a", 1)], 1020.0)  # nothing new, but true for longer
    assert not health.expire(1049.0) and health.expire(1050.0)
    assert health.of("p", "a")[0] == "Unknown" and health.of("p", "b")[0] == "Unhealthy"
    assert health.clear() and not health.clear() and health.due() is None


def test_a_driver_tells_how_a_pods_devices_are_until_it_goes() -> None:
    async def body() -> None:
        async with node() as (_, devices, folder, told):
            made = pod(using({"name": "x", "request": "a/best"}))
            made["spec"]["resourceClaims"] = [{"name": "x", "resourceClaimName": "own"}]
            devices.claims()._note("u", [{"own": "x", "uid": "claim", "drivers": {"d.example": [
                {"requests": ["a"], "pool": "p", "device": "one", "cdi": []},
                {"requests": ["b"], "pool": "p", "device": "two", "cdi": []}]}}])

            def status(health: str, **more: str) -> dict[str, Any]:
                return {"c": [{"name": "claim:x/a/best", "resources": [
                    {"resourceID": "d.example/p/one", "health": health, **more}]}]}
            assert devices.told(made) == status("Unknown")
            driver = Plugin("DRAPlugin", "d.example", "v1.DRAPlugin", drivers.HEALTH)
            async with driver.at(folder / "d.sock"):
                driver.news.put_nowait(drahealth.NodeWatchResourcesResponse(devices=[heard("one", 2, 600, "hot")]))
                assert await told.get() == {"u"} and devices.told(made) == status("Unhealthy", message="hot")
            while devices.told(made) != status("Unknown"):
                assert await told.get() == {"u"}
    asyncio.run(body())


def test_a_device_plugin_may_come_by_the_folder_of_all_plugins() -> None:
    def lists(health: str) -> Any:
        return deviceplugin.ListAndWatchResponse(devices=[deviceplugin.Device(ID="a", health=health)])

    async def body() -> None:
        async with node() as (_, devices, folder, told):
            wrong = Plugin("DevicePlugin", "kubernetes.io/lab", "v1beta1")
            async with wrong.at(folder / "wrong.sock"):
                assert await wrong.told.get() == (False, "invalid name of device plugin: kubernetes.io/lab")
            plugin = Plugin("DevicePlugin", "example.com/lab", "v1beta1")
            async with plugin.at(folder / "lab.sock"):
                assert await plugin.told.get() == (True, "")
                for health, healthy in (("Healthy", 1), ("Unhealthy", 0), ("Healthy", 1)):
                    plugin.news.put_nowait(lists(health))
                    await told.get()
                    assert devices.amounts() == {"example.com/lab": (1, healthy)}
                (folder / "lab.sock").unlink()  # its service goes on, and is asked no more
                await told.get()
                assert devices.amounts() == {"example.com/lab": (1, 0)}
    asyncio.run(body())


def using(*claims: dict[str, str]) -> dict[str, Any]:
    return {"name": "c", "resources": {"claims": list(claims)}}


def test_a_container_gets_what_it_names() -> None:
    devices = [{"requests": ["a"], "cdi": ["k=1", "k=2"]}, {"requests": [], "cdi": ["k=3"]},
               {"requests": ["b"], "cdi": ["k=4"]}]
    claims = [{"own": "x", "drivers": {"d": devices}},
              {"own": "y", "drivers": {"e": [{"requests": [], "cdi": ["k=5"]}]}}]
    assert chosen([{"name": "x", "request": "a"}], claims) == ("k=1", "k=2", "k=3")
    assert chosen([{"name": "x", "request": "b"}, {"name": "y"}], claims) == ("k=3", "k=4", "k=5")
    assert chosen([], claims) == ()


def test_a_pods_claims_are_found_by_template_or_name_and_held_to_it(tmp_path: Path) -> None:
    made = pod(using({"name": "x"}))
    made["spec"]["resourceClaims"] = [{"name": "x", "resourceClaimTemplateName": "t"},
                                      {"name": "y", "resourceClaimName": "own"}]
    with pytest.raises(ConfigError, match='ResourceClaim for "x" of pod p not created yet'):
        list(claims_of(made))
    made["status"]["resourceClaimStatuses"] = [{"name": "x"}]  # its template made none
    assert list(claims_of(made)) == [("y", "own")]
    made["status"]["extendedResourceClaimStatus"] = {"resourceClaimName": "p-extended", "requestMappings": [
        {"containerName": "c", "resourceName": "x.io/gpu", "requestName": "r"}]}
    assert list(claims_of(made)) == [("y", "own"), ("", "p-extended")]
    assert entries(made, {"name": "c"}) == [{"name": "", "request": "r", "resource": "x.io/gpu"}]
    assert entries(made, {"name": "d"}) == []
    del made["status"]["extendedResourceClaimStatus"]
    made["status"]["resourceClaimStatuses"] = [{"name": "x", "resourceClaimName": "own"}]

    async def refused(**objects: Any) -> str:
        api: Any = Api(**objects)
        nobody = drivers.ClaimDrivers("n1", api, SYSTEM, lambda driver: None)
        with pytest.raises(ConfigError) as error:
            await ClaimDevices(api, tmp_path, nobody, cdi=True).fitted(
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

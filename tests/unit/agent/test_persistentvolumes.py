"""Claims become mounts: bound volumes of this node, and a storage driver spoken to over its socket."""

from __future__ import annotations

import asyncio
import json
import shutil
import stat
import tempfile
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory

from agent.kubelet import registry
from agent.kubelet.admit import Place
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.volumes import ownership, subpaths
from agent.kubelet.volumes.claims import Claims
from agent.kubelet.volumes.csi import CsiVolumes
from agent.kubelet.volumes.csidrivers import KIND, StorageDrivers
from agent.kubelet.volumes.manager import Volumes
from agent.kubelet.volumes.tokens import Tokens
from controlplane.machinery.clock import SYSTEM, FakeClock
from controlplane.machinery.errors import NotFound
from cri_proto.messages import csi, registration
from netsetup.ledger import Ledger
from tests.unit.agent.pods import pod
from tests.unit.agent.test_podvolumes import Fixed, Recorder


class Api:
    """Objects by (plural, name)."""

    def __init__(self, **objects) -> None:
        self.objects = {tuple(key.split("__")): value for key, value in objects.items()}

    async def get(self, resource, name, namespace=""):
        if (resource.plural, name) not in self.objects:
            raise NotFound(f'{resource.plural} "{name}" not found')
        return self.objects[resource.plural, name]

    async def create(self, resource, obj, namespace="", subresource="", name=""):
        if subresource == "token":
            text = f"{name}-for-{obj['spec']['audiences'][0]}"
            return {"status": {"token": text, "expirationTimestamp": "2100-01-01T00:00:00Z"}}
        self.objects[resource.plural, obj["metadata"]["name"]] = obj
        return obj

    async def update(self, resource, obj):
        return await self.create(resource, obj)

    async def patch(self, resource, name, patch, *rest):
        self.objects[resource.plural, name] = {**self.objects.get((resource.plural, name), {}), **patch}


def claim(volume="pv", **more):
    return {"metadata": {"name": "data", "namespace": "default", "uid": "c-1"}, "spec": {"volumeName": volume},
            "status": {"phase": "Bound"}, **more}


def volume(**source):
    return {"metadata": {"name": "pv"}, "spec": {"claimRef": {"uid": "c-1"}, "accessModes": ["ReadWriteOnce"],
                                                 **source}}


def using(*names):
    made = pod()
    made["spec"]["volumes"] = [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in names or ("data",)]
    return made


def manager(root, api, socket=lambda driver: None, clock=SYSTEM):
    fixed = Fixed()
    mounts = Recorder()
    return Volumes(root, fixed, fixed, mounts, Claims(api, lambda: Place("n1", {"zone": "a"})),  # type: ignore[arg-type]
                   CsiVolumes(root, "n1", api, socket, Tokens(api, clock), mounts=mounts, clock=clock))


def set_up(root, api, the_pod=None):
    return asyncio.run(manager(root, api).set_up(the_pod or using(), Sources()))[0]


def test_a_bound_claim_is_its_volumes_folder_given_to_the_pods_group(tmp_path):
    (tmp_path / "disk/in").mkdir(parents=True)
    (tmp_path / "disk/in/file").touch(mode=0o600)
    the_pod = using()
    the_pod["spec"]["securityContext"] = {"fsGroup": 4711}
    api = Api(persistentvolumeclaims__data=claim(), persistentvolumes__pv=volume(local={"path": f"{tmp_path}/disk"}))
    assert set_up(tmp_path, api, the_pod) == {"data": f"{tmp_path}/disk"}
    file, folder = (tmp_path / "disk/in/file").stat(), (tmp_path / "disk/in").stat()
    assert (file.st_gid, stat.S_IMODE(file.st_mode)) == (4711, 0o660)
    assert folder.st_gid == 4711 and folder.st_mode & stat.S_ISGID
    (tmp_path / "disk/in/file").chmod(0o600)
    the_pod["spec"]["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    ownership.apply(the_pod, f"{tmp_path}/disk")
    assert stat.S_IMODE((tmp_path / "disk/in/file").stat().st_mode) == 0o600


@pytest.mark.parametrize(("objects", "says"), [
    ({}, "failed to fetch PVC from API server"),
    ({"persistentvolumeclaims__data": claim(status={"phase": "Pending"})}, "non-bound phase"),
    ({"persistentvolumeclaims__data": claim(), "persistentvolumes__pv": volume(claimRef={"uid": "x"})},
     "does not point to claim.UID c-1"),
    ({"persistentvolumeclaims__data": claim(), "persistentvolumes__pv": volume(nfs={"server": "s"})},
     "no volume plugin matched"),
    ({"persistentvolumeclaims__data": claim(), "persistentvolumes__pv": volume(hostPath={"path": "/"}, nodeAffinity={
        "required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "zone", "operator": "In", "values": ["b"]}]}]}})}, "NodeAffinity check failed"),
    ({"persistentvolumeclaims__data": claim(), "persistentvolumes__pv": volume(csi={
        "driver": "d.example", "volumeHandle": "h"})}, "d.example not found in the list of registered CSI drivers"),
])
def test_why_a_claim_is_not_mounted_is_said(tmp_path, objects, says):
    with pytest.raises(ConfigError, match=f'volume "data" : .*{says}'):
        set_up(tmp_path, Api(**objects))


def test_drivers_find_the_kubelet_where_their_manifests_say(tmp_path):
    ledger, root, usual = Ledger(tmp_path / "ledger"), tmp_path / "root", tmp_path / "var/lib/kubelet"
    root.mkdir()
    assert registry.home(root, usual, ledger) == usual and usual.readlink() == root
    assert registry.home(root, usual, ledger) == usual  # after a restart too
    ledger.undo()
    assert not usual.exists()
    usual.mkdir(parents=True)  # somebody else's kubelet
    assert registry.home(root, usual, ledger) == root


def test_a_sub_path_needs_all_its_variables():
    assert subpaths.expanded("$(A)/$$(B)", {"A": "x"}) == "x/$(B)"
    with pytest.raises(ConfigError, match="missing value for B, C"):
        subpaths.expanded("$(A)/$(C)/$(B)", {"A": "x", "B": ""})


class Driver:
    """A storage driver: answers over a real socket, writes down what it was asked."""

    def __init__(self, *capabilities: int) -> None:
        self.calls: list[tuple[str, object]] = []
        self.capabilities, self.fails = capabilities or (1,), ""

    def _answer(self, method):
        request, response = (message_factory.GetMessageClass(t) for t in (method.input_type, method.output_type))

        async def handle(asked, context):
            self.calls.append((method.name, asked))
            if method.name == self.fails:
                await context.abort(grpc.StatusCode.INTERNAL, "the disk is stubborn")
            return {"NodeGetInfo": lambda: response(node_id="id-1", accessible_topology={"segments": {"z": "a"}}),
                    "NodeGetCapabilities": lambda: response(capabilities=[
                        {"rpc": {"type": kind}} for kind in self.capabilities]),
                    "NodeGetVolumeStats": lambda: response(usage=[
                        {"unit": csi.VolumeUsage.BYTES, "available": 60, "total": 100, "used": 40},
                        {"unit": csi.VolumeUsage.INODES, "available": 6, "total": 10, "used": 4}],
                        volume_condition={"abnormal": True, "message": "worn"}),
                    "GetInfo": lambda: response(type="CSIPlugin", name="d.example", endpoint=self.path)}.get(
                        method.name, response)()
        return grpc.unary_unary_rpc_method_handler(handle, request.FromString, response.SerializeToString)

    async def listen(self, path: Path):
        self.path = str(path)
        server = grpc.aio.server()
        for name, service in (("csi.v1.Node", csi.service("Node")),
                              ("pluginregistration.Registration", registration.service("Registration"))):
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
                name, {m.name: self._answer(m) for m in service.methods}),))
        server.add_insecure_port(f"unix://{path}")
        await server.start()
        return server

    def named(self, name):
        return [asked for called, asked in self.calls if called == name]


async def until(check):
    for _ in range(1000):  # what is waited for happens behind sockets and folders
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def test_a_storage_driver_is_heard_of_and_its_volumes_staged_published_and_given_back():
    root = Path(tempfile.mkdtemp(prefix="csi-"))  # sockets want short paths
    api = Api(persistentvolumeclaims__data=claim(), persistentvolumes__pv=volume(
        csi={"driver": "d.example", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "b"}}))
    api.objects["csidrivers", "d.example"] = {"spec": {"attachRequired": False, "podInfoOnMount": True,
                                                       "fsGroupPolicy": "None"}}

    async def main():
        driver = Driver()
        drivers = StorageDrivers("n1", api, lambda: {"kind": "Node", "name": "n1"})  # type: ignore[arg-type]
        running = asyncio.create_task(registry.Registry(root, {KIND: drivers}).run())
        await until(lambda: (root / "plugins_registry").is_dir())
        server = await driver.listen(root / "plugins_registry/d.sock")
        await until(lambda: driver.named("NotifyRegistrationStatus"))
        assert driver.named("NotifyRegistrationStatus")[0].plugin_registered
        assert api.objects["csinodes", "n1"]["spec"]["drivers"] == [
            {"name": "d.example", "nodeID": "id-1", "topologyKeys": ["z"]}]
        volumes = manager(root, api, drivers.socket)
        first, second = using(), using()
        second["metadata"]["uid"] = "u2"
        paths, _ = await volumes.set_up(first, Sources())
        await volumes.set_up(second, Sources())
        staged, published = driver.named("NodeStageVolume")[0], driver.named("NodePublishVolume")[0]
        assert published.target_path == paths["data"] == f"{root}/pods/u/volumes/kubernetes.io~csi/pv/mount"
        assert published.staging_target_path == staged.staging_target_path
        assert published.volume_context["csi.storage.k8s.io/pod.name"] == "p" and published.volume_context["a"] == "b"
        assert staged.volume_capability.mount.fs_type == "ext4"
        assert volumes.csi is not None and volumes.csi.in_use() == ["kubernetes.io/csi/d.example^h"]
        await volumes.tear_down("u")
        assert not driver.named("NodeUnstageVolume")  # another pod still has it
        await volumes.tear_down("u2")
        assert len(driver.named("NodeUnpublishVolume")) == 2 and len(driver.named("NodeUnstageVolume")) == 1
        assert not list((root / "pods").iterdir()) and volumes.csi.in_use() == []
        await server.stop(0)
        (root / "plugins_registry/d.sock").unlink(missing_ok=True)
        await until(lambda: drivers.socket("d.example") is None)
        await until(lambda: api.objects["csinodes", "n1"]["spec"]["drivers"] == [])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    try:
        asyncio.run(main())
    finally:
        shutil.rmtree(root)


def asked_again(spec, capabilities, act, the_pod=None, **objects):
    """Have a volume of a driver with this CSIDriver and these capabilities, then let `act` go on with it."""
    root = Path(tempfile.mkdtemp(prefix="csi-"))
    api = Api(persistentvolumeclaims__data=claim(), persistentvolumes__pv=volume(
        csi={"driver": "d.example", "volumeHandle": "h"}))
    api.objects |= {tuple(key.split("__")): value for key, value in objects.items()}
    api.objects["csidrivers", "d.example"] = {"spec": {"attachRequired": False, **spec}}

    async def main():
        driver, clock = Driver(*capabilities), FakeClock()
        server = await driver.listen(root / "d.sock")
        volumes = manager(root, api, lambda asked: str(root / "d.sock"), clock)
        using_it = the_pod or using()
        try:
            _, again = await volumes.set_up(using_it, Sources())
            await act(driver, volumes, using_it, clock, again, api)
        finally:
            await server.stop(0)

    try:
        asyncio.run(main())
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_driver_that_asks_for_it_is_told_of_tokens_and_again_and_again(hidden):
    async def act(driver, volumes, the_pod, clock, again, api):
        first = driver.named("NodePublishVolume")[0]
        here, there = (first.secrets, first.volume_context) if hidden else (first.volume_context, first.secrets)
        assert json.loads(here["csi.storage.k8s.io/serviceAccount.tokens"]) == {"vault": {
            "token": "default-for-vault", "expirationTimestamp": "2100-01-01T00:00:00Z"}}
        assert "csi.storage.k8s.io/serviceAccount.tokens" not in there
        volumes.csi._mounts.points.add(Path(first.target_path))
        await volumes.set_up(the_pod, Sources())  # for some other reason: it is not due yet
        assert len(driver.named("NodePublishVolume")) == 1 and 0 < again - clock.now() <= 72
        await clock.advance(again - clock.now())
        await volumes.set_up(the_pod, Sources())
        assert len(driver.named("NodePublishVolume")) == 2 and len(driver.named("NodeStageVolume")) == 1
    asked_again({"requiresRepublish": True, "tokenRequests": [{"audience": "vault"}],
                          "serviceAccountTokenInSecrets": hidden}, (1,), act)


def test_a_volume_that_has_grown_is_grown_on_its_node_also_while_it_is_used():
    def sized(kind, size):
        return {"spec": {**kind["spec"], "capacity": {"storage": size}}, "metadata": kind["metadata"]}

    async def act(driver, volumes, the_pod, clock, again, api):
        assert [a.capacity_range.required_bytes for a in driver.named("NodeExpandVolume")] == [2 << 30]
        told = api.objects["persistentvolumeclaims", "data"]["status"]
        assert told["capacity"] == {"storage": "2Gi"} and told["conditions"] == [{"type": "Other"}]
        volumes.csi._mounts.points.add(Path(driver.named("NodePublishVolume")[0].target_path))
        api.objects["persistentvolumeclaims", "data"] |= {"status": {**told, "phase": "Bound"}}
        api.objects["persistentvolumes", "pv"] = sized(api.objects["persistentvolumes", "pv"], "3Gi")
        driver.fails = "NodeExpandVolume"
        await clock.advance(again - clock.now())
        with pytest.raises(ConfigError, match=r"NodeExpandVolume failed for volume pv: .*stubborn"):
            await volumes.set_up(the_pod, Sources())
        driver.fails = ""
        await volumes.set_up(the_pod, Sources())
        assert driver.named("NodeExpandVolume")[-1].capacity_range.required_bytes == 3 << 30
        assert len(driver.named("NodePublishVolume")) == 1
        assert api.objects["persistentvolumeclaims", "data"]["status"]["capacity"] == {"storage": "3Gi"}
    asked_again({}, (1, 3), act, persistentvolumeclaims__data=claim(status={
        "phase": "Bound", "capacity": {"storage": "1Gi"},
        "conditions": [{"type": "FileSystemResizePending"}, {"type": "Other"}]}),
        persistentvolumes__pv=sized(volume(csi={"driver": "d.example", "volumeHandle": "h"}), "2Gi"))


def test_how_full_volumes_are_is_asked_of_their_driver_or_their_file_system(tmp_path):
    both = using("data", "disk")
    both["spec"]["volumes"].append({"name": "own", "csi": {"driver": "d.example", "volumeAttributes": {"k": "v"}}})

    async def act(driver, volumes, the_pod, clock, again, api):
        inline = next(a for a in driver.named("NodePublishVolume") if a.volume_id.startswith("csi-"))
        assert inline.volume_context["csi.storage.k8s.io/ephemeral"] == "true" and not inline.staging_target_path
        told = {entry["name"]: entry for entry in await volumes.stats.of(the_pod)}
        full = {"availableBytes": 60, "capacityBytes": 100, "usedBytes": 40, "inodesFree": 6, "inodes": 10,
                "inodesUsed": 4, "volumeHealthStats": {"abnormal": True}}
        assert told["data"] == {"name": "data", "pvcRef": {"name": "data", "namespace": "default"}, **full}
        assert told["own"] == {"name": "own", **full}
        assert told["disk"]["pvcRef"]["name"] == "disk" and told["disk"]["capacityBytes"] > 0
        driver.fails = "NodeGetVolumeStats"
        assert [entry["name"] for entry in await volumes.stats.of(the_pod)] == ["disk"]
    other = {**claim("local"), "metadata": {"name": "disk", "namespace": "default", "uid": "c-1"}}
    asked_again({"podInfoOnMount": True}, (1, 2), act, both, persistentvolumeclaims__disk=other,
                persistentvolumes__local={**volume(local={"path": str(tmp_path)}), "metadata": {"name": "local"}})

"""Claims and volumes find each other, local folders are provisioned, CSI volumes attached."""

import asyncio

import pytest

from agent.kubelet.volumes.localvolumes import LocalVolumes
from controlplane.controllers.volumes import attachments, binding, localvolumes, matching
from controlplane.controllers.volumes.localpath import LocalPath
from controlplane.machinery import objects
from controlplane.machinery.errors import BadRequest
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import PODS, cluster

CLAIMS, VOLUMES, CLASSES = (named(n) for n in ("persistentvolumeclaims", "persistentvolumes",
                                               "storageclasses.storage.k8s.io"))
UID = "11111111-2222-4333-8444-555555555555"


def claim(name="c", size="1Gi", modes=("ReadWriteOnce",), annotations=None, **spec):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "annotations": annotations or {}},
            "spec": {"accessModes": list(modes), "resources": {"requests": {"storage": size}}, **spec}}


def volume(name, size="1Gi", modes=("ReadWriteOnce",), phase="Available", **spec):
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "status": {"phase": phase},
            "spec": {"capacity": {"storage": size}, "accessModes": list(modes), "hostPath": {"path": "/tmp"}, **spec}}


def test_the_smallest_volume_that_fits_is_chosen_and_reservations_hold():
    wide = volume("wide", "2Gi", ("ReadWriteOnce", "ReadWriteMany"))
    others = [volume("big", "9Gi"), volume("small", "1Mi"), volume("fit", "3Gi"), wide, volume("no", phase="Released"),
              volume("class", storageClassName="fast"), volume("raw", volumeMode="Block")]
    assert objects.name(matching.best(claim(), others, False)) == "fit"
    assert matching.best(claim(), others, True) is None
    mine = volume("mine", claimRef={"namespace": "default", "name": "c"}, storageClassName="other")
    assert objects.name(matching.best(claim(), [*others, mine], True)) == "mine"
    assert matching.best(claim("d"), [mine], False) is None
    assert matching.best(claim(selector={"matchLabels": {"a": "b"}}), others, False) is None


@pytest.mark.parametrize(("change", "why"), [
    ({"size": "2Gi"}, "requested PV is too small"), ({"storageClassName": "x"}, "storageClassName does not match"),
    ({"volumeMode": "Block"}, "incompatible volumeMode: Filesystem"),
    ({"modes": ("ReadWriteMany",)}, "incompatible accessMode")])
def test_a_named_volume_that_cannot_serve_is_told(change, why):
    step = binding.of_claim(claim(volumeName="v", **change), [], volume("v"), None, "")
    assert step.event == ("Warning", "VolumeMismatch", f'Cannot bind to requested volume "v": {why}')


def test_a_lost_volume_and_a_claim_elsewhere():
    bound = claim(annotations={matching.BIND_COMPLETED: "yes"}, volumeName="v")
    assert binding.of_claim(bound, [], None, None, "").phase == "Lost"
    stolen = volume("v", claimRef={"namespace": "default", "name": "d", "uid": "uid-d"})
    assert binding.of_claim(bound, [], stolen, None, "").event[1] == "ClaimMisbound"
    step = binding.of_volume(stolen, claim("d", volumeName="w"))
    assert step.unbind and step.phase == "Available"
    assert binding.unbound(stolen)["spec"]["claimRef"] == {"namespace": "default", "name": "d"}
    waits = {"volumeBindingMode": "WaitForFirstConsumer"}
    assert binding.of_claim(claim(storageClassName="x"), [], None, waits, "p").event[1] == "WaitForPodScheduled"
    chosen = claim(storageClassName="x", annotations={matching.SELECTED_NODE: "n"})
    assert binding.of_claim(chosen, [], None, waits, "").provision


def of(made, resource, name, namespace="default"):
    return made.of(resource).get(namespace, name) or {}


def test_static_binding_through_its_phases():
    async def play():
        async with cluster(kubelet=False) as made:
            client = made.client

            def phase(resource, name, wanted, namespace=""):
                return lambda: objects.get(of(made, resource, name, namespace), "status.phase") == wanted
            await made.until(lambda: made.of("storageclasses.storage.k8s.io").get("", "local-path"))
            await client.create(CLAIMS, claim(storageClassName=""))
            await made.until(phase("persistentvolumeclaims", "c", "Pending", "default"))
            await client.create(VOLUMES, volume("v", "5Gi", persistentVolumeReclaimPolicy="Retain"))
            await made.until(phase("persistentvolumeclaims", "c", "Bound", "default"))
            found = of(made, "persistentvolumeclaims", "c")
            assert found["spec"]["volumeName"] == "v" and found["status"]["capacity"] == {"storage": "5Gi"}
            await client.delete(CLAIMS, "c", "default")
            await made.until(phase("persistentvolumes", "v", "Released"))
            await client.patch(VOLUMES, "v", {"spec": {"claimRef": None}}, kind="merge")
            await made.until(phase("persistentvolumes", "v", "Available"))
            await client.create(CLAIMS, claim("named", volumeName="v", storageClassName=""))
            await made.until(phase("persistentvolumes", "v", "Bound"))
            await client.create(CLASSES, {"metadata": {"name": "late"}, "provisioner": "ex.io/p"})
            mark = matching.DEFAULT_CLASS[0]
            await client.patch(CLASSES, "local-path", {"metadata": {"annotations": {mark: "false"}}}, kind="merge")
            await client.create(CLAIMS, claim("open"))
            await made.until(phase("persistentvolumeclaims", "open", "Pending", "default"))
            assert "storageClassName" not in of(made, "persistentvolumeclaims", "open")["spec"]
            await client.patch(CLASSES, "late", {"metadata": {"annotations": {mark: "true"}}}, kind="merge")
            await made.until(lambda: of(made, "persistentvolumeclaims", "open")["spec"].get("storageClassName"))
            await made.until(lambda: objects.annotations(of(made, "persistentvolumeclaims", "open")).get(
                matching.PROVISIONER) == "ex.io/p")
    asyncio.run(play())


def test_a_local_volume_is_made_and_taken_back(monkeypatch, tmp_path):
    folders = LocalVolumes(tmp_path / "volumes")

    async def folder(self, method, node, name):
        assert node == "n"
        return folders.make(name) if method == "PUT" else folders.remove(name)

    async def play():
        monkeypatch.setattr(LocalPath, "_folder", folder)
        async with cluster(kubelet=False) as made:
            await made.until(lambda: made.of("storageclasses.storage.k8s.io").get("", "local-path"))
            await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
            await made.client.create(named("nodes"), {"metadata": {"name": "n", "labels": {
                localvolumes.HOSTNAME: "host-n"}}})
            await made.client.create(PODS, {"metadata": {"name": "p", "namespace": "default"}, "spec": {
                "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": claim()["spec"]}}}]}})
            await made.until(lambda: of(made, "persistentvolumeclaims", "p-data"))
            await made.client.patch(CLAIMS, "p-data", {"metadata": {"annotations": {matching.SELECTED_NODE: "n"}}},
                                    "default", "merge")
            await made.until(lambda: objects.get(of(made, "persistentvolumeclaims", "p-data"),
                                                 "status.phase") == "Bound")
            (found,) = made.of("persistentvolumes").items()
            (path,) = (tmp_path / "volumes").iterdir()
            assert found["spec"]["hostPath"]["path"] == str(path) and path.stat().st_mode & 0o777 == 0o777
            (path / "data").write_text("x")
            await made.client.delete(PODS, "p", "default", grace=0)  # its claim goes with it, the volume follows
            await made.until(lambda: not made.of("persistentvolumes").items())
            assert not path.exists()
    asyncio.run(play())


def test_local_folders_stay_in_their_place(tmp_path):
    folders = LocalVolumes(tmp_path / "volumes")
    for name in ("../x", "a/b", "pvc-..", ""):
        with pytest.raises(BadRequest):
            folders.remove(name)
    outside = tmp_path / "outside"
    outside.mkdir()
    place = tmp_path / "volumes" / f"pvc-{UID}"
    folders.make(f"pvc-{UID}")
    (place / "link").symlink_to(outside)
    assert folders.remove(f"pvc-{UID}") == str(place) and outside.exists() and not place.exists()
    assert folders.remove(f"pvc-{UID}") == str(place)


def test_attachments_follow_pods_of_drivers_that_want_them():
    async def play():
        async with cluster(kubelet=False) as made:
            client = made.client
            await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
            driver = {"csi": {"driver": "ex.io", "volumeHandle": "h"}}
            ready = volume("v", storageClassName="s", **driver)
            del ready["spec"]["hostPath"]
            await client.create(VOLUMES, ready)
            await client.create(CLAIMS, claim(storageClassName="s"))
            for name in "ab":
                await client.create(named("nodes"), {"metadata": {"name": name}})
                await client.create(PODS, {"metadata": {"name": name, "namespace": "default"}, "spec": {
                    "nodeName": name, "containers": [{"name": "c", "image": "i"}],
                    "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}})
            attached = made.of("volumeattachments.storage.k8s.io")
            await made.until(lambda: len(attached) == 1)
            (one,) = attached.items()
            first = one["spec"]["nodeName"]
            await client.patch(attached.resource, objects.name(one), {"status": {"attached": True}}, kind="merge",
                               subresource="status")
            await made.until(lambda: objects.get(made.of("nodes").get("", first), "status.volumesAttached") == [
                {"name": "kubernetes.io/csi/ex.io^h", "devicePath": ""}])
            await client.delete(PODS, first, "default", grace=0)
            other = "b" if first == "a" else "a"
            await made.until(lambda: [one["spec"]["nodeName"] for one in attached.items()] == [other])
    asyncio.run(play())
    assert attachments.attachment(volume("v", csi={"driver": "d"}), "n", {"spec": {"attachRequired": False}}) is None

"""Volumes on a real file system: payloads swapped in one step, host paths checked, subPaths kept inside."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
from pathlib import Path

import pytest

from agent.kubelet import env
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.volumes import envfiles, patience, payload, plugins
from agent.kubelet.volumes.manager import Volumes
from tests.unit.agent.pods import pod


class Recorder:
    """Mounts that are only written down."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.points: set[Path] = set()

    def tmpfs(self, target: Path, size: int = 0) -> None:
        self.calls.append(f"tmpfs {target.name} {size}")

    def bind(self, source: str, target: Path) -> None:
        self.calls.append(f"bind {os.readlink(source)}")

    def unmount_below(self, folder: Path) -> None:
        self.calls.append("unmount")

    def mounted(self, target: Path) -> bool:
        return target in self.points


class Fixed:
    """Objects and tokens without a server."""

    def __init__(self, **objects) -> None:
        self.objects = objects

    async def get(self, kind, *rest):
        if isinstance(kind, dict):
            return "token-1", 99.0
        return self.objects.get(rest[1])

    def release(self, uid: str) -> None: ...


def volumes(tmp_path, **objects):
    mounts, fixed = Recorder(), Fixed(**objects)
    return Volumes(tmp_path, fixed, fixed, mounts), mounts  # type: ignore[arg-type]


def test_a_payload_changes_in_one_step_and_not_without_need(tmp_path):
    assert payload.write(tmp_path, {"a": (b"1", 0o644), "d/b": (b"2", 0o400)}, "1")
    assert (tmp_path / "a").read_bytes() == b"1" and (tmp_path / "d/b").stat().st_mode & 0o777 == 0o400
    before = os.readlink(tmp_path / "..data")
    assert not payload.write(tmp_path, {"a": (b"1", 0o644), "d/b": (b"2", 0o400)}, "2")
    assert os.readlink(tmp_path / "..data") == before
    assert payload.write(tmp_path, {"a": (b"9", 0o644)}, "3")
    assert (tmp_path / "a").read_bytes() == b"9" and not os.path.lexists(tmp_path / "d")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["..3", "..data", "a"]


def test_projected_content_comes_from_all_its_sources():
    volume = {"name": "v", "projected": {"defaultMode": 0o400, "sources": [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "ca", "items": [{"key": "ca.crt", "path": "certs/ca.crt", "mode": 0o444}]}},
        {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        {"secret": {"name": "none", "optional": True}}]}}
    sources = Sources({("configmaps", "ca"): {"data": {"ca.crt": "PEM"}}})
    assert payload.files(pod(), volume, sources, {"token": "t"}) == {
        "token": (b"t", 0o400), "certs/ca.crt": (b"PEM", 0o444), "ns": (b"default", 0o400)}
    with pytest.raises(ConfigError, match='configmap "cm" not found'):
        payload.files(pod(), {"name": "v", "configMap": {"name": "cm"}}, sources, {})
    with pytest.raises(ConfigError, match="invalid path"):
        payload.files(pod(), {"name": "v", "downwardAPI": {"items": [
            {"path": "../x", "fieldRef": {"fieldPath": "metadata.name"}}]}}, sources, {})


def test_secrets_and_tokens_lie_in_memory_and_renewal_is_told(tmp_path):
    the_pod = pod()
    the_pod["spec"]["volumes"] = [
        {"name": "s", "secret": {"secretName": "s"}}, {"name": "c", "configMap": {"name": "c"}},
        {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]
    manager, mounts = volumes(tmp_path, s={"data": {"k": "dg=="}}, c={"data": {"k": "v"}})
    paths, renew = asyncio.run(manager.set_up(the_pod, Sources()))
    assert renew == 99.0 and Path(paths["t"], "token").read_text() == "token-1"
    assert sorted(mounts.calls) == ["tmpfs m 1048576", "tmpfs s 0", "tmpfs t 0"]
    manager.take_down("u")
    assert not (tmp_path / "pods/u").exists() and "unmount" in mounts.calls


def test_a_volume_nobody_can_mount_is_named(tmp_path):
    the_pod = pod()
    the_pod["spec"]["volumes"] = [{"name": "data", "nfs": {"server": "x", "path": "/"}}]
    with pytest.raises(ConfigError, match='volume "data" of type nfs is not supported'):
        asyncio.run(volumes(tmp_path)[0].set_up(the_pod, Sources()))


def test_bundles_of_authorities_are_put_together_once_and_in_order(tmp_path):
    def block(word):
        return f"-----BEGIN CERTIFICATE-----\n{base64.b64encode(word.encode()).decode()}\n-----END CERTIFICATE-----\n"

    def bundle(text, **labels):
        return {"metadata": {"labels": labels}, "spec": {"trustBundle": text}}
    one = bundle(f"about\n{block('b')}{block('a')}", stage="live")
    two = bundle(block("a") + block("c" * 60), stage="live")
    other = bundle(block("z"), stage="canary")

    class Objects(Fixed):
        async def matching(self, kind, fields, uid):
            assert (kind, fields, uid) == ("clustertrustbundles.certificates.k8s.io", "spec.signerName=e.org/ca", "u")
            return [one, other, two]

    def file(**source):
        the_pod = pod()
        the_pod["spec"] |= {"volumes": [{"name": "v", "projected": {"sources": [
            {"clusterTrustBundle": {"path": "p.pem", **source}}]}}], "securityContext": {"fsGroup": os.getgid()}}
        fixed = Objects(one=one)
        made = Volumes(tmp_path, fixed, fixed, Recorder())  # type: ignore[arg-type]
        paths, _ = asyncio.run(made.set_up(the_pod, Sources()))
        return (Path(paths["v"]) / "p.pem").read_text()
    assert file(name="one") == block("a") + block("b")
    assert file(signerName="e.org/ca", labelSelector={}).count("BEGIN") == 4
    chosen = {"signerName": "e.org/ca", "labelSelector": {"matchLabels": {"stage": "live"}}}
    long = base64.b64encode(b"c" * 60).decode()
    assert file(**chosen) == block("a") + block("b") + block("c" * 60).replace(long, f"{long[:64]}\n{long[64:]}")
    with pytest.raises(ConfigError, match="signerName and labelSelector matched zero ClusterTrustBundles"):
        file(signerName="e.org/ca")  # without a selector nothing is chosen
    with pytest.raises(ConfigError, match='ClusterTrustBundle "two" not found'):
        file(name="two")
    assert file(signerName="e.org/ca", optional=True) == file(name="two", optional=True) == ""
    mode = (tmp_path / "pods/u/volumes/kubernetes.io~projected/v/p.pem").stat().st_mode & 0o777
    assert mode == 0o640  # as of what is issued to the pod, for its group


def test_host_paths_are_what_they_claim(tmp_path):
    def check(kind, path):
        volume = {"name": "h", "hostPath": {"path": str(path), "type": kind}}
        return plugins.host_path(pod(), volume, tmp_path, Recorder())  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    assert check("File", tmp_path / "file") and check("DirectoryOrCreate", tmp_path / "new/dir")
    assert (tmp_path / "new/dir").is_dir()
    with pytest.raises(ConfigError, match=r"hostPath type check failed: .* is not a directory"):
        check("Directory", tmp_path / "file")
    with pytest.raises(ConfigError, match="is not a file"):
        check("File", tmp_path / "absent")


def test_huge_pages_are_of_the_size_the_pod_asks_for():
    two = pod({"name": "c", "resources": {"limits": {"hugepages-2Mi": "4Mi"}}})
    both = pod({"name": "c", "resources": {"limits": {"hugepages-2Mi": "4Mi", "hugepages-1Gi": "1Gi"}}})
    assert plugins.page_size(two, "HugePages") == plugins.page_size(both, "HugePages-2Mi") == 2 << 20
    for the_pod, medium in ((both, "HugePages"), (two, "HugePages-1Gi"), (pod(), "HugePages")):
        with pytest.raises(ConfigError, match="medium"):
            plugins.page_size(the_pod, medium)


def test_a_file_system_that_hangs_holds_up_nobody_else():
    release = threading.Event()

    async def main() -> None:
        with pytest.raises(OSError, match="/gone did not answer within"):
            await patience.within("/gone", release.wait, seconds=0.05)
        assert await patience.within("/there", str, 5) == "5"
        with pytest.raises(KeyError):
            await patience.within("/bad", {}.__getitem__, "x")
    try:
        asyncio.run(main())
    finally:
        release.set()


def test_a_sub_path_stays_inside_its_volume(tmp_path):
    manager, mounts = volumes(tmp_path)
    base = tmp_path / "base"
    (base / "in").mkdir(parents=True)
    (base / "out").symlink_to("/etc")

    def mount(sub):
        container = {"name": "c", "volumeMounts": [{"name": "v", "mountPath": "/m", "subPath": sub}]}
        return manager.mounts_for(pod(container), container, {"v": str(base)}, {})
    mount("in")
    mount("fresh/deep")
    assert mounts.calls == [f"bind {base}/in", f"bind {base}/fresh/deep"] and (base / "fresh/deep").is_dir()
    for bad in ("out/passwd", "../x", "in/../../x"):
        with pytest.raises(ConfigError):
            mount(bad)


def test_a_mount_that_hangs_is_named_and_holds_up_nobody_else(tmp_path):
    made, mounts = volumes(tmp_path)
    back, made.patience = threading.Event(), 0.05
    mounts.unmount_below = lambda folder: back.wait(60)  # type: ignore[method-assign]
    (tmp_path / "pods/u").mkdir(parents=True)

    async def main() -> None:
        with pytest.raises(OSError, match=r"pods/u did not answer .* is the file system it lies on gone\?"):
            await made.tear_down("u")
        mounts.unmount_below = lambda folder: None  # type: ignore[method-assign]
        made.patience = 60.0
        await made.tear_down("u")
        assert not (tmp_path / "pods/u").exists()
    try:
        asyncio.run(main())
    finally:
        back.set()


def test_variables_are_read_from_a_file_that_a_container_wrote(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/env").write_text("# made by init\n A='one'\nB='two\nlines # too'\nC=three\n\nD=\"four\"\nE=''")
    (tmp_path / "out").symlink_to("/etc/hostname")
    (tmp_path / "bad").write_text("A='x'\nB='never ended")

    def built(path, key, **more):
        wanted = {"name": "c", "env": [{"name": "V", "valueFrom": {"fileKeyRef": {
            "volumeName": "v", "path": path, "key": key, **more}}}]}
        return env.build(pod(), wanted, Sources(files=envfiles.read(wanted, {"v": str(tmp_path)}))).get("V")
    assert [built("d/env", key) for key in "ABCDE"] == ["one", "two\nlines # too", "three", "four", ""]
    assert built("d/env", "X", optional=True) is None and built("none", "X", optional=True) is None
    with pytest.raises(ConfigError, match='key "X" not found in file "d/env"'):
        built("d/env", "X")
    with pytest.raises(ConfigError, match="couldn't parse env file bad: line 2"):
        built("bad", "A")
    for escape in ("out", "d/../out"):
        with pytest.raises((ConfigError, OSError)):
            built(escape, "A")
    with pytest.raises(ConfigError, match='cannot find the volume "v"'):
        envfiles.read({"env": [{"valueFrom": {"fileKeyRef": {"volumeName": "v"}}}]}, {})

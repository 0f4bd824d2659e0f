"""Images in a real containerd: built, imported, pulled from a real registry, run, removed."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from agent.image import archive, demo, oci, pause
from agent.image.layer import Layer
from agent.image.reference import ImageError, normalise
from agent.kubelet.cri.runtime import Runtime
from agent.kubelet.images.images import Images
from agent.kubelet.pressure.collection import Collector
from agent.kubelet.pressure.keeping import Keeping
from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import Rig, ready, run
from tests.node.rig import Host

pytestmark = pytest.mark.node
REGISTRY = "127.0.0.1:5000"
LIMIT = 2  # of pulls at once


def _small(name: str, word: str) -> oci.Image:
    """Busybox with one more file, so that every test has content of its own."""
    base, layer = Layer(), Layer()
    base.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    base.link("bin/sh", "busybox")
    layer.file("word", word.encode())
    return oci.build([name], [base.packed(), layer.packed()], {"Cmd": ["sh", "-c", "read x < /word; echo $x"]})


def test_an_imported_archive_runs_and_never_asks_a_registry(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        archive.write(tmp_path / "a.tar", [_small("team/word:1", "first")])
        assert await images.import_archive(tmp_path / "a.tar") == ["docker.io/team/word:1"]
        archive.write(tmp_path / "b.tar", [_small("team/word:1", "second")])
        assert await images.import_archive(tmp_path / "b.tar") == ["docker.io/team/word:1"]  # the name moves on
        id = await images.ensure("team/word:1", "IfNotPresent")
        assert id == await images.ensure("docker.io/team/word:1", "Never")
        assert id in [image.id for image in await images.list()]
        spec = host.sandbox("imported", host_network=True)
        sandbox = await runtime.run_sandbox(spec)
        word = host.shell("", image=id, command=())
        container = await runtime.create_container(sandbox, spec, word)
        await runtime.start_container(container)
        await runtime.stop_container(container, 5)
        assert b"second" in Path(spec.log_directory, "main/0.log").read_bytes()  # noqa: ASYNC240
        await runtime.remove_sandbox(sandbox)
        for _ in range(2):
            await images.remove("team/word:1")
        with pytest.raises(ImageError) as never:
            await images.ensure("team/word:1", "Never")
        assert (never.value.reason, never.value.message) == (
            "ErrImageNeverPull", 'Container image "team/word:1" is not present with pull policy of Never')
    host.run(body)


def test_dockers_own_archive_is_understood(host: Host, tmp_path: Path) -> None:
    image = _small("example.org/docker:1", "whale")
    source, saved = tmp_path / "content", tmp_path / "docker.tar"
    source.mkdir()
    (source / "config.json").write_bytes(image.config.open().read())
    for number, layer in enumerate(image.layers):
        (source / f"{number}.tar").write_bytes(gzip.decompress(layer.open().read()))
    (source / "manifest.json").write_text(json.dumps([{
        "Config": "config.json", "RepoTags": ["example.org/docker:1"], "Layers": ["0.tar", "1.tar"]}]))
    subprocess.run(["tar", "-C", source, "-cf", saved, "."], check=True)

    async def body(runtime: Runtime, images: Images) -> None:
        assert await images.import_archive(saved) == ["example.org/docker:1"]
        assert await images.ensure("example.org/docker:1", "IfNotPresent") == image.config.digest
        await images.remove("example.org/docker:1")
    host.run(body)


@contextmanager
def registry(host: Host, folder: Path, users: str = "") -> Iterator[None]:
    """Debian's docker-registry on the test host's loopback, open to all or to `users`, the text of an htpasswd file."""
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed")
    config = folder / "registry.yml"
    config.write_text(f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}\n"
                      f"http: {{addr: '{REGISTRY}'}}\nlog: {{level: error}}\n")
    if users:
        (folder / "htpasswd").write_text(users)
        with config.open("a") as more:
            more.write(f"auth: {{htpasswd: {{realm: here, path: {folder / 'htpasswd'}}}}}\n")
    process = subprocess.Popen(host.enter("docker-registry", "serve", str(config)), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]})
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


async def push(name: str, tag: str, image: oci.Image, headers: dict[str, str] | None = None) -> None:
    """Upload `image`, waiting for the registry to listen."""
    async with aiohttp.ClientSession(f"http://{REGISTRY}", headers=headers) as http, asyncio.timeout(20):
        while True:
            try:
                async with http.get("/v2/"):
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)
        for blob in (*image.layers, image.config):
            async with http.post(f"/v2/{name}/blobs/uploads/") as begun:
                place = begun.headers["Location"]
            target = place + ("&" if "?" in place else "?") + f"digest={blob.digest}"
            async with http.put(target.removeprefix(f"http://{REGISTRY}"), data=blob.open().read()) as done:
                assert done.status == 201
        async with http.put(f"/v2/{name}/manifests/{tag}", data=image.manifest.open().read(),
                            headers={"Content-Type": image.manifest.media_type}) as done:
            assert done.status == 201


def test_pulling_from_a_registry_and_its_failures(host: Host, tmp_path: Path) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        image = _small("unused:1", "pulled")
        await push("team/pulled", "1", image)
        name = f"{REGISTRY}/team/pulled:1"
        together = await asyncio.gather(*(images.ensure(name, "IfNotPresent") for _ in range(4)))
        assert set(together) == {image.config.digest}
        found = await images.find(name)
        assert found is not None and found.digests == (f"{REGISTRY}/team/pulled@{image.manifest.digest}",)
        assert await images.ensure(f"{REGISTRY}/team/pulled@{image.manifest.digest}", "Always") == found.id
        with pytest.raises(ImageError) as missing:
            await images.ensure(f"{REGISTRY}/team/absent:1", "IfNotPresent")
        assert missing.value.reason == "ErrImagePull"
        assert missing.value.message.startswith("rpc error: code = NotFound desc = failed to pull and unpack image")
        moved = _small("unused:1", "moved on")
        await push("team/pulled", "1", moved)
        assert await images.ensure(name, "IfNotPresent") == image.config.digest
        assert await images.ensure(name, "Always") == moved.config.digest == await images.ensure(name, "Never")
        # Always means always: an image that is here does not stand in for a registry that is away.
        local = _small("127.0.0.1:5999/local:1", "local")
        archive.write(tmp_path / "local.tar", [local])
        await images.import_archive(tmp_path / "local.tar")
        with pytest.raises(ImageError) as away:
            await images.ensure("127.0.0.1:5999/local:1", "Always")
        assert away.value.reason == "ErrImagePull" and "connection refused" in away.value.message
        assert await images.ensure("127.0.0.1:5999/local:1", "IfNotPresent") == local.config.digest
    with registry(host, tmp_path):
        host.run(body)


def test_few_images_are_pulled_at_once(host: Host) -> None:
    async def body(runtime: Runtime, images: Images) -> None:
        asked: set[str] = set()
        under_way: list[int] = []
        full = asyncio.Event()

        async def answer(request: web.BaseRequest) -> web.Response:
            asked.add(request.path.split("/")[3])  # /v2/slow/NUMBER/manifests/1
            under_way.append(len(asked) - done)
            if under_way[-1] == LIMIT:
                full.set()
            await full.wait()
            for _ in range(10):  # whoever else is under way comes meanwhile
                await images.find("absent:1")
            return web.Response(status=404)

        async def pull(name: str) -> None:
            nonlocal done
            with pytest.raises(ImageError):
                await few.ensure(name, "Always")
            done += 1
        done, few, server = 0, Images(images.connection, parallel=LIMIT), web.Server(answer)
        listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with asyncio.timeout(60):
            await asyncio.gather(*(pull(f"{address}/slow/{number}:1") for number in range(3 * LIMIT)))
        assert len(asked) == 3 * LIMIT and max(under_way) == LIMIT
        listener.close()
        await server.shutdown(1.0)
    host.run(body)


def test_images_nobody_uses_go_and_those_nobody_could_give_back_stay(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        told: list[str] = []
        for name in ("busy", "idle", "late"):
            await push(f"team/{name}", "1", _small("unused:1", name))
        names = {name: f"{REGISTRY}/team/{name}:1" for name in ("busy", "idle", "late")}
        archive.write(tmp_path / "kept.tar", [_small("team/kept:1", "kept")])
        await rig.images.import_archive(tmp_path / "kept.tar")

        async def here() -> set[str]:
            wanted = {**names, "kept": "docker.io/team/kept:1", "pause": pause.NAME, "busybox": demo.BUSYBOX}
            return {name for name, image in wanted.items() if await rig.images.find(normalise(image)) is not None}
        async with rig.kubelet() as kubelet:
            collector = Collector(Keeping(image_high=0, image_low=0, image_age=0.0), rig.images, kubelet.seen,
                                  rig.runtime.remove_container, lambda reason, message: told.append(reason), SYSTEM)
            await rig.images.ensure(names["idle"], "IfNotPresent")
            await rig.create("busy", {"image": names["busy"], "command": ["/bin/busybox", "sleep", "600"]},
                             terminationGracePeriodSeconds=0)
            await rig.pod("busy", ready)
            assert await here() == {"busy", "idle", "kept", "pause", "busybox"}
            await collector.look()  # the disk is never empty enough for it
            assert await here() == {"busy", "kept", "pause", "busybox"} and told == ["FreeDiskSpaceFailed"]
            await rig.remove("busy")
            await rig.images.ensure(names["late"], "IfNotPresent")
            young = Collector(Keeping(), rig.images, kubelet.seen, rig.runtime.remove_container,
                              lambda reason, message: told.append(reason), SYSTEM)
            await young.reclaim("ephemeral-storage")
            assert await here() == {"busy", "late", "kept", "pause", "busybox"}  # it has just come to know them
            await collector.reclaim("ephemeral-storage")
            assert await here() == {"kept", "pause", "busybox"}
            await rig.images.remove("team/kept:1")
    with registry(host, tmp_path):
        run(host, body)


def test_a_mirror_stands_in_for_a_registry(host: Host, tmp_path: Path) -> None:
    mirrors = host.paths.etc / "certs.d/registry.example"
    mirrors.mkdir(parents=True)
    (mirrors / "hosts.toml").write_text(f'server = "https://registry.example"\n[host."http://{REGISTRY}"]\n')

    async def body(runtime: Runtime, images: Images) -> None:
        image = _small("unused:1", "mirrored")
        await push("team/mirrored", "1", image)
        assert await images.ensure("registry.example/team/mirrored:1", "Always") == image.config.digest
    with registry(host, tmp_path):
        host.run(body)


def test_debians_nginx_serves_its_page(host: Host) -> None:
    demo.built(demo.NGINX, host.paths)  # here, since the test host has no way to Debian's archive

    async def body(runtime: Runtime, images: Images) -> None:
        await host.install(demo.NGINX, demo.DEMO)
        spec = host.sandbox("web")
        sandbox = await runtime.run_sandbox(spec)
        pod = (await runtime.observe(spec.uid))[spec.uid]
        assert pod.sandbox is not None
        address = pod.sandbox.ips[0]
        for image, page in (("nginx:1.22", "Welcome to nginx!"), (demo.DEMO, "web\n")):
            web = host.shell("", "web", image=await images.ensure(image, "IfNotPresent"), command=(),
                             attempt=len(page))
            container = await runtime.create_container(sandbox, spec, web)
            await runtime.start_container(container)
            async with aiohttp.ClientSession() as http, asyncio.timeout(20):
                while True:
                    try:
                        async with http.get(f"http://{address}/") as answer:
                            assert page in await answer.text()
                            break
                    except aiohttp.ClientConnectionError:
                        await asyncio.sleep(0.02)
            await runtime.stop_container(container, 0)
        await runtime.remove_sandbox(sandbox)
    host.run(body)

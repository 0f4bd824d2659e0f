"""Registries that ask who is there: pull secrets, the node's docker configuration, credential providers, refusals."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.images.credentials import Credentials, read
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.resources import named
from tests.node.nodekubelet import Rig, ready, run, sh
from tests.node.rig import Host
from tests.node.test_images import REGISTRY, _small, push, registry

pytestmark = pytest.mark.node
PASSWORD = "open sesame"
USERS = "user:$2b$04$kfyaz4oztdjfBE1txsEvgenHwjsGaiM.FKKmGmbRSFUQT1BfKgzqS\n"  # its bcrypt hash
PACKED = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"


def waiting(pod: dict[str, Any] | None) -> dict[str, Any]:
    entries = ((pod or {}).get("status") or {}).get("containerStatuses") or [{}]
    return (entries[0].get("state") or {}).get("waiting") or {}


def docker_config() -> dict[str, Any]:
    return {"auths": {f"http://{REGISTRY}/v1/": {"auth": PACKED}}}


def provider(folder: Path) -> Credentials:
    """A program that knows the password, and counts how often it is asked."""
    folder.mkdir()
    answer = {"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
              "cacheKeyType": "Registry", "cacheDuration": "1h0m0s",
              "auth": {f"*.0.0.1:{REGISTRY.partition(':')[2]}": {"username": "user", "password": PASSWORD}}}
    program = folder / "knows"
    program.write_text(f"#!/bin/sh\n(cat; echo) >> {folder}/asked\ncat <<'END'\n{json.dumps(answer)}\nEND\n")
    program.chmod(0o755)
    (folder / "config.yaml").write_text(json.dumps({
        "kind": "CredentialProviderConfig", "apiVersion": "kubelet.config.k8s.io/v1", "providers": [{
            "name": "knows", "apiVersion": answer["apiVersion"], "matchImages": ["127.0.0.1:*", REGISTRY],
            "defaultCacheDuration": "0s"}]}))
    return Credentials(SYSTEM, read(folder / "config.yaml"), folder)


async def strangers(rig: Rig, private: dict[str, Any]) -> None:
    """What one pod's secret brought here is for others that have the same, wherever they have it from."""
    written = {"auths": {REGISTRY: {"username": "user", "password": PASSWORD}}}
    await rig.api.create(named("secrets"), {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "same", "namespace": "default"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(json.dumps(written).encode()).decode()}}, "default")
    await rig.create("stranger", {**private, "imagePullPolicy": "IfNotPresent"})
    await rig.create("waits", {**private, "imagePullPolicy": "Never"})
    await rig.create("friend", {**private, "imagePullPolicy": "Never"}, imagePullSecrets=[{"name": "same"}])
    await rig.pod("friend", ready)
    await rig.pod("stranger", lambda p: waiting(p).get("reason") == "ErrImagePull")
    pod = await rig.pod("waits", lambda p: waiting(p).get("reason") == "ErrImageNeverPull")
    assert waiting(pod)["message"].endswith("but does not have the proper credentials set")
    await rig.remove("stranger", "waits", "friend")


def test_a_private_registry_opens_to_secrets_files_and_providers_only(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        names = {}
        for who in ("secret", "file", "program", "nobody"):
            image = _small("unused:1", who)
            await push(f"team/{who}", "1", image, {"Authorization": f"Basic {PACKED}"})
            names[who] = f"{REGISTRY}/team/{who}@{image.manifest.digest}"
        await rig.api.create(named("secrets"), {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pull", "namespace": "default"},
            "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": base64.b64encode(
                json.dumps(docker_config()).encode()).decode()}}, "default")

        def using(who: str) -> dict[str, Any]:
            return {"image": names[who], "imagePullPolicy": "Always", "command": ["/bin/busybox", "sleep", "600"]}
        async with rig.kubelet():
            await rig.create("nobody", using("nobody"))
            pod = await rig.pod("nobody", lambda p: waiting(p).get("reason") == "ErrImagePull")
            assert "401" in waiting(pod)["message"] or "authorization" in waiting(pod)["message"]
            pod = await rig.pod("nobody", lambda p: waiting(p).get("reason") == "ImagePullBackOff")
            assert waiting(pod)["message"].startswith(f'Back-off pulling image "{names["nobody"]}": ErrImagePull: ')
            await rig.create("secret", using("secret"), imagePullSecrets=[{"name": "pull"}])
            await rig.pod("secret", ready)
            await strangers(rig, using("secret"))
            await rig.create("bad", {**sh(STAY), "image": "Not:A:Name"})
            assert waiting(await rig.pod("bad", lambda p: waiting(p).get("reason") == "InvalidImageName"))["message"]
            await rig.create("never", {**sh(STAY), "image": f"{REGISTRY}/team/file:1", "imagePullPolicy": "Never"})
            pod = await rig.pod("never", lambda p: waiting(p).get("reason") == "ErrImageNeverPull")
            assert waiting(pod)["message"].endswith("is not present with pull policy of Never")
            await rig.remove("secret", "nobody", "bad", "never")
        (tmp_path / "node").mkdir()
        (tmp_path / "node/config.json").write_text(json.dumps(docker_config()))
        rig.credentials = Credentials(SYSTEM, files=[tmp_path / "node"])
        async with rig.kubelet():
            await rig.create("file", using("file"))
            await rig.pod("file", ready)
            await rig.remove("file")
        rig.credentials = provider(tmp_path / "providers")
        async with rig.kubelet():
            for name in ("program", "again"):
                await rig.create(name, using("program"))
                await rig.pod(name, ready)
            asked = (tmp_path / "providers/asked").read_text().splitlines()
            assert [json.loads(line)["image"] for line in asked if line] == [names["program"]]
            await rig.remove("program", "again")
    with registry(host, tmp_path, USERS):
        run(host, body)

"""Volumes as containers find them: content that follows its source in one step, tokens, folders, paths of the node."""

from __future__ import annotations

import base64
import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from controlplane.machinery.resources import named
from tests.node.nodekubelet import STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
MAPS, SECRETS = named("configmaps"), named("secrets")
# Two files that are always equal at their source, read over and over in the one folder that holds both.
WATCH = ("trap 'exit 0' TERM; while :; do for d in /map /secret /all; do (cd -P $d/..data 2>/dev/null && "
         "a=$(cat a 2>/dev/null) && b=$(cat b 2>/dev/null) && [ \"$a\" != \"$b\" ] && echo torn $d $a $b); "
         "done; sleep 0.02; done")


def mounts(**paths: str) -> dict[str, Any]:
    return {"volumeMounts": [{"name": name, "mountPath": path} for name, path in paths.items()]}


def failed(rig: Rig, reason: str) -> list[str]:
    return [o["message"] for (plural, _, _), o in rig.api.objects.items()
            if plural == "events" and o["reason"] == reason]


def same(word: str) -> tuple[dict[str, str], dict[str, str]]:
    """The data of a ConfigMap and of a Secret in which a and b are `word`."""
    return dict.fromkeys("ab", word), dict.fromkeys("ab", base64.b64encode(word.encode()).decode())


def test_content_follows_its_source_in_one_step(host: Host) -> None:
    both: list[dict[str, Any]] = [{"key": "a", "path": "a"}, {"key": "b", "path": "b", "mode": 0o440}]
    sources = [{"configMap": {"name": "m", "items": both}},
               {"secret": {"name": "s", "items": [{"key": "a", "path": "deep/er/a", "mode": 0o400}]}},
               {"secret": {"name": "later", "optional": True}},
               {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]
    volumes = [{"name": "map", "configMap": {"name": "m"}},
               {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o400}},
               {"name": "all", "projected": {"sources": sources, "defaultMode": 0o444}},
               {"name": "maybe", "configMap": {"name": "later", "optional": True}},
               {"name": "fixed", "configMap": {"name": "fixed"}}]

    async def change(rig: Rig, word: str) -> None:
        for resource, name, data in zip((MAPS, SECRETS), "ms", same(word)):
            await rig.api.patch(resource, name, {"data": data}, "default")

        async def followed() -> bool:
            return await rig.inside("reader", "cat /map/a /map/b /secret/a /secret/b /all/a /all/b /all/deep/er/a") \
                == word * 7
        await eventually(followed)

    async def body(rig: Rig) -> None:
        for resource, name, data in zip((MAPS, SECRETS), "ms", same("0")):
            await rig.api.create(resource, {"metadata": {"name": name}, "data": data}, "default")
        await rig.api.create(MAPS, {"metadata": {"name": "fixed"}, "immutable": True, "data": {"k": "v"},
                                    "binaryData": {"bin": base64.b64encode(b"\x00\xff").decode()}}, "default")
        async with rig.kubelet():
            await rig.create("reader", sh(WATCH, **mounts(map="/map", secret="/secret", all="/all", maybe="/maybe",
                                                          fixed="/fixed")), volumes=volumes)
            await rig.pod("reader", ready)
            assert await rig.inside("reader", "cat /all/name; ls /maybe; cat /fixed/k; wc -c < /fixed/bin") \
                == "readerv2"
            assert (await rig.inside("reader", "cd /; stat -Lc %a map/a secret/a all/a all/b all/deep/er/a")).split() \
                == ["644", "400", "444", "440", "400"]
            kinds = await rig.inside("reader", "cat /proc/mounts")
            assert "tmpfs /secret tmpfs ro" in kinds and "tmpfs /all tmpfs ro" in kinds and "tmpfs /map" not in kinds
            assert "refused" in await rig.inside("reader", "echo x 2>/dev/null > /map/a || echo refused")
            links = "for d in /map /secret /all; do readlink $d/..data; done"
            before = await rig.inside("reader", links)
            for word in "123456":
                await change(rig, word)
            after = await rig.inside("reader", links)
            assert not set(before.split()) & set(after.split())  # one link is swapped, and the old folder gone
            assert await rig.inside("reader", "for d in map secret all; do ls -d /$d/..[0-9]* | wc -l; done") \
                == "1\n1\n1"
            await rig.api.patch(MAPS, "m", {"data": {"c": "new", "b": "6"}}, "default")
            await eventually(lambda: _listed(rig, "/map", "a b c"))
            await rig.api.patch(MAPS, "m", {"data": {"c": None}}, "default")
            await eventually(lambda: _listed(rig, "/map", "a b"))
            for resource in (MAPS, SECRETS):
                await rig.api.create(resource, {"metadata": {"name": "later"}, "data": {"k": "dg=="}}, "default")
            await eventually(lambda: _listed(rig, "/maybe", "k"))
            await eventually(lambda: _listed(rig, "/all", "a b deep k name"))
            assert rig.log("reader") == ""
            assert state(rig.api.objects["pods", "default", "reader"])["restartCount"] == 0
            await rig.remove("reader")
    run(host, body)


async def _listed(rig: Rig, folder: str, names: str) -> bool:
    return await rig.inside("reader", f"echo $(ls {folder})") == names


def test_a_token_is_renewed_in_place_and_is_its_users_own(host: Host) -> None:
    sources = [{"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}}]

    async def body(rig: Rig) -> None:
        rig.api.token_seconds = 2.0
        async with rig.kubelet():
            await rig.create("bearer", sh(STAY, **mounts(t="/t")), serviceAccountName="robot",
                             securityContext={"runAsUser": 1000, "fsGroup": 2000},
                             volumes=[{"name": "t", "projected": {"sources": sources}}])
            await rig.pod("bearer", ready)
            tokens = {await rig.inside("bearer", "cat /t/token")}
            assert await rig.inside("bearer", "stat -Lc '%a %u %g' /t/token; cut -d' ' -f1-3 /t/token") == (
                "640 1000 2000\nrobot bearer vault")

            async def renewed() -> bool:
                tokens.add(await rig.inside("bearer", "cat /t/token"))
                return len(tokens) == 3
            await eventually(renewed)
            assert state(rig.api.objects["pods", "default", "bearer"])["restartCount"] == 0
            await rig.remove("bearer")
    run(host, body)


def test_paths_of_the_node_are_what_their_type_says(host: Host, tmp_path: Path) -> None:
    found = {"Directory": "directory", "DirectoryOrCreate": "directory", "File": "regular file",
             "FileOrCreate": "regular empty file", "Socket": "socket", "CharDevice": "character special file",
             "BlockDevice": "block special file", "": "directory"}

    def at(kind: str, path: str) -> dict[str, Any]:
        return {"name": f"v{kind.lower()}", "hostPath": {"path": f"{tmp_path}/{path}", "type": kind}}
    (tmp_path / "Directory").mkdir()
    (tmp_path / "File").write_text("content")
    listener, here = socket.socket(socket.AF_UNIX), os.open(tmp_path, os.O_PATH)
    listener.bind(f"/proc/self/fd/{here}/Socket")  # the path of a socket has to be short
    os.close(here)
    for kind, flag in (("CharDevice", stat.S_IFCHR), ("BlockDevice", stat.S_IFBLK)):
        os.mknod(tmp_path / kind, 0o600 | flag, os.makedev(1, 3))

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("right", sh(STAY, **mounts(**{f"v{kind.lower()}": f"/{kind}h" for kind in found})),
                             volumes=[at(kind, kind or "Untyped") for kind in found])
            wrong = {"Directory": "File", "DirectoryOrCreate": "File", "File": "Directory",
                     "FileOrCreate": "Directory", "Socket": "File", "CharDevice": "BlockDevice",
                     "BlockDevice": "absent"}
            for kind, path in wrong.items():
                await rig.create(f"no-{kind.lower()}", sh(STAY), volumes=[at(kind, path)])
            await rig.pod("right", ready)
            assert (await rig.inside("right", "stat -Lc %F " + " ".join(f"/{kind}h" for kind in found))).splitlines() \
                == list(found.values())
            await rig.inside("right", "echo more >> /FileOrCreateh; touch /DirectoryOrCreateh/in /h/in")
            assert (tmp_path / "FileOrCreate").read_text() == "more\n"
            assert (tmp_path / "DirectoryOrCreate/in").exists() and (tmp_path / "Untyped/in").exists()
            says = [f"hostPath type check failed: {tmp_path}/{path} is not " for path in wrong.values()]
            await eventually(lambda: holds(all(any(text in message for message in failed(rig, "FailedMount"))
                                               for text in says)))
            running = {p.name for p in (await rig.runtime.observe()).values() if p.containers}
            assert running == {"right"} and not (tmp_path / "absent").exists()
            await rig.remove("right", *(f"no-{kind.lower()}" for kind in wrong))
            assert (tmp_path / "File").read_text() == "content"
    try:
        run(host, body)
    finally:
        listener.close()


def test_an_empty_folder_is_the_pods_alone_and_outlives_its_containers(host: Host) -> None:
    async def body(rig: Rig) -> None:
        memory = {"limits": {"memory": "64Mi"}}
        async with rig.kubelet():
            begins = "echo $$ >> /disk/ran; echo $$ >> /memory/ran; [ $(wc -l < /disk/ran) = 2 ] || exit 1; "
            await rig.create(
                "shares", sh(begins + STAY, resources=memory, **mounts(disk="/disk", memory="/memory")),
                sh(STAY, name="other", resources=memory, securityContext={"runAsUser": 1000}, volumeMounts=[
                    {"name": "disk", "mountPath": "/d"}, {"name": "disk", "mountPath": "/ro", "readOnly": True}]),
                volumes=[{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}])
            pod = await rig.pod("shares", lambda p: ready(p) and state(p)["restartCount"] == 1)
            assert await rig.inside("shares", "until [ $(wc -l < /memory/ran) = 2 ]; do :; done; wc -l < /disk/ran; "
                                              "stat -c %a /disk /memory") == "2\n777\n777"
            assert await rig.inside("shares", "echo mine > /d/f; cat /ro/f; echo x 2>/dev/null > /ro/f || echo refused",
                                    "other") == "mine\nrefused"
            # What the pod may not use, its files in memory need not hold.
            assert await rig.inside("shares", "df -m /memory | awk 'END {print $2}'") == "128"
            folder = host.paths.kubelet / "pods" / pod["metadata"]["uid"]
            assert (folder / "volumes/kubernetes.io~empty-dir/disk/f").read_text() == "mine\n"
            await rig.remove("shares")
            assert not folder.exists()
    run(host, body)


def test_huge_pages_are_a_folder_too(host: Host) -> None:
    if "hugetlbfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no huge pages")
    asked = {"hugepages-2Mi": "4Mi", "memory": "32Mi", "cpu": "100m"}

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            volumes = [{"name": "any", "emptyDir": {"medium": "HugePages"}},
                       {"name": "two", "emptyDir": {"medium": "HugePages-2Mi"}}]
            await rig.create("huge", sh(STAY, resources={"limits": asked, "requests": asked}, **mounts(
                any="/any", two="/two")), volumes=volumes)
            await rig.create("none", sh(STAY), volumes=volumes[1:])
            await rig.pod("huge", ready)
            found = [line.split() for line in (await rig.inside("huge", "cat /proc/mounts")).splitlines()]
            assert {path: "pagesize=2M" in options for _, path, kind, options, *_ in found if kind == "hugetlbfs"} == {
                "/any": True, "/two": True}
            await eventually(lambda: holds(any("not in container resource requests" in message
                                               for message in failed(rig, "FailedMount"))))
            await rig.remove("huge", "none")
    run(host, body)


def test_read_only_goes_as_deep_as_asked_and_no_part_leads_out(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        def mount(mode: str) -> dict[str, Any]:
            return {"volumeMounts": [{"name": "h", "mountPath": "/h", "readOnly": True, "recursiveReadOnly": mode}]}
        shared = {"volumes": [{"name": "h", "hostPath": {"path": str(tmp_path)}}]}
        deep = "" in (await rig.runtime.features()).recursive
        (tmp_path / "below").mkdir()
        host.call("mount", "-t", "tmpfs", "below", str(tmp_path / "below"))
        async with rig.kubelet():
            for mode in ("Disabled", "IfPossible", "Enabled"):
                await rig.create(mode.lower(), sh(STAY, **mount(mode)), **shared)
            tries = "for f in /h/x /h/below/x; do echo 2>/dev/null x > $f && echo written || echo refused; done"
            for mode, below in (("Disabled", "written"), ("IfPossible", "refused" if deep else "written"),
                                *([("Enabled", "refused")] if deep else [])):
                told = await rig.pod(mode.lower(), ready)
                assert await rig.inside(mode.lower(), tries) == f"refused\n{below}", mode
                (shown,) = state(told)["volumeMounts"]
                assert shown.get("recursiveReadOnly", "Disabled") == (
                    "Enabled" if below == "refused" else "Disabled"), shown
            if not deep:
                told = await rig.pod("enabled", lambda p: "CreateContainerConfigError" in str(p))
                assert "not supported by the runtime" in state(told)["state"]["waiting"]["message"]
            links = {"name": "links", "image": "busybox:1", **sh("ln -s / /v/out; mkdir /v/in; ln -s in /v/to"),
                     **mounts(v="/v")}
            for sub in ("out", "to"):
                await rig.create(f"sub-{sub}", sh(STAY, volumeMounts=[
                    {"name": "v", "mountPath": "/s", "subPath": f"{sub}/{sub}"}]), initContainers=[links],
                    volumes=[{"name": "v", "emptyDir": {}}])
            await rig.pod("sub-to", ready)
            told = await rig.pod("sub-out", lambda p: "CreateContainerConfigError" in str(p))
            assert "leads out of its volume" in state(told)["state"]["waiting"]["message"]
            await rig.remove("disabled", "ifpossible", "enabled", "sub-out", "sub-to")
        host.call("umount", str(tmp_path / "below"))
    run(host, body)


def test_what_was_mounted_inside_a_volume_goes_with_it(host: Host) -> None:
    """Also the file of last words, where a container has it in a volume that shares its mounts with the node."""
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            script = "mkdir /v/below; mount -t tmpfs below /v/below; echo words > /v/words; exit 0"
            mount = {"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}
            await rig.create("nested", sh(script, terminationMessagePath="/v/words", volumeMounts=[mount],
                                          securityContext={"privileged": True}),
                             restartPolicy="Never", volumes=[{"name": "v", "emptyDir": {}}])
            pod = await rig.pod("nested", lambda p: p["status"]["phase"] == "Succeeded")
            assert state(pod)["state"]["terminated"]["message"] == "words\n"
            await rig.remove("nested")
            assert pod["metadata"]["uid"] not in host.call("cat", "/proc/mounts")
            assert not (host.paths.kubelet / "pods" / pod["metadata"]["uid"]).exists()
    run(host, body)

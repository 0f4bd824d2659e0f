"""What a pod's security context, namespaces and mounts do, as seen from inside its containers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.node.nodekubelet import PODS, Rig, ready, run, sh
from tests.node.rig import Host

pytestmark = pytest.mark.node
STAY = "trap 'exit 0' TERM; while :; do sleep 600 & wait $!; done"
NO_CHMOD = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["chmod", "fchmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}]}


def one(name: str, image: str = "busybox:1", **context: Any) -> dict[str, Any]:
    return sh(STAY, name=name, securityContext=context, image=image)


async def status(rig: Rig, pod: str, container: str) -> dict[str, str]:
    """/proc/1/status of the container."""
    text = await rig.inside(pod, "cat /proc/1/status", container)
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def test_identities_capabilities_and_system_calls(host: Host) -> None:
    profiles = host.paths.kubelet / "seccomp"
    profiles.mkdir(parents=True, exist_ok=True)
    (profiles / "no-chmod.json").write_text(json.dumps(NO_CHMOD))

    async def body(rig: Rig) -> None:
        local = {"type": "Localhost", "localhostProfile": "no-chmod.json"}
        async with rig.kubelet():
            await rig.create(
                "guarded", one("base"), one("user", runAsUser=1234, runAsGroup=55, runAsNonRoot=True),
                one("caps", capabilities={"add": ["NET_ADMIN"], "drop": ["CHOWN"]}),
                one("none", capabilities={"drop": ["ALL"]}, allowPrivilegeEscalation=False),
                one("ro", readOnlyRootFilesystem=True), one("local", seccompProfile=local),
                one("free", seccompProfile={"type": "Unconfined"}, procMount="Unmasked"),
                one("all", privileged=True, runAsUser=0),
                volumes=[{"name": "e", "emptyDir": {}}],
                securityContext={"runAsUser": 77, "runAsGroup": 77, "supplementalGroups": [4321], "fsGroup": 2000,
                                 "seccompProfile": {"type": "RuntimeDefault"},
                                 "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "99"}]})
            await rig.create("rootless", one("c", runAsNonRoot=True))
            await rig.pod("guarded", ready)
            assert await rig.inside("guarded", "id -u; id -g; id -G", "base") == "77\n77\n77 2000 4321"
            assert (await rig.inside("guarded", "id -u; id -g", "user")).split() == ["1234", "55"]
            assert await rig.inside("guarded", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "base") == "99"
            caps = {n: int((await status(rig, "guarded", n))["CapBnd"], 16) for n in ("base", "caps", "none", "all")}
            assert caps["caps"] & 1 << 12 and not caps["base"] & 1 << 12  # NET_ADMIN
            assert caps["base"] & 1 and not caps["caps"] & 1  # CHOWN
            assert caps["none"] == 0 and caps["all"] & 1 << 21  # SYS_ADMIN
            seccomp = {n: (await status(rig, "guarded", n))["Seccomp"] for n in ("base", "local", "free", "all")}
            assert seccomp == {"base": "2", "local": "2", "free": "0", "all": "0"}
            assert "refused" in await rig.inside("guarded", "cd /tmp; touch f; chmod 600 f || echo refused", "local")
            assert await rig.inside("guarded", "cd /tmp; touch g; chmod 600 g && echo done", "base") == "done"
            assert (await status(rig, "guarded", "none"))["NoNewPrivs"] == "1"
            assert "refused" in await rig.inside("guarded", "touch /f 2>/dev/null || echo refused", "ro")
            assert int(await rig.inside("guarded", "wc -c < /proc/timer_list 2>/dev/null || echo 0", "base")) == 0
            assert "/proc/timer_list" not in await rig.inside("guarded", "cat /proc/mounts", "free")
            assert int(await rig.inside("guarded", "ls /dev | wc -l", "all")) > 30
            told = await rig.pod("rootless", lambda p: "CreateContainerConfigError" in str(p))
            assert "runAsNonRoot and image will run as root" in str(told["status"])
            await rig.remove("guarded", "rootless")
    run(host, body)


def test_groups_of_volumes_and_sub_paths(host: Host) -> None:
    async def body(rig: Rig) -> None:
        mounts = [{"name": "e", "mountPath": "/data"},
                  {"name": "e", "mountPath": "/sub", "subPathExpr": "$(POD_NAME)/logs"},
                  {"name": "m", "mountPath": "/memory"}, {"name": "s", "mountPath": "/secret"},
                  {"name": "s", "mountPath": "/one", "subPath": "key", "readOnly": True}]
        from controlplane.machinery.resources import named
        await rig.api.create(named("secrets"), {"metadata": {"name": "s"}, "data": {"key": "dmFsdWU="}}, "default")
        async with rig.kubelet():
            await rig.create(
                "grouped", sh(STAY, volumeMounts=mounts, env=[
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]),
                securityContext={"runAsUser": 1000, "fsGroup": 3000}, volumes=[
                    {"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}},
                    {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}])
            await rig.pod("grouped", ready)
            assert await rig.inside("grouped", "touch /data/f; stat -c %g /data/f") == "3000"
            await rig.inside("grouped", "echo seen > /sub/f")
            assert await rig.inside("grouped", "cat /data/grouped/logs/f") == "seen"
            assert await rig.inside("grouped", "cat /secret/key /one; stat -Lc '%a %g' /secret/key") \
                == "valuevalue440 3000"
            assert "tmpfs /memory tmpfs" in await rig.inside("grouped", "cat /proc/mounts")
            assert "full" in await rig.inside("grouped",
                                              "head -c 2000000 /dev/zero > /memory/f 2>/dev/null || echo full")
            await rig.remove("grouped")
    run(host, body)


def test_namespaces_are_shared_only_when_asked_for(host: Host) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            await rig.create("apart", sh(STAY), sh(STAY, name="other"))
            await rig.create("together", sh(STAY), sh("sleep 4242", name="other"), shareProcessNamespace=True)
            await rig.create("node", sh(STAY), hostNetwork=True, hostPID=True, hostIPC=True,
                             hostAliases=[{"ip": "192.0.2.7", "hostnames": ["alias", "other-alias"]}])
            await rig.create("named", sh(STAY), hostname="short", subdomain="sub", setHostnameAsFQDN=True,
                             hostAliases=[{"ip": "192.0.2.7", "hostnames": ["alias"]}])
            for name in ("apart", "together", "node", "named"):
                await rig.pod(name, ready)
            assert "sleep 4242" in await rig.inside("together", "ps -o args")
            assert "sleep 4242" not in await rig.inside("apart", "ps -o args")
            assert "pause" in await rig.inside("together", "cat /proc/1/comm /proc/1/cmdline")
            held = dict(line.split(":\t") for line in (await rig.inside("together", "cat /proc/1/status")).splitlines())
            assert (held["Seccomp"], held["NoNewPrivs"], held["CapEff"].strip("0")) == ("2", "1", "")

            def outer(kind: str) -> str:
                import os
                return os.readlink(f"/proc/{host.holder.pid}/ns/{kind}")  # type: ignore[union-attr]
            for kind in ("net", "ipc", "pid", "uts"):
                mine = await rig.inside("node", f"readlink /proc/self/ns/{kind}")
                assert mine == outer(kind), kind
                assert await rig.inside("apart", f"readlink /proc/self/ns/{kind}") != outer(kind)
                shared = await rig.inside("apart", f"readlink /proc/self/ns/{kind}", "other")
                assert (shared == await rig.inside("apart", f"readlink /proc/self/ns/{kind}")) == (kind != "pid")
            assert "192.0.2.7\talias\tother-alias" in await rig.inside("node", "cat /etc/hosts")
            assert await rig.inside("named", "hostname") == "short.sub.default.svc.cluster.local"
            hosts = await rig.inside("named", "cat /etc/hosts")
            assert "\tshort.sub.default.svc.cluster.local\tshort" in hosts and "192.0.2.7\talias" in hosts
            await rig.api.patch(PODS, "apart", {"spec": {"ephemeralContainers": [
                {"name": "debug", "image": "busybox:1", "targetContainerName": "other", **sh(STAY)}]}}, "default")
            await rig.pod("apart", lambda p: "running" in str(p["status"].get("ephemeralContainerStatuses")))
            pids = "readlink /proc/self/ns/pid"
            assert await rig.inside("apart", pids, "debug") == await rig.inside("apart", pids, "other")
            await rig.remove("apart", "together", "node", "named")
    run(host, body)


def test_mounts_spread_as_their_propagation_says(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        def mount(way: str) -> dict[str, Any]:
            return {"volumeMounts": [{"name": "h", "mountPath": "/h", "mountPropagation": way}]}
        async with rig.kubelet():
            await rig.create("spread", sh(STAY, name="own", **mount("None")),
                             sh(STAY, name="slave", **mount("HostToContainer")),
                             sh(STAY, name="both", securityContext={"privileged": True}, **mount("Bidirectional")),
                             volumes=[{"name": "h", "hostPath": {"path": str(tmp_path)}}])
            await rig.pod("spread", ready)
            (tmp_path / "by-node").mkdir()
            host.call("mount", "-t", "tmpfs", "by-node", str(tmp_path / "by-node"))
            await rig.inside("spread", "mkdir /h/by-pod; mount -t tmpfs by-pod /h/by-pod", "both")
            seen = {n: await rig.inside("spread", "cat /proc/mounts", n) for n in ("own", "slave", "both")}
            assert [n for n in seen if "by-node /h" in seen[n]] == ["slave", "both"]
            assert [n for n in seen if "by-pod /h" in seen[n]] == ["slave", "both"]
            assert f"by-pod {tmp_path}/by-pod" in host.call("cat", "/proc/mounts")
            await rig.remove("spread")
            for name in ("by-node", "by-pod"):
                host.call("umount", str(tmp_path / name))
    run(host, body)

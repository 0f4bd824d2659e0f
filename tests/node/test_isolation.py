"""What a pod's security context, namespaces and mounts do, as seen from inside its containers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.image import archive, oci
from agent.image.layer import Layer
from tests.node.nodekubelet import PODS, STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
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
            proc = {n: await rig.inside("guarded", "grep ' /proc/' /proc/mounts || true", n) for n in ("base", "free")}
            assert "proc /proc/sys proc ro" in proc["base"] and " /proc/keys " in proc["base"]
            assert proc["free"] == "" and await rig.inside("guarded", "wc -c < /proc/keys", "base") == "0"
            assert int(await rig.inside("guarded", "ls /dev | wc -l", "all")) > 30
            told = await rig.pod("rootless", lambda p: "CreateContainerConfigError" in str(p))
            assert "runAsNonRoot and image will run as root" in str(told["status"])
            await rig.remove("guarded", "rootless")
    run(host, body)


def with_user(name: str, user: str) -> oci.Image:
    """Busybox run as `user` and ended by SIGUSR2, with one user of its own who has a group more."""
    layer = Layer()
    layer.file("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    layer.link("bin/sh", "busybox")
    layer.file("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
    layer.file("etc/group", b"root:x:0:\napp:x:1000:\nmore:x:50000:app\n")
    return oci.build([f"lab.local/{name}:1"], [layer.packed()], {"User": user, "StopSignal": "SIGUSR2"})


def test_the_images_user_groups_and_signal_count_where_the_pod_says_nothing(host: Host, tmp_path: Path) -> None:
    said = "/bin/busybox id -u; /bin/busybox id -g; /bin/busybox id -G"

    async def body(rig: Rig) -> None:
        archive.write(tmp_path / "users.tar", [with_user("number", "1000"), with_user("name", "app"),
                                               with_user("root", "")])
        await rig.images.import_archive(tmp_path / "users.tar")
        signalled = f"trap 'echo signalled > /v/{{}}; exit 0' USR2; while :; do {STAY.partition('do ')[2]}"

        def image(name: str, **context: Any) -> dict[str, Any]:
            return one(name, f"lab.local/{name}:1", **context) | {
                "command": ["/bin/busybox", "sh", "-c", signalled.format(name).replace(
                    "sleep", "/bin/busybox sleep")], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}
        shared: dict[str, Any] = {"volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 60}
        strict = {"supplementalGroupsPolicy": "Strict", "supplementalGroups": [60000]}
        async with rig.kubelet():
            await rig.create("asis", image("number", runAsNonRoot=True), image("name"), image("root"), **shared)
            await rig.create("group", image("number", runAsGroup=7), image("name", runAsGroup=7),
                             image("root", runAsGroup=7), **shared)
            await rig.create("merged", image("number"), securityContext={"supplementalGroups": [60000]}, **shared)
            await rig.create("strict", image("number"), securityContext=strict, **shared)
            wrong = {"name": "image has non-numeric user (app), cannot verify user is non-root",
                     "root": "container has runAsNonRoot and image will run as root"}
            for name in wrong:
                await rig.create(f"no-{name}", image(name, runAsNonRoot=True), **shared)
            pod = await rig.pod("asis", ready)
            assert [(await rig.inside("asis", said, n)).split() for n in ("number", "name", "root")] == [
                ["1000", "1000", "1000", "50000"], ["1000", "1000", "1000", "50000"], ["0", "0", "0"]]
            await rig.pod("group", ready)
            assert [(await rig.inside("group", said, n)).split()[:2] for n in ("number", "name", "root")] == [
                ["1000", "7"], ["1000", "7"], ["0", "7"]]
            await rig.pod("merged", ready)
            assert (await rig.inside("merged", said, "number")).split()[2:] == ["1000", "50000", "60000"]
            if (await rig.runtime.features()).strict_groups:
                await rig.pod("strict", ready)
                assert (await rig.inside("strict", said, "number")).split()[2:] == ["1000", "60000"]
            else:
                refused = await rig.pod("strict", lambda p: p["status"]["phase"] == "Failed")
                assert refused["status"]["reason"] == "SupplementalGroupsPolicyNotSupported"
            for name, why in wrong.items():
                told = await rig.pod(f"no-{name}", lambda p: "CreateContainerConfigError" in str(p))
                assert why in state(told, name)["state"]["waiting"]["message"]
            uid = pod["metadata"]["uid"]
            await rig.runtime.stop_container((await rig.runtime.observe(uid))[uid].container("name").id, 60)
            written = host.paths.kubelet / "pods" / uid / "volumes/kubernetes.io~empty-dir/v/name"
            assert written.read_text() == "signalled\n"  # by the image's own signal
            await rig.remove("asis", "group", "merged", "strict", *(f"no-{name}" for name in wrong))
    run(host, body)


SAFE = {"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "40000\t50000", "net.ipv4.tcp_syncookies": "0",
        "net.ipv4.ping_group_range": "0\t10", "net.ipv4.ip_unprivileged_port_start": "99",
        "net.ipv4.ip_local_reserved_ports": "41000", "net.ipv4.tcp_keepalive_time": "600",
        "net.ipv4.tcp_fin_timeout": "30", "net.ipv4.tcp_keepalive_intvl": "20", "net.ipv4.tcp_keepalive_probes": "4",
        "net.ipv4.tcp_rmem": "4096\t65536\t131072", "net.ipv4.tcp_wmem": "4096\t16384\t131072"}


def test_kernel_parameters_are_set_for_the_pod_alone(host: Host) -> None:
    allowed = {"kernel.msgmax": "12345", "net.core.somaxconn": "321"}

    def asking(wanted: dict[str, str]) -> dict[str, Any]:
        return {"securityContext": {"sysctls": [{"name": n, "value": v} for n, v in wanted.items()]}}

    async def body(rig: Rig) -> None:
        rig.place = replace(rig.place, sysctls=("kernel.msg*", "net.core.somaxconn"))
        here = {name: Path(f"/proc/sys/{name.replace('.', '/')}") for name in (SAFE | allowed)}
        before = {name: path.read_text() for name, path in here.items() if path.exists()}
        async with rig.kubelet():
            known = {name: value for name, value in (SAFE | allowed).items() if name in before}
            assert {*allowed, "kernel.shm_rmid_forced", "net.ipv4.tcp_rmem"} <= known.keys()
            await rig.create("tuned", one("c"), **asking(known))
            refused = {"other": (asking({"kernel.sem": "1 2 3 4"}), 'forbidden sysctl: "kernel.sem" not allowlisted'),
                       "network": ({**asking({"net.ipv4.tcp_syncookies": "0"}), "hostNetwork": True},
                                   'forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host network enabled'),
                       "ipc": ({**asking({"kernel.msgmax": "1"}), "hostIPC": True},
                               'forbidden sysctl: "kernel.msgmax" not allowed with host ipc enabled')}
            for name, (spec, _) in refused.items():
                await rig.create(name, one("c"), **spec)
            await rig.pod("tuned", ready)
            names = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in known)
            assert (await rig.inside("tuned", f"cat {names}")).splitlines() == list(known.values())
            for name, (_, why) in refused.items():
                told = await rig.pod(name, lambda p: p["status"]["phase"] == "Failed")
                assert (told["status"]["reason"], told["status"]["message"]) == ("SysctlForbidden", why)
            assert {name: here[name].read_text() for name in before} == before
            await eventually(lambda: holds("SysctlForbidden" in rig.api.events()))
            await rig.remove("tuned", *refused)
    run(host, body)


def test_nothing_runs_without_the_protection_it_asks_for(host: Host) -> None:
    async def body(rig: Rig) -> None:
        failed = {"armoured": ({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}, "AppArmor")}
        absent = {"type": "Localhost", "localhostProfile": "absent.json"}
        waits = {"unfiltered": (one("c", seccompProfile=absent), "absent.json"),
                 "misspelt": (one("c", capabilities={"drop": ["NET_RAWW"]}), 'there is no capability "NET_RAWW"'),
                 "rooted": (one("c", runAsNonRoot=True, runAsUser=0), "runAsUser breaks non-root policy")}
        async with rig.kubelet():
            for name, (spec, _) in failed.items():
                await rig.create(name, one("c"), **spec)
            for name, (container, _) in waits.items():
                await rig.create(name, container)
            for name, (_, reason) in failed.items():
                told = await rig.pod(name, lambda p: p["status"]["phase"] == "Failed")
                assert told["status"]["reason"] == reason
            for name, (_, why) in waits.items():
                await rig.pod(name, lambda p, why=why: why in state(p).get("state", {}).get(
                    "waiting", {}).get("message", ""))
            await rig.create("seen", one("c"))
            seen = await rig.pod("seen", ready)
            await rig.api.patch(PODS, "seen", {"spec": {"ephemeralContainers": [
                one("look", appArmorProfile={"type": "RuntimeDefault"})]}}, "default")
            await rig.pod("seen", lambda p: "Cannot enforce AppArmor" in str(state(
                p, "look", "ephemeralContainerStatuses")))
            if not (await rig.runtime.features()).user_namespaces:
                await rig.create("mapped", one("c"), hostUsers=False)
                await eventually(lambda: holds(any(
                    "user namespaces (hostUsers: false) are not supported" in o.get("message", "")
                    for (plural, _, _), o in rig.api.objects.items() if plural == "events")))
                waits["mapped"] = one("c"), ""
            every = [c for p in (await rig.runtime.observe()).values() for c in p.containers]
            assert [f"containerd://{c.id}" for c in every if c.state == "running"] == [state(seen)["containerID"]]
            await rig.remove(*failed, *waits, "seen")
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

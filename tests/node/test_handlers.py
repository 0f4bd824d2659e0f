"""Every kind of handler as probe and as hook, with all its fields: what is asked, when, and what the answer does."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from aiohttp import web

from controlplane.machinery.clock import SYSTEM
from tests.node.nodekubelet import PODS, STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
KINDS = ("exec", "http", "https", "tcp", "grpc")
HERE = "10.0.0.1"  # the test host's address
EARLY = 0.5  # seconds by which a request may seem early: it is noted where it arrives
Handler = dict[str, Any]


def certify(folder: Path) -> None:
    """A certificate nobody has reason to trust: probes over TLS do not ask."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere", "-days", "1",
                    "-keyout", folder / "key.pem", "-out", folder / "cert.pem"], check=True, stderr=subprocess.DEVNULL)


@dataclass(frozen=True)
class Asked:
    """One request: when it came (seconds since the epoch), for what (a path or service), with which headers."""

    at: float
    what: str
    headers: dict[str, str]


class Peer:
    """Who answers probes and hooks on the test host, each by its name: a file in `folder`, a path, a service, a port.
    Only those that are `well` are answered as they wish; `/hang` is never."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.well = folder, list[Asked](), set[str]()
        self._ports = {}  # type: dict[str, int]
        self._numbers = itertools.count(7001)
        self._listening = {}  # type: dict[str, asyncio.Server]

    @asynccontextmanager
    async def serve(self):
        loop, server = asyncio.get_running_loop(), web.Server(self._answer)
        certify(self.folder)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        plain = await loop.create_server(server, "0.0.0.0", 0)
        secure = await loop.create_server(server, "0.0.0.0", 0, ssl=tls)
        rpc = grpc.aio.server()
        rpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
            "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(self._check)}),))
        self.grpc = rpc.add_insecure_port("0.0.0.0:0")
        await rpc.start()
        self.http, self.https = (s.sockets[0].getsockname()[1] for s in (plain, secure))
        try:
            yield self
        finally:
            for each in (plain, secure, *self._listening.values()):
                each.close()
            await server.shutdown(1.0)
            await rpc.stop(0)

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        self.asked.append(Asked(SYSTEM.now(), request.path_qs, dict(request.headers)))
        if request.path == "/hang":
            await asyncio.Event().wait()
        return web.Response(status=200 if request.path[1:] in self.well else 500)

    async def _check(self, request: bytes, context: Any) -> bytes:
        name = request[2:].decode()
        self.asked.append(Asked(SYSTEM.now(), name, {}))
        return SERVING if name in self.well else NOT_SERVING

    async def turn(self, *names: str, well: bool) -> None:
        for name in names:
            (self.well.add if well else self.well.discard)(name)
            if name in self._ports and well and name not in self._listening:
                self._listening[name] = await asyncio.start_server(
                    lambda _, writer, name=name: self._accept(name, writer), "0.0.0.0", self._ports[name])
            elif name in self._listening and not well:
                self._listening.pop(name).close()
            if well:
                (self.folder / name).touch()
            else:
                (self.folder / name).unlink(missing_ok=True)

    def _accept(self, name: str, writer: asyncio.StreamWriter) -> None:
        self.asked.append(Asked(SYSTEM.now(), name, {}))
        writer.close()

    def handler(self, kind: str, name: str, **more: Any) -> Handler:
        """A handler of `kind` that asks for `name`; `more` goes into it."""
        if kind == "tcp":
            self._ports[name] = next(self._numbers)
        return {"exec": {"exec": {"command": ["test", "-e", f"/h/{name}"]}},
                "http": {"httpGet": {"port": self.http, "path": f"/{name}", **more}},
                "https": {"httpGet": {"port": self.https, "path": f"/{name}", "scheme": "HTTPS", **more}},
                "tcp": {"tcpSocket": {"port": self._ports.get(name), **more}},
                "grpc": {"grpc": {"port": self.grpc, "service": name}}}[kind]

    def mounted(self) -> dict[str, Any]:
        return {"volumes": [{"name": "h", "hostPath": {"path": str(self.folder)}}]}

    def about(self, what: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.what == what]


def told(rig: Rig, reason: str) -> dict[str, str]:
    """The last message of each container's events of a reason."""
    events = [o for (plural, _, _), o in rig.api.objects.items() if plural == "events" and o["reason"] == reason]
    return {o["involvedObject"].get("fieldPath", "").partition("{")[2].rstrip("}"): o["message"] for o in events}


MOUNT = {"volumeMounts": [{"name": "h", "mountPath": "/h"}]}
OFTEN = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 30}


def test_every_handler_gates_the_start_and_readiness_and_restarts_the_sick(host: Host, tmp_path: Path) -> None:
    probes = {probe: [f"{probe}-{kind}" for kind in KINDS] for probe in ("startup", "readiness", "liveness")}

    async def body(rig: Rig) -> None:
        async with Peer(tmp_path).serve() as peer, rig.kubelet():
            def probed(name: str) -> dict[str, Any]:
                probe, _, kind = name.partition("-")
                limit = {"failureThreshold": 1000} if probe == "startup" else {}
                return sh(STAY, name=name, **MOUNT, **{f"{probe}Probe": {**OFTEN, **limit, **peer.handler(kind, name)}})

            async def each(probe: str, key: str, value: int | bool) -> None:
                await rig.pod(probe, lambda p: all(state(p, name).get(key) == value for name in probes[probe]))
            doomed = {**OFTEN, "failureThreshold": 2, "exec": {"command": ["sh", "-c", "echo not yet; exit 1"]}}
            for probe, names in probes.items():  # a pod of its own each: of one pod only so many events are told
                containers = [probed(name) for name in names]
                await peer.turn(*names, well=probe == "liveness")
                await rig.create(probe, *containers, hostNetwork=True, terminationGracePeriodSeconds=1,
                                 **peer.mounted())
            await rig.create("doomed", sh(STAY, startupProbe=doomed))
            sick = {*probes["startup"], *probes["readiness"]}
            await eventually(lambda: holds(sick <= told(rig, "Unhealthy").keys()), 90)
            complaints = told(rig, "Unhealthy")
            assert not complaints.keys() & {*probes["liveness"]}
            assert complaints["readiness-http"] == "Readiness probe failed: HTTP probe failed with statuscode: 500"
            assert complaints["startup-tcp"].startswith("Startup probe failed: dial tcp 10.0.0.1:")
            assert "NOT_SERVING" in complaints["readiness-grpc"]
            await each("startup", "started", False)
            await each("readiness", "ready", False)
            await each("liveness", "ready", True)
            await peer.turn(*probes["startup"], *probes["readiness"], well=True)
            await each("startup", "started", True)
            await each("startup", "ready", True)
            await each("readiness", "ready", True)
            await peer.turn(*probes["readiness"], *probes["liveness"], well=False)
            await each("readiness", "ready", False)
            await rig.pod("liveness", lambda p: all(state(p, name)["restartCount"] for name in probes["liveness"]))
            await each("readiness", "restartCount", 0)
            await each("startup", "restartCount", 0)
            await rig.pod("doomed", lambda p: state(p).get("restartCount", 0) >= 1)
            assert told(rig, "Unhealthy")["c"] == "Startup probe failed: not yet\n"
            await rig.remove(*probes, "doomed")
    run(host, body)


def test_a_probe_asks_what_when_and_where_its_fields_say(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        async with Peer(tmp_path).serve() as peer, rig.kubelet():
            await peer.turn("delayed", "named", well=True)
            headers = [{"name": "X-Probe", "value": "yes"}, {"name": "Host", "value": "example.org"}]
            asking = peer.handler("http", "delayed?a=b", host=HERE, port="web", httpHeaders=headers)
            hanging = {**OFTEN, "periodSeconds": 2, "timeoutSeconds": 1, "failureThreshold": 2,
                       "terminationGracePeriodSeconds": 1, **peer.handler("http", "hang", host=HERE)}
            late = {"startupProbe": {**OFTEN, **peer.handler("exec", "late"), "failureThreshold": 1000},
                    "readinessProbe": {**OFTEN, **peer.handler("grpc", "gated")}}
            await rig.create(
                "exact", sh(STAY, name="delayed", ports=[{"name": "web", "containerPort": peer.http}], readinessProbe={
                    **OFTEN, "initialDelaySeconds": 2, "successThreshold": 2, **asking}),
                sh(STAY, name="named", ports=[{"name": "tcp", "containerPort": peer.http}], readinessProbe={
                    **OFTEN, "tcpSocket": {"host": HERE, "port": "tcp"}}),
                sh("trap '' TERM; while :; do sleep 600 & wait $!; done", name="hanging", livenessProbe=hanging),
                sh(STAY, name="late", **MOUNT, **late), hostNetwork=True, terminationGracePeriodSeconds=1,
                **peer.mounted())
            pod = await rig.pod("exact", lambda p: all(state(p, name).get("ready") for name in ("delayed", "named")))
            uid = pod["metadata"]["uid"]
            began = (await rig.runtime.observe(uid))[uid].container("delayed").started_at
            times = [asked.at for asked in peer.about("/delayed?a=b")]
            assert len(times) >= 2 and times[0] >= began + 2 - EARLY and times[1] >= times[0] + 1 - EARLY
            first = peer.about("/delayed?a=b")[0].headers
            assert first["X-Probe"] == "yes" and first["Host"] == "example.org"
            assert first["User-Agent"].startswith("kube-probe/1.")
            again = await rig.pod("exact", lambda p: state(p, "hanging").get("restartCount", 0) >= 1)
            assert state(again, "hanging")["lastState"]["terminated"]["exitCode"] == 137  # after the probe's own grace
            assert "Client.Timeout exceeded" in told(rig, "Unhealthy")["hanging"]
            hung = [asked.at for asked in peer.about("/hang")]
            assert len(hung) >= 2 and hung[1] >= hung[0] + 2 - EARLY
            assert not peer.about("gated") and not state(again, "late")["started"]
            await peer.turn("late", "gated", well=True)
            await rig.pod("exact", lambda p: state(p, "late").get("ready"))
            assert peer.about("gated")
            await rig.remove("exact")
    run(host, body)


def test_every_handler_is_a_hook_at_the_start_and_before_the_end(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        async with Peer(tmp_path).serve() as peer, rig.kubelet():
            def hooked(kind: str) -> dict[str, Any]:
                first, last = ({"exec": {"command": ["sh", "-c", f"hostname > /h/{word}-exec"]}} if kind == "exec" else
                               peer.handler(kind, f"{word}-{kind}", host=HERE) for word in ("hello", "bye"))
                return sh(STAY, name=kind, **MOUNT, lifecycle={"postStart": first, "preStop": last})
            second = {"sleep": {"seconds": 1}}
            containers = [hooked(kind) for kind in ("exec", "http", "https", "tcp")]
            await peer.turn("hello-tcp", "bye-tcp", well=True)
            await rig.create("hooked", *containers,
                             sh(STAY, name="sleep", lifecycle={"postStart": second, "preStop": second}),
                             terminationGracePeriodSeconds=30, **peer.mounted())
            pod = await rig.pod("hooked", ready)
            uid, now = pod["metadata"]["uid"], SYSTEM.now()
            slept = (await rig.runtime.observe(uid))[uid].container("sleep")
            assert slept is not None and now >= slept.started_at + 1 - EARLY
            assert (tmp_path / "hello-exec").read_text() == "hooked\n" and not (tmp_path / "bye-exec").exists()
            assert sorted(asked.what for asked in peer.asked) == ["/hello-http", "/hello-https", "hello-tcp"]
            assert peer.about("/hello-http")[0].headers["User-Agent"].startswith("kube-lifecycle/1.")
            await rig.remove("hooked")
            assert SYSTEM.now() >= now + 1 - EARLY and (tmp_path / "bye-exec").read_text() == "hooked\n"
            assert sorted(asked.what for asked in peer.asked[3:]) == ["/bye-http", "/bye-https", "bye-tcp"]
            assert not told(rig, "FailedPreStopHook")
    run(host, body)


def test_a_hook_that_fails_is_told_and_holds_up_no_end(host: Host, tmp_path: Path) -> None:
    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            signals = "trap 'echo usr1 > /h/signal; exit 0' USR1; while :; do sleep 600 & wait $!; done"
            failing: Handler = {"exec": {"command": ["sh", "-c", "echo no good; exit 4"]}}
            await rig.create("broken", sh(STAY, lifecycle={"postStart": failing}))
            await rig.create("stopped", sh(STAY, name="fails", lifecycle={"preStop": failing}),
                             sh(STAY, name="endless", lifecycle={"preStop": {"sleep": {"seconds": 3600}}}),
                             sh(signals, name="usr", lifecycle={"stopSignal": "SIGUSR1"}, **MOUNT),
                             volumes=[{"name": "h", "hostPath": {"path": str(tmp_path)}}], os={"name": "linux"})
            pod = await rig.pod("stopped", ready)
            assert state(pod, "usr")["stopSignal"] == "SIGUSR1"
            await rig.pod("broken", lambda p: state(p).get("restartCount", 0) >= 1)
            await rig.remove("broken", "stopped")
            assert (tmp_path / "signal").read_text() == "usr1\n"
            await eventually(lambda: holds(told(rig, "FailedPreStopHook").keys() == {"fails", "endless"}))
            assert "no good" in told(rig, "FailedPreStopHook")["fails"] and "no good" in told(
                rig, "FailedPostStartHook")["c"]
    run(host, body)


def test_hooks_of_sidecars_run_at_once_and_their_ends_wait_no_longer_than_the_grace(host: Host, tmp_path: Path) -> None:
    """The main program of the first pod does not end before all hooks have run, that of the second one never."""
    def side(name: str) -> dict[str, Any]:
        hook = {"preStop": {"exec": {"command": ["sh", "-c", f"echo hook {name} >> /h/log"]}}}
        return {"name": name, "image": "busybox:1", "restartPolicy": "Always", "lifecycle": hook, **MOUNT,
                **sh(f"trap 'echo down {name} >> /h/log; exit 0' TERM; while :; do sleep 600 & wait $!; done")}

    async def body(rig: Rig) -> None:
        async with rig.kubelet():
            last = "until [ $(grep -c hook /h/log) = 2 ]; do sleep 0.1; done; echo down main >> /h/log; exit 0"
            for name, grace, main in (("turns", 60, f"trap '{last}' TERM; touch /h/up; while :; do sleep 0.1; done"),
                                      ("late", 2, "trap '' TERM; touch /h/up; while :; do sleep 0.1; done")):
                folder = tmp_path / name
                folder.mkdir()
                await rig.create(name, sh(main, **MOUNT), initContainers=[side("one"), side("two")],
                                 terminationGracePeriodSeconds=grace,
                                 volumes=[{"name": "h", "hostPath": {"path": str(folder)}}])
                await rig.pod(name, ready)
                await eventually(lambda folder=folder: holds((folder / "up").exists()))
                await rig.remove(name)
            lines = (tmp_path / "turns/log").read_text().splitlines()
            assert sorted(lines[:2]) == ["hook one", "hook two"]
            assert lines[2:] == ["down main", "down two", "down one"]
            assert set((tmp_path / "late/log").read_text().splitlines()) == {
                "hook one", "hook two", "down one", "down two"}
    run(host, body)


def test_what_probes_have_shown_outlives_the_kubelet_and_readiness_the_order_to_end(host: Host, tmp_path: Path) -> None:
    def flag(name: str) -> dict[str, Any]:
        return {**OFTEN, "exec": {"command": ["test", "-e", f"/h/{name}"]}}

    async def body(rig: Rig) -> None:
        shared = {"volumes": [{"name": "h", "hostPath": {"path": str(tmp_path)}}]}
        (tmp_path / "well").touch()
        async with rig.kubelet():
            side = {"name": "side", "image": "busybox:1", "restartPolicy": "Always", **MOUNT, **sh(STAY),
                    "startupProbe": flag("well")}
            await rig.create("steady", sh(STAY, readinessProbe=flag("well"), **MOUNT),
                             sh(STAY, name="unready", readinessProbe=flag("never"), **MOUNT),
                             sh(STAY, name="unborn", startupProbe={**flag("never"), "failureThreshold": 1000}, **MOUNT),
                             initContainers=[side], **shared)
            leaves = ("trap 'rm /h/here; until [ -e /h/go ]; do sleep 0.1; done; exit 0' TERM; touch /h/here; "
                      "while :; do sleep 0.1; done")
            await rig.create("leaving", sh(leaves, readinessProbe=flag("here"), livenessProbe={
                **flag("here"), "initialDelaySeconds": 1, "failureThreshold": 3}, **MOUNT),
                terminationGracePeriodSeconds=60, **shared)
            await rig.pod("steady", lambda p: state(p).get("ready") and state(p, "unborn").get("state"))
            await rig.pod("leaving", ready)
        async with rig.kubelet():
            seen = len(rig.api.log)
            uid = rig.api.objects["pods", "default", "steady"]["metadata"]["uid"]
            main = (await rig.runtime.observe(uid))[uid].container("unready")
            assert main is not None
            await rig.runtime.stop_container(main.id, 5)  # what comes behind a sidecar comes back
            again = await rig.pod("steady", lambda p: state(p, "unready").get("restartCount") == 1
                                  and "running" in state(p, "unready")["state"])
            assert not state(again, "side", "initContainerStatuses")["restartCount"]
            told = [o for _, plural, o in rig.api.log[seen:] if plural == "pods" and o["metadata"]["name"] == "steady"]
            assert all(state(o)["ready"] and not state(o, "unready")["ready"] and not state(o, "unborn")["started"]
                       for o in told)
            await rig.api.delete(PODS, "leaving", "default")
            late = await rig.pod("leaving", lambda p: not state(p)["ready"] and "running" in state(p)["state"])
            assert late["metadata"]["deletionTimestamp"]
            (tmp_path / "go").touch()
            last = [o for _, plural, o in rig.api.log if plural == "pods" and o["metadata"]["name"] == "leaving"]
            await rig.pod("leaving", lambda p: p is None)
            assert not any(state(o).get("restartCount") for o in last)
            await rig.remove("steady")
    run(host, body)

"""What the runtime tells, as pods: listings, exits that events told first, and the stream of a runtime without
containerd's own events."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.kubelet import model
from agent.kubelet.cri import observe, translate
from agent.kubelet.cri.runtime import Runtime
from cri_proto.client import Connection
from cri_proto.messages import cri

LABELS = {model.POD_UID: "u", model.POD_NAME: "p", model.POD_NAMESPACE: "n", model.CONTAINER_NAME: "c"}


def test_an_exit_told_by_an_event_outruns_the_listing() -> None:
    running = model.ObservedContainer("1", "c", 0, "running", "s", started_at=5.0)
    ended = observe.overlay(running, observe.Exit(3, 9.0), oom=False)
    assert (ended.state, ended.exit_code, ended.finished_at, ended.reason) == ("exited", 3, 9.0, "Error")
    assert observe.overlay(running, observe.Exit(0, 9.0), oom=False).reason == "Completed"
    assert observe.overlay(running, observe.Exit(137, 9.0), oom=True).reason == "OOMKilled"
    assert observe.overlay(running, None, oom=True) == running  # a child was killed, the container lives
    told = model.ObservedContainer("1", "c", 0, "exited", "s", exit_code=128, reason="StartError")
    assert observe.overlay(told, observe.Exit(1, 9.0), oom=True) == told


def test_the_newest_attempts_come_first() -> None:
    boxes = [("u", "n", "p", model.ObservedSandbox(str(a), a, a == 1)) for a in (0, 1)]
    parts = [("u", "n", "p", model.ObservedContainer(f"{name}{a}", name, a, "exited", "1", created_at=float(a)))
             for a in (0, 2, 1) for name in ("a", "b")]
    pod = observe.assemble(boxes, parts)["u"]
    assert pod.sandbox is not None and pod.sandbox.id == "1"
    newest = pod.container("b")
    assert newest is not None and newest.id == "b2"


def test_specs_become_messages_without_unsafe_gaps() -> None:
    sandbox = model.SandboxSpec("u", "n", "p", host_network=True, hostname="p", share_processes=True,
                                ports=(model.PortMapping(80, 8080),))
    config = translate.sandbox_config(sandbox)
    assert config.hostname == "" and not config.port_mappings
    assert config.linux.security_context.namespace_options.network == cri.NODE
    plain = model.ContainerSpec("c", "i", stop_signal="SIGRTMIN+3", security=model.Security(
        run_as_username="app", run_as_group=5, add_capabilities=("NET_ADMIN", "SYS_TIME")))
    message = translate.container_config(sandbox, plain)
    context = message.linux.security_context
    assert list(context.capabilities.add_capabilities) == ["NET_ADMIN", "SYS_TIME"]
    assert (context.run_as_username, context.run_as_group.value) == ("app", 5) and not context.HasField("run_as_user")
    assert context.masked_paths and context.readonly_paths
    assert context.HasField("seccomp") and context.seccomp.profile_type == cri.SecurityProfile.Unconfined
    assert message.stop_signal == 38 and translate.signal_number("SIGTERM") == 23
    assert context.namespace_options.pid == cri.POD
    unmasked = translate.container_config(sandbox, model.ContainerSpec("c", "i", security=model.Security(
        privileged=True)))
    assert not unmasked.linux.security_context.masked_paths


class OtherRuntime(grpc.GenericRpcHandler):
    """A CRI runtime that is not containerd: it has GetContainerEvents and nothing of containerd's."""

    def service(self, details: Any) -> Any:
        if details.method != "/runtime.v1.RuntimeService/GetContainerEvents":
            return None
        return grpc.unary_stream_rpc_method_handler(
            self.stream, request_deserializer=cri.GetEventsRequest.FromString,
            response_serializer=cri.ContainerEventResponse.SerializeToString)

    async def stream(self, request: Any, context: Any) -> Any:
        box = cri.PodSandboxStatus(id="s", metadata=cri.PodSandboxMetadata(uid="u"))
        status = cri.ContainerStatus(id="c", state=cri.CONTAINER_EXITED, exit_code=4, finished_at=8 * 10**9)
        for id, kind in (("c", cri.CONTAINER_STARTED_EVENT), ("s", cri.CONTAINER_STOPPED_EVENT),
                         ("c", cri.CONTAINER_STOPPED_EVENT)):
            yield cri.ContainerEventResponse(container_id=id, container_event_type=kind, pod_sandbox_status=box,
                                             containers_statuses=[status])


def test_another_runtimes_events_are_understood(tmp_path: Path) -> None:
    async def body() -> list[model.RuntimeEvent]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((OtherRuntime(),))
        server.add_insecure_port(f"unix://{tmp_path}/cri.sock")
        await server.start()
        got: list[model.RuntimeEvent] = []
        async with asyncio.timeout(20), Connection(tmp_path / "cri.sock") as connection:
            async for event in Runtime(connection).events():
                got.append(event)
                if len(got) == 5:
                    break
        await server.stop(None)
        return got
    relist, box, exited, lost, again = asyncio.run(body())
    assert (relist.kind, box.kind) == ("relist", "changed")  # nothing of the start, which was our own
    assert exited == model.RuntimeEvent("u", "exited", "c", 4, 8.0)
    assert (lost.kind, again.kind) == ("lost", "relist")  # the stream ended: whoever listens must look anew


def test_the_control_group_driver_is_read_from_an_older_containerds_configuration() -> None:
    from agent.kubelet.cri.runtime import asks_systemd
    told = '{"containerd": {"runtimes": {"runc": {"options": {"SystemdCgroup": %s}}}}}'
    assert [asks_systemd(text) for text in (told % "true", told % "false", "{}", "", '{"containerd": []}')] == [
        True, False, None, None, None]


class Told(grpc.GenericRpcHandler):
    """A runtime that answers these methods, and no others."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def service(self, details: Any) -> Any:
        answer = self.answers.get(details.method.rpartition("/")[2])
        if answer is None:
            return None

        async def give(request: bytes, context: Any) -> Any:
            return answer
        return grpc.unary_unary_rpc_method_handler(give, response_serializer=type(answer).SerializeToString)


def handler(name: str, users: bool) -> Any:
    return cri.RuntimeHandler(name=name, features=cri.RuntimeHandlerFeatures(
        recursive_read_only_mounts=True, user_namespaces=users))


SYSTEMD = cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=cri.SYSTEMD))
CONFIG = '{"enableCDI": %s, "containerd": {"runtimes": {"runc": {"options": {"SystemdCgroup": %s}}}}}'
RUNTIMES = {
    "containerd 1.6": ({"Status": cri.StatusResponse(info={"config": CONFIG % ("null", "false")})},
                       model.Features(systemd=False)),
    "containerd 1.7": ({"Status": cri.StatusResponse(info={"config": CONFIG % ("true", "true")})},
                       model.Features(systemd=True, cdi=True)),
    "containerd 2": ({"Status": cri.StatusResponse(
        info={"config": CONFIG % ("true", "false")}, runtime_handlers=[handler("", True), handler("runc", True)],
        features=cri.RuntimeFeatures(supplemental_groups_policy=True)), "RuntimeConfig": SYSTEMD},
        model.Features(systemd=True, cdi=True, strict_groups=True, handlers=frozenset(("", "runc")),
                       recursive=frozenset(("", "runc")), user_namespaces=frozenset(("", "runc")))),
    "CRI-O": ({"Status": cri.StatusResponse(runtime_handlers=[handler("crun", True), handler("kata", False)]),
               "RuntimeConfig": SYSTEMD},
              model.Features(systemd=True, cdi=True, handlers=frozenset(("crun", "kata")),
                             recursive=frozenset(("crun", "kata")), user_namespaces=frozenset(("crun",))))}


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_can_what_it_says_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    async def body() -> model.Features:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Told(**RUNTIMES[name][0]),))
        server.add_insecure_port(f"unix://{tmp_path}/cri.sock")
        await server.start()
        async with asyncio.timeout(20), Connection(tmp_path / "cri.sock") as connection:
            found = await Runtime(connection).features()
        await server.stop(None)
        return found
    assert asyncio.run(body()) == RUNTIMES[name][1]

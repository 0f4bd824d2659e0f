"""What a container is told of itself, its pod, its node and its cluster: variables, files, names and resolvers."""

from __future__ import annotations

import base64
import os
from dataclasses import replace
from typing import Any

import pytest

from agent.kubelet.model import DNS
from controlplane.machinery.resources import named
from tests.node.nodekubelet import PODS, STAY, Rig, eventually, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
MI = 1 << 20
FIELDS = {"NAME": "metadata.name", "SPACE": "metadata.namespace", "UID": "metadata.uid", "NODE": "spec.nodeName",
          "ACCOUNT": "spec.serviceAccountName", "COLOUR": "metadata.labels['colour']",
          "NOTE": "metadata.annotations['example.org/note']", "HOST": "status.hostIP", "HOSTS": "status.hostIPs",
          "IP": "status.podIP", "IPS": "status.podIPs"}
OWN = {"limits": {"cpu": "500m", "memory": "64Mi", "ephemeral-storage": "2Gi"},
       "requests": {"cpu": "250m", "memory": "32Mi", "ephemeral-storage": "1Gi"}}


def field(path: str) -> dict[str, Any]:
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}}


def resource(name: str, **more: Any) -> dict[str, Any]:
    return {"valueFrom": {"resourceFieldRef": {"resource": name, **more}}}


def key(kind: str, name: str, of: str, **more: Any) -> dict[str, Any]:
    return {"valueFrom": {kind: {"name": name, "key": of, **more}}}


async def furnish(rig: Rig) -> None:
    """A node with something to give, a ConfigMap, a Secret and two Services."""
    rig.place = replace(rig.place, allocatable={"cpu": "1500m", "memory": "700Mi", "ephemeral-storage": "5Gi",
                                                "pods": "50"})
    data = {"word": base64.b64encode(b"hidden").decode()}
    for kind, obj in (("configmaps", {"metadata": {"name": "cm"}, "data": {"one": "1", "two": "2"}}),
                      ("secrets", {"metadata": {"name": "s"}, "data": data}),
                      ("services", {"metadata": {"name": "my-web"}, "spec": {"clusterIP": "10.96.0.9", "ports": [
                          {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
                      ("services", {"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": [
                          {"port": 80}]}})):
        await rig.api.create(named(kind), obj, "default")


async def variables(rig: Rig, pod: str, container: str = "c") -> dict[str, str]:
    """What the first process was given."""
    lines = (await rig.inside(pod, r"tr '\0' '\n' < /proc/1/environ", container)).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_variables_come_from_everything_there_is(host: Host) -> None:
    amounts = {"CPU": resource("limits.cpu", divisor="1m"), "MEMORY": resource("limits.memory", divisor="1Mi"),
               "DISK": resource("limits.ephemeral-storage"), "ASKED_CPU": resource("requests.cpu", divisor="1m"),
               "ASKED_CPUS": resource("requests.cpu"), "ASKED_MEMORY": resource("requests.memory"),
               "ASKED_DISK": resource("requests.ephemeral-storage", divisor="1Gi"),
               "THEIR_CPU": resource("limits.cpu", divisor="1m", containerName="free"),
               "THEIR_MEMORY": resource("limits.memory", divisor="1Mi", containerName="free"),
               "THEIR_DISK": resource("limits.ephemeral-storage", divisor="1Gi", containerName="free")}
    made = {**{name: field(path) for name, path in FIELDS.items()}, **amounts,
            "CONFIG": key("configMapKeyRef", "cm", "one"), "SECRET": key("secretKeyRef", "s", "word"),
            "NO_KEY": key("configMapKeyRef", "cm", "none", optional=True),
            "NO_SECRET": key("secretKeyRef", "none", "none", optional=True),
            "PLAIN": {"value": "$(COLOUR) $(MY_WEB_SERVICE_HOST) $(P_one) $$(COLOUR) $(NOBODY) $(LATER)"},
            "LATER": {"value": "x"}, "P_two": {"value": "mine"}}
    sources = [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}},
               {"prefix": "Q_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "none", "optional": True}}]

    async def body(rig: Rig) -> None:
        await furnish(rig)
        async with rig.kubelet():
            await rig.create(
                "told", sh(STAY, env=[{"name": n, **v} for n, v in made.items()], envFrom=sources, resources=OWN,
                           command=["sh", "-c", STAY, "$(COLOUR)"], args=["$(PLAIN)", "$$(X)"]),
                sh(STAY, name="free"), labels={"colour": "red"}, annotations={"example.org/note": "a b"},
                serviceAccountName="robot")
            await rig.create("unlinked", sh(STAY), enableServiceLinks=False)
            pod = await rig.pod("told", ready)
            has, ip = await variables(rig, "told"), pod["status"]["podIP"]
            plain = "red 10.96.0.9 1 $(COLOUR) $(NOBODY) $(LATER)"
            wanted = {"NAME": "told", "SPACE": "default", "UID": pod["metadata"]["uid"], "NODE": "n1",
                      "ACCOUNT": "robot", "COLOUR": "red", "NOTE": "a b", "HOST": "10.0.0.1", "HOSTS": "10.0.0.1",
                      "IP": ip, "IPS": ip, "CPU": "500", "MEMORY": "64", "DISK": str(2 << 30), "ASKED_CPU": "250",
                      "ASKED_CPUS": "1", "ASKED_MEMORY": str(32 * MI), "ASKED_DISK": "1", "THEIR_CPU": "1500",
                      "THEIR_MEMORY": "700", "THEIR_DISK": "5", "CONFIG": "1", "SECRET": "hidden", "P_one": "1",
                      "P_two": "mine", "word": "hidden", "Q_word": "hidden", "PLAIN": plain, "LATER": "x",
                      "MY_WEB_SERVICE_HOST": "10.96.0.9", "MY_WEB_SERVICE_PORT": "80",
                      "MY_WEB_SERVICE_PORT_DNS": "53", "MY_WEB_PORT": "tcp://10.96.0.9:80",
                      "MY_WEB_PORT_53_UDP_PROTO": "udp", "MY_WEB_PORT_80_TCP_ADDR": "10.96.0.9"}
            assert {name: has.get(name) for name in wanted} == wanted
            assert not {"NO_KEY", "NO_SECRET", "HEADLESS_SERVICE_HOST"} & has.keys()
            words = (await rig.inside("told", r"tr '\0' '\n' < /proc/1/cmdline")).splitlines()
            assert words[-3:] == ["red", plain, "$(X)"]
            await rig.pod("unlinked", ready)
            assert not [name for name in await variables(rig, "unlinked") if name.startswith("MY_WEB")]
            await rig.remove("told", "unlinked")
    run(host, body)


def test_files_tell_of_the_pod_and_follow_it(host: Host) -> None:
    items = [{"path": f"of/{name}", "fieldRef": {"fieldPath": FIELDS[name]}} for name in ("NAME", "SPACE", "UID")]
    items += [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}, "mode": 0o400},
              {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}},
              {"path": "colour", "fieldRef": {"fieldPath": FIELDS["COLOUR"]}},
              {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
              {"path": "theirs", "resourceFieldRef": {"containerName": "free", "resource": "limits.memory",
                                                      "divisor": "1Mi"}}]

    async def body(rig: Rig) -> None:
        await furnish(rig)
        async with rig.kubelet():
            await rig.create("told", sh(STAY, volumeMounts=[{"name": "d", "mountPath": "/d"}], resources=OWN),
                             sh(STAY, name="free"), labels={"colour": "red", "a": "b"},
                             annotations={"note": 'say "so"\nand go'},
                             volumes=[{"name": "d", "downwardAPI": {"defaultMode": 0o444, "items": items}}])
            pod = await rig.pod("told", ready)
            assert await rig.inside("told", "cd /d; for i in of/NAME of/SPACE of/UID colour cpu theirs; do "
                                            "cat $i; echo; done") == "\n".join(
                ("told", "default", pod["metadata"]["uid"], "red", "500", "700"))
            assert await rig.inside("told", "cat /d/labels; echo; cat /d/notes") == (
                'a="b"\ncolour="red"\nnote="say \\"so\\"\\nand go"')
            assert await rig.inside("told", "stat -Lc %a /d/labels /d/notes") == "400\n444"
            await rig.api.patch(PODS, "told", {"metadata": {"labels": {"colour": "blue"}, "annotations": {
                "note": None, "later": "yes"}}}, "default")

            async def followed() -> bool:
                return await rig.inside("told", "cat /d/colour /d/notes") == 'bluelater="yes"'
            await eventually(followed)
            assert state(rig.api.objects["pods", "default", "told"])["restartCount"] == 0
            await rig.remove("told")
    run(host, body)


def test_names_and_resolvers_are_as_the_pod_asks(host: Host) -> None:
    own = {"nameservers": ["192.0.2.1"], "searches": ["lab.example"],
           "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}
    cluster = "search default.svc.cluster.local svc.cluster.local cluster.local node.example"
    wanted = {"first": ({}, {cluster, "nameserver 10.96.0.10", "options ndots:5"}),
              "more": ({"dnsConfig": own}, {f"{cluster} lab.example", "nameserver 10.96.0.10", "nameserver 192.0.2.1",
                                            "options ndots:2 edns0"}),
              "default": ({"dnsPolicy": "Default"}, {"search node.example", "nameserver 192.0.2.53",
                                                     "options timeout:1"}),
              "none": ({"dnsPolicy": "None", "dnsConfig": own}, {"search lab.example", "nameserver 192.0.2.1",
                                                                 "options ndots:2 edns0"}),
              "plain": ({"hostNetwork": True}, {"search node.example", "nameserver 192.0.2.53", "options timeout:1"}),
              "hosted": ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"},
                         {cluster, "nameserver 10.96.0.10", "options ndots:5"})}

    async def body(rig: Rig) -> None:
        rig.node = {"cluster_dns": ("10.96.0.10",), "resolv": DNS(("192.0.2.53",), ("node.example",), ("timeout:1",))}
        async with rig.kubelet():
            for name, (spec, _) in wanted.items():
                await rig.create(name, sh(STAY), **spec)
            await rig.create("renamed", sh(STAY), hostnameOverride="other.example.org", hostname="ignored")
            for name, (_, lines) in wanted.items():
                await rig.pod(name, ready)
                assert set((await rig.inside(name, "cat /etc/resolv.conf")).splitlines()) == lines, name
            assert await rig.inside("first", "hostname") == "first"
            assert await rig.inside("plain", "hostname") == os.uname().nodename
            await rig.pod("renamed", ready)
            assert await rig.inside("renamed", "hostname") == "other.example.org"
            assert "\tother.example.org" in await rig.inside("renamed", "cat /etc/hosts")
            await rig.remove(*wanted, "renamed")
    run(host, body)

"""What fails under a cluster of three hosts: processes, addresses, and whole hosts, by reboots and power cuts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.image import demo
from tests.client.cluster import eventually
from tests.host.conftest import Lab
from tests.host.machine import Machine
from tests.host.test_doctor import lacks

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("workload")]
# A pod's way to say that it ended, and in which order.
ENDS = ("b=/bin/busybox; trap '$b sleep TAKES; $b hostname >> /told/order; exit 0' TERM; "
        "while :; do $b sleep 600 & wait $!; done")
LOGIND = "/etc/systemd/system/systemd-logind.service"


def test_every_service_may_be_killed(lab: Lab) -> None:
    before = lab.pods()
    for machine in lab.machines:
        machine.run("systemctl", "kill", "--signal=KILL", "--kill-who=main", "pelamis-*.service")
    eventually(lambda: lab.ready() and lab.answers(), seconds=120)
    assert lab.pods() == before


def test_a_process_that_hangs_is_started_anew(lab: Lab) -> None:
    """By its unit's watchdog, which a person has told to wait seconds instead of a minute."""
    server, folder = lab.server, "/etc/systemd/system/pelamis-controllers.service.d"
    anew = "systemctl daemon-reload; systemctl restart pelamis-controllers"
    server.run("sh", "-ec", f"mkdir {folder}; printf '[Service]\\nWatchdogSec=5\\n' > {folder}/override.conf; {anew}")
    try:
        hangs = server.processes()
        server.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "pelamis-controllers")
        eventually(lambda: "watchdog" in server.run("journalctl", "--no-pager", "-b", "-u", "pelamis-controllers",
                                                    "-t", "systemd").stdout.lower())
        eventually(lambda: server.processes()["controllers"] not in ("0", hangs["controllers"]))
    finally:
        server.run("sh", "-ec", f"rm -r {folder}; {anew}")
    assert {**server.processes(), "controllers": ""} == {**hangs, "controllers": ""}


def move(machine: Machine, old: str, new: str) -> None:
    """Give a machine another address, as a DHCP server does."""
    machine.run("sh", "-c", f"ip address add {new}/24 dev eth0; ip address del {old}/24 dev eth0; "
                f"ip address add {new}/24 dev eth0 2>/dev/null; ip route replace default via 192.168.79.1")


def test_a_server_with_another_address_and_host_names_that_change(lab: Lab) -> None:
    """One command on each host, and all is as before; a node's name is its own, whatever the host is called."""
    server, old, new, before = lab.server, lab.server.address, "192.168.79.31", lab.pods()
    for machine in (server, lab.agents[0]):
        machine.run("hostname", "renamed-" + machine.name)
    for was, now in ((old, new), (new, old)):
        move(server, was, now)
        server.run("systemctl", "start", "pelamis-prepare")
        eventually(lambda now=now: f"https://{now}:6443" in lab.kubectl("cluster-info"))  # type: ignore[misc]
        told = lab.agents[0].run("pelamis", "doctor", check=False).stdout
        assert f"curl -k https://{was}:6443/readyz; if its address changed: pelamis prepare --server" in told, told
        for agent in lab.agents:
            lost = agent.run("pelamis", "prepare", "--server", f"https://{agent.address}:6443", check=False)
            assert lost.returncode == 1 and "cannot be reached" in lost.stderr, lost.stderr
            eventually(lambda agent=agent, now=now: "follows its server" in agent.run(  # type: ignore[misc]
                "pelamis", "prepare", "--server", f"https://{now}:6443").stdout)
        eventually(lambda: lab.ready() and lab.answers())
        endpoints = lab.kubectl("get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[*]}")
        assert endpoints == now and lab.pods() == before
        command = server.pelamis("token", "create").stdout
        assert f"--server https://{now}:6443" in command
    for machine in (server, lab.agents[0]):
        machine.run("hostname", machine.name)


def test_a_node_with_another_address(lab: Lab) -> None:
    agent, before = lab.agents[1], lab.pods()
    old, new = agent.address, "192.168.79.23"
    move(agent, old, new)
    agent.run("systemctl", "start", "pelamis-prepare")

    def moved() -> bool:
        said = lab.kubectl("get", "node", agent.name, "-o", "jsonpath={.status.addresses[*].address}")
        assert new in said and old not in said, said
        return True
    eventually(moved)
    eventually(lambda: lab.ready() and lab.answers())
    name = lab.pod_on(agent)
    eventually(lambda: lab.kubectl("exec", name, "--", "/bin/busybox", "echo", "moved") == "moved\n")
    assert lab.pods() == before
    move(agent, new, old)
    agent.run("systemctl", "start", "pelamis-prepare")
    eventually(lambda: lab.ready() and lab.answers())


def ending(name: str, node: str, takes: int, priority: str) -> dict[str, Any]:
    """A pod that takes so many seconds to end."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "nodeName": node, "priorityClassName": priority,
        "volumes": [{"name": "told", "hostPath": {"path": "/root/told", "type": "DirectoryOrCreate"}}],
        "containers": [{"name": "main", "image": demo.DEMO, "imagePullPolicy": "IfNotPresent",
                        "command": ["/bin/busybox", "sh", "-c", ENDS.replace("TAKES", str(takes))],
                        "volumeMounts": [{"name": "told", "mountPath": "/told"}]}]}}


def test_pods_end_before_the_host_by_their_priority(lab: Lab) -> None:
    """logind is asked to wait for them; what has a higher priority ends after what has a lower one, slow as that is."""
    machine = lab.agents[1]
    conf = machine.root / "etc/pelamis/agent.conf"
    before = conf.read_text()
    machine.run("sh", "-ec", f"rm {LOGIND}; systemctl daemon-reload; systemctl start systemd-logind")
    try:
        conf.write_text(before.replace('FLAGS=""', 'FLAGS="--shutdown-grace-period-by-pod-priority=0=60s,1000=60s"'))
        machine.run("systemctl", "restart", "pelamis-agent")
        eventually(lambda: "shutdown" in machine.run("systemd-inhibit", "--list", "--no-pager", "--no-legend").stdout)
        lab.kubectl("create", "priorityclass", "later", "--value=1000")
        for name, takes, priority in (("sooner", 2, ""), ("later", 0, "later")):
            lab.kubectl("create", "-f", "-", input=json.dumps(ending(name, machine.name, takes, priority)))
        lab.kubectl("wait", "--for=condition=Ready", "pod/sooner", "pod/later", "--timeout=150s")
        machine.reboot()
        assert (machine.root / "root/told/order").read_text().split() == ["sooner", "later"]
        for name in ("sooner", "later"):
            status = json.loads(lab.kubectl("get", "pod", name, "-o", "json"))["status"]
            assert (status["phase"], status["reason"]) == ("Failed", "Terminated")
            assert status["message"] == "Pod was terminated in response to imminent node shutdown."
        eventually(lambda: lab.ready() and lab.answers(), seconds=120)
    finally:
        conf.write_text(before)
        machine.run("sh", "-ec", f"systemctl stop systemd-logind; ln -sfn /dev/null {LOGIND}; systemctl daemon-reload; "
                    "systemctl restart pelamis-agent; rm -rf /root/told")
        lab.kubectl("delete", "pod/sooner", "pod/later", "priorityclass/later", "--ignore-not-found")


def since(machine: Machine, name: str, what: str) -> int:
    """When the service came to be so, on the host's own clock."""
    return int(machine.run("systemctl", "show", f"pelamis-{name}", "-p", f"{what}TimestampMonotonic", "--value").stdout)


def clean(lab: Lab, machine: Machine) -> bool:
    """Whether a host that was off has all it had and nothing more: no service before the one it needs, no sandbox or
    address of a pod that is gone, a runtime folder as it is to be, and nothing the doctor finds."""
    assert since(machine, "containerd", "ActiveEnter") <= since(machine, "agent", "ExecMainStart")
    if machine is lab.server:
        assert since(machine, "apiserver", "ActiveEnter") <= since(machine, "controllers", "ExecMainStart")
        assert "sound" in machine.run("pelamis", "store", "check").stdout
    assert machine.run("stat", "-c", "%a %U", "/run/pelamis").stdout == "755 root\n"
    return machine.sound() and lacks(machine, "sandboxes")


def test_a_reboot_and_a_power_cut(lab: Lab) -> None:
    """Of an agent and of the server; the test before has rebooted the other agent."""
    agent = lab.agents[0]
    agent.cut()
    agent.start()
    eventually(lambda: lab.ready() and lab.answers(), seconds=120)
    lab.server.reboot()
    eventually(lambda: lab.ready() and lab.answers(), seconds=120)
    lab.kubectl("create", "configmap", "written-last")
    lab.server.cut()
    lab.server.start()
    eventually(lambda: lab.ready() and lab.answers(), seconds=120)
    lab.kubectl("delete", "configmap", "written-last")
    for machine in lab.machines:
        eventually(lambda machine=machine: clean(lab, machine), seconds=120)  # type: ignore[misc]

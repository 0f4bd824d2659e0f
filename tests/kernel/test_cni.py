"""The CNI daemon through its real shim: pods in namespaces that reach each other, their node and the world outside."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup import links, xtables
from netsetup.addresses import node_address
from netsetup.cni import install
from netsetup.cni.daemon import Daemon
from netsetup.ipam import Ipam
from netsetup.ledger import Ledger
from netsetup.rtnetlink import RtNetlink

from .conftest import Namespace, ask

pytestmark = pytest.mark.kernel


class Node:
    """A namespace with a running daemon, on a loop and thread of its own."""

    def __init__(self, host: Namespace, root: Path) -> None:
        self.host, self.paths = host, Paths(root)
        self.ledger = Ledger(self.paths.ledger)
        install.install(self.paths, self.ledger)
        self.start()

    def start(self) -> None:
        started = threading.Event()

        async def main() -> None:
            self.loop, self.daemon = asyncio.get_running_loop(), Daemon(self.paths, self.ledger)
            self.task = asyncio.create_task(self.daemon.run())
            await self.daemon.listening.wait()
            started.set()
            try:
                await self.task
            except asyncio.CancelledError:
                pass

        self.future = self.host.background(main)
        assert started.wait(10)

    def do(self, work) -> object:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.future.result(10)

    def cni(self, command: str, container: str, netns: str = "", plugin: str = "pelamis", **config) -> tuple[int, dict]:
        body = {"cniVersion": "1.0.0", "name": "pelamis", "type": plugin, **config}
        env = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": netns, "OTHER": "x",
               "CNI_IFNAME": "lo" if plugin == "loopback" else "eth0", "CNI_PATH": str(self.paths.cni_bin)}
        done = subprocess.run([self.paths.cni_bin / plugin], env=env, input=json.dumps(body).encode(),
                              capture_output=True, timeout=30)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}


@pytest.fixture(scope="module")
def node(make_namespace: Callable[[str], Namespace], tmp_path_factory) -> Iterator[Node]:
    made = Node(make_namespace("node"), tmp_path_factory.mktemp("n"))
    yield made
    made.stop()


def test_pods_get_a_network(node: Node, make_namespace: Callable[[str], Namespace]) -> None:
    outside = make_namespace("outside")
    outside.sh(f"ip link add eth0 mtu 1460 type veth peer name up0 mtu 1460 netns {node.host.name};"
               "ip addr add 192.168.9.2/24 dev eth0; ip link set eth0 up")
    node.host.sh("ip addr add 192.168.9.1/24 dev up0; ip link set up0 up; ip route add default via 192.168.9.2")
    assert node.host.run(node_address) == "192.168.9.1"

    code, answer = node.cni("ADD", "early", "/run/netns/none")
    assert code == 1 and answer["code"] == 11  # no pod CIDR yet: try again later
    assert not (node.paths.cni_conf / install.CONFIGURATION).exists()
    findings = node.do(node.daemon.configure("10.244.3.0/24"))
    assert not [f for f in findings if "get their network from" in f.fact]
    assert json.loads((node.paths.cni_conf / install.CONFIGURATION).read_text())["cniVersion"] == "1.0.0"

    pods = [make_namespace("a"), make_namespace("b")]
    for pod in pods:
        pod.sh("ip link set lo down")
        assert node.cni("ADD", pod.name, pod.path, plugin="loopback")[0] == 0
        code, answer = node.cni("ADD", pod.name, pod.path)
        assert code == 0, answer
        assert "lo: <LOOPBACK,UP" in pod.sh("ip link show lo").replace("LOWER_UP,", "")
    addresses = [p.sh("ip -4 -o addr show eth0").split()[3].removesuffix("/32") for p in pods]
    assert "mtu 1460" in pods[0].sh("ip link show eth0")
    assert addresses == ["10.244.3.2", "10.244.3.3"] and answer["ips"][0]["address"] == "10.244.3.3/32"
    assert node.cni("ADD", pods[1].name, pods[1].path)[1] == answer  # again: the same address, a whole link
    assert node.cni("CHECK", pods[1].name, pods[1].path)[0] == 0
    assert node.host.sh("ip -o link show type bridge") == ""  # point to point: nobody is ever asked for an address
    assert "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee PERMANENT" in pods[0].sh("ip neigh")
    assert any(line.startswith(f"{addresses[0]} dev pel") and line.rstrip().endswith("PERMANENT")
               for line in node.host.sh("ip neigh").splitlines())

    for index, pod in enumerate(pods):
        pod.serve(f"pod{index}")
    outside.serve("outside")
    assert pods[0].tcp(addresses[1], 8080) == f"pod1|{addresses[0]}"
    assert pods[0].tcp("192.168.9.2", 8080) == "outside|192.168.9.1"  # leaves the cluster with the node's address
    # a host port: reached from outside and from the node itself
    c = make_namespace("c")
    ports = {"portMappings": [{"hostPort": 8088, "containerPort": 8080, "protocol": "tcp"},
                              {"hostPort": 8088, "containerPort": 8081, "protocol": "udp", "hostIP": "192.168.9.1"}]}
    assert node.cni("ADD", c.name, c.path, runtimeConfig=ports)[0] == 0
    c.serve("ported")
    assert outside.tcp("192.168.9.1", 8088) == "ported|192.168.9.2"
    assert c.tcp("192.168.9.1", 8088).startswith("ported|")  # the pod through its own host port
    assert node.host.tcp("127.0.0.1", 8088).startswith("ported|")
    assert ask(outside.udp_socket(), "192.168.9.1", 8088) == "ported|192.168.9.2"
    assert ask(node.host.udp_socket(), "127.0.0.1", 8088) == "TIMEOUT"  # meant for another address
    assert node.cni("DEL", c.name, c.path, runtimeConfig=ports)[0] == 0
    assert outside.tcp("192.168.9.1", 8088) == "REFUSED"
    assert "KUBE-HP-" not in node.host.sh("iptables-save -t nat")

    # a foreign flush of everything is repaired
    node.host.sh("iptables -F; iptables -t nat -F")
    assert pods[0].tcp("192.168.9.2", 8080, 0.3) == "TIMEOUT"  # no masquerading: no way back
    node.do(node.daemon.repair())
    assert pods[0].tcp("192.168.9.2", 8080) == "outside|192.168.9.1"

    # a restarted agent finds everything as it was, also with its pods running
    link = pods[0].connect(addresses[1], 8080)
    link.recv(100)
    node.stop()
    code, answer = node.cni("ADD", "later", pods[0].path)
    assert code == 1 and answer["code"] == 11
    link.sendall(b"still here")
    assert link.recv(100) == b"still here"
    node.start()
    # a pod is taken down also by a daemon that is not configured, as when the whole node goes down
    last = make_namespace("last")
    node.do(node.daemon.configure("10.244.3.0/24"))
    assert node.cni("ADD", last.name, last.path, runtimeConfig=ports)[0] == 0
    node.stop()
    node.start()
    assert node.cni("DEL", last.name, last.path) == (0, {})
    assert links.host_name(last.name, "eth0") not in node.host.sh("ip -o link")
    assert "KUBE-HP-" not in node.host.sh("iptables-save -t nat")
    assert last.name not in {h.container for h in Ipam(node.paths.ipam, "10.244.3.0/24").holdings()}
    node.do(node.daemon.configure("10.244.3.0/24"))
    assert node.cni("ADD", pods[1].name, pods[1].path)[1]["ips"][0]["address"] == f"{addresses[1]}/32"

    assert addresses[0] in node.host.sh("conntrack -L 2>/dev/null")
    for _ in range(2):  # containerd calls DEL twice
        assert node.cni("DEL", pods[0].name, pods[0].path) == (0, {})
    assert f"={addresses[0]} " not in node.host.sh("conntrack -L 2>/dev/null")  # nobody is there to answer them
    assert pods[1].tcp(addresses[0], 8080, 0.3) != f"pod0|{addresses[1]}"
    node.daemon._clock = _Later()
    assert node.do(node.daemon.collect({"somebody"})) == [pods[1].name]
    assert "pel" not in node.host.sh("ip -o link")


class _Later:
    def __init__(self, time: float = 4e9) -> None:
        self._time = time

    def now(self) -> float:
        return self._time

def test_a_pod_is_as_fast_as_its_annotations_say(node: Node, make_namespace: Callable[[str], Namespace]) -> None:
    node.do(node.daemon.configure("10.244.3.0/24"))
    pod = make_namespace("slow")
    limits = {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000,
                            "egressBurst": 400_000}}
    assert node.cni("ADD", pod.name, pod.path, runtimeConfig=limits)[0] == 0
    assert "tbf" in pod.sh("tc qdisc show dev eth0") and "rate 4Mbit" in pod.sh("tc qdisc show dev eth0")
    outer = links.host_name(pod.name, "eth0")
    assert "rate 8Mbit" in node.host.sh(f"tc qdisc show dev {outer}")
    pod.serve("slow")
    address = pod.sh("ip -4 -o addr show eth0").split()[3].removesuffix("/32")
    with node.host.connect(address, 8080) as link:
        link.recv(100)
        link.settimeout(60)
        link.sendall(b"x" * 150_000)  # more than both bursts
        got = 0
        while got < 150_000:
            got += len(link.recv(65536))
    for namespace, device in ((node.host, outer), (pod, "eth0")):
        assert json.loads(namespace.sh(f"tc -s -j qdisc show dev {device}"))[0]["overlimits"] > 0  # it was held back
    limits["bandwidth"] |= {"ingressBurst": 0xFFFFFFFF, "egressBurst": 0x7FFFFFFF}  # as runtimes say that nobody said
    assert node.cni("ADD", pod.name, pod.path, runtimeConfig=limits)[0] == 0
    for namespace, device, most in ((node.host, outer, 100_000), (pod, "eth0", 50_000)):
        options = json.loads(namespace.sh(f"tc -j qdisc show dev {device}"))[0]["options"]
        assert most * 0.9 < options["burst"] <= most and options["lat"] < 50_000  # microseconds in its queue
    assert node.cni("DEL", pod.name, pod.path)[0] == 0


def test_pods_are_reached_past_a_firewall_that_forwards_nothing(node: Node, make_namespace: Callable) -> None:
    """What Docker, ufw and firewalld leave: a policy of DROP, chains of their own, rejects at the end."""
    node.do(node.daemon.configure("10.244.3.0/24"))
    node.host.sh("iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -N ufw-before-forward;"
                 "iptables -I FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN;"
                 "iptables -A FORWARD -j ufw-before-forward;"
                 "iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
    pods = [make_namespace("x"), make_namespace("y")]
    found = [node.cni("ADD", pod.name, pod.path)[1]["ips"][0]["address"].removesuffix("/32") for pod in pods]
    pods[1].serve("y")
    assert pods[0].tcp(found[1], 8080) == f"y|{found[0]}"
    node.host.sh("iptables -F FORWARD; iptables -I FORWARD -j DOCKER-USER")  # their restart
    assert pods[0].tcp(found[1], 8080, 0.3) == "TIMEOUT"
    node.do(node.daemon.repair())
    assert pods[0].tcp(found[1], 8080) == f"y|{found[0]}"
    assert "DOCKER-USER" in node.host.sh("iptables -S FORWARD")
    node.host.sh("iptables -P FORWARD ACCEPT")


def test_somebody_elses_network_is_respected(node: Node, make_namespace: Callable[[str], Namespace]) -> None:
    ours, theirs = (node.paths.cni_conf / name for name in (install.CONFIGURATION, "20-bridge.conflist"))
    node.do(node.daemon.configure("10.244.3.0/24"))
    pod = make_namespace("before")
    assert node.cni("ADD", pod.name, pod.path)[0] == 0
    theirs.write_text("{}")
    told = node.do(node.daemon.configure("10.244.3.0/24"))
    assert f"pods get their network from {theirs}" in [finding.fact for finding in told]
    assert not ours.exists() and theirs.read_text() == "{}"
    assert "PELAMIS-FORWARD" in node.host.sh("iptables-save")  # a pod of ours is still there
    node.host.sh("iptables -F PELAMIS-FORWARD")
    node.do(node.daemon.repair())
    assert "-A PELAMIS-FORWARD" in node.host.sh("iptables-save")
    node.daemon._clock = _Later(8e9)
    assert pod.name in node.do(node.daemon.collect(set()))  # nobody asks us to take it down
    assert "PELAMIS" not in node.host.sh("iptables-save")
    node.do(node.daemon.repair())
    assert "PELAMIS" not in node.host.sh("iptables-save")
    theirs.unlink()
    node.do(node.daemon.configure("10.244.3.0/24"))
    assert ours.exists() and "-A PELAMIS-FORWARD" in node.host.sh("iptables-save")


def test_a_kernel_that_takes_no_rules_is_told(node: Node, monkeypatch) -> None:
    node.do(node.daemon.configure("10.244.3.0/24"))
    node.host.sh("iptables -F PELAMIS-FORWARD")

    def without_nat(self: xtables.Backend, text: str) -> None:
        raise xtables.RestoreError("iptables-restore: can't initialize iptables table `nat': Table does not exist")

    with monkeypatch.context() as less:
        less.setattr(xtables.Backend, "restore", without_nat)
        with pytest.raises(Finding, match="does not take the rules of the pod network") as told:
            node.do(node.daemon.configure("10.244.3.0/24"))
    assert "Table does not exist" in told.value.because and "nat table" in told.value.fix
    node.do(node.daemon.configure("10.244.3.0/24"))
    assert "-A PELAMIS-FORWARD" in node.host.sh("iptables-save")


def test_wiring_is_quick_and_purge_leaves_nothing(make_namespace: Callable[[str], Namespace], tmp_path: Path) -> None:
    """No limit on the time itself: the machine may be busy; the figure is printed with -s."""
    import time
    host, pods = make_namespace("bare"), [make_namespace(f"w{n}") for n in range(8)]
    ledger = Ledger(tmp_path / "l/ledger.jsonl")
    ledger.record("link", prefix=links.PREFIX)
    before = host.sh("iptables-nft-save | grep -v '^#'; ip route; cat /proc/sys/net/ipv4/conf/all/route_localnet")
    ledger.record("iptables", prefix="PELAMIS-")
    host.run(ledger.set_sysctl, "net/ipv4/conf/all/route_localnet", 1)

    def wire_all() -> list[float]:
        with RtNetlink() as netlink:
            spent = []
            for number, pod in enumerate(pods):
                start = time.perf_counter()
                links.wire(netlink, links.Wire(pod.name, pod.path, f"10.9.0.{number + 2}"))
                spent.append((time.perf_counter() - start) * 1e3)
            return spent

    spent = sorted(host.run(wire_all))
    print(f"pod wiring: median {spent[4]:.2f} ms, least {spent[0]:.2f} ms")
    from netsetup import masquerade
    backend = xtables.Backend("nft")
    assert host.run(masquerade.apply, backend, ledger, "10.9.0.0/24", "10.9.0.0/16") is True
    assert host.run(masquerade.apply, backend, ledger, "10.9.0.0/24", "10.9.0.0/16") is False  # exactly as written
    assert host.sh("ip -o link | grep -c pel") == "8\n"
    host.run(ledger.undo)
    assert ledger.findings == []
    assert host.sh("ip -o link").count("\n") == 1
    after = host.sh("iptables-nft-save | grep -v '^#'; ip route; cat /proc/sys/net/ipv4/conf/all/route_localnet")
    assert [x for x in after.splitlines() if x[0] not in ":*C"] == [x for x in before.splitlines() if x[0] not in ":*C"]
    assert "PELAMIS" not in after

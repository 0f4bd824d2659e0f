"""From facts to findings: what is wrong or will be, why it matters, and the command that mends it.

Owns every judgement `doctor` makes, one small function each, listed in `CHECKS`. Pure. Promises that a finding names a
fact of this host, that its fix is a command to copy, and that what is fine yields nothing. Called by `doctor`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from controlplane.cli.preflight import REMOVAL, VIRTUALBOX_NAT
from controlplane.doctor.facts import Host, Node

PROBLEM, WARNING = "problem", "warning"
DAY = 86400.0
NEEDED_CONTROLLERS = ("cpu", "memory", "pids")
LEAST_FREE = 0.10  # of a disk: below, the kubelet begins to evict
LEAST_INODES = 0.05
SKEW_SECONDS = 10.0  # certificates are dated back five minutes; leases and tokens live by less
EXPIRY_DAYS = 30.0
STORE_WASTE = 0.5  # of the file: free pages that compaction would give back
SNAPSHOT_DAYS = 2.0
SERVER_PORTS = {6443: "the API server"}
KUBELET = 10250
NODE_PORTS = {KUBELET: "the kubelet"}
OURS = ("python", "python3", "pelamis")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`level` is PROBLEM or WARNING; `safe` says that `fix` may be run without asking (`doctor --fix`)."""

    check: str
    level: str
    fact: str
    because: str
    fix: str
    safe: bool = False


Check = Callable[[Host, Node], Iterable[Diagnosis]]


def examine(host: Host, node: Node) -> list[Diagnosis]:
    """Every finding, problems first."""
    found = [diagnosis for check in CHECKS for diagnosis in check(host, node)]
    return sorted(found, key=lambda d: d.level != PROBLEM)


def cgroups(host: Host, node: Node) -> Iterator[Diagnosis]:
    if not host.cgroups:
        yield Diagnosis("cgroups", PROBLEM, "no cgroup hierarchy is mounted on /sys/fs/cgroup",
                        "pods are held to their limits by it", "mount -t cgroup2 none /sys/fs/cgroup")
        return
    lacking = [c for c in NEEDED_CONTROLLERS if c not in host.controllers]
    if lacking:
        yield Diagnosis("cgroups", PROBLEM, f"the cgroup controllers {', '.join(lacking)} are not enabled",
                        "limits of pods would not hold", "add cgroup_enable=memory cgroup_memory=1 to the kernel's "
                        "command line (GRUB_CMDLINE_LINUX in /etc/default/grub; on a Raspberry Pi "
                        "/boot/firmware/cmdline.txt), then reboot")
    if host.cgroups != "v2":
        yield Diagnosis("cgroups", WARNING, f"the cgroup hierarchy is {host.cgroups}",
                        "limits hold, but memory QoS, I/O limits and pressure are features of version 2",
                        "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line, then reboot")


def kernel(host: Host, node: Node) -> Iterator[Diagnosis]:
    package = "linux-modules-extra-$(uname -r)" if host.distribution == "ubuntu" else "linux-image-$(dpkg " \
        "--print-architecture), then reboot"
    for module in host.modules_missing:
        yield Diagnosis("kernel", PROBLEM, f"the kernel module {module} is not there", "pods or Services need it",
                        f"modprobe {module} || apt-get install {package}")
    if host.userns_restricted:
        yield Diagnosis("kernel", WARNING, "AppArmor keeps programs without root from making user namespaces",
                        "builders without root and sandboxes of browsers may fail in pods; hostUsers: false is not "
                        "concerned, for root makes those namespaces",
                        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, where such programs are to run")


def swap(host: Host, node: Node) -> Iterator[Diagnosis]:
    if host.swap:
        yield Diagnosis("swap", WARNING, f"swap is on: {', '.join(host.swap)}",
                        "the host swaps and is slow where pods would be evicted; on cgroup v1 pods are swapped too",
                        "swapoff -a; sed -i '/\\sswap\\s/s/^/#/' /etc/fstab")


def clock(host: Host, node: Node) -> Iterator[Diagnosis]:
    if node.skew is not None and abs(node.skew) > SKEW_SECONDS:
        off = node.skew
        side = "behind" if off > 0 else "ahead of"
        yield Diagnosis("clock", PROBLEM, f"this host's clock is {abs(off):.0f} s {side} the server's",
                        "certificates, tokens and leases are judged by time",
                        "timedatectl set-ntp true", safe=True)
    elif host.clock_synchronised is False:
        yield Diagnosis("clock", WARNING, "this host's clock is not synchronised", "it will drift until certificates "
                        "and leases are misjudged", "timedatectl set-ntp true", safe=True)


def disks(host: Host, node: Node) -> Iterator[Diagnosis]:
    for disk in host.disks:
        if disk.total and disk.free / disk.total < LEAST_FREE:
            yield Diagnosis("disk", PROBLEM,
                            f"{disk.free >> 20} MiB of {disk.total >> 20} MiB are free for {disk.path}",
                            "the kubelet evicts pods for less than a tenth, and a full disk stops the store",
                            f"du -xh --max-depth=2 {disk.path} | sort -h | tail")
        if disk.inodes and disk.inodes_free / disk.inodes < LEAST_INODES:
            yield Diagnosis("disk", PROBLEM, f"{disk.inodes_free} of {disk.inodes} inodes are free for {disk.path}",
                            "no file can be made without one, however many bytes are free",
                            f"find {disk.path} -xdev -printf '%h\\n' | sort | uniq -c | sort -n | tail")


def dns(host: Host, node: Node) -> Iterator[Diagnosis]:
    loops = [r for r in host.resolvers if _loopback(r)]
    if loops:
        yield Diagnosis("dns", PROBLEM, f"{host.resolver_file} names {loops[0]}, which is this host itself",
                        "in a pod that address is the pod, and the cluster's DNS would ask itself in a circle",
                        "ln -sf /run/systemd/resolve/resolv.conf /etc/resolv.conf, or name a real resolver there")
    elif not host.resolvers:
        yield Diagnosis("dns", WARNING, "this host has no resolver", "names outside of the cluster are not found",
                        "echo nameserver 9.9.9.9 >> /etc/resolv.conf")


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def card(host: Host, node: Node) -> Iterator[Diagnosis]:
    own = [a for c in host.cards for a in c.addresses]
    if node.address and own and node.address not in own:
        yield Diagnosis("address", PROBLEM, f"the node is known by {node.address}, which this host does not have",
                        "nobody reaches its pods", "systemctl start pelamis-prepare", safe=True)
    chosen = node.address or host.default_address
    others = [a for a in own if not a.startswith(VIRTUALBOX_NAT)]
    twins = [p.name for p in node.peers if p.address == node.address and p.name != node.name]
    if twins:
        yield Diagnosis("address", PROBLEM, f"{node.name} and {', '.join(twins)} have the same address {node.address}",
                        "packets for the pods of one go to the other",
                        "reinstall with --node-ip and the address of the network the nodes share")
    elif chosen.startswith(VIRTUALBOX_NAT) and others:
        yield Diagnosis("address", PROBLEM if node.name else WARNING,
                        f"the way out of this host is {chosen}, VirtualBox's NAT, the same in every machine",
                        "nodes that are known by it do not reach each other", f"--node-ip {others[0]}")


def ports(host: Host, node: Node) -> Iterator[Diagnosis]:
    if node.name:
        return
    for port, use in {**SERVER_PORTS, **NODE_PORTS}.items():
        if port in host.listeners:
            yield Diagnosis("ports", PROBLEM, f"port {port} is held by {host.listeners[port]}", f"{use} needs it",
                            f"ss -ltnp 'sport = :{port}'")


def firewall(host: Host, node: Node) -> Iterator[Diagnosis]:
    for name in host.firewalls:
        allow = {"ufw": "ufw allow 6443/tcp; ufw allow 10250/tcp; ufw allow 4789/udp; ufw default allow routed",
                 "firewalld": "firewall-cmd --permanent --add-port={6443,10250}/tcp --add-port=4789/udp; "
                              "firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16; "
                              "firewall-cmd --reload"}.get(name, f"systemctl disable --now {name}")
        yield Diagnosis("firewall", WARNING, f"{name} is active", "unless it lets them through, nodes and pods do not "
                        "reach each other", allow)
    for chain in host.dropping:
        yield Diagnosis("firewall", WARNING, f"the policy of {chain} is drop",
                        "packets of pods that no rule of ours accepts end there, as Docker wants it",
                        "iptables -P FORWARD ACCEPT" if chain.endswith("FORWARD") else "nft list ruleset | less")


def tables(host: Host, node: Node) -> Iterator[Diagnosis]:
    if host.iptables == "nf_tables" and host.legacy_tables:
        yield Diagnosis("iptables", WARNING, "rules stand both in nf_tables and in the legacy tables "
                        f"({', '.join(host.legacy_tables)})", "each packet passes both, and no tool shows both",
                        "update-alternatives --display iptables; iptables-legacy-save shows the old rules; reboot when "
                        "nothing needs them")


def others(host: Host, node: Node) -> Iterator[Diagnosis]:
    kubernetes = [o for o in host.others if o != "docker"]
    if kubernetes:
        yield Diagnosis("others", PROBLEM, f"another Kubernetes is on this host: {', '.join(kubernetes)}",
                        "both would write the same rules and hold the same ports",
                        REMOVAL.get(kubernetes[0].partition(" ")[0], f"systemctl disable --now {kubernetes[0]}"))
    if "docker" in host.others and any(c.endswith("FORWARD") for c in host.dropping):
        yield Diagnosis("others", WARNING, "Docker is on this host, and drops what it does not know",
                        "pods of other nodes do not reach pods here", "iptables -I DOCKER-USER -j ACCEPT")


def services(host: Host, node: Node) -> Iterator[Diagnosis]:
    for component, state, reason in node.services:
        if state != "running":
            yield Diagnosis("services", PROBLEM, f"{component} is {state}", reason,
                            f"journalctl -b -n 50 -u pelamis-{component}")
    if node.runtime_error:
        yield Diagnosis("runtime", PROBLEM, "the container runtime does not answer", node.runtime_error,
                        "systemctl restart pelamis-containerd; containers run on")
    if node.api_error:
        moved = "; if its address changed: pelamis prepare --server https://ADDRESS:6443" if node.server else ""
        yield Diagnosis("server", PROBLEM, "the API server does not answer this node", node.api_error,
                        f"curl -k {node.server or 'https://127.0.0.1:6443'}/readyz{moved}")


def certificates(host: Host, node: Node) -> Iterator[Diagnosis]:
    for certificate in node.certificates:
        days = (certificate.end - host.now) / DAY
        if certificate.begin > host.now:
            yield Diagnosis("certificates", PROBLEM, f"{certificate.name} is not yet valid",
                            "this host's clock is behind", "timedatectl set-ntp true", safe=True)
        elif days <= 0:
            again = bool(node.server) and certificate.name.endswith("/node.crt")  # with what would it ask?
            yield Diagnosis("certificates", PROBLEM, f"{certificate.name} ended {-days:.0f} days ago",
                            "nobody believes its holder", "on the server: pelamis token create; then run here what it "
                            "prints" if again else "pelamis certs renew", safe=not again)
        elif days < EXPIRY_DAYS:
            yield Diagnosis("certificates", WARNING, f"{certificate.name} ends in {days:.0f} days",
                            "it should have been renewed long ago: whoever renews it cannot",
                            "pelamis certs renew; systemctl status pelamis-prepare.timer", safe=False)


def store(host: Host, node: Node) -> Iterator[Diagnosis]:
    for problem in node.store_problems[:1]:
        yield Diagnosis("store", PROBLEM, "the store is damaged", problem, "pelamis snapshot restore")
    if node.store_size > 64 << 20 and node.store_free / node.store_size > STORE_WASTE:
        yield Diagnosis("store", WARNING,
                        f"{node.store_free >> 20} of {node.store_size >> 20} MiB of the store are free",
                        "they are not given back by themselves", "pelamis store compact", safe=True)
    begun = min((c.begin for c in node.certificates), default=0.0)  # the authority is as old as the cluster
    without = host.now - max(node.newest_snapshot, begun)
    if node.snapshots is not None and without > SNAPSHOT_DAYS * DAY and node.store_size:
        told = "there is no snapshot of the store" if not node.snapshots else (
            f"the newest snapshot is {(host.now - node.newest_snapshot) / DAY:.0f} days old")
        yield Diagnosis("store", WARNING, told, "without one, a broken disk is the end of the cluster",
                        "pelamis snapshot save", safe=True)


def sandboxes(host: Host, node: Node) -> Iterator[Diagnosis]:
    if node.stale_sandboxes:
        names = ", ".join(node.stale_sandboxes[:5])
        yield Diagnosis("sandboxes", WARNING, f"{len(node.stale_sandboxes)} sandboxes belong to no pod: {names}",
                        "they hold addresses, and names that new pods need", "systemctl restart pelamis-agent",
                        safe=True)


def peers(host: Host, node: Node) -> Iterator[Diagnosis]:
    for peer in node.peers:
        if peer.ready and peer.ready != "True":
            yield Diagnosis("nodes", PROBLEM, f"node {peer.name} is not ready", peer.reason,
                            f"on {peer.name}: pelamis doctor")
        if peer.reached is False:
            yield Diagnosis("network", WARNING, f"{peer.name} ({peer.address}) does not answer a ping",
                            "if nothing else answers either, pods here do not reach those there",
                            f"ip route get {peer.address}; ping {peer.address}")
        elif peer.full_size is False:
            yield Diagnosis("mtu", PROBLEM, f"small packets reach {peer.name}, those of full size do not",
                            "connections between pods hang as soon as they carry data: the MTU on the way is smaller",
                            f"tracepath {peer.address}; then set the same MTU on both: ip link set dev … mtu …")
        if peer.kubelet is False and peer.ready == "True":
            yield Diagnosis("firewall", PROBLEM, f"port {KUBELET} of {peer.name} ({peer.address}) cannot be reached",
                            "its kubelet runs, so something on the way drops it: logs, exec and metrics do not work",
                            f"on {peer.name}: nft list ruleset | grep -n drop; "
                            f"iptables -I INPUT -p tcp --dport {KUBELET} -j ACCEPT")
        if peer.version and node.server_version and not compatible(peer.version, node.server_version):
            yield Diagnosis("versions", PROBLEM, f"{peer.name} runs {peer.version}, the server {node.server_version}",
                            "an agent may be one minor version older than its server, and never newer",
                            f"on {peer.name}: pelamis upgrade")


def compatible(agent: str, server: str) -> bool:
    """Whether an agent of one version may work with a server of another: the same, or one minor version older."""
    one, other = (_minor(v) for v in (agent, server))
    return one is None or other is None or (one[0] == other[0] and 0 <= other[1] - one[1] <= 1)


def _minor(text: str) -> tuple[int, int] | None:
    parts = text.lstrip("v").split(".")
    return (int(parts[0]), int(parts[1])) if len(parts) > 1 and parts[0].isdigit() and parts[1].isdigit() else None


CHECKS: tuple[Check, ...] = (cgroups, kernel, swap, clock, disks, dns, card, ports, firewall, tables, others, services,
                             certificates, store, sandboxes, peers)

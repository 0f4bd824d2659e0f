"""What must be true of a machine before anything on it is changed. Each check raises a `Finding` with its fix."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import socket
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from controlplane.cli.control import CHECKOUT
from controlplane.hosts.layout import Layout
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from netsetup.addresses import node_address

LEAST_DISK = 1 << 30  # bytes: images, the store's growth and logs of a small cluster
PORTS = {6443: "the API server", 10250: "the kubelet"}
VIRTUALBOX_NAT = "10.0.2."  # the network behind which VirtualBox hides each machine, all with one address
# Another Kubernetes: what its node leaves on the disk while it is set up, and what its agent is called.
OTHERS = {"kubelet": "etc/kubernetes/kubelet.conf", "k3s": "var/lib/rancher/k3s", "rke2": "var/lib/rancher/rke2",
          "microk8s": "var/snap/microk8s", "k8s": "var/snap/k8s", "k0s": "var/lib/k0s"}
AGENTS = ("kubelet", "kubelite", "k3s-agent", "k3s-server", "k3s", "k0s", "rke2")
REMOVAL = {"kubelet": "kubeadm reset -f; systemctl disable --now kubelet", "k3s": "k3s-uninstall.sh",
           "rke2": "rke2-uninstall.sh", "microk8s": "snap remove --purge microk8s",
           "k8s": "snap remove --purge k8s", "k0s": "k0s stop; k0s reset"}
LEAST_KERNEL = (4, 19)  # overlayfs in a shape containerd uses, and what Debian 10 had


def is_root() -> bool:
    return os.geteuid() == 0


def check_root() -> None:
    if not is_root():
        raise only_root()


def only_root(file: str = "") -> Finding:
    """What to tell somebody else: the very command line that was given, for root."""
    program = "pelamis" if Layout(Paths()).library in CHECKOUT.parents else "./pelamis"
    return Finding(f"only root may read {file}" if file else "this needs root",
                   "" if file else "it looks at, or changes, what belongs to the whole machine",
                   f"sudo {program} {shlex.join(sys.argv[1:])}")


def check_checkout() -> None:
    if not (CHECKOUT / "tests").is_dir():
        raise Finding("this works in a checkout alone", f"{CHECKOUT} was installed without the tests' code",
                      "run ./pelamis in the folder that this version was installed from")


def check_kernel() -> None:
    if platform.system() != "Linux":
        raise Finding(f"this is {platform.system()}, not Linux", "containers are a feature of the Linux kernel",
                      "use a Linux machine or a virtual machine")
    release = platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if numbers < LEAST_KERNEL:
        raise Finding(f"the kernel is {release}", "the oldest that works is 4.19", "upgrade the kernel")
    if "overlay" not in Path("/proc/filesystems").read_text() and not Path("/sys/module/overlay").exists() and (
            shutil.which("modprobe") is None or os.system("modprobe overlay 2>/dev/null") != 0):
        raise Finding("the kernel has no overlayfs", "containerd stacks image layers with it", "modprobe overlay")


def check_cgroups() -> None:
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.controllers").exists() and not (root / "memory").is_dir():
        raise Finding("no cgroup hierarchy is mounted on /sys/fs/cgroup", "pods are held to their limits by cgroups",
                      "mount -t cgroup2 none /sys/fs/cgroup")


def check_disk(paths: Paths) -> None:
    place = paths.lib
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < LEAST_DISK:
        raise Finding(f"only {free >> 20} MiB are free on the disk of {paths.lib}",
                      f"images and the store need at least {LEAST_DISK >> 20} MiB",
                      f"free some space, or mount a larger disk on {paths.lib}")


def check_ports(wanted: Collection[int] | None = None) -> None:
    """The ports we listen on, or the wanted ones of them, must be free (called only while we do not run)."""
    for port, use in PORTS.items():
        if wanted is not None and port not in wanted:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                raise Finding(f"port {port}, which {use} needs, is in use by {_holder(port)}",
                              "another Kubernetes or an unfinished earlier start may hold it",
                              f"stop that process (ss -ltnp 'sport = :{port}' shows it) and run the command again"
                              ) from None


def _holder(port: int) -> str:
    import psutil
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
            return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"


def others(root: Path = Path("/")) -> list[str]:
    """Each other Kubernetes of this host, with the fact that tells it: "kubelet (/etc/kubernetes/kubelet.conf)"."""
    import psutil
    found = {name: f"/{place}" for name, place in OTHERS.items() if (root / place).exists()}
    own = os.stat("/proc/self/ns/net").st_ino
    for process in psutil.process_iter(["name", "pid"]):
        try:  # one in a network of its own is a cluster in a container, which is in nobody's way
            if process.info["name"] in AGENTS and os.stat(f"/proc/{process.pid}/ns/net").st_ino == own:
                found.setdefault(process.info["name"], f"pid {process.pid}")
        except OSError:
            continue
    return [f"{name} ({fact})" for name, fact in found.items()]


def check_others(root: Path) -> None:
    if found := others(root):
        name = found[0].partition(" ")[0]
        raise Finding(f"another Kubernetes is on this host: {', '.join(found)}",
                      "both would write the same rules and hold the same ports",
                      f"remove it ({REMOVAL.get(name, f'systemctl disable --now {name}')}), then run the command again")


def addresses(family: int = 4) -> list[str]:
    """The addresses of this machine that others may know it by."""
    import psutil
    domain = socket.AF_INET6 if family == 6 else socket.AF_INET
    return [a.address for name, found in psutil.net_if_addrs().items() if name != "lo" and not name.startswith("pel")
            for a in found if a.family == domain and not a.address.startswith(("127.", "169.254.", "fe80:"))]


def node_ip(wanted: str = "", family: int = 4) -> str:
    """The address this node is known by: the wanted one, else the source of the default route, else the first global
    one. Raises Finding when there is none, or the wanted one is not on this machine."""
    own = addresses(6 if ":" in wanted else family)
    if wanted:
        if wanted not in own:
            raise Finding(f"{wanted} is not an address of this machine",
                          f"it has {', '.join(own) or 'none but loopback'}", "give one of these to --node-ip")
        return wanted
    try:
        return beyond_nat(node_address(family), own)
    except Finding:
        pass  # no default route: any address will do
    if not own:
        raise Finding("this machine has no network address but loopback",
                      "pods and the API server need one that others can reach",
                      "ip addr add 192.168.50.10/24 dev eth0")
    return own[0]


def beyond_nat(chosen: str, own: Sequence[str]) -> str:
    """Another address instead of the one every VirtualBox machine has on its first card, when there is one. Pure."""
    others = [a for a in own if not a.startswith(VIRTUALBOX_NAT)]
    return others[0] if chosen.startswith(VIRTUALBOX_NAT) and others else chosen


def check_all(paths: Paths) -> None:
    check_kernel()
    check_cgroups()
    check_disk(paths)
    check_others(paths.root)

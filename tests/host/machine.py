"""Hosts with a real systemd as PID 1, on one segment: what users have, in namespaces of this machine.

`Segment()` is the cable, `Machine(segment, number)` a host on it: a Debian 12 with systemd, a file tree, processes,
network and control groups of its own. It can be rebooted (by itself), cut off from power and switched on again. The
kernel's settings outside of the network are read-only in it: they belong to all. Where PELAMIS_HOST_RELEASE names
another release its libraries come from PyPI, as on a user's host.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.client.fresh import CHECKOUT, COMMAND_SECONDS, KEPT, MIRROR, SKIPPED, Fresh

OWN = "bookworm"  # its Python is that of these tests
RELEASE = os.environ.get("PELAMIS_HOST_RELEASE", OWN)
PACKAGES = ("systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "containerd", "runc", "crun", "iptables",
            "iproute2", "python3", "python3-venv", "curl", "kmod", "procps", "conntrack", "ca-certificates", "nftables")
HELD = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]  # a tree of other packages is another tree
ARCHIVE = KEPT.with_name(f"host-{RELEASE}-{HELD}.tar")
TREE = Path(f"/var/tmp/pelamis-host-{RELEASE}-{HELD}")
# Services of the distribution that would do nothing but cost time here, or that touch what the machines share.
MASKED = ("systemd-udevd.service", "systemd-udev-trigger.service", "systemd-sysctl.service", "containerd.service",
          "systemd-modules-load.service", "console-getty.service", "getty.target", "systemd-logind.service",
          "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
          "systemd-timesyncd.service", "systemd-networkd.service", "e2scrub_reap.service",
          "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "sys-fs-fuse-connections.mount")
BOOT_SECONDS = 180.0  # a machine whose cores are busy with other tests
PAUSE = 0.05


def tree() -> Path:
    """A Debian with systemd as a file tree, made once for all runs on this machine."""
    if not TREE.exists():
        if not ARCHIVE.exists():
            ARCHIVE.parent.mkdir(parents=True, exist_ok=True)
            fresh = ARCHIVE.with_suffix(".new.tar")
            subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet",
                            "--include=" + ",".join(PACKAGES), RELEASE, fresh, MIRROR],
                           check=True, timeout=COMMAND_SECONDS)
            fresh.replace(ARCHIVE)
        made = TREE.with_name(TREE.name + ".new")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        subprocess.run(["tar", "-xf", ARCHIVE, "-C", made], check=True)
        made.rename(TREE)
    return TREE


def obstacle() -> str:
    """Why no such machine can run here, "" when it can."""
    if os.geteuid() != 0:
        return "needs root: it makes machines of their own"
    return "" if shutil.which("mmdebstrap") or TREE.exists() else "needs mmdebstrap: apt-get install mmdebstrap"


class Segment:
    """An Ethernet segment that the machines are plugged into, with nothing else on it."""

    def __init__(self) -> None:
        self.netns = f"pelamis-{uuid.uuid4().hex[:8]}"
        for line in (f"netns add {self.netns}", f"-n {self.netns} link add segment type bridge",
                     f"-n {self.netns} link set segment up", f"-n {self.netns} link set lo up"):
            subprocess.run(["ip", *line.split()], check=True)

    def plug(self, name: str, up: bool) -> None:
        """Plug a cable in, or pull it."""
        subprocess.run(["ip", "-n", self.netns, "link", "set", name, "up" if up else "down"], check=True)

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self.netns], check=True)


class Machine(Fresh):
    """Host `number` of a segment: host1 is 192.168.79.11."""

    init = """
mount --bind /proc/sys /proc/sys
mount --bind /proc/sys/net /proc/sys/net
mount -o remount,bind,ro /proc/sys
mount --make-rshared /
hostname "$(cat /etc/hostname)"
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal </dev/null 2>&1
"""

    def __init__(self, segment: Segment, number: int) -> None:
        self.segment, self.name, self.address = segment, f"host{number}", f"192.168.79.{10 + number}"
        super().__init__()

    def _fill(self) -> None:
        for entry in tree().iterdir():
            # Programs are shared by hard links; what a machine may write to in place is its own.
            how = "-al" if entry.name == "usr" else "-a"
            subprocess.run(["cp", how, entry, self.root], check=True)
        (self.root / "etc/hostname").write_text(self.name + "\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (self.root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        self._point_out()
        for name in MASKED:
            (self.root / "etc/systemd/system" / name).symlink_to("/dev/null")
        shutil.copytree(CHECKOUT, self.root / "root/pelamis", ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
        if RELEASE == OWN:
            self._libraries(self.root / "root/venv")

    def _libraries(self, venv: Path) -> None:
        """The Python environment of these tests, as if the checkout's first command had made it."""
        subprocess.run(["cp", "-al", Path(sys.executable).parents[1], venv], check=True)
        project = self.root / "root/pelamis/pyproject.toml"
        for stamp in venv.glob(".installed-*"):
            stamp.unlink()
        (venv / ".installed-base").write_text(
            hashlib.sha256(project.read_bytes()).hexdigest() + "  /root/pelamis/pyproject.toml")

    def _connect(self) -> None:
        far = self.segment.netns
        for line in (f"netns add {self.netns}", f"-n {self.netns} link set lo up",
                     f"-n {self.netns} link add eth0 type veth peer name {self.name} netns {far}",
                     f"-n {far} link set {self.name} master segment", f"-n {far} link set {self.name} up",
                     f"-n {self.netns} address add {self.address}/24 dev eth0", f"-n {self.netns} link set eth0 up",
                     f"-n {self.netns} route add default via 192.168.79.1"):
            subprocess.run(["ip", *line.split()], check=True)

    def start(self) -> None:
        super().start()
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            done = self.run("systemctl", "is-system-running", check=False)
            if done.stdout.strip() in ("running", "degraded"):
                return
            assert time.monotonic() < deadline, f"{self.name} does not boot: {done.stdout} {done.stderr}"
            time.sleep(PAUSE)

    def pelamis(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The checkout's own command; with `check` a failure shows what the services said."""
        done = self.run("env", "PELAMIS_VENV=/root/venv", "/root/pelamis/pelamis", *arguments, check=False)
        if check and done.returncode:
            said = self.run("journalctl", "--no-pager", "-b", "-n", "60", "-u", "pelamis*", check=False).stdout
            raise AssertionError(f"{self.name}: pelamis {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n"
                                 f"{done.stderr}\n{said}")
        return done

    def python(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program with the checkout's code."""
        return self.run("env", "PYTHONPATH=/root/pelamis", "/root/venv/bin/python", "-B", "-c", program, *arguments,
                        check=check)

    def processes(self) -> dict[str, str]:
        """Service → its process, "0" when it has none."""
        return {name: self.run("systemctl", "show", f"pelamis-{name}", "-p", "MainPID", "--value").stdout.strip()
                for name in ("apiserver", "controllers", "agent", "containerd")}

    def certificate(self, port: int) -> str:
        """What is served there."""
        return self.run("/root/venv/bin/python", "-c", "import ssl, sys; "
                        "print(ssl.get_server_certificate(('127.0.0.1', int(sys.argv[1]))))", str(port)).stdout.strip()

    def sound(self) -> bool:
        """Whether the doctor finds nothing."""
        done = self.run("pelamis", "doctor", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return True

    def reboot(self) -> None:
        """Shut down in order and start again."""
        assert self.holder is not None
        self.run("systemctl", "reboot", check=False)
        self.holder.wait(BOOT_SECONDS)
        self.start()

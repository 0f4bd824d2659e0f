"""A virtual machine with a kernel and control groups (v2) of its own, emulated: nothing of this host is asked of it.

Owns the disk and the process. The disk is made of a Debian tree, this checkout with its libraries, and a script; the
machine runs the script at boot, writes what it prints to its second serial port, and is switched off. Slow, and the
nearest to what users have.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.client.fresh import CHECKOUT, COMMAND_SECONDS, MIRROR, SKIPPED
from tests.host.machine import HELD, PACKAGES

TREE = Path(f"/var/tmp/pelamis-vm-{HELD}")
ADDRESS = "192.168.56.10"
DISK = "4G"
MEMORY = "2048"
RUN_SECONDS = 1200.0  # emulated: five to eight times slower
UNIT = """[Unit]
After=network-online.target multi-user.target
[Service]
ExecStart=/root/lab.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
[Install]
WantedBy=graphical.target
"""
NETWORK = f"[Match]\nName=eth0\n[Network]\nAddress={ADDRESS}/24\nGateway=192.168.56.1\n"
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "systemd-networkd-wait-online.service", "containerd.service")
LARGE = ("mypy", "ruff", "kubernetes", "pytest", "_pytest", "hypothesis")  # of the tests: not needed in it


def tree() -> Path:
    """A Debian with systemd and a kernel, made once for all runs on this machine."""
    if not TREE.exists():
        made = TREE.with_name(TREE.name + ".new")
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet", "--include="
                        + ",".join((*PACKAGES, "linux-image-cloud-amd64")), "bookworm", made, MIRROR],
                       check=True, timeout=COMMAND_SECONDS)
        made.rename(TREE)
    return TREE


def run(script: str, folder: Path, files: dict[str, Path]) -> str:
    """What the script printed in a fresh machine; `files` are put into root's home. `folder` is for the disk."""
    root = folder / "root"
    subprocess.run(["cp", "-a", tree(), root], check=True)
    _fill(root, script, files)
    kernel, initrd = (next((root / "boot").glob(f"{name}-*")) for name in ("vmlinuz", "initrd.img"))
    disk, told = folder / "disk.raw", folder / "told"
    try:
        subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, disk, DISK], check=True)
        _boot(kernel, initrd, disk, folder / "console", told)
    finally:  # gigabytes, which pytest would keep for several runs
        shutil.rmtree(root)
        disk.unlink(missing_ok=True)
    return told.read_text(errors="replace").replace("\r", "")


def _boot(kernel: Path, initrd: Path, disk: Path, console: Path, told: Path) -> None:
    """Run the machine until it switches itself off."""
    subprocess.run(
        ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-smp", "2",
         "-m", MEMORY, "-nodefaults", "-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append",
         "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off nokaslr",
         "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-device", "virtio-rng-pci",
         "-serial", f"file:{console}", "-serial", f"file:{told}",
         "-netdev", "user,id=n0,net=192.168.56.0/24,host=192.168.56.1", "-device", "virtio-net-pci,netdev=n0"],
        check=True, timeout=RUN_SECONDS)


def _fill(root: Path, script: str, files: dict[str, Path]) -> None:
    shutil.copytree(CHECKOUT, root / "root/pelamis", ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
    shutil.copytree(Path(sys.executable).parents[1], root / "root/venv", symlinks=True,
                    ignore=shutil.ignore_patterns(*LARGE, ".installed-*"))
    digest = hashlib.sha256((root / "root/pelamis/pyproject.toml").read_bytes()).hexdigest()
    (root / "root/venv/.installed-base").write_text(f"{digest}  /root/pelamis/pyproject.toml")
    for name, source in files.items():
        shutil.copy(source, root / "root" / name)
    (root / "root/lab.sh").write_text(script)
    (root / "root/lab.sh").chmod(0o755)
    units = root / "etc/systemd/system"
    (units / "lab.service").write_text(UNIT)
    (units / "graphical.target.wants").mkdir(exist_ok=True)
    (units / "graphical.target.wants/lab.service").symlink_to("../lab.service")
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (root / "etc/systemd/network/10.network").write_text(NETWORK)
    subprocess.run(["chroot", root, "systemctl", "enable", "systemd-networkd"], check=True, capture_output=True)
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults,noatime 0 1\n")
    (root / "etc/hostname").write_text("vm1\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm1\n")
    (root / "etc/machine-id").write_text("")

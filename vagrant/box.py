#!/usr/bin/env python3
"""Makes a Vagrant box for libvirt of Debian's packages alone, for labs that reach no box catalogue. As root:

    vagrant/box.py bookworm pelamis-bookworm.box
    vagrant box add --name pelamis/bookworm pelamis-bookworm.box
    cd vagrant; PELAMIS_BOX=pelamis/bookworm vagrant up

Needs mmdebstrap, mke2fs (e2fsprogs), qemu-img (qemu-utils), and a Debian mirror. Nothing is mounted and no loop device
is used: the file system is made of a tree, the boot loader is written before it. The box is what Debian's own boxes
are: a user vagrant with Vagrant's well-known key, sshd, sudo, one card by DHCP, under ifupdown (bookworm), or
systemd-networkd and systemd-resolved (trixie). Called by people, and by the nightly tests.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import tarfile
import tempfile
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
# What Debian's boxes have that matters here; grub-pc-bin and grub-common hold the boot loader.
PACKAGES = ("systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "systemd-timesyncd", "linux-image-cloud-amd64",
            "grub-pc-bin", "grub-common", "openssh-server", "sudo", "rsync", "iproute2", "iputils-ping", "procps",
            "kmod", "python3", "ca-certificates", "curl", "less")
NETWORK = {"bookworm": ("ifupdown", "isc-dhcp-client"), "trixie": ("systemd-resolved",)}
KEY = ("ssh-rsa AAAAB3NzaC1yc2EAAAABIwAAAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7gHzIw+niNltGEFHzD8+v1I2YJ6oXev"
       "ct1YeS0o9HZyN1Q9qgCgzUFtdOKLv6IedplqoPkcmF0aYet2PkEDo3MlTBckFXPITAMzF8dJSIFo9D8HfdOV0IAdx4O7PtixWKn5y2hMNG0zQP"
       "yUecp4pzC6kivAIhyfHilFR61RGL+GPXQ2MWZWFYbAGjyiYJnAmCP3NOTd0jMZEnDkbUvxhMmBYSdETk1rRgm+R4LOzFUGaHqHDLKLX+FIPKcF"
       "96hrucXzcWyLbIbEgE98OHlnVYCzRdK8jlqm8tehUc9c9WhQ== vagrant insecure public key")
CONFIGURE = """
set -e
useradd --create-home --shell /bin/bash vagrant
install -d -m 700 -o vagrant -g vagrant /home/vagrant/.ssh
printf '%s\\n' "$1" > /home/vagrant/.ssh/authorized_keys
chown vagrant:vagrant /home/vagrant/.ssh/authorized_keys
chmod 600 /home/vagrant/.ssh/authorized_keys
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/vagrant
echo 'UseDNS no' > /etc/ssh/sshd_config.d/vagrant.conf
echo 'LABEL=root / ext4 defaults,noatime 0 1' > /etc/fstab
echo debian > /etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 debian\\n' > /etc/hosts
if [ -d /etc/network ]; then
    printf 'auto lo\\niface lo inet loopback\\nallow-hotplug eth0\\niface eth0 inet dhcp\\n' > /etc/network/interfaces
    : > /etc/resolv.conf
else
    printf '[Match]\\nName=eth0\\n\\n[Network]\\nDHCP=ipv4\\n' > /etc/systemd/network/10-eth0.network
    systemctl enable --quiet systemd-networkd systemd-resolved
    ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
fi
: > /etc/machine-id
mkdir -p /boot/grub
cat > /boot/grub/grub.cfg <<'END'
set timeout=0
menuentry Debian {
    linux /vmlinuz root=LABEL=root rw console=tty0 console=ttyS0 net.ifnames=0 quiet
    initrd /initrd.img
}
END
printf 'search --no-floppy --label root --set=root\\nset prefix=($root)/boot/grub\\nconfigfile /boot/grub/grub.cfg\\n' \
> /boot/grub/early.cfg
grub-mkimage -O i386-pc -o /boot/grub/core.img -p /boot/grub -c /boot/grub/early.cfg \\
    biosdisk part_msdos ext2 search search_label configfile linux normal echo
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/
apt-get clean
rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*
"""
# The keys of a host are its own: made at its first start, before sshd checks them.
KEYS_UNIT = """[Unit]
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
[Install]
WantedBy=ssh.service
"""
VAGRANTFILE = """Vagrant.configure("2") do |config|
  config.vm.synced_folder ".", "/vagrant", disabled: true
end
"""
SECTOR = 512
START = 2048  # sector of the partition; the boot loader lies before it
GIBIBYTES = 8  # of the disk; the file holds what is used
SECONDS = 900.0  # a slow mirror, a slow disk


def tree(release: str, folder: Path) -> None:
    """Debian `release`, configured, as a file tree in `folder`, which must not be there yet."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run("mmdebstrap", "--variant=minbase", "--mode=root", "--quiet",
         "--include=" + ",".join((*PACKAGES, *NETWORK[release])), release, folder, MIRROR)
    units = folder / "etc/systemd/system"
    (units / "ssh-keys.service").write_text(KEYS_UNIT)
    (units / "ssh.service.wants").mkdir(exist_ok=True)
    (units / "ssh.service.wants/ssh-keys.service").symlink_to("../ssh-keys.service")
    _run("chroot", folder, "sh", "-c", CONFIGURE, "configure", KEY)


def disk(root: Path, target: Path) -> None:
    """A bootable disk of the tree `root`: a partition table, GRUB, one partition."""
    sectors = GIBIBYTES * (1 << 30) // SECTOR
    with open(target, "wb") as file:
        file.truncate(sectors * SECTOR)
    # Features that the boot loader of Debian 12 cannot read are left out.
    _run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-O", "^metadata_csum_seed,^orphan_file", "-d", root,
         "-E", f"offset={START * SECTOR}", target, f"{(sectors - START) * SECTOR // 1024}k")
    boot, core = ((root / "boot/grub" / name).read_bytes() for name in ("boot.img", "core.img"))
    with open(target, "r+b") as file:
        file.write(_boot_record(boot, sectors - START) + _core(core))


def _boot_record(boot: bytes, sectors: int) -> bytes:
    """The first sector: GRUB's, told that its second part lies in sector 1, and the table of one partition."""
    record = bytearray(boot[:440].ljust(SECTOR, b"\0"))
    record[0x5c:0x64] = struct.pack("<Q", 1)
    record[0x66:0x68] = b"\x90\x90"  # boot from the drive the firmware names
    record[446:462] = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", START, sectors)
    record[510:] = b"\x55\xaa"
    return bytes(record)


def _core(core: bytes) -> bytes:
    """GRUB's second part, whose first sector says where the rest is: right behind, loaded at segment 0x820."""
    rest = -(-len(core) // SECTOR) - 1
    assert rest < START - 2, "the boot loader does not fit before the partition"
    listed = bytearray(core)
    listed[0x1f4:0x200] = struct.pack("<QHH", 2, rest, 0x820)
    return bytes(listed)


def pack(raw: Path, box: Path) -> None:
    """The disk as a box file; `raw` is removed."""
    with tempfile.TemporaryDirectory(dir=raw.parent) as scratch:
        image = Path(scratch) / "box.img"
        _run("qemu-img", "convert", "-O", "qcow2", "-c", raw, image)
        raw.unlink()
        (image.parent / "metadata.json").write_text(json.dumps(
            {"provider": "libvirt", "format": "qcow2", "virtual_size": GIBIBYTES}))
        (image.parent / "Vagrantfile").write_text(VAGRANTFILE)
        staged = box.with_name(f".{box.name}.new")
        with tarfile.open(staged, "w") as tar:
            for name in ("metadata.json", "Vagrantfile", "box.img"):
                tar.add(image.parent / name, name)
        staged.replace(box)


def make(release: str, box: Path) -> None:
    """From nothing to the file `box`."""
    with tempfile.TemporaryDirectory(prefix="pelamis-box-", dir="/var/tmp") as scratch:
        root, raw = Path(scratch) / "root", Path(scratch) / "disk.raw"
        tree(release, root)
        disk(root, raw)
        pack(raw, box)


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, timeout=SECONDS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a Vagrant box for libvirt of Debian's packages.")
    parser.add_argument("release", choices=sorted(NETWORK))
    parser.add_argument("box", type=Path, help="the file to write")
    arguments = parser.parse_args()
    make(arguments.release, arguments.box)

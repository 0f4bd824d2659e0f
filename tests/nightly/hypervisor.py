"""A libvirtd of the tests' own, with a network, file trees and processes of its own: nothing of this host is asked.

`Hypervisor()` starts it, `close()` ends it with every machine on it and removes what it wrote: its processes have a
PID namespace, its bridges and rules a network namespace, and what it writes below /etc and /var goes to a folder. Its
machines are emulated, so that a host without hardware virtualisation serves. Inside it `run` is a person at the host
that the machines run on: their addresses are reachable, and nothing else is.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

START_SECONDS = 60.0
END_SECONDS = 30.0
COMMAND_SECONDS = 300.0
PAUSE = 0.1
OVERLAID = ("etc", "var/lib", "var/cache", "var/log")
# No service manager is asked for control groups, no other user is needed, and what the machines say goes to files.
QEMU_CONF = """user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
INIT = f"""
set -e
cd "$1"
for part in {' '.join(OVERLAID)}; do
    mkdir -p "upper/$part" "work/$part"
    mount -t overlay overlay -o "lowerdir=/$part,upperdir=$1/upper/$part,workdir=$1/work/$part" "/$part"
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir -p /etc/libvirt /run/lock
cp qemu.conf /etc/libvirt/
getent passwd libvirt-qemu >/dev/null || echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/bin/false' >> /etc/passwd
for group in libvirt:64056 libvirt-qemu:64055; do
    getent group "${{group%:*}}" >/dev/null || echo "${{group%:*}}:x:${{group#*:}}:" >> /etc/group
done
echo 1 > /proc/sys/net/ipv4/ip_forward
libvirtd >libvirtd.log 2>&1 &
wait
"""


class Hypervisor:
    """`folder` is its own and of its commands: home, disks, logs."""

    def __init__(self) -> None:
        self.netns = f"pelamis-{uuid.uuid4().hex[:8]}"
        self.folder = Path("/tmp") / self.netns
        self.folder.mkdir()
        self.holder: subprocess.Popen[bytes] | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        (self.folder / "qemu.conf").write_text(QEMU_CONF)
        for line in (f"netns add {self.netns}", f"-n {self.netns} link set lo up"):
            subprocess.run(["ip", *line.split()], check=True)
        self.holder = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", "--propagation", "private", "sh", "-c", INIT, "init", str(self.folder)])
        deadline = time.monotonic() + START_SECONDS
        while self.run("virsh", "version", check=False).returncode:
            assert self.holder.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(PAUSE)

    def log(self) -> str:
        path = self.folder / "libvirtd.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else "libvirtd was not started"

    def enter(self, *command: str) -> list[str]:
        """`command` as run beside the machines."""
        assert self.holder is not None
        children = Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()
        inside = ["nsenter", "--target", children[0], "--mount", "--net", "--pid"] if children else ["false"]
        return [*inside, "--", "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"HOME={self.folder}", f"VAGRANT_HOME={self.folder}/vagrant.d", "VAGRANT_CHECKPOINT_DISABLE=1",
                "LANG=C.UTF-8", "LIBVIRT_DEFAULT_URI=qemu:///system", "NO_COLOR=1", *command]

    def run(self, *command: str, check: bool = True, input: str | None = None, seconds: float = COMMAND_SECONDS,
            folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command; with `check` a failure shows what it printed."""
        done = subprocess.run(self.enter("sh", "-c", 'cd "$0" && exec "$@"', str(folder or self.folder), *command),
                              capture_output=True, text=True, input=input, timeout=seconds)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def close(self) -> None:
        if self.holder is not None:
            self.holder.send_signal(signal.SIGKILL)  # takes PID 1 of its namespace along, and that everything
            self.holder.wait(END_SECONDS)
        subprocess.run(["ip", "netns", "del", self.netns], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder)

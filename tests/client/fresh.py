"""A freshly installed Debian for a test: a file tree, processes, network and cgroups of its own; no systemd.

`Fresh()` makes it from a minimal Debian that is fetched once for all runs on this machine, `close()` ends all that runs
in it and removes it. It reaches Debian and PyPI through `wayout`, and nothing else. Being PID 1 of its processes, its
holder takes them all along when it ends.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
import uuid
from pathlib import Path

from tests.client import wayout

CHECKOUT = Path(__file__).resolve().parents[2]
KEPT = Path("/var/tmp/pelamis-test-images/debian-12.tar")
MIRROR = "http://deb.debian.org/debian"
ADDRESS = "192.168.78.10"
CLONE_NEWNET = 0x40000000
COMMAND_SECONDS = 600.0  # a slow mirror
END_SECONDS = 30.0  # for every process of a machine to be killed
SKIPPED = (".venv", ".git", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__")
GROUPS = Path("/sys/fs/cgroup")

# What PID 1 does before it waits: the file tree becomes its root, with the kernel's file systems in it.
_INIT = """
set -e
cd "$1"; shift
mount --rbind . .
cd "$PWD"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
if [ $# = 0 ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    for controller; do
        mkdir sys/fs/cgroup/$controller
        case $controller in
            unified) mount -t cgroup2 cgroup2 sys/fs/cgroup/unified ;;
            systemd) mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd ;;
            *) mount -t cgroup -o $controller cgroup sys/fs/cgroup/$controller ;;
        esac
    done
fi
pivot_root . mnt
umount -l mnt
cd /
echo ready
exec >/dev/null
"""
_WAIT = "while :; do sleep infinity & wait $!; done"
_LIBC = ctypes.CDLL(None, use_errno=True)


def debian() -> Path:
    """A minimal Debian 12 as a tar file, fetched once."""
    if not KEPT.exists():
        KEPT.parent.mkdir(parents=True, exist_ok=True)
        made = KEPT.with_suffix(".new.tar")
        subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet", "bookworm", made, MIRROR],
                       check=True, timeout=COMMAND_SECONDS)
        made.replace(KEPT)
    return KEPT


def controllers() -> list[str]:
    """The v1 hierarchies of this machine, with `unified` and `systemd`; empty where there is only cgroup v2."""
    return [] if (GROUPS / "cgroup.controllers").exists() else sorted(
        entry.name for entry in GROUPS.iterdir() if entry.is_dir() and not entry.is_symlink() and "," not in entry.name)


class Fresh:
    """`init` is the end of the script of PID 1: what the machine does by itself, by default nothing."""

    init = _WAIT

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:8]
        self.netns = f"pelamis-{self.id}"
        self.root = Path("/tmp") / self.netns
        self.holder: subprocess.Popen[bytes] | None = None
        self.way: wayout.WayOut | None = None
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _groups(self) -> list[Path]:
        tops = [GROUPS / name for name in controllers()] or [GROUPS]
        return [top / self.netns for top in tops]

    def _open(self) -> None:
        self.root.mkdir()
        self._fill()
        self._connect()
        self._make_groups()
        self.way = wayout.WayOut(self._listener())
        self.start()

    def _fill(self) -> None:
        """The file tree: Debian and the checkout, in root's home."""
        subprocess.run(["tar", "-xf", debian(), "-C", self.root], check=True)
        shutil.copytree(CHECKOUT, self.root / "root/pelamis", ignore=shutil.ignore_patterns(*SKIPPED), symlinks=True)
        self._point_out()
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n")

    def _point_out(self) -> None:
        """Let its package managers use the way out."""
        (self.root / "etc/apt/apt.conf.d/00test").write_text(
            f'Acquire::http::Proxy "http://127.0.0.1:{wayout.PORT}";\nAcquire::http::Pipeline-Depth "0";\n')
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", self.root / "root/authorities.crt")

    def _connect(self) -> None:
        """Its network: one card, whose cable ends nowhere."""
        for line in (f"netns add {self.netns}", f"-n {self.netns} link set lo up",
                     f"-n {self.netns} link add eth0 type veth peer name wire",
                     f"-n {self.netns} address add {ADDRESS}/24 dev eth0", f"-n {self.netns} link set eth0 up",
                     f"-n {self.netns} link set wire up", f"-n {self.netns} route add default via 192.168.78.1"):
            subprocess.run(["ip", *line.split()], check=True)

    def start(self) -> None:
        """Switch it on."""
        self.holder = subprocess.Popen(self._grouped(
            "nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc",
            "--fork", "--kill-child", "--propagation", "private", "sh", "-c", _INIT + self.init, "init",
            str(self.root), *controllers()), stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        assert self.holder.stdout.readline() == b"ready\n"

    def _make_groups(self) -> None:
        for group in self._groups():
            group.mkdir()
            for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: a new group has none, and nothing may run in it
                if (group / setting).exists() and not (group / setting).read_text().strip():
                    (group / setting).write_text((group.parent / setting).read_text())
            if (group / "cgroup.clone_children").exists():
                (group / "cgroup.clone_children").write_text("1")

    def _grouped(self, *command: str) -> list[str]:
        """`command` run in this machine's cgroups."""
        join = "; ".join(f"echo $$ > {group}/cgroup.procs" for group in self._groups())
        return ["sh", "-ec", f'{join}; exec "$@"', "join", *command]

    def _listener(self) -> socket.socket:
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/run/netns/{self.netns}") as network:
                if _LIBC.setns(network.fileno(), CLONE_NEWNET):  # only of this thread, which ends here
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(socket.create_server(("127.0.0.1", wayout.PORT)))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    @property
    def pid(self) -> str:
        """Its PID 1, as seen from outside."""
        assert self.holder is not None
        return Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()[0]

    def enter(self, *command: str) -> list[str]:
        """`command` as run by root on this machine, in its home folder."""
        proxy = f"http://127.0.0.1:{wayout.PORT}"
        clean = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root",
                 "LANG": "C.UTF-8", "http_proxy": proxy, "https_proxy": proxy,
                 "no_proxy": "127.0.0.1,10.0.0.0/8,192.168.0.0/16",
                 "PIP_CERT": "/root/authorities.crt", "NO_COLOR": "1"}
        return self._grouped("nsenter", "--target", self.pid, "--all", "--", "env", "-i",
                             *(f"{key}={value}" for key, value in clean.items()),
                             "sh", "-c", 'cd && exec "$@"', "home", *command)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command; with `check` a failure shows what it printed."""
        done = subprocess.run(self.enter(*command), text=True, capture_output=True, timeout=COMMAND_SECONDS)
        if check:
            assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def cut(self) -> None:
        """Take its power away."""
        if self.holder is not None:
            if self.holder.poll() is None:
                os.kill(int(self.pid), signal.SIGKILL)
            self.holder.wait(END_SECONDS)  # PID 1 is not gone before every process of its machine is
            assert self.holder.stdout is not None
            self.holder.stdout.close()
            self.holder = None

    def close(self) -> None:
        self.cut()
        if self.way is not None:
            self.way.close()
        subprocess.run(["ip", "netns", "del", self.netns], stderr=subprocess.DEVNULL)
        for group in self._groups():
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)
        if self.root.exists():
            shutil.rmtree(self.root)

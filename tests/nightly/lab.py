"""The Vagrant lab as a person makes it, on a hypervisor of its own: `vagrant up` with a box of Debian's packages.

`Lab(release)` prepares what a person has (the box, a bundle for machines without a network), `up` makes the machines,
`close` takes everything away. A machine's commands go over one kept SSH connection: a login costs an emulated processor
seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from agent.image import demo
from controlplane.cli.packages import SEARCH
from controlplane.cli.test import NIGHTLY_TOOLS
from controlplane.machinery.paths import Paths
from tests.client.cluster import kubectls
from tests.client.fresh import CHECKOUT, KEPT, MIRROR, SKIPPED
from tests.nightly.hypervisor import Hypervisor

AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"  # of this host: its way to PyPI may have one of its own
BUILDER = CHECKOUT / "vagrant/box.py"
NETWORK = "192.168.56"
UP_SECONDS = 3600.0  # three emulated machines, one after the other
BUILD_SECONDS = 1200.0
SSH = ("-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", "ConnectTimeout=20", "-o", "BatchMode=yes",
       "-o", "ServerAliveInterval=10")


def obstacle() -> str:
    """Why there can be no lab here, "" when there can."""
    if os.geteuid() != 0:
        return "needs root: it makes a box of a file tree that root owns"
    lacking = sorted(package for tool, package in NIGHTLY_TOOLS.items() if shutil.which(tool, path=SEARCH) is None)
    return f"needs {' '.join(lacking)}: ./pelamis test --nightly installs it" if lacking else ""


def box(release: str) -> Path:
    """A box of Debian `release`, made once for all runs on this machine."""
    kept = KEPT.with_name(f"{release}-{hashlib.sha256(BUILDER.read_bytes()).hexdigest()[:8]}.box")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([BUILDER, release, kept], check=True, timeout=BUILD_SECONDS)
    return kept


def bundle(release: str, image: Path, target: Path) -> None:
    """What `pelamis bundle create` makes on a Debian `release`, with an image archive."""
    without = " ".join(f"--exclude=./{name}" for name in SKIPPED)
    hooks = (f'mkdir "$1/root/pelamis"; cd {CHECKOUT}; tar -c {without} . | tar -xC "$1/root/pelamis"; '
             f'cp {image} "$1/root/image.tar"; cp {AUTHORITIES} "$1{AUTHORITIES}"',
             'chroot "$1" /root/pelamis/pelamis bundle create -o /root/bundle.tar --image /root/image.tar',
             f'cp "$1/root/bundle.tar" {target}')
    subprocess.run(["mmdebstrap", "--variant=minbase", "--mode=root", "--quiet", "--format=null",
                    "--include=python3-venv,ca-certificates", *(f"--customize-hook={hook}" for hook in hooks), release,
                    "/dev/null", MIRROR], check=True, timeout=BUILD_SECONDS)


class Lab:
    """A server and `agents` agents; `names` are all machines, the server first."""

    def __init__(self, release: str, agents: int) -> None:
        self.names = ["server", *(f"agent{number}" for number in range(1, agents + 1))]
        self.hypervisor = Hypervisor()
        try:
            self._prepare(release, agents)
        except BaseException:
            self.close()
            raise

    def _prepare(self, release: str, agents: int) -> None:
        self.folder = self.hypervisor.folder / "vagrant"
        shutil.copytree(CHECKOUT / "vagrant", self.folder, ignore=shutil.ignore_patterns(".vagrant", "kubeconfig"))
        packed = self.hypervisor.folder / "bundle.tar"
        bundle(release, demo.built(demo.DEMO, Paths(self.hypervisor.folder / "images")), packed)
        self.settings = {"PELAMIS_AGENTS": str(agents), "PELAMIS_BOX": f"pelamis/{release}",
                         "PELAMIS_BUNDLE": str(packed), "PELAMIS_DRIVER": "qemu", "PELAMIS_NETWORK": NETWORK}
        self.vagrant("box", "add", "--name", f"pelamis/{release}", str(box(release)))

    def vagrant(self, *arguments: str, seconds: float = 300.0) -> str:
        """Vagrant's standard output."""
        settings = [f"{key}={value}" for key, value in self.settings.items()]
        return self.hypervisor.run("env", *settings, "vagrant", *arguments, folder=self.folder, seconds=seconds).stdout

    def up(self) -> None:
        """`vagrant up`; what it `said` is kept. SSH is told how to reach the machines."""
        self.said = self.vagrant("up", "--provider=libvirt", seconds=UP_SECONDS)
        (self.folder / "ssh-config").write_text(self.vagrant("ssh-config"))

    def ssh(self, name: str, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.hypervisor.run("ssh", "-F", "ssh-config", *SSH, "-o", f"ControlPath={self.folder}/{name}.ssh", name,
                                   command, folder=self.folder, check=check)

    def hang_up(self, name: str) -> None:
        """Forget the connection to a machine that starts anew."""
        self.hypervisor.run("ssh", "-F", "ssh-config", "-o", f"ControlPath={self.folder}/{name}.ssh", "-O", "exit",
                            name, folder=self.folder, check=False)

    def virsh(self, verb: str, name: str) -> None:
        """Do something to a machine as its hardware would."""
        self.hypervisor.run("virsh", verb, f"{self.folder.name}_{name}")

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """kubectl of the host, with the kubeconfig that the lab wrote."""
        return self.hypervisor.run(kubectls()[0], f"--kubeconfig={self.folder}/kubeconfig", *arguments,
                                   input=input).stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def close(self) -> None:
        self.hypervisor.close()

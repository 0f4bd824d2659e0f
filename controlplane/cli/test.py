"""`pelamis test [TIER…]`: installs what the tests need from Debian, then runs the tiers, cheapest first.

Tiers that make namespaces or run containers need root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys

from controlplane.cli import packages
from controlplane.cli.control import CHECKOUT, environment
from controlplane.cli.output import say
from controlplane.machinery.clock import SYSTEM
from controlplane.machinery.errors import Finding

TIERS = ("tidy", "unit", "golden", "kernel", "node", "client", "host")
NEEDS_ROOT = {"kernel", "node", "client", "host", "nightly"}
# tool -> Debian package: what the tests use beyond what a node needs
TOOLS = {**packages.NEEDED, **packages.WELCOME, "ip": "iproute2", "nsenter": "util-linux", "busybox": "busybox-static",
         "docker-registry": "docker-registry", "nft": "nftables", "curl": "curl", "ps": "procps",
         "mmdebstrap": "mmdebstrap"}

# emulated machines, and a Vagrant lab of them
NIGHTLY_TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs",
                 "vagrant": "vagrant-libvirt", "libvirtd": "libvirt-daemon", "virsh": "libvirt-clients",
                 "virt-qemu-run": "libvirt-daemon-driver-qemu", "dnsmasq": "dnsmasq-base", "ssh": "openssh-client"}

EXAMPLES = ("test tidy unit golden", "test unit --pytest='-k ledger -x'")


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("test", help="install what the tests need and run them")
    parser.add_argument("tiers", nargs="*", metavar="TIER", help=f"of {', '.join(TIERS)}; default: all")
    parser.add_argument("--nightly", action="store_true", help="also what takes long: a bundle, a Vagrant lab")
    parser.add_argument("--pytest", default="", metavar="ARGS", help="arguments for pytest, e.g. --pytest='-k log'")
    parser.set_defaults(run=run, checkout=True)


def _install(tiers: list[str]) -> None:
    if not NEEDS_ROOT & set(tiers):
        return
    if os.geteuid() != 0:
        raise Finding("the tiers kernel, node, client and host need root",
                      "they make network namespaces and run containers",
                      "sudo ./pelamis test, or ./pelamis test tidy unit golden")
    tools = {**TOOLS, **(NIGHTLY_TOOLS if "nightly" in tiers else {})}
    lacking = sorted({package for tool, package in tools.items() if shutil.which(tool, path=packages.SEARCH) is None})
    if lacking:
        say(f"Installing {', '.join(lacking)} from Debian …")
        with packages.no_services():
            packages.refresh()
            packages.apt("install", "-y", "--no-install-recommends", *lacking)
    if shutil.which("kubectl") is None:
        say("Installing kubernetes-client (kubectl) from Debian for the client tier …")
        packages.apt("install", "-y", "--no-install-recommends", "kubernetes-client")


def run(args: argparse.Namespace) -> int:
    tiers = args.tiers or [*TIERS, *(["nightly"] if args.nightly else [])]
    for tier in tiers:
        if tier not in (*TIERS, "nightly"):
            raise Finding(f"there is no tier called {tier}", fix=f"one of {', '.join(TIERS)}")
    _install(tiers)
    begun = SYSTEM.monotonic()
    folders = [str(CHECKOUT / "tests" / tier) for tier in tiers]
    done = subprocess.run([sys.executable, "-m", "pytest", *folders, *args.pytest.split()], cwd=CHECKOUT,
                          env={**os.environ, **environment()})
    say(f"{', '.join(tiers)}: {SYSTEM.monotonic() - begun:.0f} s")
    return done.returncode

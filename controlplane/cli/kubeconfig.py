"""`pelamis kubeconfig`: prints the path of the admin kubeconfig, for `export KUBECONFIG=$(pelamis kubeconfig)`."""

from __future__ import annotations

import argparse

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("kubeconfig", help="print the path of the admin kubeconfig")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    path = Paths.from_environment().admin_kubeconfig
    if not path.exists():
        raise Finding(f"there is no cluster on this machine: {path} does not exist", fix="./pelamis up")
    print(path)
    return 0

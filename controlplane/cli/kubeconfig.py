"""`pelamis kubeconfig`: prints the path of the admin kubeconfig, for `export KUBECONFIG=$(pelamis kubeconfig)`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths


def register(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("kubeconfig", help="print the path of the admin kubeconfig")
    parser.set_defaults(run=run)


def found() -> Path:
    """Where it is. Raises Finding when there is none, or only root may read it."""
    path = Paths.from_environment().admin_kubeconfig
    if not path.exists():
        raise Finding(f"there is no cluster on this machine: {path} does not exist", fix="./pelamis up")
    if not os.access(path, os.R_OK):
        raise Finding(f"only root may read {path}", "whoever holds it is master of the cluster",
                      f"mkdir -p ~/.kube; sudo install -m 600 -o $USER {path} ~/.kube/config; kubectl looks there")
    return path


def run(args: argparse.Namespace) -> int:
    print(found())
    return 0

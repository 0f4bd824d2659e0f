"""Where things live on a host: one object, so that a test host can have its own tree.

`/etc/pelamis` holds configuration, `/var/lib/pelamis` what must survive a reboot, `/run/pelamis` what must not.
`PELAMIS_ROOT` (or `Paths(root)`) puts all three under another folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    root: Path = Path("/")

    @classmethod
    def from_environment(cls) -> Paths:
        return cls(Path(os.environ.get("PELAMIS_ROOT") or "/"))

    @property
    def etc(self) -> Path:
        return self.root / "etc/pelamis"

    @property
    def lib(self) -> Path:
        return self.root / "var/lib/pelamis"

    @property
    def run(self) -> Path:
        return self.root / "run/pelamis"

    @property
    def log(self) -> Path:
        return self.root / "var/log/pelamis"

    @property
    def pki(self) -> Path:
        return self.etc / "pki"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.etc / "admin.kubeconfig"

    @property
    def scheduler_config(self) -> Path:
        """A KubeSchedulerConfiguration; the scheduler takes it when it is there."""
        return self.etc / "scheduler.yaml"

    def kubeconfig(self, component: str) -> Path:
        return self.etc / f"{component}.kubeconfig"

    @property
    def store(self) -> Path:
        return self.lib / "store/pelamis.db"

    @property
    def ledger(self) -> Path:
        return self.lib / "ledger.jsonl"

    @property
    def containerd(self) -> Path:
        return self.lib / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd/containerd.sock"

    @property
    def cni_conf(self) -> Path:
        return self.etc / "cni/net.d"

    @property
    def cni_bin(self) -> Path:
        return self.lib / "cni/bin"

    @property
    def cni_socket(self) -> Path:
        return self.run / "cni.sock"

    @property
    def ipam(self) -> Path:
        return self.lib / "ipam"

    @property
    def manifests(self) -> Path:
        """Static pods: files here run on this node without the API server."""
        return self.etc / "manifests"

    @property
    def kubelet(self) -> Path:
        return self.lib / "kubelet"

    @property
    def volumes(self) -> Path:
        """The data of `local-path` volumes on this node."""
        return self.lib / "volumes"

    @property
    def pod_logs(self) -> Path:
        return self.log / "pods"

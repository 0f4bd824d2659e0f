"""The node as a whole: which processes it consists of, and putting their files in place.

`components` is pure: settings and paths in, the list of processes out. `prepare` writes what they read (certificates,
containerd's configuration, the CNI plugin), every change through the ledger, and may run any number of times.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.kubelet.cri import containerd, trial
from controlplane.cli.components import Component
from controlplane.cli.control import environment
from controlplane.cli.settings import Settings
from controlplane.machinery.paths import Paths
from controlplane.pki import cluster
from netsetup.cni import install as cni
from netsetup.ledger import Ledger

# Folders that containerd, its shims and libcni make whatever their configuration says; recorded only when they are new.
SHARED = ("/run/containerd", "/run/containerd/runc", "/run/containerd/runc/k8s.io", "/run/containerd/s", "/run/netns",
          "/var/lib/cni", "/var/lib/cni/results")
CGROUPS = Path("/sys/fs/cgroup")
AGENT_STOP_SECONDS = 15.0  # it finishes what it is writing; containers run on


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is new: certificates, which running processes take on a reload, or configuration, for which they start
    anew."""

    issued: bool = False
    configured: bool = False


def components(paths: Paths, settings: Settings, interpreter: str = sys.executable,
               env: dict[str, str] | None = None) -> list[Component]:
    """The processes of this node in the order they start: containerd unless there is another runtime, apiserver and
    controllers (with the scheduler) unless the node joined another's cluster, agent."""
    env = {**(environment() if env is None else env), "PELAMIS_ROOT": str(paths.root)}

    def python(name: str, module: str, flags: list[str], **more: Any) -> Component:
        return Component(name, (interpreter, "-m", module, *flags), env, reloads=True, **more)
    found = [] if settings.runtime else [
        Component("containerd", tuple(containerd.command(paths)), containerd.environment(paths))]
    if not settings.server:
        found += [python("apiserver", "controlplane.apiserver", _apiserver(paths, settings)),
                  python("controllers", "controlplane.controllers", _controllers(paths, settings),
                         after=("apiserver",))]
    before = tuple(c.name for c in found if c.name != "controllers")[::-1]
    return [*found, python("agent", "agent", _agent(paths, settings), after=before, stop_seconds=AGENT_STOP_SECONDS)]


def _apiserver(paths: Paths, settings: Settings) -> list[str]:
    pki = paths.pki
    return [
        f"--advertise-address={settings.node_ip}",
        f"--service-cluster-ip-range={settings.service_range}", f"--storage-path={paths.store}",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt", f"--kubelet-certificate-authority={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        f"--requestheader-client-ca-file={pki}/front-proxy/ca.crt", "--requestheader-allowed-names=front-proxy-client",
        f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
        f"--proxy-client-key-file={pki}/front-proxy-client.key",
        "--enable-bootstrap-token-auth=true",
        f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key"]


def _controllers(paths: Paths, settings: Settings) -> list[str]:
    pki = paths.pki
    return [
        f"--kubeconfig={paths.kubeconfig('controller-manager')}",
        f"--scheduler-kubeconfig={paths.kubeconfig('scheduler')}", f"--cluster-cidr={settings.cluster_range}",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key",
        f"--root-ca-file={pki}/ca.crt", f"--service-account-private-key-file={pki}/sa.key", "--leader-elect=false",
        f"--cloud-provider={settings.cloud_provider}",
        *([f"--scheduler-config={paths.scheduler_config}"] if paths.scheduler_config.exists() else [])]


def _agent(paths: Paths, settings: Settings) -> list[str]:
    pki = paths.pki
    rotate = ["--rotate-certificates"] if settings.server else []  # else the authority is on this host: `prepare` does
    return [
        f"--kubeconfig={paths.kubeconfig('node')}", f"--proxy-kubeconfig={paths.kubeconfig('kube-proxy')}",
        f"--hostname-override={settings.node_name}", f"--node-ip={settings.node_ip}",
        f"--container-runtime-endpoint=unix://{settings.runtime or paths.containerd_socket}",
        f"--root-dir={paths.kubelet}", f"--cluster-domain={settings.cluster_domain}",
        f"--cluster-dns={settings.dns_ip}", f"--service-cluster-ip-range={settings.service_range}",
        f"--cluster-cidr={settings.cluster_range}", f"--proxy-mode={settings.proxy_mode}",
        f"--cloud-provider={settings.cloud_provider}",
        f"--client-ca-file={pki}/ca.crt", f"--tls-cert-file={pki}/kubelet.crt",
        f"--tls-private-key-file={pki}/kubelet.key", f"--pod-manifest-path={paths.manifests}", *rotate]


def prepare(paths: Paths, settings: Settings, ledger: Ledger) -> Prepared:
    """Everything the components read."""
    import psutil
    ledger.share_directory(paths.etc)
    for folder in (paths.lib, paths.run, paths.log, paths.store.parent, paths.containerd, paths.cni_bin,
                   paths.kubelet, paths.ipam, paths.lib / "images", paths.manifests):
        ledger.make_directory(folder)
    for shared in SHARED:
        ledger.record("directory", path=shared)
    known = [path for pattern in ("kubepods*", "*/kubepods*") for path in CGROUPS.glob(pattern)]
    if not known:  # else they are another kubelet's, and not ours to remove
        ledger.record("cgroup", path="/kubepods")
    issued = settings.server == "" and issue(paths, settings)
    before = _read(containerd.config_path(paths))
    if not settings.runtime:
        ledger.record("cgroup", path=f"/{trial.name(paths.run)}")  # in case it is killed
        containerd.prepare(paths)
    cni.install(paths, ledger)
    cni.forget_cut_off(psutil.boot_time())
    return Prepared(bool(issued), before != _read(containerd.config_path(paths)))


def issue(paths: Paths, settings: Settings) -> bool:
    """Certificates and kubeconfigs of a server, where they are missing or old; whether any was."""
    issued = cluster.ensure(paths, settings.node_name, settings.node_ip, settings.service_range,
                            settings.cluster_domain)
    return bool(issued.certificates or issued.kubeconfigs)


def take_scheduler_config(paths: Paths, given: Path, ledger: Ledger) -> bool:
    """Keep a KubeSchedulerConfiguration as this node's; whether it differs from the one before. Raises Finding."""
    from controlplane.scheduler import configuration
    configuration.read(given)
    data, before = given.read_bytes(), _read(paths.scheduler_config)
    if data != before:
        ledger.share_directory(paths.etc)
        ledger.write_file(paths.scheduler_config, data)
    return data != before


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""

"""From a Pod to what the runtime is asked to make: `SandboxSpec` and `ContainerSpec`.

Pure. Owns the merge of pod and container security contexts, mounts, log and cgroup places. Promises that nothing asked
for is silently dropped: what the runtime would ignore (user namespaces, AppArmor, …) raises `ConfigError` with a reason
a user can act on. Called by `worker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.kubelet import env, hosts
from agent.kubelet.compute import resources
from agent.kubelet.compute.userns import LENGTH
from agent.kubelet.env import ConfigError, Sources
from agent.kubelet.model import (
    DNS,
    ContainerSpec,
    Mount,
    PortMapping,
    SandboxSpec,
    Security,
)
from agent.kubelet.plan import DEFAULT_GRACE
from agent.kubelet.restarts import container_hash
from agent.kubelet.volumes.plugins import read_only
from controlplane.machinery import quantity

BANDWIDTH = ("kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth")
SUBORDINATE = (LENGTH, 1024)  # more pods than any node runs, from the first block that is not the host's own
TERMINATION_PATH = "/dev/termination-log"
CLAIMS_FILE = "claims.json"
PAUSE_PROFILE = "pause-seccomp.json"
CAPABILITIES = frozenset((
    "ALL", "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE"))


@dataclass(frozen=True, slots=True)
class Node:
    """What specs need to know of this host."""

    name: str
    ips: tuple[str, ...]
    root: Path  # of the kubelet's own files
    logs: Path  # of pod logs
    cluster_dns: tuple[str, ...] = ()
    cluster_domain: str = "cluster.local"
    resolv: DNS = field(default_factory=DNS)
    cpu: int = 0  # milli-cores
    memory: int = 0  # bytes
    apparmor: bool = False
    subordinate: tuple[int, int] = SUBORDINATE  # first id and number of blocks for pods with users of their own
    user_namespaces: frozenset[str] = frozenset()  # the runtime's handlers that know them
    strict_groups: bool = False  # the runtime can leave out the groups of the image's /etc/group
    recursive: bool = False  # the runtime can make mounts read-only down to those below them
    unified: tuple[tuple[str, str], ...] = ()  # what every container of this node has in files of cgroup v2
    pages: tuple[str, ...] = ()  # sizes of huge pages that control groups count
    cdi: bool = False  # the runtime puts CDI devices into containers
    runtime: str = "containerd"  # what the ids of containers are told to be of

    def pod_folder(self, uid: str) -> Path:
        return self.root / "pods" / uid

    def claims_file(self, uid: str) -> Path:
        """What drivers of ResourceClaims have prepared for a pod; there is none of most."""
        return self.pod_folder(uid) / CLAIMS_FILE

    @property
    def pause_profile(self) -> Path:
        """What the pause processes may not do."""
        return self.root / PAUSE_PROFILE

    def hosts_file(self, uid: str) -> Path:
        return self.pod_folder(uid) / "etc-hosts"

    def termination_file(self, uid: str, container: str, attempt: int) -> Path:
        return self.pod_folder(uid) / "containers" / container / str(attempt)

    def log_folder(self, pod: dict[str, Any]) -> Path:
        meta = pod["metadata"]
        return self.logs / f"{meta.get('namespace', '')}_{meta['name']}_{meta['uid']}"


def own_users(pod: dict[str, Any], node: Node, handler: str) -> bool:
    """Whether the pod has users of its own. Raises ConfigError where it would run without them."""
    if pod["spec"].get("hostUsers") is not False:
        return False
    if handler not in node.user_namespaces:
        raise ConfigError("user namespaces (hostUsers: false) are not supported by this node's container runtime"
                          + (f" with the handler {handler}" if handler else "")
                          + ": they take containerd 2.0 with runc 1.2 or crun 1.9, or newer")
    return True


def sandbox(pod: dict[str, Any], node: Node, attempt: int, cgroup_parent: str, handler: str = "",
            users: int = 0) -> SandboxSpec:
    """The sandbox of `pod`, run by the runtime's `handler`; `users` is the host's id of its root, if not the host's."""
    meta, spec = pod["metadata"], pod["spec"]
    context = spec.get("securityContext") or {}
    host_network = bool(spec.get("hostNetwork"))
    everyone = [*spec["containers"], *(spec.get("initContainers") or ())]
    ports = () if host_network else tuple(
        PortMapping(p["containerPort"], p["hostPort"], p.get("protocol") or "TCP", p.get("hostIP") or "")
        for c in everyone for p in c.get("ports") or () if p.get("hostPort"))
    return SandboxSpec(
        uid=meta["uid"], namespace=meta.get("namespace", ""), name=meta["name"], attempt=attempt,
        hostname=hosts.kernel_name(pod, node.name, node.cluster_domain),
        log_directory=str(node.log_folder(pod)), cgroup_parent=cgroup_parent,
        dns=hosts.dns(pod, node.resolv, node.cluster_dns, node.cluster_domain), ports=ports,
        host_network=host_network, host_pid=bool(spec.get("hostPID")), host_ipc=bool(spec.get("hostIPC")),
        share_processes=bool(spec.get("shareProcessNamespace")),
        privileged=any((c.get("securityContext") or {}).get("privileged") for c in everyone),
        sysctls=tuple((dotted(s["name"]), s["value"]) for s in context.get("sysctls") or ()),
        security=Security(run_as_user=context.get("runAsUser"),
                          run_as_group=context.get("runAsGroup") if context.get("runAsUser") is not None else None,
                          supplemental_groups=_groups(context), selinux=_selinux(context.get("seLinuxOptions")),
                          strict_groups=context.get("supplementalGroupsPolicy") == "Strict"),
        runtime_handler=handler, users=users, seccomp=f"Localhost:{node.pause_profile}",
        resources=resources.pod_resources(pod), overhead=resources.overhead(pod),
        labels=tuple(sorted((meta.get("labels") or {}).items())),
        annotations=tuple(sorted((meta.get("annotations") or {}).items())))


def check_bandwidth(pod: dict[str, Any]) -> None:
    """Raise ConfigError for a rate that runtimes do not take: they refuse to make the network, and to take it down."""
    for name in () if pod["spec"].get("hostNetwork") else BANDWIDTH:
        text = (pod["metadata"].get("annotations") or {}).get(name)
        try:
            wrong = "" if text is None else "small (< 1kbit)" if quantity.compare(text, "1k") < 0 else \
                "large (> 1Pbit)" if quantity.compare(text, "1P") > 0 else ""
        except ValueError as error:
            raise ConfigError(f"reading pod bandwidth annotations: {error}") from error
        if wrong:
            raise ConfigError(f"reading pod bandwidth annotations: resource is unreasonably {wrong}")


def container(pod: dict[str, Any], spec: dict[str, Any], node: Node, sources: Sources, *, image: str, attempt: int,
              volumes: Mapping[str, str], target: str = "", image_user: str = "") -> ContainerSpec:
    """One container. `volumes` maps each mountPath and devicePath of the container to the host's path; `target` is the
    id of the container whose processes it shares."""
    variables = env.build(pod, spec, sources)
    kind = spec.get("terminationMessagePath") or TERMINATION_PATH
    return ContainerSpec(
        name=spec["name"], image=image, attempt=attempt,
        command=env.expand_all(spec.get("command"), variables), args=env.expand_all(spec.get("args"), variables),
        working_dir=spec.get("workingDir") or "", env=tuple(variables.items()),
        mounts=_mounts(pod, spec, node, volumes, kind, attempt),
        devices=tuple((volumes[d["devicePath"]], d["devicePath"], "mrw") for d in spec.get("volumeDevices") or ()),
        resources=replace(resources.linux_resources(pod, spec, node.memory, node.pages), unified=node.unified),
        security=security(pod, spec, node, image_user),
        log_path=f"{spec['name']}/{attempt}.log", stdin=bool(spec.get("stdin")), stdin_once=bool(spec.get("stdinOnce")),
        tty=bool(spec.get("tty")), stop_signal=((spec.get("lifecycle") or {}).get("stopSignal") or ""),
        hash=container_hash(spec), termination_path=kind, target=target,
        grace=float(pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE)),
        termination_policy=spec.get("terminationMessagePolicy") or "File")


def _mounts(pod: dict[str, Any], spec: dict[str, Any], node: Node, volumes: Mapping[str, str], termination: str,
            attempt: int) -> tuple[Mount, ...]:
    uid = pod["metadata"]["uid"]
    fixed = {v["name"] for v in pod["spec"].get("volumes") or () if read_only(v)}
    made = [Mount(volumes[m["mountPath"]], m["mountPath"], bool(m.get("readOnly")) or m["name"] in fixed,
                  m.get("mountPropagation") or "None", recursive(m, node.recursive))
            for m in spec.get("volumeMounts") or ()]
    taken = {m.container_path for m in made}
    if "/etc/hosts" not in taken:
        made.append(Mount(str(node.hosts_file(uid)), "/etc/hosts"))
    if termination not in taken:
        made.append(Mount(str(node.termination_file(uid, spec["name"], attempt)), termination))
    return tuple(made)


def recursive(mount: dict[str, Any], supported: bool) -> bool:
    """Whether the mounts below a read-only one are to be so too. Raises ConfigError when that must be and cannot."""
    mode = mount.get("recursiveReadOnly") or "Disabled"
    if mode == "Enabled" and not supported:
        raise ConfigError(f'failed to resolve recursive read-only mode: volume "{mount["name"]}" requested recursive '
                          "read-only mode, but it is not supported by the runtime")
    return mode != "Disabled" and supported


def _groups(context: dict[str, Any]) -> tuple[int, ...]:
    groups = list(context.get("supplementalGroups") or ())
    if context.get("fsGroup") is not None:
        groups.append(context["fsGroup"])
    return tuple(dict.fromkeys(groups))


def dotted(sysctl: str) -> str:
    """A sysctl's name with dots: written as a path, its dots and slashes change places."""
    first = next((c for c in sysctl if c in "./"), ".")
    return sysctl if first == "." else sysctl.translate(str.maketrans("./", "/."))


def _apparmor(pod: dict[str, Any], spec: dict[str, Any], node: Node) -> str:
    """`RuntimeDefault`, `Unconfined` or `Localhost:<name>`; "" leaves it to the runtime, which has its own default.
    Raises ConfigError for one that this host cannot enforce: of an ephemeral container, admission knew nothing."""
    profile = _over(pod, spec, "appArmorProfile") or {}
    kind = str(profile.get("type", ""))
    if not node.apparmor:
        if kind not in ("", "Unconfined"):
            raise ConfigError("Cannot enforce AppArmor: AppArmor is not enabled on the host")
        return ""
    return f"Localhost:{profile.get('localhostProfile', '')}" if kind == "Localhost" else kind


def _seccomp(profile: dict[str, Any] | None, node: Node) -> str:
    kind = (profile or {}).get("type", "")
    if kind == "Localhost":
        return f"Localhost:{node.root / 'seccomp' / str((profile or {}).get('localhostProfile', ''))}"
    return kind


def _selinux(options: dict[str, Any] | None) -> tuple[str, str, str, str] | None:
    """user, role, type and level; a runtime on a host without SELinux has no use for them, as upstream's."""
    if not options:
        return None
    user, role, kind, level = (str(options.get(key) or "") for key in ("user", "role", "type", "level"))
    return user, role, kind, level


def _over(pod: dict[str, Any], spec: dict[str, Any], key: str) -> Any:
    """What the container's security context says, or else the pod's."""
    base, own = pod["spec"].get("securityContext") or {}, spec.get("securityContext") or {}
    return own[key] if own.get(key) is not None else base.get(key)


def _identity(pod: dict[str, Any], spec: dict[str, Any], image_user: str) -> dict[str, Any]:
    """Whom the first process runs as. Raises ConfigError where runAsNonRoot forbids it."""
    user, group, name = _over(pod, spec, "runAsUser"), _over(pod, spec, "runAsGroup"), image_user.partition(":")[0]
    if _over(pod, spec, "runAsNonRoot") and not user:
        meta, why = pod["metadata"], ""
        if user == 0:
            why = "container's runAsUser breaks non-root policy"
        elif name in ("", "0", "root"):
            why = "container has runAsNonRoot and image will run as root"
        elif not name.isdigit():
            why = f"container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        if why:
            raise ConfigError(f'{why} (pod: "{meta["name"]}_{meta.get("namespace", "")}({meta["uid"]})", container: '
                              f"{spec['name']})")
    # The runtime takes no group alone, and of a user it is not told it knows no further groups.
    if user is None and name and not name.isdigit():
        return {"run_as_username": name, "run_as_group": group}
    if user is None and (name or group is not None):
        user = int(name or 0)
    return {"run_as_user": user, "run_as_group": group}


def _capabilities(names: list[str] | None) -> tuple[str, ...]:
    """The names as the runtime knows them. Raises ConfigError for one that it would pass over in silence."""
    found = tuple(name.upper().removeprefix("CAP_") for name in names or ())
    for name in found:
        if name not in CAPABILITIES:
            raise ConfigError(f'there is no capability "{name}"; names are as in capabilities(7), without "CAP_"')
    return found


def security(pod: dict[str, Any], spec: dict[str, Any], node: Node, image_user: str = "") -> Security:
    """The container's security context over the pod's; `image_user` is the image's own. Raises ConfigError for what
    could not be held."""
    base, own = pod["spec"].get("securityContext") or {}, spec.get("securityContext") or {}
    capabilities = own.get("capabilities") or {}
    privileged = bool(own.get("privileged"))
    escalation = own.get("allowPrivilegeEscalation")
    return Security(
        **_identity(pod, spec, image_user), supplemental_groups=_groups(base), privileged=privileged,
        readonly_rootfs=bool(own.get("readOnlyRootFilesystem")), no_new_privs=escalation is False,
        add_capabilities=_capabilities(capabilities.get("add")),
        drop_capabilities=_capabilities(capabilities.get("drop")),
        seccomp="Unconfined" if privileged else _seccomp(_over(pod, spec, "seccompProfile"), node) or "Unconfined",
        unmasked_proc=own.get("procMount") == "Unmasked", apparmor=_apparmor(pod, spec, node),
        strict_groups=base.get("supplementalGroupsPolicy") == "Strict",
        selinux=_selinux(_over(pod, spec, "seLinuxOptions")))

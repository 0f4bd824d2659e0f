"""What the kubelet wants and what it sees, as plain frozen values: the vocabulary between `plan` and `runtime`.

`spec` and friends say what to make (built from a Pod by pure code); `Observed…` say what the runtime has (built from
CRI answers and events). Neither holds a connection, so planning is a function from (pod, observed) to actions and can
be tested without containerd. Times are seconds since the epoch, 0.0 = never. Memory is bytes, CPU is milli-cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Labels that tie a sandbox or container back to its pod; upstream's names, so crictl users recognise them.
POD_NAME = "io.kubernetes.pod.name"
POD_NAMESPACE = "io.kubernetes.pod.namespace"
POD_UID = "io.kubernetes.pod.uid"
CONTAINER_NAME = "io.kubernetes.container.name"
# Annotations of a container: what a restart of the kubelet must know and the runtime does not.
CONTAINER_HASH = "io.kubernetes.container.hash"
RESTART_COUNT = "io.kubernetes.container.restartCount"
TERMINATION_PATH = "io.kubernetes.container.terminationMessagePath"
TERMINATION_POLICY = "io.kubernetes.container.terminationMessagePolicy"
TERMINATION_GRACE = "io.kubernetes.pod.terminationGracePeriod"


@dataclass(frozen=True, slots=True)
class Mount:
    host_path: str
    container_path: str
    readonly: bool = False
    propagation: str = "None"  # None | HostToContainer | Bidirectional
    recursive: bool = False  # read-only down to every mount below it


@dataclass(frozen=True, slots=True)
class LinuxResources:
    """cgroup settings; 0 means not set, except oom_score_adj."""

    cpu_shares: int = 0
    cpu_quota: int = 0  # microseconds per period
    cpu_period: int = 0
    memory_limit: int = 0
    oom_score_adj: int = 0
    hugepages: tuple[tuple[str, int], ...] = ()  # (size of a page as the kernel names it, such as `2MB`; bytes)
    pids: int = 0  # processes and threads
    unified: tuple[tuple[str, str], ...] = ()  # more files of cgroup v2, with what is written to them
    cpus: str = ""  # the CPUs it may run on, as the kernel lists them: `0-1,4`


@dataclass(frozen=True, slots=True)
class Security:
    run_as_user: int | None = None
    run_as_username: str = ""  # instead of a number
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    privileged: bool = False
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    add_capabilities: tuple[str, ...] = ()  # without the CAP_ prefix
    drop_capabilities: tuple[str, ...] = ()
    seccomp: str = "Unconfined"  # RuntimeDefault | Unconfined | Localhost:<path>
    unmasked_proc: bool = False
    apparmor: str = ""  # as seccomp; "" leaves it to the runtime
    selinux: tuple[str, str, str, str] | None = None  # user, role, type, level
    strict_groups: bool = False  # no groups from the image's /etc/group


@dataclass(frozen=True, slots=True)
class Features:
    """What a runtime says it can do."""

    strict_groups: bool = False  # SupplementalGroupsPolicy Strict
    handlers: frozenset[str] = frozenset()  # what a RuntimeClass may name; empty where the runtime does not tell
    systemd: bool | None = None  # whether it asks systemd for control groups; None where it does not tell
    recursive: frozenset[str] = frozenset()  # the handlers that mount read-only all the way down
    user_namespaces: frozenset[str] = frozenset()  # the handlers that know them
    cdi: bool = False  # whether it puts CDI devices into containers


@dataclass(frozen=True, slots=True)
class DNS:
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PortMapping:
    container_port: int
    host_port: int
    protocol: str = "TCP"
    host_ip: str = ""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A pod's sandbox: the pause process, its namespaces and its network."""

    uid: str
    namespace: str
    name: str
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    cgroup_parent: str = ""
    dns: DNS | None = None
    ports: tuple[PortMapping, ...] = ()
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    share_processes: bool = False
    privileged: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()
    security: Security = field(default_factory=Security)
    labels: tuple[tuple[str, str], ...] = ()  # the pod's own labels; the runtime adds the identifying ones
    annotations: tuple[tuple[str, str], ...] = ()
    runtime_handler: str = ""
    seccomp: str = "RuntimeDefault"  # of the pause process
    resources: LinuxResources = field(default_factory=LinuxResources)  # of the whole pod, for virtual machines
    overhead: LinuxResources = field(default_factory=LinuxResources)  # what they take beside the containers
    users: int = 0  # the host's id of its root, where it has users of its own; 0 = the host's


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container of a sandbox, everything resolved: env expanded, volumes turned into mounts."""

    name: str
    image: str  # the reference the runtime knows it by, as `Images.ensure` returned it
    attempt: int = 0
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[tuple[str, str, str], ...] = ()  # (path on the node, path inside, of `mrw` what it may)
    cdi: tuple[str, ...] = ()  # names of CDI devices
    annotations: tuple[tuple[str, str], ...] = ()  # for the runtime
    resources: LinuxResources = field(default_factory=LinuxResources)
    security: Security = field(default_factory=Security)
    log_path: str = ""  # relative to the sandbox's log_directory: `<container>/<attempt>.log`
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    stop_signal: str = ""
    hash: str = ""  # of the container's spec: a change means it must be made anew
    termination_path: str = "/dev/termination-log"
    termination_policy: str = "File"
    target: str = ""  # id of the container whose processes an ephemeral one shares
    grace: float | None = None  # the pod's termination grace period in seconds, for a kubelet that lost the pod


@dataclass(frozen=True, slots=True)
class ObservedContainer:
    id: str
    name: str
    attempt: int
    state: str  # created | running | exited | unknown
    sandbox_id: str
    created_at: float = 0.0
    started_at: float = 0.0
    finished_at: float = 0.0
    exit_code: int = 0
    reason: str = ""  # Completed | Error | OOMKilled | StartError …
    message: str = ""
    image: str = ""
    image_id: str = ""
    hash: str = ""
    restart_count: int = 0
    log_path: str = ""  # absolute
    grace: float | None = None  # seconds, as recorded when it was made
    user: tuple[int, int, tuple[int, ...]] | None = None  # uid, gid and groups of its first process, where told
    stop_signal: str = ""  # what ends it, where the runtime tells


@dataclass(frozen=True, slots=True)
class ObservedSandbox:
    id: str
    attempt: int
    ready: bool
    created_at: float = 0.0
    ips: tuple[str, ...] = ()
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class ObservedPod:
    """All the runtime has of one pod; newest sandbox and newest attempt of each container first."""

    uid: str
    namespace: str
    name: str
    sandboxes: tuple[ObservedSandbox, ...] = ()
    containers: tuple[ObservedContainer, ...] = ()

    @property
    def sandbox(self) -> ObservedSandbox | None:
        return self.sandboxes[0] if self.sandboxes else None

    @property
    def running(self) -> tuple[ObservedContainer, ...]:
        return tuple(c for c in self.containers if c.state == "running")

    def container(self, name: str) -> ObservedContainer | None:
        """The newest attempt of the container called `name`."""
        return next((c for c in self.containers if c.name == name), None)


@dataclass(frozen=True, slots=True)
class RuntimeEvent:
    """Something changed for a pod. `exit_code` and `finished_at` are set for an exit, since the runtime's own status
    lags behind its events by tens of milliseconds. uid "" is the event stream's own: it broke, or stands (again)."""

    uid: str
    kind: str  # exited | oom | changed | lost | relist
    container_id: str = ""
    exit_code: int = 0
    finished_at: float = 0.0

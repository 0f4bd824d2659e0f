"""From the kubelet's specs to CRI messages: what a SandboxSpec and a ContainerSpec mean to the runtime.

Owns every default that the runtime would otherwise choose less safely: masked and read-only paths, an explicit seccomp
profile, namespaces. Pure: builds messages and does nothing with them. Sets AppArmor only where the pod asks for a
profile, since a runtime without it refuses the field. Called by `runtime` only.

Upstream: pkg/kubelet/kuberuntime/kuberuntime_sandbox.go and kuberuntime_container_linux.go.
"""

from __future__ import annotations

from typing import Any

from agent.kubelet import model
from agent.kubelet.compute.userns import LENGTH
from controlplane.machinery import stopsignals
from cri_proto.messages import cri

# What a container must not read or write in /proc and /sys unless procMount is Unmasked; upstream's lists.
MASKED_PATHS = ("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
                "/sys/devices/virtual/powercap")
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

_PROPAGATION = {"None": "PROPAGATION_PRIVATE", "HostToContainer": "PROPAGATION_HOST_TO_CONTAINER",
                "Bidirectional": "PROPAGATION_BIDIRECTIONAL"}


def signal_number(name: str) -> int:
    """CRI's number of `SIGTERM`, `SIGRTMIN+3`, …; 0 (leave it to the image) for "". Raises ValueError for no signal."""
    if not name:
        return 0
    if name not in stopsignals.NUMBERS:
        raise ValueError(f"unknown signal {name!r}")
    return stopsignals.NUMBERS[name]


def seccomp(profile: str) -> Any:
    """`RuntimeDefault`, `Unconfined` or `Localhost:<path>` as a message, which AppArmor's profiles share. Seccomp's is
    never left out: absent means unconfined."""
    kinds = cri.SecurityProfile
    if profile.startswith("Localhost:"):
        return kinds(profile_type=kinds.Localhost, localhost_ref=profile.removeprefix("Localhost:"))
    return kinds(profile_type=kinds.RuntimeDefault if profile == "RuntimeDefault" else kinds.Unconfined)


def mappings(spec: model.SandboxSpec) -> list[Any]:
    """Which of the host's users the pod's are; none where they are the host's."""
    return [cri.IDMapping(host_id=spec.users, container_id=0, length=LENGTH)] if spec.users else []


def namespaces(spec: model.SandboxSpec) -> Any:
    pid = cri.NODE if spec.host_pid else cri.POD if spec.share_processes else cri.CONTAINER
    found = cri.NamespaceOption(network=cri.NODE if spec.host_network else cri.POD, pid=pid,
                                ipc=cri.NODE if spec.host_ipc else cri.POD)
    if spec.users:
        own = mappings(spec)
        found.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=own, gids=own))
    return found


def _identity(target: Any, security: model.Security) -> None:
    """User, group, supplemental groups and SELinux label: the same fields in both kinds of security context."""
    if security.run_as_user is not None:
        target.run_as_user.value = security.run_as_user
    if security.run_as_username:
        target.run_as_username = security.run_as_username
    if security.run_as_group is not None:
        target.run_as_group.value = security.run_as_group
    target.supplemental_groups.extend(security.supplemental_groups)
    if security.strict_groups:
        target.supplemental_groups_policy = cri.Strict
    target.readonly_rootfs = security.readonly_rootfs
    if security.selinux is not None:
        user, role, kind, level = security.selinux
        target.selinux_options.CopyFrom(cri.SELinuxOption(user=user, role=role, type=kind, level=level))


def sandbox_config(spec: model.SandboxSpec) -> Any:
    """The PodSandboxConfig; CRI wants the same one again for every container of the sandbox."""
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=spec.name, uid=spec.uid, namespace=spec.namespace, attempt=spec.attempt),
        hostname="" if spec.host_network else spec.hostname, log_directory=spec.log_directory,
        labels={**dict(spec.labels), model.POD_NAME: spec.name, model.POD_NAMESPACE: spec.namespace,
                model.POD_UID: spec.uid},
        annotations=dict(spec.annotations))
    if spec.dns is not None:
        config.dns_config.CopyFrom(cri.DNSConfig(servers=spec.dns.servers, searches=spec.dns.searches,
                                                 options=spec.dns.options))
    if not spec.host_network:
        for port in spec.ports:
            config.port_mappings.add(protocol=getattr(cri, port.protocol), container_port=port.container_port,
                                     host_port=port.host_port, host_ip=port.host_ip)
    linux = config.linux
    linux.cgroup_parent = spec.cgroup_parent
    linux.resources.CopyFrom(resources(spec.resources))
    linux.overhead.CopyFrom(resources(spec.overhead))
    for key, value in spec.sysctls:
        linux.sysctls[key] = value
    context = linux.security_context
    context.namespace_options.CopyFrom(namespaces(spec))
    context.privileged = spec.privileged
    context.seccomp.CopyFrom(seccomp(spec.seccomp))
    _identity(context, spec.security)
    return config


def container_config(sandbox: model.SandboxSpec, spec: model.ContainerSpec) -> Any:
    """The ContainerConfig of one container of `sandbox`."""
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=spec.name, attempt=spec.attempt), image=cri.ImageSpec(image=spec.image),
        command=spec.command, args=spec.args, working_dir=spec.working_dir,
        log_path=spec.log_path or f"{spec.name}/{spec.attempt}.log",
        stdin=spec.stdin, stdin_once=spec.stdin_once, tty=spec.tty, stop_signal=signal_number(spec.stop_signal),
        labels={model.POD_NAME: sandbox.name, model.POD_NAMESPACE: sandbox.namespace, model.POD_UID: sandbox.uid,
                model.CONTAINER_NAME: spec.name},
        annotations={**dict(spec.annotations), model.CONTAINER_HASH: spec.hash, model.RESTART_COUNT: str(spec.attempt),
                     model.TERMINATION_PATH: spec.termination_path,
                     model.TERMINATION_POLICY: spec.termination_policy})
    for key, value in spec.env:
        config.envs.add(key=key, value=value.encode("utf-8", "surrogateescape"))
    for mount in spec.mounts:
        config.mounts.add(host_path=mount.host_path, container_path=mount.container_path, readonly=mount.readonly,
                          propagation=getattr(cri, _PROPAGATION[mount.propagation]),
                          recursive_read_only=mount.recursive, uidMappings=mappings(sandbox),
                          gidMappings=mappings(sandbox))
    for on_node, inside, permissions in spec.devices:
        config.devices.add(host_path=on_node, container_path=inside, permissions=permissions)
    for name in spec.cdi:
        config.CDI_devices.add(name=name)
    if spec.grace is not None:
        config.annotations[model.TERMINATION_GRACE] = f"{spec.grace:g}"
    config.linux.resources.CopyFrom(resources(spec.resources))
    _secure(config.linux.security_context, sandbox, spec.security)
    if spec.target:
        option = config.linux.security_context.namespace_options
        option.pid, option.target_id = cri.TARGET, spec.target
    return config


def resources(wanted: model.LinuxResources) -> Any:
    return cri.LinuxContainerResources(
        cpu_shares=wanted.cpu_shares, cpu_quota=wanted.cpu_quota, cpu_period=wanted.cpu_period,
        memory_limit_in_bytes=wanted.memory_limit, oom_score_adj=wanted.oom_score_adj, cpuset_cpus=wanted.cpus,
        unified=dict(wanted.unified),
        hugepage_limits=[cri.HugepageLimit(page_size=size, limit=limit) for size, limit in wanted.hugepages])


def _secure(context: Any, sandbox: model.SandboxSpec, security: model.Security) -> None:
    context.namespace_options.CopyFrom(namespaces(sandbox))
    context.privileged = security.privileged
    context.no_new_privs = security.no_new_privs
    context.seccomp.CopyFrom(seccomp("Unconfined" if security.privileged else security.seccomp))
    context.capabilities.add_capabilities.extend(security.add_capabilities)
    context.capabilities.drop_capabilities.extend(security.drop_capabilities)
    _identity(context, security)
    if security.apparmor:
        context.apparmor.CopyFrom(seccomp(security.apparmor))
    if not (security.privileged or security.unmasked_proc):
        context.masked_paths.extend(MASKED_PATHS)
        context.readonly_paths.extend(READONLY_PATHS)

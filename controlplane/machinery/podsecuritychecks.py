"""The checks of the Pod Security Standards, each a function of a Pod's annotations and spec. Pure.

Owns what each check looks at and the words it refuses with: `(reason, detail)`, or None when the Pod passes. Which
checks make up a level at a version is said in the tables at the end, which `podsecurity` reads.

Upstream: k8s.io/pod-security-admission/policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

Object = dict[str, Any]
Fault = tuple[str, str] | None
Check = Callable[[dict[str, str], Object], Fault]
_CAPABILITIES = frozenset(("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
                           "NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"))
_SYSCTLS = ("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies",
            "net.ipv4.ping_group_range", "net.ipv4.ip_unprivileged_port_start")
_SYSCTLS_1_27 = (*_SYSCTLS, "net.ipv4.ip_local_reserved_ports")
_SYSCTLS_1_29 = (*_SYSCTLS_1_27, "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
                 "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes")
_SYSCTLS_1_32 = (*_SYSCTLS_1_29, "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")
_SELINUX = ("", "container_t", "container_init_t", "container_kvm_t")
_SELINUX_1_31 = (*_SELINUX, "container_engine_t")
_VOLUMES = ("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
_APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
_SECCOMP_POD = "seccomp.security.alpha.kubernetes.io/pod"
_SECCOMP_CONTAINER = "container.seccomp.security.alpha.kubernetes.io/"


def containers(spec: Object) -> list[Object]:
    return [*(spec.get("initContainers") or []), *(spec.get("containers") or []),
            *(spec.get("ephemeralContainers") or [])]


def _context(holder: Object) -> Object:
    return holder.get("securityContext") or {}


def _plural(count: int, one: str, many: str = "") -> str:
    return one if count == 1 else many or one + "s"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _named(names: list[str]) -> str:
    return f"{_plural(len(names), 'container')} {_quoted(names)}"


def _setters(spec: Object, bad: Callable[[Object], bool]) -> str:
    """`pod and containers "a", "b"`: whose security context is bad; "" when none is."""
    names = [c.get("name", "") for c in containers(spec) if bad(_context(c))]
    parts = (["pod"] if bad(_context(spec)) else []) + ([_named(names)] if names else [])
    return " and ".join(parts)


def _in_user_namespace(spec: Object) -> bool:
    return spec.get("hostUsers") is False


# --- baseline ------------------------------------------------------------------------------------------------------

def host_namespaces(_: dict[str, str], spec: Object) -> Fault:
    found = [f"{field}=true" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field)]
    return ("host namespaces", ", ".join(found)) if found else None


def host_paths(_: dict[str, str], spec: Object) -> Fault:
    names = [v.get("name", "") for v in spec.get("volumes") or [] if v.get("hostPath") is not None]
    return ("hostPath volumes", f"{_plural(len(names), 'volume')} {_quoted(names)}") if names else None


def host_ports(_: dict[str, str], spec: Object) -> Fault:
    found = {c.get("name", ""): [str(p["hostPort"]) for p in c.get("ports") or [] if p.get("hostPort")]
             for c in containers(spec)}
    names = [name for name, ports in found.items() if ports]
    ports = sorted({port for held in found.values() for port in held})
    return ("hostPort", f"{_named(names)} {_plural(len(names), 'uses', 'use')} {_plural(len(ports), 'hostPort')} "
            + ", ".join(ports)) if names else None


def host_process(_: dict[str, str], spec: Object) -> Fault:
    setters = _setters(spec, lambda c: bool((c.get("windowsOptions") or {}).get("hostProcess")))
    return ("hostProcess", f"{setters} must not set securityContext.windowsOptions.hostProcess=true") \
        if setters else None


def host_probes(_: dict[str, str], spec: Object) -> Fault:
    hosts: dict[str, set[str]] = {}
    for container in containers(spec):
        life = container.get("lifecycle") or {}
        for holder in (*(container.get(f"{p}Probe") for p in ("liveness", "readiness", "startup")),
                       life.get("postStart"), life.get("preStop")):
            for handler in ("httpGet", "tcpSocket"):
                if host := ((holder or {}).get(handler) or {}).get("host"):
                    hosts.setdefault(container.get("name", ""), set()).add(host)
    names, seen = sorted(hosts), sorted(set().union(*hosts.values()))
    return ("probe or lifecycle host", f"{_named(names)} {_plural(len(names), 'uses', 'use')} "
            f"{_plural(len(seen), 'probe or lifecycle host')} {_quoted(seen)}") if names else None


def privileged(_: dict[str, str], spec: Object) -> Fault:
    names = [c.get("name", "") for c in containers(spec) if _context(c).get("privileged")]
    return ("privileged", f"{_named(names)} must not set securityContext.privileged=true") if names else None


def added_capabilities(_: dict[str, str], spec: Object) -> Fault:
    return _added("non-default capabilities", spec, _CAPABILITIES)


def _added(reason: str, spec: Object, allowed: Iterable[str]) -> Fault:
    found = {c.get("name", ""): set((_context(c).get("capabilities") or {}).get("add") or []) - set(allowed)
             for c in containers(spec)}
    names = [name for name, more in found.items() if more]
    return (reason, f"{_named(names)} must not include {_quoted(sorted(set().union(*found.values())))} in "
            "securityContext.capabilities.add") if names else None


def apparmor(annotations: dict[str, str], spec: Object) -> Fault:
    values: set[str] = set()

    def bad(context: Object) -> bool:
        kind = (context.get("appArmorProfile") or {}).get("type")
        if kind and kind not in ("RuntimeDefault", "Localhost"):
            values.add(kind)
            return True
        return False

    parts = []
    if setters := _setters(spec, bad):
        parts.append(f"{setters} must not set AppArmor profile type to {_quoted(sorted(values))}")
    noted = sorted(f'{key}="{value}"' for key, value in annotations.items() if key.startswith(_APPARMOR)
                   and value not in ("", "runtime/default") and not value.startswith("localhost/"))
    if noted:
        parts.append(f"{_plural(len(noted), 'annotation')} {', '.join(noted)}" if parts else ", ".join(noted))
    count = len(values) + len(noted)
    return (_plural(count, "forbidden AppArmor profile"), " and ".join(parts)) if parts else None


def selinux(allowed: tuple[str, ...]) -> Check:
    """seLinuxOptions with one of the allowed types, and neither user nor role."""
    def check(_: dict[str, str], spec: Object) -> Fault:
        types: set[str] = set()
        given: set[str] = set()

        def bad(context: Object) -> bool:
            options = context.get("seLinuxOptions") or {}
            kind = options.get("type") or ""
            wrong = [field for field in ("user", "role") if options.get(field)]
            given.update(wrong)
            if kind not in allowed:
                types.add(kind)
            return bool(wrong) or kind not in allowed

        setters = _setters(spec, bad)
        data = [f"{_plural(len(types), 'type')} {_quoted(sorted(types))}"] if types else []
        data += [f"{field} may not be set" for field in ("user", "role") if field in given]
        return ("seLinuxOptions", f"{setters} set forbidden securityContext.seLinuxOptions: {'; '.join(data)}") \
            if setters else None
    return check


def proc_mount(_: dict[str, str], spec: Object) -> Fault:
    found = {c.get("name", ""): _context(c).get("procMount") or "Default" for c in containers(spec)}
    names = [name for name, kind in found.items() if kind != "Default"]
    kinds = sorted({found[name] for name in names})
    return ("procMount", f"{_named(names)} must not set securityContext.procMount to {_quoted(kinds)}") \
        if names else None


def proc_mount_relaxed(annotations: dict[str, str], spec: Object) -> Fault:
    """As before, but a Pod in a user namespace of its own may."""
    return None if _in_user_namespace(spec) else proc_mount(annotations, spec)


def seccomp_annotations(annotations: dict[str, str], spec: Object) -> Fault:
    keys = [_SECCOMP_POD, *(_SECCOMP_CONTAINER + c.get("name", "") for c in containers(spec))]
    bad = sorted({f'{key}="{annotations[key]}"' for key in keys if key in annotations
                  and annotations[key] not in ("runtime/default", "docker/default")
                  and not annotations[key].startswith("localhost/")})
    return ("seccompProfile", f"forbidden {_plural(len(bad), 'annotation')} {', '.join(bad)}") if bad else None


def _profile(context: Object) -> str | None:
    """The seccomp profile's type, None when none is set."""
    profile = context.get("seccompProfile")
    return None if profile is None else profile.get("type") or ""


def seccomp(_: dict[str, str], spec: Object) -> Fault:
    values: set[str] = set()

    def bad(context: Object) -> bool:
        kind = _profile(context)
        if kind in (None, "RuntimeDefault", "Localhost"):
            return False
        values.add(kind or "")
        return True

    setters = _setters(spec, bad)
    return ("seccompProfile", f"{setters} must not set securityContext.seccompProfile.type to "
            f"{_quoted(sorted(values))}") if setters else None


def sysctls(allowed: tuple[str, ...]) -> Check:
    def check(_: dict[str, str], spec: Object) -> Fault:
        names = [s.get("name", "") for s in _context(spec).get("sysctls") or [] if s.get("name", "") not in allowed]
        return ("forbidden sysctls", ", ".join(names)) if names else None
    return check


# --- restricted -------------------------------------------------------------------------------------------------------

def escalation(_: dict[str, str], spec: Object) -> Fault:
    names = [c.get("name", "") for c in containers(spec) if _context(c).get("allowPrivilegeEscalation") is not False]
    return ("allowPrivilegeEscalation != false",
            f"{_named(names)} must set securityContext.allowPrivilegeEscalation=false") if names else None


def _unless_windows(check: Check) -> Check:
    """Since 1.25 what Windows has no notion of is not asked of its Pods."""
    def relaxed(annotations: dict[str, str], spec: Object) -> Fault:
        return None if (spec.get("os") or {}).get("name") == "windows" else check(annotations, spec)
    return relaxed


def capabilities(_: dict[str, str], spec: Object) -> Fault:
    names = [c.get("name", "") for c in containers(spec)
             if "ALL" not in ((_context(c).get("capabilities") or {}).get("drop") or [])]
    parts = [f'{_named(names)} must set securityContext.capabilities.drop=["ALL"]'] if names else []
    more = _added("", spec, ("NET_BIND_SERVICE",))
    if more is not None:
        parts.append(more[1])
    return ("unrestricted capabilities", "; ".join(parts)) if parts else None


def volume_types(_: dict[str, str], spec: Object) -> Fault:
    kinds = {v.get("name", ""): next((k for k in v if k != "name"), "unknown") for v in spec.get("volumes") or []
             if not any(v.get(kind) is not None for kind in _VOLUMES)}
    names, types = sorted(kinds), sorted(set(kinds.values()))
    return ("restricted volume types", f"{_plural(len(names), 'volume')} {_quoted(names)} "
            f"{_plural(len(names), 'uses', 'use')} {_plural(len(types), 'restricted volume type')} "
            f"{_quoted(types)}") if names else None


def non_root(_: dict[str, str], spec: Object) -> Fault:
    reason = "runAsNonRoot != true"
    if setters := _setters(spec, lambda c: c.get("runAsNonRoot") is False):
        return reason, f"{setters} must not set securityContext.runAsNonRoot=false"
    if _context(spec).get("runAsNonRoot"):
        return None
    names = [c.get("name", "") for c in containers(spec) if not _context(c).get("runAsNonRoot")]
    return (reason, f"pod or {_named(names)} must set securityContext.runAsNonRoot=true") if names else None


def non_root_relaxed(annotations: dict[str, str], spec: Object) -> Fault:
    return None if _in_user_namespace(spec) else non_root(annotations, spec)


def user(_: dict[str, str], spec: Object) -> Fault:
    setters = _setters(spec, lambda c: c.get("runAsUser") == 0)
    return ("runAsUser=0", f"{setters} must not set runAsUser=0") if setters else None


def user_relaxed(annotations: dict[str, str], spec: Object) -> Fault:
    return None if _in_user_namespace(spec) else user(annotations, spec)


def seccomp_required(annotations: dict[str, str], spec: Object) -> Fault:
    if (fault := seccomp(annotations, spec)) is not None:
        return fault
    if _profile(_context(spec)) is not None:
        return None
    names = [c.get("name", "") for c in containers(spec) if _profile(_context(c)) is None]
    return ("seccompProfile", f'pod or {_named(names)} must set securityContext.seccompProfile.type to '
            '"RuntimeDefault" or "Localhost"') if names else None


# id -> the check since each minor version, newest last; in upstream's order, which is that of the ids.
BASELINE: dict[str, tuple[tuple[int, Check], ...]] = {
    "appArmorProfile": ((0, apparmor),),
    "capabilities_baseline": ((0, added_capabilities),),
    "hostNamespaces": ((0, host_namespaces),),
    "hostPathVolumes": ((0, host_paths),),
    "hostPorts": ((0, host_ports),),
    "hostProbesAndHostLifecycle": ((34, host_probes),),
    "privileged": ((0, privileged),),
    "procMount": ((0, proc_mount), (34, proc_mount_relaxed)),
    "seLinuxOptions": ((0, selinux(_SELINUX)), (31, selinux(_SELINUX_1_31))),
    "seccompProfile_baseline": ((0, seccomp_annotations), (19, seccomp)),
    "sysctls": ((0, sysctls(_SYSCTLS)), (27, sysctls(_SYSCTLS_1_27)), (29, sysctls(_SYSCTLS_1_29)),
                (32, sysctls(_SYSCTLS_1_32))),
    "windowsHostProcess": ((0, host_process),),
}
RESTRICTED: dict[str, tuple[tuple[int, Check], ...]] = {
    "allowPrivilegeEscalation": ((8, escalation), (25, _unless_windows(escalation))),
    "capabilities_restricted": ((22, capabilities), (25, _unless_windows(capabilities))),
    "restrictedVolumes": ((0, volume_types),),
    "runAsNonRoot": ((0, non_root), (34, non_root_relaxed)),
    "runAsUser": ((23, user), (34, user_relaxed)),
    "seccompProfile_restricted": ((19, seccomp_required), (25, _unless_windows(seccomp_required))),
}
# What a stricter check of the restricted level says already.
OVERRIDDEN = {"capabilities_restricted": ("capabilities_baseline",), "restrictedVolumes": ("hostPathVolumes",),
              "seccompProfile_restricted": ("seccompProfile_baseline",)}

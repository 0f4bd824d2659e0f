"""Validation of security contexts, of pods and of containers, and of what systems other than Linux do not have.

Pure. Called for pods and templates.

Upstream: ValidateSecurityContext, validatePodSpecSecurityContext, validateLinux and validateWindows in
k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, not_supported, required, too_long

Object = dict[str, Any]
MAX_PROFILE = 4095  # bytes of a path, without its end
SYSCTL_LIMIT = 253  # characters
KINDS = ("initContainers", "containers", "ephemeralContainers")
_SYSCTL = r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?"
_IPC = ("kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.")  # what belongs to the namespace of IPC
_PROFILES = ("Localhost", "RuntimeDefault", "Unconfined")
_CHOICES = (("fsGroupChangePolicy", ("Always", "OnRootMismatch")), ("supplementalGroupsPolicy", ("Merge", "Strict")),
            ("seLinuxChangePolicy", ("MountOption", "Recursive")))
_LINUX_OF_PODS = ("appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls",
                  "runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy")
_LINUX_OF_CONTAINERS = ("appArmorProfile", "seLinuxOptions", "seccompProfile", "capabilities",
                        "readOnlyRootFilesystem", "privileged", "allowPrivilegeEscalation", "procMount", "runAsUser",
                        "runAsGroup")
NO_WINDOWS = "cannot be set for a windows pod"


def of_container(context: Object, path: str, host_users: bool) -> list[Cause]:
    """`host_users`: whether the pod's users are the host's."""
    found = _ids(context, ("runAsUser", "runAsGroup"), path) + _profiles(context, path)
    mount = context.get("procMount")
    if mount is not None and mount not in ("Default", "Unmasked"):
        found.append(not_supported(f"{path}.procMount", mount, ("Default", "Unmasked")))
    elif mount == "Unmasked" and host_users:
        found.append(invalid(f"{path}.procMount", mount, "`hostUsers` must be false to use `Unmasked`"))
    if context.get("allowPrivilegeEscalation") is False:
        if context.get("privileged"):
            found.append(invalid(path, context, "cannot set `allowPrivilegeEscalation` to false and `privileged` to "
                                 "true"))
        if "CAP_SYS_ADMIN" in ((context.get("capabilities") or {}).get("add") or ()):
            found.append(invalid(path, context, "cannot set `allowPrivilegeEscalation` to false and "
                                 "`capabilities.Add` CAP_SYS_ADMIN"))
    return found


def of_pod(spec: Object, path: str) -> list[Cause]:
    """A pod's own, the namespaces it shares with its host, and its system."""
    context, at = spec.get("securityContext") or {}, f"{path}.securityContext"
    found = _ids(context, ("fsGroup", "runAsUser", "runAsGroup"), at) + _profiles(context, at)
    found += [invalid(f"{at}.supplementalGroups[{index}]", group, names.in_range(0, names.MAX_INT32))
              for index, group in enumerate(context.get("supplementalGroups") or ())
              if not 0 <= group <= names.MAX_INT32]
    found += [not_supported(f"{at}.{field}", context[field], offered) for field, offered in _CHOICES
              if context.get(field) is not None and context[field] not in offered]
    if spec.get("shareProcessNamespace") and spec.get("hostPID"):
        found.append(invalid(f"{path}.shareProcessNamespace", True, "ShareProcessNamespace and HostPID cannot both be "
                             "enabled"))
    found += _sysctls(spec, context, f"{at}.sysctls")
    if spec.get("hostUsers") is False:
        found += [forbidden(f"{path}.{shown}", "when `pod.Spec.HostUsers` is false") for field, shown in (
            ("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")) if spec.get(field)]
    return found + _system(spec, path)


def _ids(context: Object, fields: tuple[str, ...], path: str) -> list[Cause]:
    return [invalid(f"{path}.{field}", context[field], names.in_range(0, names.MAX_INT32)) for field in fields
            if context.get(field) is not None and not 0 <= context[field] <= names.MAX_INT32]


# --- profiles of seccomp and AppArmor --------------------------------------------------------------------------------

def _profiles(context: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    if context.get("seccompProfile"):
        found += _profile(context["seccompProfile"], f"{path}.seccompProfile", "seccomp", "seccompProfile")
    if context.get("appArmorProfile"):
        found += _profile(context["appArmorProfile"], f"{path}.appArmorProfile", "AppArmor", "appArmorProfile")
    return found


def _profile(profile: Object, path: str, system: str, field: str) -> Iterator[Cause]:
    kind, local, at = profile.get("type") or "", profile.get("localhostProfile"), f"{path}.localhostProfile"
    if not kind:
        yield required(f"{path}.type", f"type is required when {field} is set")
    elif kind not in _PROFILES:
        yield not_supported(f"{path}.type", kind, _PROFILES)
    if kind == "Localhost" and not (local or "").strip():
        yield required(at, f"must be set when {system} type is Localhost")
    elif local is not None and kind in _PROFILES and kind != "Localhost":
        yield invalid(at, profile if system == "seccomp" else local, f"can only be set when {system} type is Localhost")
    elif local and system == "seccomp" and (local.startswith("/") or ".." in local.split("/")):
        yield invalid(at, local, "must be a relative path" if local.startswith("/") else "must not contain '..'")
    elif local and system == "AppArmor" and local != local.strip():
        yield invalid(at, local, "must not be padded with whitespace")
    elif local and system == "AppArmor" and len(local.encode()) > MAX_PROFILE:
        yield too_long(at, MAX_PROFILE)


def _sysctls(spec: Object, context: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    known: set[str] = set()
    for index, sysctl in enumerate(context.get("sysctls") or ()):
        name, at = sysctl.get("name") or "", f"{path}[{index}].name"
        dotted = name.replace("/", ".")
        if not name:
            found.append(required(at))
        elif len(name) > SYSCTL_LIMIT or not re.fullmatch(_SYSCTL, name):
            found.append(invalid(at, name, f"must have at most {SYSCTL_LIMIT} characters and match regex ^{_SYSCTL}$"))
        elif name in known:
            found.append(duplicate(at, name))
        elif spec.get("hostNetwork") and dotted.startswith("net."):
            found.append(invalid(at, name, "may not be specified when 'hostNetwork' is true"))
        elif spec.get("hostIPC") and dotted.startswith(_IPC):
            found.append(invalid(at, name, "may not be specified when 'hostIPC' is true"))
        known.add(name)
    return found


# --- systems ---------------------------------------------------------------------------------------------------------

def _system(spec: Object, path: str) -> list[Cause]:
    """What the system that a pod names does not have."""
    if spec.get("os") is None:
        return []
    name = spec["os"].get("name") or ""
    if not name:
        return [required(f"{path}.os.name", "cannot be empty")]
    if name not in ("linux", "windows"):
        return [not_supported(f"{path}.os", name, ("linux", "windows"))]
    contexts: list[tuple[Object, str, tuple[str, ...]]] = [
        (spec.get("securityContext") or {}, f"{path}.securityContext", _LINUX_OF_PODS)]
    contexts += [(c.get("securityContext") or {}, f"{path}.{kind}[{index}].securityContext", _LINUX_OF_CONTAINERS)
                 for kind in KINDS for index, c in enumerate(spec.get(kind) or ())]
    if name == "linux":
        return [forbidden(f"{at}.windowsOptions", "windows options cannot be set for a linux pod")
                for context, at, _ in contexts if context.get("windowsOptions") is not None]
    found = [forbidden(f"{path}.{field}", NO_WINDOWS) for field in ("hostUsers", "shareProcessNamespace")
             if spec.get(field) is not None]
    found += [forbidden(f"{path}.{field}", NO_WINDOWS) for field in ("hostPID", "hostIPC") if spec.get(field)]
    return found + [forbidden(f"{at}.{field}", NO_WINDOWS) for context, at, fields in contexts for field in fields
                    if context.get(field) not in (None, [])]

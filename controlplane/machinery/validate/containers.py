"""Validation of containers: names, images, ports, environment, mounts and devices, restarts; what asks running ones is
`handlers`', what they may do on their host `securitycontexts`', what they use of it `requirements`' to judge.

Upstream: validateContainers and its kin in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import names, stopsignals
from controlplane.machinery.errors import (
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_found,
    not_supported,
    required,
    too_many,
)
from controlplane.machinery.validate import securitycontexts
from controlplane.machinery.validate.endpoints import PROTOCOLS
from controlplane.machinery.validate.requirements import requirements

Object = dict[str, Any]
RESTART_POLICIES = ("Always", "Never", "OnFailure")
RULE_ACTIONS = ("Restart", "RestartAllContainers")
MAX_RULES, MAX_CODES = 20, 255  # of restarts, and exit codes of one
_PULL = ("Always", "IfNotPresent", "Never")
_MESSAGE = ("File", "FallbackToLogsOnError")
_PROPAGATION = ("Bidirectional", "HostToContainer", "None")
_FIELD_PATHS = frozenset(("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
                          "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP",
                          "status.podIPs"))
_RESOURCES = frozenset(f"{kind}.{name}" for kind in ("limits", "requests")
                       for name in ("cpu", "memory", "ephemeral-storage"))


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of its pod a container is judged by: volumes and ResourceClaims by name, whether no container is started
    again (`never`), whether its users are the host's, and the seconds it has to end."""

    volumes: Mapping[str, Object]
    claims: frozenset[str]
    never: bool
    host_users: bool
    grace: int | None

    @staticmethod
    def of(spec: Object) -> Surroundings:
        return Surroundings({v.get("name") or "": v for v in spec.get("volumes") or ()},
                            frozenset(c.get("name") or "" for c in spec.get("resourceClaims") or ()),
                            spec.get("restartPolicy") == "Never", spec.get("hostUsers") is not False,
                            spec.get("terminationGracePeriodSeconds"))


def container(obj: Object, path: str, pod: Surroundings, seen: set[str]) -> list[Cause]:
    """One container; `seen` gathers the names of the whole pod."""
    found: list[Cause] = []
    name = obj.get("name") or ""
    if not name:
        found.append(required(f"{path}.name"))
    elif name in seen:
        found.append(duplicate(f"{path}.name", name))
    else:
        found += [invalid(f"{path}.name", name, m) for m in names.dns_label(name)]
    seen.add(name)
    image = obj.get("image") or ""
    if not image:
        found.append(required(f"{path}.image"))
    elif image != image.strip():
        found.append(invalid(f"{path}.image", image, "must not have leading or trailing whitespace"))
    for field, offered in (("imagePullPolicy", _PULL), ("terminationMessagePolicy", _MESSAGE)):
        if not obj.get(field):
            found.append(required(f"{path}.{field}"))
        elif obj[field] not in offered:
            found.append(not_supported(f"{path}.{field}", obj[field], offered, as_given=True))
    if obj.get("ports"):
        found += ports(obj["ports"], f"{path}.ports")
    if obj.get("env"):
        found += env(obj["env"], f"{path}.env")
    if obj.get("envFrom"):
        found += env_from(obj["envFrom"], f"{path}.envFrom")
    found += mounts(obj, f"{path}.volumeMounts", pod.volumes) + devices(obj, f"{path}.volumeDevices", pod.volumes)
    if obj.get("resources"):
        found += requirements(obj["resources"], f"{path}.resources", pod.claims)
    found += resize_policies(obj.get("resizePolicy") or [], f"{path}.resizePolicy", pod.never)
    if obj.get("securityContext"):
        found += securitycontexts.of_container(obj["securityContext"], f"{path}.securityContext", pod.host_users)
    return found


def restarts(obj: Object, path: str) -> list[Cause]:
    """A container's own restart policy and the rules that come before it."""
    policy, rules, at = obj.get("restartPolicy"), obj.get("restartPolicyRules") or (), f"{path}.restartPolicyRules"
    found: list[Cause] = []
    if policy and policy not in RESTART_POLICIES:
        found.append(not_supported(f"{path}.restartPolicy", policy, RESTART_POLICIES))
    if rules and not policy:
        found.append(required(f"{path}.restartPolicy", "must specify restartPolicy when restart rules are used"))
    if len(rules) > MAX_RULES:
        found.append(too_many(at, len(rules), MAX_RULES))
    for index, rule in enumerate(rules):
        if rule.get("action") not in RULE_ACTIONS:
            found.append(not_supported(f"{at}[{index}].action", rule.get("action") or "", RULE_ACTIONS))
        codes = rule.get("exitCodes")
        if codes is None:
            found.append(required(f"{at}[{index}].exitCodes", "must be specified"))
            continue
        if codes.get("operator") not in ("In", "NotIn"):
            found.append(not_supported(f"{at}[{index}].exitCodes.operator", codes.get("operator") or "",
                                       ("In", "NotIn")))
        if len(codes.get("values") or ()) > MAX_CODES:
            found.append(too_many(f"{at}[{index}].exitCodes.values", len(codes["values"]), MAX_CODES))
    return found


def stop_signal(obj: Object, path: str, spec: Object) -> list[Cause]:
    """Which signal ends the container depends on the system it is for, which the pod has to tell."""
    signal, at = (obj.get("lifecycle") or {}).get("stopSignal"), f"{path}.lifecycle.stopSignal"
    if signal is None:
        return []
    system = (spec.get("os") or {}).get("name")
    if not system:
        return [forbidden(at, "may not be set for containers with empty `spec.os.name`")]
    offered = stopsignals.WINDOWS if system == "windows" else tuple(stopsignals.NUMBERS)
    return [] if signal in offered else [not_supported(at, signal, offered)]


def ports(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, port in enumerate(listed):
        at = f"{path}[{index}]"
        name, number, host = port.get("name") or "", port.get("containerPort") or 0, port.get("hostPort") or 0
        if name:
            faults = names.port_name(name)
            found += [invalid(f"{at}.name", name, m) for m in faults]
            if not faults and name in seen:
                found.append(duplicate(f"{at}.name", name))
            seen.add(name)
        if not number:
            found.append(required(f"{at}.containerPort"))
        else:
            found += [invalid(f"{at}.containerPort", number, m) for m in names.port_number(number)]
        if host:
            found += [invalid(f"{at}.hostPort", host, m) for m in names.port_number(host)]
        if port.get("protocol") not in PROTOCOLS:
            found.append(not_supported(f"{at}.protocol", port.get("protocol") or "", PROTOCOLS))
        if port.get("hostIP"):
            found += [invalid(f"{at}.hostIP", port["hostIP"], m) for m in names.ip_address(port["hostIP"])]
    return found


def env(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, variable in enumerate(listed):
        at = f"{path}[{index}]"
        name = variable.get("name") or ""
        if not name:
            found.append(required(f"{at}.name"))
        else:
            found += [invalid(f"{at}.name", name, m) for m in names.env_name(name)]
        source = variable.get("valueFrom")
        if source is not None:
            found += _env_source(source, variable.get("value") or "", f"{at}.valueFrom")
    return found


def _env_source(source: Object, value: str, path: str) -> list[Cause]:
    kinds = [k for k in ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")
             if source.get(k) is not None]
    if not kinds:
        return [invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, "
                        "`secretKeyRef` or `fileKeyRef`")]
    found: list[Cause] = []
    if value:
        found.append(invalid(path, "", "may not be specified when `value` is not empty"))
    if len(kinds) > 1:
        found.append(invalid(path, "", "may not have more than one field specified at a time"))
    at, reference = f"{path}.{kinds[0]}", source[kinds[0]]
    if kinds[0] == "fieldRef":
        found += field_reference(reference, at, _FIELD_PATHS)
    elif kinds[0] == "resourceFieldRef":
        found += resource_reference(reference, at)
    elif kinds[0] in ("configMapKeyRef", "secretKeyRef"):
        found += [required(f"{at}.{field}") for field in ("name", "key") if not reference.get(field)]
        if reference.get("key"):
            found += [invalid(f"{at}.key", reference["key"], m) for m in names.config_key(reference["key"])]
    else:
        found += [required(f"{at}.{field}") for field in ("volumeName", "path", "key") if not reference.get(field)]
        if reference.get("key"):
            found += [invalid(f"{at}.key", reference["key"], m) for m in names.env_name(reference["key"])]
        if (place := reference.get("path") or "").startswith("/"):
            found.append(invalid(f"{at}.path", place, "must be a relative path"))
        if ".." in place.split("/"):
            found.append(invalid(f"{at}.path", place, "must not contain '..'"))
    return found


def env_files(each: Object, path: str, folders: Mapping[str, bool]) -> list[Cause]:
    """Files with variables lie in volumes of the pod; `folders` says of each volume whether it is an emptyDir."""
    found: list[Cause] = []
    for index, variable in enumerate(each.get("env") or ()):
        reference = (variable.get("valueFrom") or {}).get("fileKeyRef") or {}
        name, at = reference.get("volumeName"), f"{path}.env[{index}].valueFrom.fileKeyRef.volumeName"
        if name and name not in folders:
            found.append(not_found(at, name))
        elif name and not folders[name]:
            found.append(invalid(at, name, "referenced volume must be of type emptyDir"))
    return found


def field_reference(reference: Object, path: str, offered: frozenset[str]) -> list[Cause]:
    """A path into the pod: one of those offered, or one label or annotation."""
    text = reference.get("fieldPath") or ""
    if not text:
        return [required(f"{path}.fieldPath")]
    base, bracket, key = text.partition("['")
    if bracket and base in ("metadata.labels", "metadata.annotations") and key.endswith("']"):
        rule = names.label_key if base == "metadata.labels" else names.annotation_key
        return [invalid(path, key[:-2], m) for m in rule(key[:-2])]
    if text in offered:
        return []
    return [not_supported(f"{path}.fieldPath", text, sorted(offered))]


def resource_reference(reference: Object, path: str) -> list[Cause]:
    resource = reference.get("resource") or ""
    if not resource:
        return [required(f"{path}.resource")]
    if resource in _RESOURCES or resource.split(".", 1)[-1].startswith("hugepages-"):
        return []
    return [not_supported(f"{path}.resource", resource, sorted(_RESOURCES))]


def env_from(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, source in enumerate(listed):
        at = f"{path}[{index}]"
        if source.get("prefix"):
            found += [invalid(f"{at}.prefix", source["prefix"], m) for m in names.env_name(source["prefix"])]
        kinds = [k for k in ("configMapRef", "secretRef") if source.get(k) is not None]
        if not kinds:
            found.append(invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"))
        elif len(kinds) > 1:
            found.append(invalid(path, "", "may not have more than one field specified at a time"))
        elif not source[kinds[0]].get("name"):
            found.append(required(f"{at}.{kinds[0]}.name"))
    return found


def mounts(obj: Object, path: str, volumes: Collection[str]) -> list[Cause]:
    """What of the pod's volumes a container sees, and where. Some paths are those of the list, as upstream has them."""
    found: list[Cause] = []
    seen: set[str] = set()
    devices = obj.get("volumeDevices") or ()
    for index, mount in enumerate(obj.get("volumeMounts") or ()):
        at, name, where = f"{path}[{index}]", mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            found.append(required(f"{at}.name"))
        if name not in volumes:
            found.append(not_found(f"{at}.name", name))
        if not where:
            found.append(required(f"{at}.mountPath"))
        if where in seen:
            found.append(invalid(f"{at}.mountPath", where, "must be unique"))
        seen.add(where)
        if any(d.get("name") == name for d in devices):
            found.append(invalid(f"{at}.name", name, "must not already exist in volumeDevices"))
        if any(d.get("devicePath") == where for d in devices):
            found.append(invalid(f"{at}.mountPath", where, "must not already exist as a path in volumeDevices"))
        for field in ("subPath", "subPathExpr"):
            if mount.get(field):
                found += relative_path(mount[field], f"{path}.{field}")
        if mount.get("subPath") and mount.get("subPathExpr"):
            found.append(invalid(f"{at}.subPathExpr", mount["subPathExpr"], "subPathExpr and subPath are mutually "
                                 "exclusive"))
        found += _propagation(obj, mount, path)
    return found


def _propagation(obj: Object, mount: Object, path: str) -> list[Cause]:
    """What of a mount's own mounts others see, and whether all of them are read only."""
    spread, recursive = mount.get("mountPropagation"), mount.get("recursiveReadOnly")
    found: list[Cause] = []
    if spread is not None and spread not in _PROPAGATION:
        found.append(not_supported(f"{path}.mountPropagation", spread, _PROPAGATION))
    if spread == "Bidirectional" and not (obj.get("securityContext") or {}).get("privileged"):
        found.append(forbidden(f"{path}.mountPropagation", "Bidirectional mount propagation is available only to "
                               "privileged containers"))
    if recursive in ("Enabled", "IfPossible"):
        at = f"{path}.recursiveReadOnly"
        if not mount.get("readOnly"):
            found.append(forbidden(at, "may only be specified when readOnly is true"))
        if spread not in (None, "None"):
            found.append(forbidden(at, "may only be specified when mountPropagation is None or not specified"))
    elif recursive not in (None, "Disabled"):
        found.append(not_supported(f"{path}.recursiveReadOnly", recursive, ("Disabled", "IfPossible", "Enabled"),
                                   as_given=True))
    return found


def devices(obj: Object, path: str, volumes: Mapping[str, Object]) -> list[Cause]:
    """Volumes that a container sees as block devices: of claims."""
    found: list[Cause] = []
    seen: set[str] = set()
    mounted = obj.get("volumeMounts") or ()
    for index, device in enumerate(obj.get("volumeDevices") or ()):
        at, name, where = f"{path}[{index}]", device.get("name") or "", device.get("devicePath") or ""
        if not name:
            found.append(required(f"{at}.name"))
        elif name in seen:
            found.append(invalid(f"{at}.name", name, "must be unique"))
        if name not in volumes:
            found.append(not_found(f"{at}.name", name))
        elif not {"persistentVolumeClaim", "ephemeral"} & volumes[name].keys():
            found.append(invalid(f"{at}.name", name, "can only use volume source type of PersistentVolumeClaim or "
                                 "Ephemeral for block mode"))
        if not where:
            found.append(required(f"{at}.devicePath"))
        elif where in seen:
            found.append(invalid(f"{at}.devicePath", where, "must be unique"))
        elif ".." in where.split("/"):
            found.append(invalid(f"{at}.devicePath", where, "can not contain backsteps ('..')"))
        seen |= {name, where}
        if any(m.get("name") == name for m in mounted):
            found.append(invalid(f"{at}.name", name, "must not already exist in volumeMounts"))
        if any(m.get("mountPath") == where for m in mounted):
            found.append(invalid(f"{at}.devicePath", where, "must not already exist as a path in volumeMounts"))
    return found


def resize_policies(listed: list[Object], path: str, never: bool) -> list[Cause]:
    """What a change of resources means for the container. `never`: the pod's containers are not started again."""
    found: list[Cause] = []
    for index, policy in enumerate(listed):
        resource, restart = policy.get("resourceName") or "", policy.get("restartPolicy") or ""
        if any(p.get("resourceName") == resource for p in listed[:index]):
            found.append(duplicate(f"{path}[{index}]", resource))
        for value, offered in ((resource, ("cpu", "memory")), (restart, ("NotRequired", "RestartContainer"))):
            if not value:
                found.append(required(path))
            elif value not in offered:
                found.append(not_supported(path, value, offered))
        if never and restart != "NotRequired":
            found.append(invalid(path, restart, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
    return found


def relative_path(text: str, path: str) -> list[Cause]:
    """A path that stays below where it starts."""
    if text.startswith("/"):
        return [invalid(path, text, "must be a relative path")]
    return [invalid(path, text, "must not contain '..'")] if ".." in text.split("/") else []

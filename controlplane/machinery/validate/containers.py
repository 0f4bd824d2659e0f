"""Validation of containers: names, images, ports, environment, probes, hooks, mounts, resources.

Upstream: validateContainers and its kin in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from controlplane.machinery.validate.endpoints import PROTOCOLS
from controlplane.machinery.validate.requirements import NEGATIVE, requirements

Object = dict[str, Any]
RESTART_POLICIES = ("Always", "Never", "OnFailure")
RULE_ACTIONS = ("Restart", "RestartAllContainers")
MAX_RULES, MAX_CODES = 20, 255  # of restarts, and exit codes of one
_PULL = ("Always", "IfNotPresent", "Never")
_MESSAGE = ("FallbackToLogsOnError", "File")
_PROPAGATION = ("Bidirectional", "HostToContainer", "None")
_FIELD_PATHS = frozenset(("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
                          "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP",
                          "status.podIPs"))
_RESOURCES = frozenset(f"{kind}.{name}" for kind in ("limits", "requests")
                       for name in ("cpu", "memory", "ephemeral-storage"))


def container(obj: Object, path: str, volumes: set[str], seen: set[str], claims: set[str]) -> list[Cause]:
    """One container; `seen` gathers the names of the whole pod, `claims` are its ResourceClaims."""
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
    if (obj.get("imagePullPolicy") or "") not in _PULL:
        found.append(not_supported(f"{path}.imagePullPolicy", obj.get("imagePullPolicy") or "", _PULL))
    if (obj.get("terminationMessagePolicy") or "") not in _MESSAGE:
        found.append(not_supported(f"{path}.terminationMessagePolicy", obj.get("terminationMessagePolicy") or "",
                                   _MESSAGE))
    if obj.get("ports"):
        found += ports(obj["ports"], f"{path}.ports")
    if obj.get("env"):
        found += env(obj["env"], f"{path}.env")
    if obj.get("envFrom"):
        found += env_from(obj["envFrom"], f"{path}.envFrom")
    if obj.get("volumeMounts"):
        found += mounts(obj["volumeMounts"], f"{path}.volumeMounts", volumes)
    resources = obj.get("resources")
    if resources:
        found += requirements(resources, f"{path}.resources", claims)
    if obj.get("securityContext"):
        found += security(obj["securityContext"], f"{path}.securityContext")
    return found


def probes(obj: Object, path: str) -> list[Cause]:
    """Probes and hooks, which only containers that run on have."""
    found: list[Cause] = []
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if obj.get(kind) is not None:
            found += probe(obj[kind], f"{path}.{kind}", single_success=kind != "readinessProbe")
    for hook in ("postStart", "preStop"):
        handler_of = (obj.get("lifecycle") or {}).get(hook)
        if handler_of is not None:
            found += handler(handler_of, f"{path}.lifecycle.{hook}", ("exec", "httpGet", "tcpSocket", "sleep"))
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


def mounts(listed: list[Object], path: str, volumes: set[str]) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, mount in enumerate(listed):
        at = f"{path}[{index}]"
        name, where = mount.get("name") or "", mount.get("mountPath") or ""
        if not name:
            found.append(required(f"{at}.name"))
        elif name not in volumes:
            found.append(not_found(f"{at}.name", name))
        if not where:
            found.append(required(f"{at}.mountPath"))
        elif where in seen:
            found.append(invalid(f"{at}.mountPath", where, "must be unique"))
        seen.add(where)
        sub, expanded = mount.get("subPath"), mount.get("subPathExpr")
        for field, value in (("subPath", sub), ("subPathExpr", expanded)):
            if value:
                found += relative_path(value, f"{at}.{field}")
        if sub and expanded:
            found.append(invalid(f"{at}.subPathExpr", expanded, "subPathExpr and subPath are mutually exclusive"))
        if mount.get("mountPropagation") and mount["mountPropagation"] not in _PROPAGATION:
            found.append(not_supported(f"{at}.mountPropagation", mount["mountPropagation"], _PROPAGATION))
    return found


def relative_path(text: str, path: str) -> list[Cause]:
    """A path that stays below where it starts."""
    if text.startswith("/"):
        return [invalid(path, text, "must be a relative path")]
    return [invalid(path, text, "must not contain '..'")] if ".." in text.split("/") else []


def probe(obj: Object, path: str, single_success: bool) -> list[Cause]:
    found = handler(obj, path, ("exec", "httpGet", "tcpSocket", "grpc"))
    for field in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        value = obj.get(field) or 0
        if value < 0:
            found.append(invalid(f"{path}.{field}", value, NEGATIVE))
    grace = obj.get("terminationGracePeriodSeconds")
    if grace is not None and grace <= 0:
        found.append(invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than 0"))
    if single_success and obj.get("successThreshold", 1) != 1:
        found.append(invalid(f"{path}.successThreshold", obj["successThreshold"], "must be 1"))
    return found


def handler(obj: Object, path: str, offered: tuple[str, ...]) -> list[Cause]:
    """Exactly one way to ask."""
    kinds = [k for k in offered if obj.get(k) is not None]
    if not kinds:
        return [required(path, "must specify a handler type")]
    found = [forbidden(f"{path}.{kind}", "may not specify more than 1 handler type") for kind in kinds[1:]]
    kind, action = kinds[0], obj[kinds[0]]
    at = f"{path}.{kind}"
    if kind == "exec" and not action.get("command"):
        found.append(required(f"{at}.command"))
    elif kind in ("httpGet", "tcpSocket", "grpc"):
        port = action.get("port")
        if isinstance(port, str):
            found += [invalid(f"{at}.port", port, m) for m in names.port_name(port)]
        else:
            found += [invalid(f"{at}.port", port or 0, m) for m in names.port_number(port or 0)]
    if kind == "httpGet":
        if not action.get("path"):
            found.append(required(f"{at}.path"))
        if action.get("scheme") not in ("HTTP", "HTTPS"):
            found.append(not_supported(f"{at}.scheme", action.get("scheme") or "", ("HTTP", "HTTPS")))
        for index, header in enumerate(action.get("httpHeaders") or ()):
            name = header.get("name") or ""
            found += [invalid(f"{at}.httpHeaders[{index}]", name, m) for m in names.header_name(name)]
    return found


def security(context: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    for field in ("runAsUser", "runAsGroup"):
        value = context.get(field)
        if value is not None and not 0 <= value <= 2**31 - 1:
            found.append(invalid(f"{path}.{field}", value, names.in_range(0, 2147483647)))
    if context.get("allowPrivilegeEscalation") is False:
        if context.get("privileged"):
            found.append(invalid(path, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
        if "CAP_SYS_ADMIN" in ((context.get("capabilities") or {}).get("add") or ()):
            found.append(invalid(path, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` "
                                 "CAP_SYS_ADMIN"))
    return found + seccomp(context, path)


def seccomp(context: Object, path: str) -> list[Cause]:
    profile = context.get("seccompProfile")
    if not profile:
        return []
    kind, at = profile.get("type") or "", f"{path}.seccompProfile"
    if kind not in ("Localhost", "RuntimeDefault", "Unconfined"):
        return [not_supported(f"{at}.type", kind, ("Localhost", "RuntimeDefault", "Unconfined"))]
    if kind == "Localhost" and not profile.get("localhostProfile"):
        return [required(f"{at}.localhostProfile", "must be set when seccomp type is Localhost")]
    return []

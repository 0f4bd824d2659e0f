"""Validation of pods and pod templates; containers and volumes have modules of their own.

Upstream: ValidatePodSpec in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import (
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_found,
    not_supported,
    required,
    too_long,
)
from controlplane.machinery.validate import affinity, containers, handlers, metadata, requirements, securitycontexts
from controlplane.machinery.validate.claims import claim_spec
from controlplane.machinery.validate.containers import Surroundings
from controlplane.machinery.validate.volumes import volumes

Object = dict[str, Any]
_RESTART = ("Always", "OnFailure", "Never")
_DNS = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_PREEMPTION = ("PreemptLowerPriority", "Never")
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
MAX_NAMESERVERS, MAX_SEARCHES, MAX_SEARCH_LIST = 3, 32, 2048  # servers, paths, characters of all paths
_NOT_EPHEMERAL = ("ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources",
                  "restartPolicy", "resizePolicy")
LONGEST_HOSTNAME = 64  # characters; Linux takes no more


def pod(obj: Object) -> list[Cause]:
    return pod_spec(obj.get("spec") or {}, "spec")


def template(obj: Object, path: str) -> list[Cause]:
    """A PodTemplateSpec: its labels and annotations, and its spec."""
    meta = obj.get("metadata") or {}
    found = metadata.labels(meta.get("labels") or {}, f"{path}.labels")
    found += metadata.annotations(meta.get("annotations") or {}, f"{path}.annotations")
    spec = obj.get("spec") or {}
    found += pod_spec(spec, f"{path}.spec")
    if spec.get("ephemeralContainers"):
        found.append(forbidden(f"{path}.spec.ephemeralContainers", "ephemeral containers not allowed in pod template"))
    return found


def unscheduled(template: Object) -> Object:
    """A template without what decides where its pods go: that may change while a job has not started."""
    spec = dict(template.get("spec") or {})
    for field in ("nodeSelector", "tolerations", "schedulingGates"):
        spec.pop(field, None)
    affinity = {k: v for k, v in (spec.pop("affinity", None) or {}).items() if k != "nodeAffinity"}
    meta = {k: v for k, v in (template.get("metadata") or {}).items() if k not in ("labels", "annotations")}
    return {**template, "metadata": meta, "spec": {**spec, "affinity": affinity}}


def pod_spec(spec: Object, path: str) -> list[Cause]:
    found, _ = volumes(spec.get("volumes") or [], f"{path}.volumes")
    for index, volume in enumerate(spec.get("volumes") or ()):
        claimed = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
        if claimed is not None:
            found += claim_spec(claimed.get("spec") or {},
                                f"{path}.volumes[{index}].ephemeral.volumeClaimTemplate.spec")
    found += _claims(spec.get("resourceClaims") or [], f"{path}.resourceClaims")
    found += _containers(spec, path)
    found += requirements.whole(spec, f"{path}.resources")
    found += _scheduling(spec, path)
    for field, supported in (("restartPolicy", _RESTART), ("dnsPolicy", _DNS)):
        value = spec.get(field) or ""
        if not value:
            found.append(required(f"{path}.{field}"))
        elif value not in supported:
            found.append(not_supported(f"{path}.{field}", value, supported, as_given=True))
    if spec.get("dnsConfig") is not None or spec.get("dnsPolicy") == "None":
        found += _dns(spec, path)
    for field in ("serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName", "hostnameOverride"):
        if spec.get(field):
            found += [invalid(f"{path}.{field}", spec[field], m) for m in names.dns_subdomain(spec[field])]
    found += _hostname(spec, path)
    for field in ("hostname", "subdomain"):
        if spec.get(field):
            found += [invalid(f"{path}.{field}", spec[field], m) for m in names.dns_label(spec[field])]
    seconds = spec.get("activeDeadlineSeconds")
    if seconds is not None and not 1 <= seconds <= names.MAX_INT32:
        found.append(invalid(f"{path}.activeDeadlineSeconds", seconds, names.in_range(1, names.MAX_INT32)))
    for index, alias in enumerate(spec.get("hostAliases") or ()):
        found += [invalid(f"{path}.hostAliases[{index}].ip", alias.get("ip") or "", m)
                  for m in names.ip_address(alias.get("ip") or "")]
        for position, text in enumerate(alias.get("hostnames") or ()):
            found += [invalid(f"{path}.hostAliases[{index}].hostnames[{position}]", text, m)
                      for m in names.dns_subdomain(text)]
    if (policy := spec.get("preemptionPolicy")) is not None and policy not in _PREEMPTION:
        found.append(not_supported(f"{path}.preemptionPolicy", policy, _PREEMPTION) if policy
                     else required(f"{path}.preemptionPolicy"))
    for index, gate in enumerate(spec.get("readinessGates") or ()):
        kind = gate.get("conditionType") or ""
        found += [invalid(f"{path}.readinessGates[{index}].conditionType", kind, m) for m in names.qualified_name(kind)]
    if spec.get("overhead"):
        found += requirements.requirements({"limits": spec["overhead"]}, f"{path}.overhead")
    return found + securitycontexts.of_pod(spec, path)


def _claims(listed: list[Object], path: str) -> list[Cause]:
    """ResourceClaims by the names that containers use."""
    found: list[Cause] = []
    for index, claim in enumerate(listed):
        at, name = f"{path}[{index}]", claim.get("name") or ""
        if not name:
            found.append(required(f"{at}.name"))
        elif any(c.get("name") == name for c in listed[:index]):
            found.append(duplicate(f"{at}.name", name))
        else:
            found += [invalid(f"{at}.name", name, m) for m in names.dns_label(name)]
        given = [f for f in ("resourceClaimName", "resourceClaimTemplateName") if claim.get(f) is not None]
        if len(given) == 2:
            found.append(invalid(at, claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be "
                                 "specified"))
        elif not given:
            found.append(invalid(at, claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
        found += [invalid(f"{at}.{field}", claim[field], m) for field in given
                  for m in names.dns_subdomain(claim[field])]
    return found


def _hostname(spec: Object, path: str) -> list[Cause]:
    """What replaces the host's name altogether goes with nothing else that makes one."""
    name = spec.get("hostnameOverride")
    if name is None:
        return []
    found = [too_long(f"{path}.hostnameOverride", LONGEST_HOSTNAME)] if len(name) > LONGEST_HOSTNAME else []
    return found + [forbidden(f"{path}.hostnameOverride", f"may not be specified when {field} is true")
                    for field in ("setHostnameAsFQDN", "hostNetwork") if spec.get(field)]


def _containers(spec: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    main = spec.get("containers") or []
    if not main:
        found.append(required(f"{path}.containers"))
    around = Surroundings.of(spec)
    hosts: set[tuple[Any, Any, Any]] = set()
    folders = {v.get("name") or "": v.get("emptyDir") is not None for v in spec.get("volumes") or ()}
    for index, each in enumerate(main):
        at = f"{path}.containers[{index}]"
        found += containers.container(each, at, around, seen)
        found += handlers.of_container(each, at, around.grace)
        found += containers.restarts(each, at)
        found += containers.env_files(each, at, folders)
        found += containers.stop_signal(each, at, spec)
        found += _host_ports(each, at, hosts, spec)
    for index, each in enumerate(spec.get("initContainers") or ()):
        at = f"{path}.initContainers[{index}]"
        found += containers.container(each, at, around, seen)
        found += _init(each, at, around.grace)
        found += containers.env_files(each, at, folders)
        found += containers.stop_signal(each, at, spec)
    return found + ephemeral_containers(spec, path)


def ephemeral_containers(spec: Object, path: str) -> list[Cause]:
    """What was added to a running pod to look into it: no ports, probes, hooks or resources of its own."""
    listed = spec.get("ephemeralContainers") or ()
    others = {c.get("name") or "" for c in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))}
    around = Surroundings.of(spec)
    found: list[Cause] = []
    seen = set(others)
    for index, each in enumerate(listed):
        at = f"{path}.ephemeralContainers[{index}]"
        found += containers.container(each, at, around, seen)
        target = each.get("targetContainerName")
        if target and target not in others:
            found.append(not_found(f"{at}.targetContainerName", target))
        found += [forbidden(f"{at}.{field}", "cannot be set for an Ephemeral Container")
                  for field in _NOT_EPHEMERAL if each.get(field)]
        found += [forbidden(f"{at}.volumeMounts[{i}].{field}", "cannot be set for an Ephemeral Container")
                  for i, mount in enumerate(each.get("volumeMounts") or ()) for field in ("subPath", "subPathExpr")
                  if mount.get(field)]
    return found


def _init(each: Object, path: str, grace: int | None) -> list[Cause]:
    """Only a sidecar, an init container that is always restarted, has probes and hooks."""
    policy = each.get("restartPolicy")
    if policy == "Always":
        return handlers.of_container(each, path, grace) + containers.restarts(each, path)
    found = [forbidden(f"{path}.{field}", "may not be set for init containers without restartPolicy=Always")
             for field in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
             if each.get(field) is not None]
    return found + containers.restarts(each, path)


def _host_ports(each: Object, path: str, seen: set[tuple[Any, Any, Any]], spec: Object) -> list[Cause]:
    found: list[Cause] = []
    for index, port in enumerate(each.get("ports") or ()):
        host = port.get("hostPort")
        if not host:
            continue
        at = f"{path}.ports[{index}]"
        if spec.get("hostNetwork") and host != port.get("containerPort"):
            found.append(invalid(f"{at}.hostPort", host, "must match `containerPort` when `hostNetwork` is true"))
        key = (port.get("protocol"), port.get("hostIP") or "", host)
        if key in seen:
            found.append(duplicate(f"{at}.hostPort", f"{key[0]}/{key[1]}/{key[2]}"))
        seen.add(key)
    return found


def _scheduling(spec: Object, path: str) -> list[Cause]:
    found = metadata.labels(spec.get("nodeSelector") or {}, f"{path}.nodeSelector")
    found += tolerations(spec.get("tolerations") or [], f"{path}.tolerations")
    seen: set[str] = set()
    for index, gate in enumerate(spec.get("schedulingGates") or ()):
        name = gate.get("name") or ""
        found += [invalid(f"{path}.schedulingGates[{index}]", name, m) for m in names.qualified_name(name)]
        if name in seen:
            found.append(duplicate(f"{path}.schedulingGates[{index}]", name))
        seen.add(name)
    if seen and spec.get("nodeName"):
        found.append(forbidden(f"{path}.nodeName", "cannot be set until all schedulingGates have been cleared"))
    found += affinity.spreads(spec.get("topologySpreadConstraints") or [], f"{path}.topologySpreadConstraints")
    return found + affinity.affinity(spec.get("affinity") or {}, f"{path}.affinity")


def tolerations(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, toleration in enumerate(listed):
        at = f"{path}[{index}]"
        key, operator = toleration.get("key") or "", toleration.get("operator") or ""
        effect, value = toleration.get("effect") or "", toleration.get("value") or ""
        if key:
            found += [invalid(f"{at}.key", key, m) for m in names.label_key(key)]
        elif operator != "Exists":
            found.append(invalid(f"{at}.operator", operator, "operator must be Exists when `key` is empty, which means "
                                 '"match all values and all keys"'))
        if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
            found.append(invalid(f"{at}.effect", effect, "effect must be 'NoExecute' when `tolerationSeconds` is set"))
        if operator in ("", "Equal"):
            found += [invalid(f"{at}.operator", value, "; ".join(m)) for m in [names.label_value(value)] if m]
        elif operator == "Exists":
            if value:
                found.append(invalid(f"{at}.operator", toleration, "value must be empty when `operator` is 'Exists'"))
        else:
            found.append(not_supported(f"{at}.operator", operator, ("Equal", "Exists")))
        if effect not in _EFFECTS:
            found.append(not_supported(f"{at}.effect", effect, _EFFECTS[1:]))
    return found


def _dns(spec: Object, path: str) -> list[Cause]:
    config = spec.get("dnsConfig")
    if spec.get("dnsPolicy") == "None" and not (config or {}).get("nameservers"):
        if config is None:
            return [required(f"{path}.dnsConfig", "must provide `dnsConfig` when `dnsPolicy` is None")]
        return [required(f"{path}.dnsConfig.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` "
                         "is None")]
    found: list[Cause] = []
    servers = (config or {}).get("nameservers") or []
    if len(servers) > MAX_NAMESERVERS:
        found.append(invalid(f"{path}.dnsConfig.nameservers", servers, f"must not have more than {MAX_NAMESERVERS} "
                             "nameservers"))
    for index, text in enumerate(servers):
        found += [invalid(f"{path}.dnsConfig.nameservers[{index}]", text, m) for m in names.ip_address(text)]
    searches, at = (config or {}).get("searches") or [], f"{path}.dnsConfig.searches"
    if len(searches) > MAX_SEARCHES:
        found.append(invalid(at, searches, f"must not have more than {MAX_SEARCHES} search paths"))
    if len(" ".join(searches)) > MAX_SEARCH_LIST:
        found.append(invalid(at, searches, f"must not have more than {MAX_SEARCH_LIST} characters (including spaces) "
                             "in the search list"))
    for index, text in enumerate(searches):
        bare = text if text == "." else text.removesuffix(".")
        found += [invalid(f"{at}[{index}]", bare, m) for m in names.search_path(bare)]
    found += [required(f"{path}.dnsConfig.options[{index}]", "must not be empty")
              for index, option in enumerate((config or {}).get("options") or ()) if not option.get("name")]
    return found

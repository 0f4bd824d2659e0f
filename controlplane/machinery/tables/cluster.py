"""Rows of what belongs to the cluster: certificates, networking, storage, policy, roles.

Pure functions from an object and the time to its cells. Called by the package.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.tables.text import (
    NONE,
    UNSET,
    Object,
    Printer,
    created,
    human_duration,
    name,
    selector,
    spec,
    status,
)


def signing_request(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    types = {c.get("type") for c in seen.get("conditions") or ()}
    words = ["Denied" if "Denied" in types else "Approved" if "Approved" in types else "Pending"]
    words += ["Failed"] * ("Failed" in types) + ["Issued"] * bool(seen.get("certificate"))
    seconds = wanted.get("expirationSeconds")
    return [name(obj), created(obj, now), wanted.get("signerName") or NONE, wanted.get("username", ""),
            NONE if seconds is None else human_duration(seconds), ",".join(words)]


def ingress(obj: Object, now: float) -> list[Any]:
    wanted = spec(obj)
    hosts = [r["host"] for r in wanted.get("rules") or () if r.get("host")]
    text = ",".join(hosts[:3]) + (f" + {len(hosts) - 3} more..." if len(hosts) > 3 else "")
    entries = (status(obj).get("loadBalancer") or {}).get("ingress") or ()
    addresses = ",".join(i.get("ip") or i.get("hostname") or "" for i in entries)
    return [name(obj), wanted.get("ingressClassName") or NONE, text or "*", addresses,
            "80, 443" if wanted.get("tls") else "80", created(obj, now)]


def ip_address(obj: Object, now: float) -> list[Any]:
    parent = spec(obj).get("parentRef")
    if not parent:
        return [name(obj), NONE]
    resource = parent.get("resource", "") + (f".{parent['group']}" if parent.get("group") else "")
    return [name(obj), "/".join(p for p in (resource, parent.get("namespace"), parent.get("name")) if p)]


def storage_class(obj: Object, now: float) -> list[Any]:
    notes = (obj.get("metadata") or {}).get("annotations") or {}
    default = notes.get("storageclass.kubernetes.io/is-default-class") == "true"
    expansion = obj.get("allowVolumeExpansion")
    return [name(obj) + (" (default)" if default else ""), obj.get("provisioner", ""),
            obj.get("reclaimPolicy") or "Delete", obj.get("volumeBindingMode") or UNSET,
            UNSET if expansion is None else str(expansion).lower(), created(obj, now)]


_MODES = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}


def _modes(found: list[str] | None) -> str:
    return ",".join(_MODES.get(m, m) for m in found or ())


def volume_claim(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    bound = bool(wanted.get("volumeName"))
    gone = (obj.get("metadata") or {}).get("deletionTimestamp")
    return [name(obj), "Terminating" if gone else seen.get("phase", ""), wanted.get("volumeName", ""),
            (seen.get("capacity") or {}).get("storage", "") if bound else "",
            _modes(seen.get("accessModes")) if bound else "", wanted.get("storageClassName") or "",
            wanted.get("volumeAttributesClassName") or UNSET, created(obj, now), wanted.get("volumeMode") or UNSET]


def volume(obj: Object, now: float) -> list[Any]:
    wanted, seen = spec(obj), status(obj)
    claim = wanted.get("claimRef") or {}
    gone = (obj.get("metadata") or {}).get("deletionTimestamp")
    return [name(obj), (wanted.get("capacity") or {}).get("storage", ""), _modes(wanted.get("accessModes")),
            wanted.get("persistentVolumeReclaimPolicy", ""), "Terminating" if gone else seen.get("phase", ""),
            f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
            wanted.get("storageClassName") or "", wanted.get("volumeAttributesClassName") or UNSET,
            seen.get("reason", ""), created(obj, now), wanted.get("volumeMode") or UNSET]


def binding(obj: Object, now: float) -> list[Any]:
    role = obj.get("roleRef") or {}
    people: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in obj.get("subjects") or ():
        place = f"{subject.get('namespace', '')}/" if subject.get("kind") == "ServiceAccount" else ""
        people.setdefault(subject.get("kind", ""), []).append(place + subject.get("name", ""))
    return [name(obj), f"{role.get('kind', '')}/{role.get('name', '')}", created(obj, now),
            *(", ".join(people[k]) for k in ("User", "Group", "ServiceAccount"))]


def quota(obj: Object, now: float) -> list[Any]:
    hard, used = status(obj).get("hard") or {}, status(obj).get("used") or {}
    texts: dict[bool, list[str]] = {True: [], False: []}
    for resource in sorted(hard):
        texts[resource.startswith("limits")].append(f"{resource}: {used.get(resource, 0)}/{hard[resource]}")
    return [name(obj), ", ".join(texts[False]), ", ".join(texts[True]), created(obj, now)]


def api_service(obj: Object, now: float) -> list[Any]:
    target = spec(obj).get("service")
    available = next((c for c in status(obj).get("conditions") or () if c.get("type") == "Available"), None)
    word = "Unknown" if available is None else available.get("status", "")
    if available is not None and word != "True":
        word = f"{word} ({available.get('reason', '')})"
    return [name(obj), f"{target.get('namespace')}/{target.get('name')}" if target else "Local", word,
            created(obj, now)]


def device_claim(obj: Object, now: float) -> list[Any]:
    deleting, seen = bool((obj.get("metadata") or {}).get("deletionTimestamp")), status(obj)
    states = ["deleted"] * deleting
    if seen.get("allocation"):
        states += ["allocated"] + ["reserved"] * bool(seen.get("reservedFor"))
    elif not deleting:
        states.append("pending")
    return [name(obj), ",".join(states), created(obj, now)]


_BINDING = "Name, Role, Age, Users*, Groups*, ServiceAccounts*"
PRINTERS = {
    "apiservices.apiregistration.k8s.io": Printer("Name, Service, Available, Age", api_service),
    "clustertrustbundles.certificates.k8s.io": Printer("Name, SignerName", lambda o, now: [
        name(o), spec(o).get("signerName") or NONE]),
    "certificatesigningrequests.certificates.k8s.io": Printer(
        "Name, Age, SignerName, Requestor, RequestedDuration, Condition", signing_request),
    "ingressclasses.networking.k8s.io": Printer("Name, Controller, Parameters, Age", lambda o, now: [
        name(o), spec(o).get("controller", ""), (spec(o).get("parameters") or {}).get("name") or NONE,
        created(o, now)]),
    "ingresses.networking.k8s.io": Printer("Name, Class, Hosts, Address, Ports, Age", ingress),
    "ipaddresses.networking.k8s.io": Printer("Name, ParentRef", ip_address),
    "networkpolicies.networking.k8s.io": Printer("Name, Pod-Selector, Age", lambda o, now: [
        name(o), selector(spec(o).get("podSelector")), created(o, now)]),
    "servicecidrs.networking.k8s.io": Printer("Name, CIDRs, Age", lambda o, now: [
        name(o), ",".join(spec(o).get("cidrs") or ()), created(o, now)]),
    "clusterrolebindings.rbac.authorization.k8s.io": Printer(_BINDING, binding),
    "rolebindings.rbac.authorization.k8s.io": Printer(_BINDING, binding),
    "persistentvolumeclaims": Printer(
        "Name, Status, Volume, Capacity, Access Modes, StorageClass, VolumeAttributesClass, Age, VolumeMode*",
        volume_claim),
    "persistentvolumes": Printer(
        "Name, Capacity, Access Modes, Reclaim Policy, Status, Claim, StorageClass, VolumeAttributesClass, Reason, "
        "Age, VolumeMode*", volume),
    "resourceclaims.resource.k8s.io": Printer("Name, State, Age", device_claim),
    "resourceslices.resource.k8s.io": Printer("Name, Node, Driver, Pool, Age", lambda o, now: [
        name(o), spec(o).get("nodeName") or "", spec(o).get("driver", ""), (spec(o).get("pool") or {}).get("name", ""),
        created(o, now)]),
    "resourcequotas": Printer("Name, Request, Limit, Age", quota),
    "storageclasses.storage.k8s.io": Printer(
        "Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age", storage_class),
    "priorityclasses.scheduling.k8s.io": Printer(
        "Name, Value:integer, Global-Default:boolean, Age, PreemptionPolicy", lambda o, now: [
            name(o), o.get("value", 0), bool(o.get("globalDefault")), created(o, now),
            o.get("preemptionPolicy") or "PreemptLowerPriority"]),
    "runtimeclasses.node.k8s.io": Printer("Name, Handler, Age", lambda o, now: [
        name(o), o.get("handler", ""), created(o, now)]),
    "csinodes.storage.k8s.io": Printer("Name, Drivers:integer, Age", lambda o, now: [
        name(o), len(spec(o).get("drivers") or ()), created(o, now)]),
    "volumeattachments.storage.k8s.io": Printer("Name, Attacher, PV, Node, Attached:boolean, Age", lambda o, now: [
        name(o), spec(o).get("attacher", ""), (spec(o).get("source") or {}).get("persistentVolumeName", ""),
        spec(o).get("nodeName", ""), bool(status(o).get("attached")), created(o, now)]),
}

"""Rows of the core kinds other than pods: nodes, services, endpoints, events, namespaces, configuration, leases.

Pure functions from an object and the time to its cells. Called by the package.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.tables.text import (
    NONE,
    UNKNOWN,
    UNSET,
    Object,
    Printer,
    age,
    created,
    few,
    name,
    pairs,
    spec,
    status,
)

_ROLE = "node-role.kubernetes.io/"


def node(obj: Object, now: float) -> list[Any]:
    ready = next((c for c in status(obj).get("conditions") or () if c.get("type") == "Ready"), None)
    words = ["Unknown" if ready is None else "Ready" if ready.get("status") == "True" else "NotReady"]
    if spec(obj).get("unschedulable"):
        words.append("SchedulingDisabled")
    labels = (obj.get("metadata") or {}).get("labels") or {}
    roles = {k[len(_ROLE):] for k in labels if k.startswith(_ROLE)} | {labels.get("kubernetes.io/role", "")}
    addresses: dict[str, str] = {}
    for entry in status(obj).get("addresses") or ():
        addresses.setdefault(entry.get("type", ""), entry.get("address", ""))
    info = status(obj).get("nodeInfo") or {}
    return [name(obj), ",".join(words), ",".join(sorted(roles - {""})) or NONE, created(obj, now),
            info.get("kubeletVersion", ""), addresses.get("InternalIP", NONE), addresses.get("ExternalIP", NONE),
            *(info.get(k) or UNKNOWN for k in ("osImage", "kernelVersion", "containerRuntimeVersion"))]


def service(obj: Object, now: float) -> list[Any]:
    wanted = spec(obj)
    addresses = wanted.get("clusterIPs") or ([wanted["clusterIP"]] if wanted.get("clusterIP") else [])
    ports = ",".join(f"{p.get('port')}" + (f":{p['nodePort']}" if p.get("nodePort") else "")
                     + f"/{p.get('protocol') or 'TCP'}" for p in wanted.get("ports") or ())
    return [name(obj), wanted.get("type") or "ClusterIP", addresses[0] if addresses else NONE, _external(obj),
            ports or NONE, created(obj, now), pairs(wanted.get("selector"))]


def _external(obj: Object) -> str:
    wanted = spec(obj)
    given = list(wanted.get("externalIPs") or ())
    match wanted.get("type"):
        case "ExternalName":
            return wanted.get("externalName") or NONE
        case "LoadBalancer":
            ingress = (status(obj).get("loadBalancer") or {}).get("ingress") or ()
            balanced = [i.get("ip") or i.get("hostname") or "" for i in ingress]
            return ",".join(sorted(b for b in balanced if b) + given) or "<pending>"
    return ",".join(given) or NONE


def endpoints(obj: Object, now: float) -> list[Any]:
    found = []
    for subset in obj.get("subsets") or ():
        ports = [p.get("port") for p in subset.get("ports") or ()] or [None]
        for port in ports:
            for address in subset.get("addresses") or ():
                ip = address.get("ip", "")
                found.append(ip if port is None else f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")
    return [name(obj), few(found, NONE), created(obj, now)]


def endpoint_slice(obj: Object, now: float) -> list[Any]:
    ports = [str(p["port"]) if p.get("port") is not None else "*" for p in obj.get("ports") or ()]
    addresses = [a for e in obj.get("endpoints") or () for a in e.get("addresses") or ()]
    return [name(obj), obj.get("addressType", ""), few(ports, UNSET), few(addresses, UNSET), created(obj, now)]


def event(obj: Object, now: float) -> list[Any]:
    """Both forms of events: core/v1 and events.k8s.io/v1."""
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    first_stamp = obj.get("firstTimestamp") or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime")
    last_stamp = obj.get("lastTimestamp") or obj.get("deprecatedLastTimestamp") or first_stamp
    count = obj.get("count") or obj.get("deprecatedCount") or 1
    if series := obj.get("series"):
        last_stamp, count = series.get("lastObservedTime"), series.get("count") or count
    component = source.get("component") or obj.get("reportingComponent") or obj.get("reportingController") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    target = (about.get("kind") or "").lower() + (f"/{about['name']}" if about.get("name") else "")
    return [age(last_stamp, now), obj.get("type", ""), obj.get("reason", ""), target, about.get("fieldPath", ""),
            f"{component}, {host}" if host else component, (obj.get("message") or obj.get("note") or "").strip(),
            age(first_stamp, now), count, name(obj)]


def component_status(obj: Object, now: float) -> list[Any]:
    healthy: Object = next((c for c in obj.get("conditions") or () if c.get("type") == "Healthy"), {})
    word = {"True": "Healthy", "False": "Unhealthy"}.get(healthy.get("status", ""), "Unknown")
    return [name(obj), word, healthy.get("message", ""), healthy.get("error", "")]


_EVENT = "Last Seen, Type, Reason, Object, Subobject*, Source*, Message, First Seen*, Count*, Name*"

PRINTERS = {
    "componentstatuses": Printer("Name, Status, Message, Error", component_status),
    "configmaps": Printer("Name, Data, Age", lambda o, now: [
        name(o), len(o.get("data") or ()) + len(o.get("binaryData") or ()), created(o, now)]),
    "endpoints": Printer("Name, Endpoints, Age", endpoints),
    "events": Printer(_EVENT, event),
    "events.events.k8s.io": Printer(_EVENT, event),
    "namespaces": Printer("Name, Status, Age", lambda o, now: [
        name(o), status(o).get("phase", ""), created(o, now)]),
    "nodes": Printer("Name, Status, Roles, Age, Version, Internal-IP*, External-IP*, OS-Image*, Kernel-Version*, "
                     "Container-Runtime*", node),
    "secrets": Printer("Name, Type, Data, Age", lambda o, now: [
        name(o), o.get("type") or "Opaque", len(o.get("data") or ()), created(o, now)]),
    "serviceaccounts": Printer("Name, Age", lambda o, now: [name(o), created(o, now)]),
    "services": Printer("Name, Type, Cluster-IP, External-IP, Port(s), Age, Selector*", service),
    "endpointslices.discovery.k8s.io": Printer("Name, AddressType, Ports, Endpoints, Age", endpoint_slice),
    "leases.coordination.k8s.io": Printer("Name, Holder, Age", lambda o, now: [
        name(o), spec(o).get("holderIdentity") or "", created(o, now)]),
}

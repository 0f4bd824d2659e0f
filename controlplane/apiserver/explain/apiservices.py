"""Why another API server's kinds are not there: its Service, its endpoints, its certificate, its answer.

Owns the words for the condition `Available` of an APIService, and the way on to the Service behind it. Pure. Registered
for APIServices.
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.apiserver.explain import Object, World, called, explains
from controlplane.apiserver.explain.services import service
from controlplane.machinery.apiservices import AVAILABLE
from controlplane.machinery.errors import Finding
from controlplane.machinery.objects import condition


@explains("APIService")
def api_service(obj: Object, world: World) -> Iterator[Finding]:
    said, spec = condition(obj, AVAILABLE), obj.get("spec") or {}
    if not spec.get("service") or said is None or said.get("status") == "True":
        return
    namespace, name = spec["service"].get("namespace") or "", spec["service"].get("name") or ""
    reason, message = said.get("reason") or "", said.get("message") or ""
    kinds = f"nothing of {spec.get('group')}/{spec.get('version')} can be read or written"
    behind = world.get("services", namespace, name)
    if behind is None:
        fix = f"create service {name} in namespace {namespace}, or: kubectl delete apiservice {obj['metadata']['name']}"
    elif reason == "ServicePortError":
        ports = ", ".join(str(p.get("port")) for p in (behind.get("spec") or {}).get("ports") or ()) or "none"
        fix = f"let spec.service.port be one of the service's ports: {ports}"
    elif "certificate" in message:
        fix = f"let spec.caBundle hold the authority of its certificate, which must name {name}.{namespace}.svc"
    elif reason == "FailedDiscoveryCheck":
        fix = f"see what its pods say: kubectl logs service/{name} -n {namespace}"
    else:
        fix = f"pelamis why service/{name} -n {namespace}"
    yield Finding(f"{called(obj)} is not available: {kinds}", message or reason, fix)
    if behind is not None and reason in ("MissingEndpoints", "EndpointsNotFound"):
        yield from service(behind, world)

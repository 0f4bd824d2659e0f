"""Why an ingress leads nowhere: its class, the services and secrets it names, its controller.

Owns the comparison of an Ingress with what it refers to. Who serves ingresses is the user's choice; that nobody does is
told. Pure. Registered for Ingresses.
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.apiserver.explain import Object, World, called, explains, target
from controlplane.machinery import objects
from controlplane.machinery.errors import Finding

OLD_CLASS = "kubernetes.io/ingress.class"
DEFAULT_CLASS = "ingressclass.kubernetes.io/is-default-class"


@explains("Ingress")
def ingress(obj: Object, world: World) -> Iterator[Finding]:
    spec, namespace = obj.get("spec") or {}, obj["metadata"]["namespace"]
    backends = [spec.get("defaultBackend") or {}, *(
        path.get("backend") or {} for rule in spec.get("rules") or ()
        for path in (rule.get("http") or {}).get("paths") or ())]
    for backend in backends:
        if backend.get("service"):
            yield from _service(obj, backend["service"], world)
    for name in {tls.get("secretName") or "" for tls in spec.get("tls") or ()} - {""}:
        if world.get("secrets", namespace, name) is None:
            yield Finding(f"{called(obj)} has no certificate for {_hosts(spec, name)}",
                          f"secret {name} is not there, or you may not see it",
                          f"kubectl create secret tls {name} --cert=FILE --key=FILE -n {namespace}")
    if not ((obj.get("status") or {}).get("loadBalancer") or {}).get("ingress"):
        yield _unserved(obj, world)


def _hosts(spec: Object, secret: str) -> str:
    return ", ".join(host for tls in spec.get("tls") or () if tls.get("secretName") == secret
                     for host in tls.get("hosts") or ()) or "any host"


def _service(obj: Object, wanted: Object, world: World) -> Iterator[Finding]:
    namespace, name, port = obj["metadata"]["namespace"], wanted.get("name") or "", wanted.get("port") or {}
    service = world.get("services", namespace, name)
    if service is None:
        yield Finding(f"{called(obj)} leads to service {name}", "there is none such, or you may not see it",
                      f"kubectl get services -n {namespace}, then correct the backend")
        return
    ports = (service.get("spec") or {}).get("ports") or []
    asked = port.get("number") or port.get("name")
    if not any(asked in (one.get("port"), one.get("name")) for one in ports):
        has = ", ".join(str(one.get("name") or one.get("port")) for one in ports) or "none"
        yield Finding(f"{called(obj)} leads to port {asked} of service {name}, which has none such", f"it has {has}",
                      f"kubectl edit {target(obj)}")


def _unserved(obj: Object, world: World) -> Finding:
    """Who has not told an address."""
    fact, spec = f"{called(obj)} has no address", obj.get("spec") or {}
    name = spec.get("ingressClassName") or objects.annotations(obj).get(OLD_CLASS)
    if not name:
        return Finding(fact, "it has no class, so no controller may take it for its own",
                       f"set spec.ingressClassName, or mark an IngressClass by {DEFAULT_CLASS}=true for new ones")
    known = world.get("ingressclasses.networking.k8s.io", "", name)
    if known is None and spec.get("ingressClassName"):
        return Finding(fact, f"there is no IngressClass {name}", "kubectl get ingressclasses; its controller's "
                       "installation makes it")
    controller = ((known or {}).get("spec") or {}).get("controller") or f"of class {name}"
    return Finding(fact, f"the controller {controller} has told none",
                   "see whether it runs; the cluster brings none of its own")

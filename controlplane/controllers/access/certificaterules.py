"""What becomes of a CertificateSigningRequest: approved of itself, signed, refused for its form, or forgotten.

Owns the rules of the four signers and of automatic approval, and the ages at which requests go. Pure but for reading
the PKCS #10 text; the heavy library is imported when a request has to be read. Called by `certificates`.

Upstream: pkg/controller/certificates/{approver,signer,cleaner} and pkg/apis/certificates/helpers.go.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339

CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = "kubernetes.io/kube-apiserver-client-kubelet"
KUBELET_SERVING = "kubernetes.io/kubelet-serving"
LEGACY = "kubernetes.io/legacy-unknown"
SIGNERS = (CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY)
NODES, NODE_PREFIX = "system:nodes", "system:node:"
PROXY = "system:kube-proxy"
SELF_APPROVING = (KUBELET_CLIENT, KUBELET_SERVING, CLIENT)  # where nodes ask for what is theirs
SERVICE_NAME, API_SERVER = "kubernetes.io/service-name", ("default", "kubernetes")
HOUR = 3600.0
DECIDED_SECONDS = HOUR  # denied, failed or issued: what it says has been read by then
PENDING_SECONDS = 24 * HOUR  # nobody decided
POD_REQUEST_SECONDS = 900.0  # upstream's
MIN_SECONDS, MAX_SECONDS = 600, 365 * 24 * 3600  # of a certificate; upstream's --cluster-signing-duration
_SIGNS = {"digital signature", "key encipherment"}
_KUBELET_USAGES = ({"digital signature", "client auth"}, {"digital signature", "key encipherment", "client auth"})
_SERVING_USAGES = ({"digital signature", "server auth"}, {"digital signature", "key encipherment", "server auth"})
Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a PKCS #10 text asks for."""

    name: str
    organizations: tuple[str, ...]
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def read(csr: Obj) -> Request:
    """The request in a CertificateSigningRequest. Raises ValueError."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    parsed = x509.load_pem_x509_csr(base64.b64decode(csr["spec"]["request"]))
    if not parsed.is_signature_valid:
        raise ValueError("the request is not signed by its own key")

    def words(oid: Any) -> tuple[str, ...]:
        return tuple(str(a.value) for a in parsed.subject.get_attributes_for_oid(oid))
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    return Request(next(iter(words(NameOID.COMMON_NAME)), ""), words(NameOID.ORGANIZATION_NAME),
                   tuple(names.get_values_for_type(x509.DNSName)),
                   tuple(str(ip) for ip in names.get_values_for_type(x509.IPAddress)),
                   tuple(names.get_values_for_type(x509.RFC822Name)),
                   tuple(names.get_values_for_type(x509.UniformResourceIdentifier)))


def conditions(csr: Obj) -> dict[str, Obj]:
    """The true conditions of a request by type."""
    return {c["type"]: c for c in (csr.get("status") or {}).get("conditions") or () if c.get("status") == "True"}


def certificate(csr: Obj) -> str:
    """The issued certificate in base64, "" when there is none."""
    return (csr.get("status") or {}).get("certificate") or ""


def fault(request: Request, signer: str, usages: list[str]) -> str:
    """Why a signer must not sign this, "" when it may."""
    wanted = set(usages)
    if signer == LEGACY:
        return ""
    if signer == CLIENT:
        if "client auth" not in wanted or wanted - _SIGNS - {"client auth"}:
            return f"usages did not match {_told(_SIGNS | {'client auth'})}"
        return ""
    if request.organizations != (NODES,):
        return f"subject organization is not {NODES}"
    if not request.name.startswith(NODE_PREFIX):
        return f"subject common name does not begin with {NODE_PREFIX}"
    if request.emails:
        return "Email subjectAltNames are not allowed"
    if request.uris:
        return "URI subjectAltNames are not allowed"
    if signer == KUBELET_SERVING:
        if not request.dns and not request.ips:
            return "DNS or IP subjectAltName is required"
        return "" if wanted in _SERVING_USAGES else f"usages did not match {_told(_SERVING_USAGES[1])}"
    if request.dns:
        return "DNS subjectAltNames are not allowed"
    if request.ips:
        return "IP subjectAltNames are not allowed"
    return "" if wanted in _KUBELET_USAGES else f"usages did not match {_told(_KUBELET_USAGES[1])}"


def _told(usages: set[str]) -> str:
    return "[" + " ".join(sorted(usages)) + "]"


def approvals(csr: Obj, request: Request, taken: Collection[str] = ()) -> list[tuple[str, str]]:
    """The permissions any of which approves the request by itself: a subresource to be allowed to create, and the
    message of the approval. Empty for a request that people have to decide. `taken` are addresses of others, which no
    node may answer for."""
    spec = csr["spec"]
    signer, user = spec["signerName"], spec.get("username", "")
    if fault(request, signer, spec.get("usages") or []):
        return []
    if signer == KUBELET_CLIENT:
        found = [("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")]
        if request.name == user:
            found.insert(0, ("selfnodeclient",
                             "Auto approving self kubelet client certificate after SubjectAccessReview."))
        return found
    if signer == KUBELET_SERVING and request.name == user and not set(request.ips) & set(taken) and (
            set(request.dns) <= {user.removeprefix(NODE_PREFIX)}):
        return [("selfnodeserver", "Auto approving self kubelet server certificate after SubjectAccessReview.")]
    alone = not (request.organizations or request.dns or request.ips or request.emails or request.uris)
    if signer == CLIENT and request.name == PROXY and alone and user.startswith(NODE_PREFIX):
        return [("nodeproxyclient", "Auto approving the service proxy of a node after SubjectAccessReview.")]
    return []


def addresses_of_others(user: str, nodes: Iterable[Obj], services: Iterable[Obj], pieces: Iterable[Obj]) -> set[str]:
    """What the node `user` must not answer for: other nodes, Services, and the API server, by its EndpointSlices."""
    found = {address["address"] for node in nodes if NODE_PREFIX + objects.name(node) != user
             for address in (node.get("status") or {}).get("addresses") or ()}
    for service in services:
        spec = service.get("spec") or {}
        found.update(spec.get("clusterIPs") or (), spec.get("externalIPs") or ())
        found.update(point.get("ip", "") for point in objects.get(service, "status.loadBalancer.ingress", []))
    for piece in pieces:
        if (objects.namespace(piece), objects.labels(piece).get(SERVICE_NAME)) == API_SERVER:
            found.update(a for point in piece.get("endpoints") or () for a in point.get("addresses") or ())
    return found


def lifetime(csr: Obj) -> int:
    """Seconds the certificate is to last."""
    asked = csr["spec"].get("expirationSeconds")
    return MAX_SECONDS if asked is None else max(MIN_SECONDS, min(asked, MAX_SECONDS))


def forget_after(csr: Obj, now: float) -> float:
    """Seconds until the request is of no use any more; zero or less: now."""
    decided = conditions(csr)
    begun = csr["metadata"].get("creationTimestamp")
    limit = PENDING_SECONDS
    for kind in ("Denied", "Failed", "Approved"):
        if kind in decided:
            begun, limit = decided[kind].get("lastUpdateTime") or begun, DECIDED_SECONDS
            break
    return parse_rfc3339(begun) + limit - now if begun else limit


def pod_request_left(request: Obj, now: float) -> float:
    """Seconds until a PodCertificateRequest is of no use any more."""
    return parse_rfc3339(request["metadata"]["creationTimestamp"]) + POD_REQUEST_SECONDS - now

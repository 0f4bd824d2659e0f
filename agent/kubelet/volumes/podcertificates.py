"""Certificates for pods: a key made here, a PodCertificateRequest, and the chain its signer answers.

Owns the credentials of each podCertificate source. Promises that a key leaves memory for the pod's volume alone, that a
credential is renewed from the time its signer says, that the old one serves until the new one is there, and that a
request that waits is waited for and not made again. Keys are never logged; a restarted agent asks anew. Called by
`manager`, which loads it with the first such volume.

Upstream: pkg/kubelet/podcertificate.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agent.kubelet.env import ConfigError
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock, parse_rfc3339
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named

log = logging.getLogger(__name__)
REQUESTS, ACCOUNTS = named("podcertificaterequests.certificates.k8s.io"), named("serviceaccounts")
FIRST_SECONDS = 60.0  # a pod that starts waits so long for its signer before it says so in its events
RENEW_SECONDS = 5.0  # and one that runs, whose other volumes wait meanwhile
RETRY_SECONDS = 60.0  # between attempts to renew
CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {
    "ECDSAP256": ec.SECP256R1, "ECDSAP384": ec.SECP384R1, "ECDSAP521": ec.SECP521R1}
Object = dict[str, Any]


@dataclass(slots=True)
class _Held:
    key: str = ""
    chain: str = ""
    ends: float = 0.0
    renew_at: float = 0.0
    asked: str = ""  # the name of the request that has no outcome yet, and its key
    asked_key: str = ""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # a pod's start and its refresh may both want it renewed


class Denied(ConfigError):  # noqa: N818 - reads as what happened
    """The signer has said no, or that it cannot."""


class PodCertificates:
    """`owner()` is the owner reference of this node, None before it is registered."""

    def __init__(self, client: Client, clock: Clock, node: str, owner: Callable[[], Object | None]) -> None:
        self._client, self._clock, self._node, self._owner = client, clock, node, owner
        self._held: dict[str, dict[tuple[str, ...], _Held]] = {}  # pod uid -> volume, signer, paths -> credential

    async def get(self, pod: Object, volume: str, source: Object) -> tuple[dict[str, str], float]:
        """(content by path, when to ask again). Raises ApiError or ConfigError."""
        paths = tuple(str(source.get(p) or "") for p in ("credentialBundlePath", "keyPath", "certificateChainPath"))
        held = self._held.setdefault(pod["metadata"]["uid"], {}).setdefault(
            (volume, source["signerName"], source["keyType"], *paths), _Held())
        async with held.turn:
            if held.renew_at <= self._clock.now():
                await self._renew(pod, source, held)
        found = dict(zip(paths, (held.key + held.chain, held.key, held.chain)))
        return {path: text for path, text in found.items() if path}, held.renew_at

    def release(self, uid: str) -> None:
        self._held.pop(uid, None)

    async def _renew(self, pod: Object, source: Object, held: _Held) -> None:
        """The first credential, or one to replace what is held, which serves on while there is trouble."""
        serves = held.ends > self._clock.now()
        try:
            await self._fetch(pod, source, held, RENEW_SECONDS if serves else FIRST_SECONDS)
        except (ApiError, ConfigError) as error:
            if not serves:
                raise
            log.warning("certificate of pod %s: %s", pod["metadata"]["name"], error)
            held.renew_at = self._clock.now() + self._clock.jitter(RETRY_SECONDS)

    async def _fetch(self, pod: Object, source: Object, held: _Held, limit: float) -> None:
        namespace = pod["metadata"].get("namespace", "")
        if not held.asked:
            key = await asyncio.to_thread(new_key, source["keyType"])  # RSA takes a while
            held.asked_key = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                               serialization.NoEncryption()).decode()
            request = await self._request(pod, source, key)
            held.asked = request["metadata"]["name"]  # known before it is made: whoever is cut short here finds it
            try:
                await self._client.create(REQUESTS, request, namespace)
            except ApiError:
                held.asked = ""
                raise
        try:
            async with asyncio.timeout(limit):
                status = await self._outcome(namespace, held.asked)
        except TimeoutError as error:
            raise ConfigError(f'signer "{source["signerName"]}" has not answered PodCertificateRequest '
                              f"{namespace}/{held.asked} yet") from error
        except (NotFound, Denied):
            held.asked = ""  # the next attempt asks anew
            raise
        held.key, held.chain, held.asked = held.asked_key, bare(status["certificateChain"]), ""
        held.ends, held.renew_at = parse_rfc3339(status["notAfter"]), parse_rfc3339(status["beginRefreshAt"])

    async def _request(self, pod: Object, source: Object, key: Any) -> Object:
        """A new request, to be made."""
        meta, owner = pod["metadata"], self._owner()
        if owner is None:
            raise ConfigError("this node is not registered yet")
        namespace, account = meta.get("namespace", ""), pod["spec"].get("serviceAccountName") or "default"
        stub = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(
            key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
        spec = {"signerName": source["signerName"], "podName": meta["name"], "podUID": meta["uid"],
                "serviceAccountName": account, "nodeName": self._node, "nodeUID": owner["uid"],
                "serviceAccountUID": (await self._client.get(ACCOUNTS, account, namespace))["metadata"]["uid"],
                "stubPKCS10Request": base64.b64encode(stub.public_bytes(serialization.Encoding.DER)).decode()}
        for theirs, ours in (("maxExpirationSeconds", "maxExpirationSeconds"),
                             ("userAnnotations", "unverifiedUserAnnotations")):
            if source.get(theirs):
                spec[ours] = source[theirs]
        return {"apiVersion": REQUESTS.api_version, "kind": REQUESTS.kind, "spec": spec,
                "metadata": {"name": f"req-{self._clock.uid()}", "namespace": namespace, "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}]}}

    async def _outcome(self, namespace: str, name: str) -> Object:
        """The status of a request when its signer has answered. Raises Denied or ApiError."""
        while True:
            found = await self._client.get(REQUESTS, name, namespace)
            if (status := outcome(found)) is not None:
                return status
            async for kind, obj in self._client.watch(
                    REQUESTS, namespace, fields=f"metadata.name={name},spec.nodeName={self._node}",
                    revision=found["metadata"]["resourceVersion"]):
                if kind == "DELETED":
                    break
                if kind != "BOOKMARK" and (status := outcome(obj)) is not None:
                    return status


def outcome(request: Object) -> Object | None:
    """The status of a request whose certificate is issued; None while nobody has answered. Raises Denied."""
    status: Object = request.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] == "Issued":
            return status
        if condition["type"] in ("Denied", "Failed"):
            meta = request["metadata"]
            raise Denied(f"PodCertificateRequest {meta.get('namespace', '')}/{meta['name']} was "
                         f"{condition['type'].lower()}: {condition.get('reason', '')}: {condition.get('message', '')}")
    return None


def new_key(kind: str) -> Any:
    """A private key of one of the API's types. Raises ConfigError."""
    if kind in CURVES:
        return ec.generate_private_key(CURVES[kind]())
    if kind == "ED25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind in ("RSA3072", "RSA4096"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("RSA")))
    raise ConfigError(f'unknown key type "{kind}"')


def bare(chain: str) -> str:
    """The certificates of a chain and nothing between them. Raises ConfigError."""
    try:
        return "".join(c.public_bytes(serialization.Encoding.PEM).decode()
                       for c in x509.load_pem_x509_certificates(chain.encode()))
    except ValueError as error:
        raise ConfigError(f"the signer's certificate chain cannot be read: {error}") from error

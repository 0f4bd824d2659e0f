"""PodCertificateRequests at the edge: that the asker holds the key, and that who answers may sign.

Owns the rules that take reading keys and certificates, and the question whether somebody may `sign` for a signer.
Promises that a stored request proves its key, and that a stored chain is for that key and tells its own times. It signs
nothing: signers are their users' own. Called by the admission chain.

Upstream: pkg/registry/certificates/podcertificaterequest/strategy.go.
"""

from __future__ import annotations

import base64
from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.writing.signing import GROUP, permitted
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import Cause, Invalid, invalid
from controlplane.machinery.validate.podcertificates import TIMES

NAME = "podcertificaterequests.certificates.k8s.io"
LIMIT = 10 * 1024  # bytes of a request, a key or a proof: upstream's
CHAIN_LIMIT = 64 * 1024  # characters of a chain
HIDDEN = "<snip>"
Object = dict[str, Any]


class PodCertificates(Plugin):
    async def mutate(self, attributes: Attributes) -> None:
        """Nothing of a request is ours to change."""

    async def validate(self, attributes: Attributes) -> None:
        obj = attributes.obj
        if obj is None or attributes.resource.name != NAME:
            return
        causes: list[Cause] = []
        if attributes.operation == CREATE and not attributes.subresource:
            causes = faults(obj["spec"])
        elif attributes.operation == UPDATE and attributes.subresource == "status":
            before, after = ((o or {}).get("status") or {} for o in (attributes.old, obj))
            if before != after:
                self._permit(attributes, obj["spec"].get("signerName") or "")
                if after.get("certificateChain"):
                    causes = chain_faults(after, obj["spec"])
        if causes:
            raise Invalid.of(attributes.resource.kind, attributes.name, causes, GROUP)

    def _permit(self, attributes: Attributes, signer: str) -> None:
        if not permitted(self.context, attributes, "sign", signer):
            name = attributes.user.name if attributes.user is not None else ""
            raise attributes.forbidden(f'User "{name}" is not permitted to "sign" for signer "{signer}"')


def key_of(spec: Object) -> Any:
    """The public key of a request, proven to be the asker's. Raises ValueError."""
    key: Any
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    try:
        if spec.get("stubPKCS10Request"):
            stub = x509.load_der_x509_csr(_bytes(spec["stubPKCS10Request"]))
            if not stub.is_signature_valid:
                raise ValueError("the signature of the request is not its key's")
            key = stub.public_key()
        else:
            key = serialization.load_der_public_key(_bytes(spec.get("pkixPublicKey") or ""))
            _prove(key, _bytes(spec.get("proofOfPossession") or ""), str(spec.get("podUID") or "").encode())
    except (InvalidSignature, UnsupportedAlgorithm) as error:
        raise ValueError("could not verify proof of possession signature") from error
    if not _supported(key):
        raise ValueError("unknown public key type; supported types are Ed25519, ECDSA P256, P384 and P521, RSA 3072 "
                         "and 4096")
    return key


def _bytes(text: str) -> bytes:
    found = base64.b64decode(text, validate=True)
    if len(found) > LIMIT:
        raise ValueError(f"must be no more than {LIMIT} bytes")
    return found


def _supported(key: Any) -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in (3072, 4096)
    return isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1", "secp521r1"))


def _prove(key: Any, proof: bytes, uid: bytes) -> None:
    """The pod's uid, signed as Go's libraries do by default. Raises InvalidSignature."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    if isinstance(key, rsa.RSAPublicKey):
        key.verify(proof, uid, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.AUTO), hashes.SHA256())
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(proof, uid, ec.ECDSA(hashes.SHA256()))
    elif isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(proof, uid)


def faults(spec: Object) -> list[Cause]:
    """Why the key of a request cannot be used."""
    field = "stubPKCS10Request" if spec.get("stubPKCS10Request") else "pkixPublicKey"
    try:
        key_of(spec)
    except ValueError as error:
        return [invalid(f"spec.{field}", HIDDEN, str(error).splitlines()[0])]
    return []


def chain_faults(status: Object, spec: Object) -> list[Cause]:
    """Why a chain is not what was asked for."""
    from cryptography import x509
    at, pem = "status.certificateChain", str(status["certificateChain"])
    try:
        if len(pem) > CHAIN_LIMIT:
            raise ValueError(f"must be no more than {CHAIN_LIMIT} characters")
        leaf = x509.load_pem_x509_certificates(pem.encode())[0]
        if leaf.public_key() != key_of(spec):
            return [invalid(at, HIDDEN, "leaf certificate was not issued to the requested public key")]
    except ValueError as error:
        return [invalid(at, HIDDEN, str(error).splitlines()[0])]
    told = {"notBefore": leaf.not_valid_before_utc, "notAfter": leaf.not_valid_after_utc}
    why = "must be the time encoded in the leaf certificate"
    return [invalid(f"status.{field}", status[field], why)
            for field in TIMES if field in told and status.get(field)
            and parse_rfc3339(status[field]) != told[field].timestamp()]

"""ClusterTrustBundles at the edge: that they hold certificates of authorities, and that who writes one may attest it.

Owns the rules that take reading certificates, and the question whether somebody may `attest` for a signer
(ClusterTrustBundleAttest). Promises that a bundle changes only into one without doubles, of nothing but authorities.
Called by the admission chain.

Upstream: pkg/apis/certificates/validation, plugin/pkg/admission/certificates/ctbattest.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.writing.signing import GROUP, permitted
from controlplane.machinery.errors import Cause, Invalid, invalid, too_long

NAME = "clustertrustbundles.certificates.k8s.io"
AT, HIDDEN = "spec.trustBundle", "<value omitted>"
LIMIT = 1 << 20  # bytes of a bundle: upstream's
BLOCK = re.compile(r"^-----BEGIN ([^-\n]*)-----[ \t\r]*\n((?:[^\n]*:[^\n]*\n)*)(.*?)^-----END \1-----[ \t\r]*$",
                   re.M | re.S)
_COLLECTED = ("ownerReferences", "finalizers", "managedFields")  # what garbage collection changes
Object = dict[str, Any]


class TrustBundles(Plugin):
    async def mutate(self, attributes: Attributes) -> None:
        """Nothing of a bundle is ours to change."""

    async def validate(self, attributes: Attributes) -> None:
        obj, old = attributes.obj, attributes.old or {}
        if obj is None or not attributes.concerns(NAME, CREATE, UPDATE):
            return
        spec, before = obj.get("spec") or {}, old.get("spec") or {}
        if spec.get("trustBundle") != before.get("trustBundle") and (causes := faults(spec.get("trustBundle") or "")):
            raise Invalid.of(attributes.resource.kind, attributes.name, causes, GROUP)
        signer = spec.get("signerName")
        if signer and _meant(obj) != _meant(old) and not permitted(self.context, attributes, "attest", signer):
            raise attributes.forbidden(f'user not permitted to attest for signerName "{signer}"')


def _meant(obj: Object) -> Object:
    """An object without what keeps and collects it."""
    kept = {k: v for k, v in (obj.get("metadata") or {}).items() if k not in _COLLECTED and k != "resourceVersion"}
    return {**obj, "metadata": kept}


def faults(bundle: str) -> list[Cause]:
    """Why a text is no bundle of certificates of authorities."""
    if len(bundle.encode()) > LIMIT:
        return [too_long(AT, LIMIT)]
    seen: dict[bytes, list[int]] = {}
    found = []
    for index, (kind, headers, der) in enumerate(blocks(bundle)):
        if why := _fault(kind, headers, der):
            found.append(f"entry {index} {why}")
        else:
            seen.setdefault(der, []).append(index)
    if not found and not seen:
        found = ["at least one trust anchor must be provided"]
    elif not found:
        found = [f"duplicate trust anchor (indices [{' '.join(map(str, places))}])"
                 for places in seen.values() if len(places) > 1]
    return [invalid(AT, HIDDEN, why) for why in found]


def blocks(text: str) -> Iterator[tuple[str, bool, bytes]]:
    """The PEM blocks in a text: what kind, whether there are headers, the content. What is none is passed over."""
    for kind, headers, content in BLOCK.findall(text):
        with suppress(binascii.Error):
            yield kind, bool(headers), base64.b64decode("".join(content.split()), validate=True)


def _fault(kind: str, headers: bool, der: bytes) -> str:
    """What keeps a block from being an anchor of trust, "" if nothing does."""
    from cryptography import x509
    if kind != "CERTIFICATE":
        return f"has bad block type: {kind}"
    if headers:
        return "has PEM block headers"
    try:
        extensions = x509.load_der_x509_certificate(der).extensions
    except (ValueError, x509.UnsupportedGeneralNameType):
        return "does not parse as X.509"
    authority = any(isinstance(e.value, x509.BasicConstraints) and e.value.ca for e in extensions)
    return "" if authority else "does not have the CA bit set"

"""Bundles of authorities for pods: what a clusterTrustBundle source of a projected volume holds.

Owns the choice of the bundles and how they become one file. Promises that a file holds each certificate once, in an
order that the bundles' names and ages have no part in, so that it changes only when a certificate comes or goes.
Called by `manager`; that the file follows its bundles is the business of `objects`.

Upstream: pkg/kubelet/clustertrustbundle.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Iterable
from typing import Any

from agent.kubelet.env import ConfigError
from agent.kubelet.volumes.objects import Objects
from controlplane.machinery import selectors

KIND = "clustertrustbundles.certificates.k8s.io"
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
Object = dict[str, Any]


async def anchors(objects: Objects, source: Object, uid: str) -> str:
    """The content of the source's file for the pod `uid`, PEM. Raises ConfigError or ApiError."""
    if name := source.get("name"):
        found = await objects.get(KIND, "", name, uid)
        bundles = [] if found is None else [found]
        missing = f'ClusterTrustBundle "{name}" not found'
    else:
        signer, selector = source.get("signerName") or "", source.get("labelSelector")
        of_signer = await objects.matching(KIND, f"spec.signerName={signer}", uid) if selector is not None else []
        bundles = [b for b in of_signer if selectors.from_label_selector(selector or {}).matches(
            b["metadata"].get("labels") or {})]
        missing = "combination of signerName and labelSelector matched zero ClusterTrustBundles"
    if not bundles and not source.get("optional"):
        raise ConfigError(missing)
    return joined(b["spec"].get("trustBundle") or "" for b in bundles)


def joined(bundles: Iterable[str]) -> str:
    """The certificates of all bundles: each once, without what stands between them. Pure."""
    found = {base64.b64decode("".join(body.split())) for text in bundles for body in _BLOCK.findall(text)}
    return "".join(map(ssl.DER_cert_to_PEM_cert, sorted(found)))

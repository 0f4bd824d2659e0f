"""The pull secrets a pod names: what they know of registries.

Owns the reading of both forms of such a Secret. Promises that one that is missing is told and passed over, whether
or not there is anything to pull, which may do without. Never logs what is in one. Called by `steps`.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any

from agent.kubelet.images.images import Auths
from agent.kubelet.volumes.objects import Objects
from controlplane.machinery.errors import ApiError

log = logging.getLogger(__name__)
CURRENT, OLD = ".dockerconfigjson", ".dockercfg"
WORDS = ("username", "password", "auth", "identitytoken", "registrytoken")  # of an entry


async def of(pod: dict[str, Any], objects: Objects, warn: Callable[[str, str], None]) -> list[Auths]:
    """The `auths` of the pod's secrets; `warn(reason, message)` tells of those that are not there."""
    found, missing, meta = list[Auths](), list[str](), pod["metadata"]
    for name in filter(None, (entry.get("name") for entry in pod["spec"].get("imagePullSecrets") or ())):
        secret = None
        try:
            secret = await objects.get("secrets", meta.get("namespace", ""), name, meta["uid"])
            found.append(_read((secret or {}).get("data") or {}))
        except (ApiError, ValueError) as error:
            log.warning("pull secret %s: %s", name, type(error).__name__)
        if secret is None:
            missing.append(name)
    if missing:
        warn("FailedToRetrieveImagePullSecret", f"Unable to retrieve some image pull secrets ({', '.join(missing)}); "
             "attempting to pull the image may not succeed.")
    return found


def _read(data: dict[str, str]) -> Auths:
    """What the secret says. Raises ValueError."""
    said = json.loads(base64.b64decode(data.get(CURRENT) or data.get(OLD) or "e30="))
    auths = (said.get("auths") or {}) if CURRENT in data and isinstance(said, dict) else said
    if not isinstance(auths, dict) or not all(isinstance(entry, dict) for entry in auths.values()):
        raise ValueError("no credentials by registry")
    if not all(isinstance(entry.get(word, ""), str) for entry in auths.values() for word in WORDS):
        raise ValueError("credentials that are no words")
    return auths

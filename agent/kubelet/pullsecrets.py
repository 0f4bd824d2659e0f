"""The pull secrets a pod names: what they know of registries.

Owns the reading of both forms of such a Secret. Promises that one that is missing or broken is told and passed over:
the pull may do without. Never logs what is in one. Called by `steps`.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from typing import Any

from agent.kubelet.images import Auths
from agent.kubelet.volumes.objects import Objects
from controlplane.machinery.errors import ApiError

log = logging.getLogger(__name__)
CURRENT, OLD = ".dockerconfigjson", ".dockercfg"


async def of(pod: dict[str, Any], objects: Objects, warn: Callable[[str, str], None]) -> list[Auths]:
    """The `auths` of the pod's secrets; `warn(reason, message)` tells of those that are not there."""
    found: list[Auths] = []
    meta = pod["metadata"]
    for entry in pod["spec"].get("imagePullSecrets") or ():
        try:
            secret = await objects.get("secrets", meta.get("namespace", ""), entry["name"], meta["uid"])
            data = (secret or {}).get("data") or {}
            if CURRENT in data:
                found.append(json.loads(base64.b64decode(data[CURRENT])).get("auths") or {})
            elif OLD in data:
                found.append(json.loads(base64.b64decode(data[OLD])))
            else:
                warn("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets "
                     f"({entry['name']}); attempting to pull the image may not succeed.")
        except (ApiError, ValueError) as error:
            log.warning("pull secret %s: %s", entry["name"], type(error).__name__)
    return found

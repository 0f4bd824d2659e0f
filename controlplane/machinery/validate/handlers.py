"""Validation of probes and hooks: what is asked of a running container, and how often.

Pure. Called for containers that run on: main ones and sidecars.

Upstream: validateProbe, validateLifecycle and validateHandler in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.requirements import NEGATIVE

Object = dict[str, Any]
_COUNTS = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")


def of_container(obj: Object, path: str, grace: int | None) -> list[Cause]:
    """`grace`: seconds the pod has to end."""
    found: list[Cause] = []
    for hook in ("postStart", "preStop"):
        if (action := (obj.get("lifecycle") or {}).get(hook)) is not None:
            at = f"{path}.lifecycle.{hook}"
            found += handler(action, at, ("exec", "httpGet", "tcpSocket", "sleep"))
            seconds = (action.get("sleep") or {}).get("seconds") or 0
            if action.get("sleep") is not None and grace is not None and not 0 <= seconds <= grace:
                found.append(invalid(f"{at}.sleep", seconds, "must be non-negative and less than "
                                     f"terminationGracePeriodSeconds ({grace})"))
    for kind in ("livenessProbe", "readinessProbe", "startupProbe"):
        if obj.get(kind) is not None:
            found += probe(obj[kind], f"{path}.{kind}", kind == "readinessProbe")
    return found


def probe(obj: Object, path: str, readiness: bool) -> list[Cause]:
    found = handler(obj, path, ("exec", "httpGet", "tcpSocket", "grpc"))
    found += [invalid(f"{path}.{field}", obj[field], NEGATIVE) for field in _COUNTS if (obj.get(field) or 0) < 0]
    grace = obj.get("terminationGracePeriodSeconds")
    if grace is not None and grace <= 0:
        found.append(invalid(f"{path}.terminationGracePeriodSeconds", grace, "must be greater than 0"))
    if readiness and grace is not None:
        found.append(invalid(f"{path}.terminationGracePeriodSeconds", grace, "must not be set for readinessProbes"))
    if not readiness and obj.get("successThreshold", 1) != 1:
        found.append(invalid(f"{path}.successThreshold", obj["successThreshold"], "must be 1"))
    return found


def handler(obj: Object, path: str, offered: tuple[str, ...]) -> list[Cause]:
    """Exactly one way to ask."""
    kinds = [k for k in offered if obj.get(k) is not None]
    if not kinds:
        return [required(path, "must specify a handler type")]
    found = [forbidden(f"{path}.{kind}", "may not specify more than 1 handler type") for kind in kinds[1:]]
    kind, action = kinds[0], obj[kinds[0]]
    at = f"{path}.{kind}"
    if kind == "exec" and not action.get("command"):
        found.append(required(f"{at}.command"))
    if kind == "httpGet" and not action.get("path"):
        found.append(required(f"{at}.path"))
    if kind in ("httpGet", "tcpSocket", "grpc"):
        port = action.get("port") or 0
        faults = names.port_name(port) if isinstance(port, str) else names.port_number(port)
        found += [invalid(f"{at}.port", port, m) for m in faults]
    if kind == "httpGet":
        if action.get("scheme") not in ("HTTP", "HTTPS"):
            found.append(not_supported(f"{at}.scheme", action.get("scheme") or "", ("HTTP", "HTTPS")))
        found += [invalid(f"{at}.httpHeaders", header.get("name") or "", m)
                  for header in action.get("httpHeaders") or () for m in names.header_name(header.get("name") or "")]
    return found

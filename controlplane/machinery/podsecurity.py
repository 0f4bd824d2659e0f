"""Pod Security Standards: the levels a namespace asks for by its labels, and what of a Pod offends against them. Pure.

Owns the reading of the labels (`pod-security.kubernetes.io/enforce` and its kin), the choice of checks by level and
version, and the sentence that tells all offences. The checks are `podsecuritychecks`'. Called by admission.

Upstream: k8s.io/pod-security-admission/api and policy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from controlplane.machinery.errors import Cause, invalid
from controlplane.machinery.podsecuritychecks import BASELINE, OVERRIDDEN, RESTRICTED, Check

PREFIX = "pod-security.kubernetes.io/"
LEVELS = ("privileged", "baseline", "restricted")
MODES = ("enforce", "audit", "warn")
LATEST = 10_000  # a minor version no release will reach
_VERSION = re.compile(r"v1\.([0-9]|[1-9][0-9]*)")
_POLICIES = 256  # evaluators kept: three levels at some versions

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """A level at a minor version of Kubernetes 1."""

    name: str = "privileged"
    minor: int = LATEST

    def __str__(self) -> str:
        return f"{self.name}:{'latest' if self.minor == LATEST else f'v1.{self.minor}'}"


@dataclass(frozen=True, slots=True)
class Policy:
    enforce: Level = Level()
    audit: Level = Level()
    warn: Level = Level()

    @property
    def watches(self) -> bool:
        """Whether anything is asked of templates, which are audited and warned of only."""
        return self.audit.name != "privileged" or self.warn.name != "privileged"


def policy(labels: dict[str, str]) -> tuple[Policy, list[Cause]]:
    """What a namespace's labels ask for; of a wrong label the strictest reading, and a cause."""
    causes: list[Cause] = []
    levels = {}
    for mode in MODES:
        level, minor = labels.get(PREFIX + mode), labels.get(f"{PREFIX}{mode}-version")
        name = level if level is not None else "privileged"
        if name not in LEVELS:
            causes.append(invalid(f"metadata.labels[{PREFIX}{mode}]", name, f"must be one of {', '.join(LEVELS)}"))
            # what cannot be read is enforced strictly, and otherwise not at all
            name = "restricted" if mode == "enforce" else "privileged"
        number = LATEST
        if minor is not None and minor != "latest":
            found = _VERSION.fullmatch(minor)
            if found is None:
                causes.append(invalid(f"metadata.labels[{PREFIX}{mode}-version]", minor,
                                      'must be "latest" or "v1.x"'))
            else:
                number = int(found[1])
        levels[mode] = Level(name, number)
    if PREFIX + "warn" not in labels and levels["enforce"].name != "privileged":
        levels["warn"] = levels["enforce"]
    return Policy(**levels), causes


@lru_cache(_POLICIES)
def _checks(level: Level) -> tuple[Check, ...]:
    if level.name == "privileged":
        return ()
    found = {name: _at(versions, level.minor) for name, versions in BASELINE.items()}
    if level.name == "restricted":
        more = {name: check for name, versions in RESTRICTED.items()
                if (check := _at(versions, level.minor)) is not None}
        gone = {name for stricter in more for name in OVERRIDDEN.get(stricter, ())}
        found = {**{name: check for name, check in found.items() if name not in gone}, **more}
    baseline = sorted(name for name in found if name in BASELINE)
    return tuple(check for name in (*baseline, *sorted(set(found) - set(baseline)))
                 if (check := found[name]) is not None)


def _at(versions: tuple[tuple[int, Check], ...], minor: int) -> Check | None:
    """The newest check that is not newer than the version."""
    return next((check for since, check in reversed(versions) if since <= minor), None)


def offences(level: Level, metadata: Object, spec: Object) -> list[tuple[str, str]]:
    """(reason, detail) of every check the Pod fails, in order."""
    annotations = metadata.get("annotations") or {}
    return [fault for check in _checks(level) if (fault := check(annotations, spec)) is not None]


def told(faults: list[tuple[str, str]]) -> str:
    """`privileged (container "c" must not …), hostPort (…)`."""
    return ", ".join(f"{reason} ({detail})" if detail else reason for reason, detail in faults)


def reasons(faults: list[tuple[str, str]]) -> str:
    """The reasons alone."""
    return ", ".join(reason for reason, _ in faults)

"""The scheduler's settings: profiles, back-off, extenders; read from a KubeSchedulerConfiguration.

Owns what of upstream's file means something here. Promises to refuse what it does not know rather than to ignore it,
with the place in the file; `parse` is pure, `read` reads the file. Called by the process that runs the scheduler, and
by whoever is given such a file first.

Upstream: kubescheduler.config.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from controlplane.machinery.errors import Finding
from controlplane.scheduler import profiles
from controlplane.scheduler.profiles import NAME, Profile
from controlplane.scheduler.queue import BACKOFF_FIRST, BACKOFF_MOST
from controlplane.scheduler.settingsfile import Part

EXTENDER_SECONDS = 5.0  # for one answer of an extender: upstream's default
KIND, VERSION = "KubeSchedulerConfiguration", "kubescheduler.config.k8s.io/v1"
# What is of the whole process, or needs no setting here, as all nodes are always looked at.
NEEDLESS = ("parallelism", "percentageOfNodesToScore", "leaderElection", "clientConnection", "healthzBindAddress",
            "metricsBindAddress", "enableProfiling", "enableContentionProfiling", "delayCacheUntilActive")
_EXTENDER = ("urlPrefix", "filterVerb", "prioritizeVerb", "bindVerb", "preemptVerb", "weight", "enableHTTPS",
             "tlsConfig", "httpTimeout", "nodeCacheCapable", "managedResources", "ignorable")
Document = Mapping[str, Any]

__all__ = ["NAME", "Configuration", "Extender", "Profile", "parse", "read"]


@dataclass(frozen=True, slots=True)
class Extender:
    """A web service that has a say. Verbs are the last part of its address, "" = not asked."""

    url: str
    filter: str = ""
    prioritize: str = ""
    bind: str = ""
    preempt: str = ""
    weight: int = 1
    seconds: float = EXTENDER_SECONDS
    names_only: bool = False  # nodeCacheCapable: it knows the nodes, names will do
    ignorable: bool = False
    resources: frozenset[str] = frozenset()  # asked only for pods that request one of them; empty: for all
    tls: Document = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    profiles: Mapping[str, Profile] = field(default_factory=lambda: {NAME: Profile()})
    backoff_first: float = BACKOFF_FIRST
    backoff_most: float = BACKOFF_MOST
    extenders: tuple[Extender, ...] = ()


def read(file: Path) -> Configuration:
    """The configuration of a file. Raises Finding, which names the file and the place in it."""
    import yaml
    try:
        return parse(yaml.safe_load(file.read_text()))
    except OSError as error:
        raise Finding(f"cannot read {file}", error.strerror or "", "give the path of a file that is there") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Finding(f"{file} is no YAML", " ".join(str(error).split()), "mend the line it names") from error
    except Finding as finding:
        raise Finding(f"{file}: {finding.fact}", finding.because, finding.fix) from finding


def parse(document: Any) -> Configuration:
    """The configuration a decoded file stands for. Raises Finding, which names the place."""
    if not isinstance(document, dict) or (document.get("kind"), document.get("apiVersion")) != (KIND, VERSION):
        said = f"it says {document.get('apiVersion')} {document.get('kind')}" if isinstance(document, dict) else ""
        raise Finding(f"this is no {KIND}", said, f"begin with apiVersion: {VERSION} and kind: {KIND}")
    whole = Part(document, "")
    whole.only("apiVersion", "kind", "profiles", "extenders", "podInitialBackoffSeconds", "podMaxBackoffSeconds",
               *NEEDLESS)
    whole.number("parallelism", 16, 1)
    whole.number("percentageOfNodesToScore", 0, 0, 100)
    found: dict[str, Profile] = {}
    for part in whole.parts("profiles") or [Part({}, "profiles[0]")]:
        profile = profiles.parse(part)
        if profile.name in found:
            raise part.refused("schedulerName", f"{profile.name} is the name of another profile", "give each its own")
        found[profile.name] = profile
    first = whole.number("podInitialBackoffSeconds", BACKOFF_FIRST, 1)
    most = whole.number("podMaxBackoffSeconds", BACKOFF_MOST, 1)
    if most < first:
        raise whole.refused("podMaxBackoffSeconds", f"{most:g} is less than podInitialBackoffSeconds, {first:g}",
                            "give the larger of the two")
    extenders = whole.parts("extenders")
    theirs = frozenset(one.text("name") for part in extenders for one in part.parts("managedResources")
                       if one.truth("ignoredByScheduler"))
    return Configuration({name: replace(p, ignored=p.ignored | theirs) for name, p in found.items()}, first, most,
                         tuple(_extender(part) for part in extenders))


def _extender(part: Part) -> Extender:
    part.only(*_EXTENDER)
    url = part.text("urlPrefix")
    if not url:
        raise part.refused("urlPrefix", "is missing", "give the address that the verbs are appended to")
    resources = frozenset(one.text("name") for one in part.parts("managedResources"))
    return Extender(url.rstrip("/"), part.text("filterVerb"), part.text("prioritizeVerb"), part.text("bindVerb"),
                    part.text("preemptVerb"), int(part.number("weight", 1, 1)),
                    part.seconds("httpTimeout", EXTENDER_SECONDS), part.truth("nodeCacheCapable"),
                    part.truth("ignorable"), resources, part.mapping("tlsConfig").given)

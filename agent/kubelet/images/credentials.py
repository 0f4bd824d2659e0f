"""Credentials for registries beyond the pods' own: this node's docker configuration and credential providers.

Owns which patterns fit an image, the reading of docker's files, and upstream's exec protocol of credential providers
with its cache. Promises that a provider is asked once per image, registry or altogether as it wishes, for as long as it
says, never longer than a minute at a time, and that no credential is logged or written anywhere. A provider that fails
is told in the log and passed over: the pull may do without. Called by `steps`.

Upstream: pkg/credentialprovider, kubelet.config.k8s.io/v1 CredentialProviderConfig.
"""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import Finding

log = logging.getLogger(__name__)

PROVIDER_SECONDS = 60.0  # upstream's limit for one call
OUTPUT_LIMIT = 1 << 20  # bytes of an answer
CACHE_LIMIT = 256  # answers; a node pulls from a handful of registries
VERSIONS = ("credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1",
            "credentialprovider.kubelet.k8s.io/v1alpha1")
Auths = Mapping[str, Mapping[str, str]]


def _parts(text: str) -> tuple[list[str], str, str]:
    """Labels of the host, port and path of a registry or image without scheme."""
    place, _, path = text.partition("://")[2].partition("/") if "://" in text else text.partition("/")
    host, _, port = place.partition(":")
    return host.split("."), port, path


def fits(pattern: str, image: str) -> bool:
    """Whether the registry `pattern` (`*.example.org:5000/team`) covers the normalised `image`."""
    labels, port, path = _parts(pattern)
    has, its_port, its_path = _parts(image)
    return (len(labels) == len(has) and port == its_port and its_path.startswith(path.strip("/"))
            and all(fnmatch.fnmatchcase(b, a) for a, b in zip(labels, has, strict=True)))


def docker_auths(folders: list[Path]) -> list[Auths]:
    """The `auths` of the docker configurations in `folders`; files that cannot be read are passed over."""
    found: list[Auths] = []
    for folder in folders:
        for name in ("config.json", ".dockerconfigjson", ".dockercfg"):
            try:
                data = json.loads((folder / name).read_bytes())
                auths = data if name == ".dockercfg" else data.get("auths") or {}
                found.append({str(k): dict(v) for k, v in auths.items()})
            except FileNotFoundError:
                continue
            except (OSError, ValueError, AttributeError, TypeError) as error:
                log.warning("%s is not read for registry credentials: %s", folder / name, type(error).__name__)
    return found


@dataclass(frozen=True, slots=True)
class Provider:
    name: str
    version: str
    images: tuple[str, ...]
    seconds: float  # how long an answer holds that does not say so itself
    arguments: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def read(path: Path) -> list[Provider]:
    """The providers of a CredentialProviderConfig. Raises Finding."""
    import yaml
    try:
        config = yaml.safe_load(path.read_text())
        made = [_provider(entry) for entry in config.get("providers") or ()]
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise Finding(f"{path} is no CredentialProviderConfig", str(error),
                      "see kubelet.config.k8s.io/v1 CredentialProviderConfig") from error
    if len({p.name for p in made}) != len(made):
        raise Finding(f"{path} names a credential provider twice", fix="give each provider one entry")
    return made


def _provider(entry: dict[str, Any]) -> Provider:
    name, version = str(entry["name"]), str(entry["apiVersion"])
    if "/" in name or name in ("", ".", ".."):
        raise ValueError(f"provider {name!r} is no file name")
    if version not in VERSIONS:
        raise ValueError(f"provider {name} speaks {version}, known are {', '.join(VERSIONS)}")
    return Provider(name, version, tuple(entry["matchImages"]), duration(str(entry["defaultCacheDuration"])),
                    tuple(entry.get("args") or ()), tuple((e["name"], e["value"]) for e in entry.get("env") or ()))


def duration(text: str) -> float:
    """Seconds of a Go duration such as `12h0m0s`. Raises ValueError."""
    import re
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}
    pieces = re.findall(r"(\d+(?:\.\d+)?)(ms|us|ns|h|m|s)", text)
    if (text != "0" and "".join(a + b for a, b in pieces) != text) or not text:
        raise ValueError(f"{text!r} is no duration")
    return sum(float(number) * units[unit] for number, unit in pieces)


class Credentials:
    """`folder` holds the providers' programs, `files` are folders with docker configurations."""

    def __init__(self, clock: Clock, providers: list[Provider] | None = None, folder: Path = Path(),
                 files: list[Path] | None = None) -> None:
        self._clock, self._providers, self._folder, self._files = clock, providers or [], folder, files or []
        self._kept: dict[tuple[str, str], tuple[float, Auths]] = {}  # (provider, key) -> until when, answer
        self._locks: dict[str, asyncio.Lock] = {}

    async def of(self, image: str) -> list[Auths]:
        """What this node knows for the normalised `image`."""
        found = await asyncio.to_thread(docker_auths, self._files) if self._files else []
        for provider in self._providers:
            if any(fits(pattern, image) for pattern in provider.images):
                found.append(await self._asked(provider, image))
        return found

    async def _asked(self, provider: Provider, image: str) -> Auths:
        async with self._locks.setdefault(provider.name, asyncio.Lock()):
            for key in (image, image.partition("/")[0], ""):
                until, answer = self._kept.get((provider.name, key), (0.0, {}))
                if until > self._clock.monotonic():
                    return answer
            try:
                key, seconds, answer = parse(await self._run(provider, image), provider, image)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, TimeoutError) as error:
                log.warning("credential provider %s fails for %s: %s", provider.name, image, error)
                return {}
            while len(self._kept) >= CACHE_LIMIT:
                del self._kept[next(iter(self._kept))]
            self._kept[provider.name, key] = self._clock.monotonic() + seconds, answer
            return answer

    async def _run(self, provider: Provider, image: str) -> bytes:
        """The provider's answer. Raises OSError or TimeoutError."""
        request = {"kind": "CredentialProviderRequest", "apiVersion": provider.version, "image": image}
        process = await asyncio.create_subprocess_exec(
            self._folder / provider.name, *provider.arguments, env={**os.environ, **dict(provider.environment)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            limit=OUTPUT_LIMIT)
        try:
            async with asyncio.timeout(PROVIDER_SECONDS):
                out, err = await process.communicate(json.dumps(request).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise OSError(f"exit code {process.returncode}: {err[-500:].decode(errors='replace').strip()}")
        return out


def parse(answer: bytes, provider: Provider, image: str) -> tuple[str, float, Auths]:
    """(cache key, seconds it holds, auths) of a CredentialProviderResponse. Raises ValueError."""
    told = json.loads(answer)
    if told.get("kind") != "CredentialProviderResponse" or told.get("apiVersion") != provider.version:
        raise ValueError("it did not answer with a CredentialProviderResponse of its version")
    kinds = {"Image": image, "Registry": image.partition("/")[0], "Global": ""}
    if told.get("cacheKeyType") not in kinds:
        raise ValueError(f"unknown cacheKeyType {told.get('cacheKeyType')!r}")
    seconds = duration(str(told["cacheDuration"])) if told.get("cacheDuration") is not None else provider.seconds
    auths = {str(pattern): {"auth": base64.b64encode(
        f"{entry.get('username', '')}:{entry.get('password', '')}".encode()).decode()}
        for pattern, entry in (told.get("auth") or {}).items() if fits(str(pattern), image)}
    return kinds[told["cacheKeyType"]], seconds, auths

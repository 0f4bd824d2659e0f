"""Whose images these are: which of the images here were pulled with a pod's own credentials, and with which.

Owns the file `image_pulls.json`. Promises that an image from a registry that asks who is there is used by pods that
could have pulled it themselves, and by no others, also after a restart or a crash in the middle of a pull; that an
image nobody here has pulled, or one pulled with no credentials or with the node's own, is everybody's; and that the
file holds no credential but digests of them, under a key of its own. Called by `images`.

Upstream: pkg/kubelet/images/pullmanager, with its policy NeverVerifyPreloadedImages.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from controlplane.machinery import files
from controlplane.machinery.clock import Clock

log = logging.getLogger(__name__)
FILE = "image_pulls.json"
EVERYBODY = "*"  # in place of a digest


def repository(name: str) -> str:
    """A normalised name of an image without its tag and digest."""
    path = name.partition("@")[0]
    return path.rpartition(":")[0] if ":" in path.rpartition("/")[2] else path


class Pulls:
    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        kept = self._load()
        self._key = str(kept.get("key") or clock.uid())
        self._begun: list[str] = kept.get("begun") or []  # names of images that are being pulled, or were at a crash
        self._pulled: dict[str, dict[str, list[str]]] = kept.get("pulled") or {}  # id -> repository -> digests

    def _load(self) -> dict[str, Any]:
        try:
            return dict(orjson.loads(files.read(self._file) or b"{}"))
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read, images are everybody's until they are pulled again: %s", self._file, error)
            return {}

    def _save(self) -> None:
        files.write(self._file, orjson.dumps({"key": self._key, "begun": self._begun, "pulled": self._pulled}))

    def _digest(self, credential: bytes) -> str:
        return hashlib.blake2b(credential, key=self._key.encode()).hexdigest()

    def open(self, id: str, name: str) -> bool:
        """Whether every pod may use the image `id` by this name."""
        if id not in self._pulled:
            return name not in self._begun
        return EVERYBODY in self._pulled[id].get(repository(name), ())

    def allows(self, id: str, name: str, credentials: Iterable[bytes]) -> bool:
        """Whether a pod with these credentials may use it."""
        known = self._pulled.get(id, {}).get(repository(name), ())
        return self.open(id, name) or any(self._digest(credential) in known for credential in credentials)

    @contextmanager
    def pulling(self, name: str, credential: bytes | None) -> Iterator[Callable[[str], None]]:
        """While the image is pulled with a pod's credential (None: with none, or one that every pod here has). What it
        gives is called with the id of what came; without that, the pull has failed."""
        if credential is not None:
            self._begun.append(name)
            self._save()
        try:
            yield lambda id: self._came(id, name, credential)
        finally:
            if name in self._begun:
                self._begun.remove(name)
                self._save()

    def _came(self, id: str, name: str, credential: bytes | None) -> None:
        known = self._pulled.setdefault(id, {}).setdefault(repository(name), [])
        digest = EVERYBODY if credential is None else self._digest(credential)
        if digest not in known:
            known.append(digest)
            self._save()

    def removed(self, id: str) -> None:
        """The image is here no more."""
        if self._pulled.pop(id, None) is not None:
            self._save()

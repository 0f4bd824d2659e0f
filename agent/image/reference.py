"""Names of images, as people write them and as runtimes know them.

Owns the grammar of references and what a short one stands for. Pure. Called by whoever pulls, imports or compares
images.
"""

from __future__ import annotations

import re

DEFAULT_REGISTRY, DEFAULT_FOLDER, DEFAULT_TAG = "docker.io", "library", "latest"

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(rf"((?:{_HOST}/)?{_PART}(?:/{_PART})*)(?::(\w[\w.-]{{0,127}}))?"
                        r"(?:@([a-z0-9+.-]+:[0-9a-fA-F]{32,}))?", re.ASCII)


class ImageError(Exception):
    """An image is not to be had. `reason` is what the container's waiting state shows, `message` its message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def normalise(reference: str) -> str:
    """`busybox` -> `docker.io/library/busybox:latest`. Raises ImageError InvalidImageName."""
    match = _REFERENCE.fullmatch(reference)
    if match is None or len(match[1]) > 255:
        problem = "invalid reference format"
        if re.fullmatch(r"[0-9a-f]{64}", reference) is None and _REFERENCE.fullmatch(reference.lower()):
            problem += ": repository name must be lowercase"
        raise ImageError("InvalidImageName", f'Failed to apply default image tag "{reference}": '
                                             f'couldn\'t parse image name "{reference}": {problem}')
    name, tag, digest = match.groups()
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, rest = DEFAULT_REGISTRY, name
    if first == "index.docker.io":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"{DEFAULT_FOLDER}/{rest}"
    tag = tag or ("" if digest else DEFAULT_TAG)
    return f"{first}/{rest}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")

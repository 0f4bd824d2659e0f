"""Variables that an earlier container of the pod wrote into a file: `fileKeyRef`.

Owns the form of such a file – `NAME='value'` a line, comments, values of several lines in their quotes – and the way to
it. Promises that the way leads out of the volume by no symbolic link, also not by one that changes meanwhile, and that
no more is read than a limit. Called by `steps`; blocking.

Upstream: pkg/kubelet/util/env, KEP-3721.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from agent.kubelet.env import ConfigError, of_files

LIMIT = 64 << 10  # bytes of one file: upstream's
_LINE = re.compile(r"""[ \t]*(?:\#[^\n]*|(?P<name>[^\s=\#'"]+)=(?:'(?P<plain>[^']*)'|"(?P<quoted>[^"]*)"|"""
                   r"""(?P<bare>[^\s'"][^\n'"]*|)))?[ \t\r]*(?:\n|$)""")


def parse(text: str) -> dict[str, str]:
    """The variables of a file; of two of one name the last counts. Raises ConfigError."""
    found, at = dict[str, str](), 0
    while at < len(text):
        line = _LINE.match(text, at)
        if line is None:
            raise ConfigError(f"line {text.count(chr(10), 0, at) + 1} is not of the form NAME='value'")
        if line["name"]:
            found[line["name"]] = next(v for v in line.group("plain", "quoted", "bare") if v is not None).rstrip("\r")
        at = line.end()
    return found


def read(container: dict[str, Any], paths: Mapping[str, str]) -> dict[tuple[str, str], dict[str, str] | None]:
    """What the files that the container's environment names hold, by volume and path; None for one that is not there.
    `paths` are the host paths of volumes. Raises ConfigError, OSError."""
    found: dict[tuple[str, str], dict[str, str] | None] = {}
    for ref in of_files(container):
        volume, path = ref.get("volumeName", ""), ref.get("path", "")
        if volume not in paths:
            raise ConfigError(f'cannot find the volume "{volume}" referenced by FileKeyRef')
        try:
            found[volume, path] = parse(_text(paths[volume], path))
        except FileNotFoundError:
            found[volume, path] = None
        except (ConfigError, UnicodeDecodeError) as error:
            raise ConfigError(f"couldn't parse env file {path}: {error}") from error
    return found


def _text(base: str, path: str) -> str:
    here = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, name = [p for p in path.split("/") if p not in ("", ".")]
        if ".." in (*folders, name):
            raise ConfigError("it must not leave its volume")
        for folder in folders:
            following = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = following
        # Not to wait for a writer, should it be a pipe.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)
    with open(file, "rb") as opened:
        data = opened.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ConfigError(f"it is larger than {LIMIT} bytes")
    return data.decode()

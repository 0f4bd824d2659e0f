"""The node's log files as /logs/ shows them: folders as lists of links, files as they are.

Owns the way from a path to what is answered. Promises that nothing outside of the log folder is ever shown, whatever
`..` or symbolic link a path holds, and nothing but folders and ordinary files. Called by `serve`, for those who may
read `nodes/log`.

Upstream: pkg/kubelet/server/server.go, which serves /var/log by Go's file server.
"""

from __future__ import annotations

import os
import stat
from html import escape
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from controlplane.machinery.errors import NotFound

MAX_ENTRIES = 2000  # of one folder: a page of more is of no use to anybody


def inside(top: Path, parts: list[str]) -> Path:
    """The real path below `top`. Raises NotFound for what is not there or leads out."""
    try:
        real = top.joinpath(*(part for part in parts if part)).resolve(strict=True)
        if any("/" in part or "\0" in part for part in parts) or not real.is_relative_to(top.resolve()):
            raise NotFound("404 page not found")
        return real
    except (OSError, ValueError, RuntimeError):
        raise NotFound("404 page not found") from None


def page(folder: Path) -> str:
    """The links of a folder, folders with a slash."""
    with os.scandir(folder) as entries:
        names = sorted(e.name + ("/" if e.is_dir() else "") for _, e in zip(range(MAX_ENTRIES), entries, strict=False))
    return "<!doctype html>\n<pre>\n" + "".join(
        f'<a href="{quote(name)}">{escape(name)}</a>\n' for name in names) + "</pre>\n"


def answer(top: Path, parts: list[str], path: str) -> web.StreamResponse:
    """What is shown at `parts` below the log folder; `path` is the one asked for. Blocking, but for files' content."""
    real = inside(top, parts)
    mode = real.stat().st_mode
    if stat.S_ISDIR(mode):
        if not path.endswith("/"):
            return web.Response(status=301, headers={"Location": path.rpartition("/")[2] + "/"})
        return web.Response(text=page(real), content_type="text/html")
    if not stat.S_ISREG(mode):
        raise NotFound("404 page not found")
    return web.FileResponse(real, headers={"Content-Type": "text/plain; charset=utf-8"})

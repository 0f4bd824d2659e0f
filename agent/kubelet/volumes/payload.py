"""What goes into configMap, secret, downwardAPI and projected volumes, and how it gets there in one step.

`files` is pure: a volume and the objects it names become {relative path: (bytes, mode)}. `write` makes a folder hold
exactly that: new content goes into a fresh folder and one symlink is swapped, so a reader never sees a mixture, and
nothing is touched when nothing has changed. Called by `volumes.manager`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from agent.kubelet.env import ConfigError, Sources, data_of, field_value, resource_value

MODE = 0o644  # upstream's defaultMode
Files = dict[str, tuple[bytes, int]]
KINDS = {"configMap": "configmaps", "secret": "secrets"}
TOKEN_SECONDS = 3600  # upstream's default life of a projected token
TOKEN_MODE = 0o600  # of a token that is given to the pod's own user or group
GROUP_READS, GROUP_ENTERS = 0o440, stat.S_ISGID | 0o550  # what fsGroup adds to the modes of files and folders


def fs_group(pod: dict[str, Any]) -> int | None:
    """The group that shall own the pod's volumes."""
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    return None if group is None else int(group)


def references(volume: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(kind, name, optional) of every object the volume takes its content from."""
    for source in _sources(volume):
        for key, kind in KINDS.items():
            if source.get(key) is not None:
                part = source[key]
                yield kind, part.get("name") or part.get("secretName") or "", bool(part.get("optional"))


def tokens(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """The serviceAccountToken projections of the volume."""
    return [s["serviceAccountToken"] for s in _sources(volume) if s.get("serviceAccountToken") is not None]


def certificates(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """The podCertificate projections of the volume."""
    return [s["podCertificate"] for s in _sources(volume) if s.get("podCertificate") is not None]


def bundles(volume: dict[str, Any]) -> list[dict[str, Any]]:
    """The clusterTrustBundle projections of the volume."""
    return [s["clusterTrustBundle"] for s in _sources(volume) if s.get("clusterTrustBundle") is not None]


def _issued(source: dict[str, Any]) -> list[str]:
    """The paths of what is issued to the pod itself, or put together for it."""
    parts = [source.get(kind) or {} for kind in ("serviceAccountToken", "podCertificate", "clusterTrustBundle")]
    return [part[key] for part in parts for key in ("path", "credentialBundlePath", "keyPath", "certificateChainPath")
            if part.get(key)]


def _sources(volume: dict[str, Any]) -> list[dict[str, Any]]:
    if volume.get("projected") is not None:
        return list(volume["projected"].get("sources") or ())
    return [volume]


def token_user(pod: dict[str, Any]) -> int | None:
    """Whose a token is: the user all containers of the pod run as, if it is one and told; None = root."""
    base = (pod["spec"].get("securityContext") or {}).get("runAsUser")
    users = {(c.get("securityContext") or {}).get("runAsUser", base)
             for group in ("initContainers", "containers", "ephemeralContainers") for c in pod["spec"].get(group) or ()}
    return users.pop() if len(users) == 1 else None


def files(pod: dict[str, Any], volume: dict[str, Any], sources: Sources, issued: Mapping[str, str]) -> Files:
    """The content. `issued` maps the paths of tokens, certificates and bundles to them. Raises ConfigError."""
    body: dict[str, Any] = next((volume[k] for k in (*KINDS, "downwardAPI", "projected")
                                 if volume.get(k) is not None), {})
    mode = body.get("defaultMode")
    mode = MODE if mode is None else mode
    made: Files = {}
    for source in _sources(volume):
        for key, kind in KINDS.items():
            if source.get(key) is not None:
                made |= _object(pod, kind, source[key], sources, mode)
        if source.get("downwardAPI") is not None:
            made |= _downward(pod, source["downwardAPI"], sources, mode)
        for path in _issued(source):
            private = token_user(pod) is not None or fs_group(pod) is not None
            made[path] = (issued[path].encode(), TOKEN_MODE if private else mode)
    for path in made:
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts:
            raise ConfigError(f"invalid path {path!r} in volume {volume.get('name', '')}")
    return made


def _object(pod: dict[str, Any], kind: str, part: dict[str, Any], sources: Sources, mode: int) -> Files:
    name = part.get("name") or part.get("secretName") or ""
    obj = sources.objects.get((kind, name))
    if obj is None:
        if part.get("optional"):
            return {}
        raise ConfigError(f'{kind[:-1]} "{name}" not found')
    data = data_of(kind, obj)
    if not part.get("items"):
        return {key: (value, mode) for key, value in data.items()}
    made: Files = {}
    for item in part["items"]:
        if item["key"] in data:
            made[item["path"]] = (data[item["key"]], mode if item.get("mode") is None else item["mode"])
        elif not part.get("optional"):
            raise ConfigError(f"references non-existent {kind[:-1]} key: {item['key']}")
    return made


def _downward(pod: dict[str, Any], part: dict[str, Any], sources: Sources, mode: int) -> Files:
    made: Files = {}
    for item in part.get("items") or ():
        if item.get("fieldRef"):
            text = field_value(pod, item["fieldRef"]["fieldPath"], sources)
        else:
            text = resource_value(pod, item["resourceFieldRef"], sources)
        made[item["path"]] = (text.encode(), mode if item.get("mode") is None else item["mode"])
    return made


def write(folder: Path, wanted: Files, stamp: str, group: int | None = None,
          owners: Mapping[str, int] | None = None) -> bool:
    """Make `folder` hold exactly `wanted`; True when it changed. `stamp` must differ from earlier calls' stamps;
    `group` owns the files (fsGroup), which then are group-readable; `owners` gives the user of single paths."""
    if group is not None:
        wanted = {path: (data, mode | GROUP_READS) for path, (data, mode) in wanted.items()}
    link = folder / "..data"
    current = os.readlink(link) if link.is_symlink() else ""
    if current and _same(folder / current, wanted):
        return False
    fresh = folder / (f"..{stamp}" if current != f"..{stamp}" else f"..{stamp}_again")
    shutil.rmtree(fresh, ignore_errors=True)
    _make(fresh, wanted, group, owners or {})
    swap = folder / "..data_tmp"
    with contextlib.suppress(FileNotFoundError):
        swap.unlink()
    swap.symlink_to(fresh.name)
    swap.rename(link)
    _visible(folder, {PurePosixPath(path).parts[0] for path in wanted})
    for old in folder.glob("..*"):  # the one before, and what a crash has left
        if old.name != fresh.name and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    return True


def _make(fresh: Path, wanted: Files, group: int | None, owners: Mapping[str, int]) -> None:
    """The files below a folder nobody sees yet."""
    folders = [fresh]
    fresh.mkdir(mode=0o755)
    for path, (data, mode) in wanted.items():
        target = fresh / path
        missing = [p for p in target.relative_to(fresh).parents if p.name and not (fresh / p).is_dir()]
        for part in reversed(missing):
            (fresh / part).mkdir()
            folders.append(fresh / part)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            if group is not None or path in owners:
                os.fchown(out.fileno(), owners.get(path, -1), -1 if group is None else group)
            os.fchmod(out.fileno(), mode)
    for made in folders:
        enter(made, group)


def enter(folder: Path, group: int | None) -> None:
    """Open a folder of a payload to everybody, or give it to `group`."""
    if group is not None:
        os.chown(folder, -1, group)
    folder.chmod(0o755 if group is None else 0o755 | GROUP_ENTERS)


def _visible(folder: Path, names: set[str]) -> None:
    """One symlink per top-level name, through ..data; stale ones go."""
    for entry in os.scandir(folder):
        if not entry.name.startswith("..") and entry.is_symlink() and entry.name not in names:
            os.unlink(entry.path)
    for name in names:
        if not os.path.lexists(folder / name):
            (folder / name).symlink_to(f"..data/{name}")


def _same(folder: Path, wanted: Files) -> bool:
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path) / name
            found[str(file.relative_to(folder))] = file
    if set(found) != {str(PurePosixPath(p)) for p in wanted}:
        return False
    return all(found[str(PurePosixPath(path))].read_bytes() == data
               and found[str(PurePosixPath(path))].stat().st_mode & 0o7777 == mode
               for path, (data, mode) in wanted.items())

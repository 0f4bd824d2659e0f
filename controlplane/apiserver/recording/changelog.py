"""One plain sentence per change: what somebody who comes back from holiday wants to read.

Owns the sentences (`kubernetes-admin scaled deployment default/web from 2 to 3`) and the choice of what is told:
changes of intent, not of observation, so neither statuses nor Leases, Events and EndpointSlices. Promises that no
value leaves an object except those of the few harmless fields listed here, and nothing at all of what a Secret holds.
`sentences` is pure. The pipeline notes who asks, `writes` tells what was stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from controlplane.apiserver.recording.logfile import LogFile
from controlplane.machinery.clock import Clock
from controlplane.store.item import Item

ACTOR: ContextVar[str] = ContextVar("actor", default="the server")
UNTOLD = ("events", "events.events.k8s.io", "leases.coordination.k8s.io", "endpointslices.discovery.k8s.io",
          "endpoints")
MAX_PATHS = 4  # changed fields named in one sentence
# Scalars whose values are told. Anything else may hold a password that somebody put into a command or a variable.
_TOLD = ("spec.type", "spec.paused", "spec.suspend", "spec.strategy.type", "spec.nodeName", "spec.schedule",
         "spec.parallelism", "spec.completions", "spec.minReadySeconds", "spec.terminationGracePeriodSeconds")
Object = dict[str, Any]


class ChangeLog:
    """Writes the sentences to a file, each with its time."""

    def __init__(self, log: LogFile, clock: Clock) -> None:
        self._log = log
        self._clock = clock

    def tell(self, before: Item | None, after: Item | None) -> None:
        """An object was stored in the place of another; None stands for no object."""
        item = after or before
        if item is None or item.key.partition("/")[0] in UNTOLD or (
                before is not None and after is not None and before.revision == after.revision):
            return
        for sentence in sentences(before.obj if before else None, after.obj if after else None):
            self._log.write(f"{self._clock.timestamp()} {_plain(ACTOR.get())} {sentence}\n".encode())

    async def close(self) -> None:
        await self._log.close()


def _plain(name: str) -> str:
    """A user's name on one line."""
    return "".join(c if c.isprintable() else "?" for c in name)


def called(obj: Object) -> str:
    """`deployment default/web`, `node n1`."""
    metadata = obj["metadata"]
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj['kind'].lower()} {place}{metadata['name']}"


def sentences(before: Object | None, after: Object | None) -> Iterator[str]:
    """What happened, without who did it."""
    if before is None:
        if after is not None:
            yield f"created {called(after)}"
        return
    if after is None:
        yield f"deleted {called(before)}" if not before["metadata"].get("deletionTimestamp") \
            else f"finished the deletion of {called(before)}"
        return
    what = called(after)
    if after["metadata"].get("deletionTimestamp") and not before["metadata"].get("deletionTimestamp"):
        grace = after["metadata"].get("deletionGracePeriodSeconds")
        yield f"deleted {what}" + (f", giving it {grace} seconds" if grace else "")
    yield from _labels(before, after, what)
    if after["kind"] == "Secret":
        if _without(before, "metadata", "status") != _without(after, "metadata", "status"):
            yield f"changed {what}"
        return
    paths = list(_changed(_without(before, "metadata", "status"), _without(after, "metadata", "status"), ""))
    others = []
    for path, old, new in paths:
        told = _known(path, old, new, what)
        if told:
            yield told
        else:
            others.append(path)
    if others:
        more = f" and {len(others) - MAX_PATHS} more" if len(others) > MAX_PATHS else ""
        yield f"changed {', '.join(others[:MAX_PATHS])}{more} of {what}"


def _labels(before: Object, after: Object, what: str) -> Iterator[str]:
    for field, verb in (("labels", "label"), ("annotations", "annotation"), ("finalizers", "finalizer")):
        old, new = before["metadata"].get(field) or {}, after["metadata"].get(field) or {}
        for key in sorted({*old, *new}):
            if key not in new:
                yield f"removed the {verb} {key} from {what}"
            elif key not in old:
                yield f"added the {verb} {key} to {what}"
            elif field != "finalizers" and old[key] != new[key]:
                yield f"changed the {verb} {key} of {what}"


def _known(path: str, old: Any, new: Any, what: str) -> str:
    """The sentence of a field people speak of, "" for any other."""
    if path == "spec.replicas" and old is not None and new is not None:
        return f"scaled {what} from {old} to {new}"
    if path == "spec.unschedulable":
        return f"{'cordoned' if new else 'uncordoned'} {what}"
    if path == "spec.paused":
        return f"{'paused' if new else 'resumed'} {what}"
    if path.endswith(".image") and isinstance(old, str) and isinstance(new, str):
        container = path.rpartition("[")[2].partition("]")[0]
        return f"changed the image of container {container} in {what} from {old} to {new}"
    if path in _TOLD and _scalar(old) and _scalar(new):
        return f"changed {path} of {what} from {_shown(old)} to {_shown(new)}"
    return ""


def _scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)


def _without(obj: Object, *fields: str) -> Object:
    return {k: v for k, v in obj.items() if k not in fields}


def _changed(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The deepest paths that differ, lists of named things by name."""
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _changed(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        return
    if isinstance(old, list) and isinstance(new, list) and _named(old) and _named(new):
        before, after = ({entry["name"]: entry for entry in entries} for entries in (old, new))
        for name in {**before, **after}:
            yield from _changed(before.get(name), after.get(name), f"{path}[{name}]")
        return
    yield path, old, new


def _named(entries: list[Any]) -> bool:
    return bool(entries) and all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in entries)

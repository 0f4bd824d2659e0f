"""Server-side apply and the book of field owners.

Owns `metadata.managedFields`: merging what a manager wants into the live object, conflicts with what others own,
removal of what the manager no longer wants and nobody else owns, and the owners' bookkeeping after ordinary updates.
Promises upstream's ownership rules and texts, that an apply which changes nothing gives the same object back, times
included, and that no argument is changed or shared with the result. Pure. Called by the apiserver.

Upstream: k8s.io/apimachinery/pkg/util/managedfields.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from controlplane.machinery import fieldsets, lastapplied
from controlplane.machinery.errors import BadRequest, Cause, Conflict
from controlplane.machinery.fieldsets import LEAF, Node, Tree, Unmergeable, atomic, resolved
from controlplane.machinery.objects import deep_copy

Object = dict[str, Any]
Entry = dict[str, Any]
Owner = tuple[str, str, str, str]  # manager, operation, apiVersion ("" for Apply), subresource

MAX_UPDATE_MANAGERS = 10  # older ones become one: every entry costs space in every copy of the object
ANCIENT = "ancient-changes"
BEFORE = "before-first-apply"

_UNTRACKED: Tree = {"f:apiVersion": LEAF, "f:kind": LEAF, "f:metadata": {".": {}, **{
    "f:" + name: LEAF for name in ("name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName",
                                   "generation", "managedFields", "resourceVersion")}}}


def _node(definition: str | Node) -> Node:
    if isinstance(definition, dict):
        return definition
    from controlplane.machinery import schema
    return {"$ref": definition} if definition in schema.load() else {}


# --- the book ------------------------------------------------------------------------------------------------------

def _owner(entry: Entry) -> Owner:
    operation = entry.get("operation") or ""
    version = "" if operation == "Apply" else entry.get("apiVersion") or ""
    return entry.get("manager") or "", operation, version, entry.get("subresource") or ""


def _book(entries: Any) -> tuple[dict[Owner, Tree], dict[Owner, Entry]]:
    """The owners' sets, and the entries they come from."""
    sets: dict[Owner, Tree] = {}
    found: dict[Owner, Entry] = {}
    for entry in entries or ():
        if isinstance(entry, dict) and entry.get("operation"):
            owner = _owner(entry)
            sets[owner] = fieldsets.union(sets.get(owner, {}), fieldsets.read(entry.get("fieldsV1")))
            found[owner] = entry
    return sets, found


def _entries(sets: dict[Owner, Tree], old: dict[Owner, Entry], before: dict[Owner, Tree], touched: Owner | None,
             api_version: str, now: str) -> list[Entry]:
    """managedFields of `sets`; an entry keeps its time unless its owner acted (`touched`) or it is new."""
    made: list[Entry] = []
    for owner, tree in sets.items():
        if not tree:
            continue
        entry = old.get(owner)
        if entry is not None and owner != touched and tree == before.get(owner):
            made.append(entry)
            continue
        manager, operation, version, subresource = owner
        fresh = {"manager": manager, "operation": operation,
                 "apiVersion": version or (api_version if owner == touched or not entry else entry["apiVersion"]),
                 "time": now if owner == touched or entry is None else entry.get("time", now),
                 "fieldsType": "FieldsV1", "fieldsV1": fieldsets.written(tree)}
        made.append({**fresh, "subresource": subresource} if subresource else fresh)
    return sorted(_bounded(made), key=lambda e: (e["operation"], e.get("time") or "", e["manager"],
                                                 e.get("apiVersion") or "", e.get("subresource") or ""))


def _bounded(entries: list[Entry]) -> list[Entry]:
    """At most MAX_UPDATE_MANAGERS updaters: the oldest become one entry per version."""
    updates = sorted((e for e in entries if e["operation"] == "Update"), key=lambda e: e.get("time") or "")
    excess = len(updates) - MAX_UPDATE_MANAGERS
    if excess <= 0:
        return entries
    merged: dict[str, Entry] = {}
    for entry in updates[:excess + 1]:
        version = entry.get("apiVersion") or ""
        sets = [fieldsets.read(e["fieldsV1"]) for e in (merged.get(version), entry) if e]
        tree = fieldsets.union(sets[0], sets[1]) if len(sets) == 2 else sets[0]
        merged[version] = {"manager": ANCIENT, "operation": "Update", "apiVersion": version, "time": entry.get("time"),
                           "fieldsType": "FieldsV1", "fieldsV1": fieldsets.written(tree)}
    dropped = {id(e) for e in updates[:excess + 1]}
    return [e for e in entries if id(e) not in dropped] + list(merged.values())


def _tracked(tree: Tree, subresource: str) -> Tree:
    """Without what is never tracked: the identity, and what this endpoint does not write."""
    if subresource == "status":
        return {"f:status": tree["f:status"]} if "f:status" in tree else {}
    tree = fieldsets.difference(tree, _UNTRACKED)
    tree.pop("f:status", None) if not subresource else None
    return tree


# --- apply ---------------------------------------------------------------------------------------------------------

def apply(live: Object | None, patch: Object, manager: str, force: bool, definition: str | Node, now: str,
          subresource: str = "") -> Object:
    """The object after `manager` applied `patch` to `live` (None: it does not exist), with its managedFields.

    `definition` is a schema's name or node ("" = without a schema), `now` an RFC 3339 time. Raises Conflict (409) when
    others own differing fields and `force` is not set, and BadRequest with upstream's text for a misfit
    (which upstream answers with a 500, though the fault is the client's)."""
    node = _node(definition)
    config = deep_copy(patch)
    config.setdefault("metadata", {}).pop("managedFields", None)
    if not subresource:
        config.pop("status", None)
    elif subresource == "status":
        config = {key: config[key] for key in ("apiVersion", "kind", "metadata", "status") if key in config}
    try:
        if misfits := list(_misfits(config, node, "")):
            raise Unmergeable(misfits[0] if len(misfits) == 1 else "\n".join(["errors:", *(f"  {m}" for m in misfits)]))
        wanted = _tracked(fieldsets.of(config, node), subresource)
        made = _applied(deep_copy(live), config, wanted, (manager, "Apply", "", subresource), force, node, now)
    except Unmergeable as error:
        metadata = patch.get("metadata") or {}
        name = "/".join(filter(None, (metadata.get("namespace"), metadata.get("name"))))
        raise BadRequest(f"failed to create typed patch object ({name}; {patch.get('apiVersion')}, "
                         f"Kind={patch.get('kind')}): {error}") from None
    if manager == lastapplied.MANAGER and not subresource:
        lastapplied.renewed(made, deep_copy(patch))
    return made


def _applied(live: Object | None, config: Object, wanted: Tree, me: Owner, force: bool, node: Node, now: str) -> Object:
    metadata = (live or {}).get("metadata") or {}
    old_entries = metadata.pop("managedFields", None)
    sets, entries = _book(old_entries)
    if live is not None and not sets:
        sets[BEFORE, "Update", live.get("apiVersion") or "", ""] = _tracked(fieldsets.compare({}, live, node)[0], "")
    before = dict(sets)
    last = sets.get(me, {})
    sets[me] = wanted
    merged = _merged(live, config, node) if live is not None else deep_copy(config)
    owned: Tree = {"f:metadata": fieldsets.LEAF}  # every configuration has a name
    for tree in sets.values():
        owned = fieldsets.union(owned, tree)
    _prune(merged, node, last, owned)
    acted = last != wanted or me not in entries
    if live is not None:
        changed, removed = fieldsets.compare(live, merged, node)
        version = config.get("apiVersion") or ""
        yielded = lastapplied.yielded(live, version, node) if me[0] == lastapplied.MANAGER else None
        _take_over(sets, me, changed, removed, force, yielded)
        acted = acted or bool(changed or removed)
    made = _entries(sets, entries, before, me if acted else None, config.get("apiVersion") or "", now)
    merged.setdefault("metadata", {})["managedFields"] = made
    return merged


def _take_over(sets: dict[Owner, Tree], me: Owner, changed: Tree, removed: Tree, force: bool,
               yielded: Tree | None = None) -> None:
    """Others lose what I changed, which is a conflict unless forced or `yielded`, and what is gone."""
    conflicts: list[tuple[Owner, Tree]] = []
    for owner, tree in list(sets.items()):
        if owner == me:
            continue
        lost = fieldsets.intersection(tree, changed)
        if contested := fieldsets.difference(lost, yielded or {}):
            conflicts.append((owner, contested))
        sets[owner] = fieldsets.difference(fieldsets.difference(tree, lost), removed)
    if conflicts and not force:
        raise _conflict(conflicts)


def _conflict(conflicts: list[tuple[Owner, Tree]]) -> Conflict:
    causes: list[Cause] = []
    lines: list[str] = []
    by_owner: list[tuple[str, list[str]]] = []
    for (manager, operation, version, subresource), tree in sorted(conflicts, key=lambda c: c[0]):
        who = f'"{manager}"' + (f' with subresource "{subresource}"' if subresource else "")
        who += f" using {version}" if operation == "Update" and version else ""
        fields = list(fieldsets.paths(tree))
        by_owner.append((who, fields))
        causes += [Cause("FieldManagerConflict", f"conflict with {who}", path) for path in fields]
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: conflict with {by_owner[0][0]}: {causes[0].field}"
    else:
        for who, fields in by_owner:
            lines += [f"conflicts with {who}:", *(f"- {path}" for path in fields)]
        text = f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines)
    return Conflict(text, {"causes": [cause.as_dict() for cause in causes]})


def _misfits(value: Any, node: Node, path: str) -> Iterator[str]:
    """What of a configuration the schema has no place for, as far as merging depends on it."""
    of = resolved(node)
    kind = of.get("type")
    if value is None or not kind:
        return
    if kind == "object":
        if not isinstance(value, dict):
            yield f"{path}: expected map, got &{{{value}}}"
            return
        strict = "properties" in of and not of.get("additionalProperties") and \
            not of.get("x-kubernetes-preserve-unknown-fields")
        for key, inner in value.items():
            sub, declared = fieldsets.field(of, key)
            if strict and not declared:
                yield f"{path}.{key}: field not declared in schema"
            else:
                yield from _misfits(inner, sub, f"{path}.{key}")
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{path}: expected list, got &{{{value}}}"
            return
        if not atomic(node, value):
            fieldsets.elements(node, value, path)
        for index, inner in enumerate(value):
            yield from _misfits(inner, of.get("items") or {}, f"{path}[{index}]")
    elif kind in ("integer", "number"):
        if isinstance(value, bool) or not isinstance(value, int | float):
            yield f"{path}: expected numeric (int or float), got {_go_type(value)}"
    elif kind == "boolean":
        if not isinstance(value, bool):
            yield f"{path}: expected boolean, got &{{{_go_type(value)}}}"
    elif not isinstance(value, str) and of.get("format") not in ("quantity", "int-or-string"):
        yield f"{path}: expected string, got &{{{_go_type(value)}}}"


def _go_type(value: Any) -> str:
    return {bool: "bool", int: "int64", float: "float64", str: "string", dict: "map", list: "list"}[type(value)]


def _merged(live: Any, config: Any, node: Node) -> Any:
    if atomic(node, config) or type(live) is not type(config):
        return config
    if isinstance(config, dict):
        out = dict(live)
        for key, value in config.items():
            if value is None:
                out.pop(key, None)
            else:
                out[key] = _merged(out.get(key), value, fieldsets.field(node, key)[0])
        return out
    return _merged_items(live, config, node)


def _merged_items(live: list[Any], config: list[Any], node: Node) -> list[Any]:
    """Both lists' items in both orders: of what only the live list has, each stays before whom it stood before; what
    both have comes in the configuration's order, and its new items after those."""
    inside = resolved(node).get("items") or {}
    mine = fieldsets.elements(node, config)
    theirs = [(fieldsets.element(node, item, at), item) for at, item in enumerate(live)]
    known = dict(reversed(theirs))  # a live list may hold doubles: the first counts
    wanted, shared = deque(mine), deque(name for name in mine if name in known)
    items: list[Any] = []
    for name, item in theirs:
        if name not in mine:
            items.append(item)
            continue
        while shared and shared[0] == name:  # ours up to this one: new ones stand before what they stood before
            first = wanted.popleft()
            items.append(_merged(known[first], mine[first], inside) if first in known else mine[first])
            if first == name:
                shared.popleft()
    for name in wanted:
        items.append(_merged(known[name], mine[name], inside) if name in known else mine[name])
    return items


def _prune(value: Any, node: Node, last: Tree, owned: Tree, keys: tuple[str, ...] = ()) -> None:
    """Remove, in place, what was applied the last time (`last`) and nobody owns now, with everything in it: defaults
    belong to nobody. A declared structure counts as owned while anything in it is; an item of a list or a key of a map
    has an owner of its own. `keys` name this item in its list: they go with the item only."""
    listed = fieldsets.elements(node, value) if isinstance(value, list) else {}
    inside = resolved(node).get("items") or {}
    naming = tuple(node.get("x-kubernetes-list-map-keys") or ()) if isinstance(value, list) else ()
    for name, sub in last.items():
        key = name[2:]
        if name == "." or key in keys or (name not in listed if isinstance(value, list) else key not in value):
            continue
        child = listed[name] if isinstance(value, list) else value[key]
        of, declared = (inside, False) if isinstance(value, list) else fieldsets.field(node, key)
        keep = owned.get(name, {})
        if (declared or "." in sub) and not (keep if declared else "." in keep):
            if isinstance(value, list):
                value[:] = [item for item in value if item is not child]
            else:
                del value[key]
        elif isinstance(child, dict | list) and not atomic(of, child):
            _prune(child, of, sub, keep, naming)


# --- updates -------------------------------------------------------------------------------------------------------

def track_update(old: Object | None, new: Object, manager: str, definition: str | Node, now: str,
                 subresource: str = "") -> list[Entry]:
    """The managedFields of `new`, which `manager` wrote over `old` (None: created it) by an ordinary write.

    The client may have set managedFields itself, and resets them with `[{}]`; after a reset updates are not tracked
    until something is applied."""
    given = (new.get("metadata") or {}).get("managedFields")
    kept = ((old or {}).get("metadata") or {}).get("managedFields")
    if given == [{}]:
        return []
    sets, entries = _book(given or kept)
    if not sets and old is not None:
        return []
    try:
        changed, removed = fieldsets.compare(old or {}, new, _node(definition))
    except Unmergeable:
        return list(entries.values())  # an item without its key: the write counts, its ownership cannot be told
    changed, removed = _tracked(changed, subresource), _tracked(removed, subresource)
    if not changed and not removed:
        return list(entries.values())
    before = dict(sets)
    api_version = new.get("apiVersion") or ""
    me: Owner = (manager, "Update", api_version, subresource)
    _take_over(sets, me, changed, removed, True)
    mine = fieldsets.difference(sets.get(me, {}), removed)
    sets[me] = fieldsets.union(mine, changed)
    return _entries(sets, entries, before, me if changed else None, api_version, now)

"""One version of a CustomResourceDefinition as it is served: what its objects may hold and how they are written.

Owns the run-time `Resource` entry of a version and what hangs on it: `shape` (checks and prunes bodies, and is the
schema node of apply), `strategy` (defaults, validation, generation), `printer` (columns), `scale` (paths). The schema
is decoded from the definition's stored bytes when the kind is first used, so a hundred installed kinds nobody touches
cost a hundred table entries. Called by `definitions`, which makes entries, and by the verbs through the entry.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/customresource_handler.go.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.crd.columns import Columns
from controlplane.machinery import objects
from controlplane.machinery.customdefinitions import schema_of, storage_version
from controlplane.machinery.errors import Cause, invalid
from controlplane.machinery.resources import ALL_VERBS, STATUS_VERBS, Resource, Subresource
from controlplane.machinery.schema import Problems
from controlplane.machinery.strategy import Strategy
from controlplane.machinery.structural import structural, values

if TYPE_CHECKING:
    from controlplane.apiserver.crd.conversion import Converter
    from controlplane.store.item import Item

Object = dict[str, Any]
ENDING_VERBS = tuple(v for v in ALL_VERBS if v != "create")  # while the definition is being deleted
_UNCHECKED = invalid("<nil>", "null", "some validation rules were not checked because the object was invalid; correct "
                     "the existing errors to complete validation")


class Shape:
    """The schema of one version, decoded when first needed."""

    def __init__(self, item: Item, version: str, mark: str) -> None:
        self._item = item  # of the definition: shared bytes, decoded here only for its schema
        self._version = version
        self._mark = mark

    def __repr__(self) -> str:
        """Stands in hashes of documents made from it: changes when the definition does, and then only."""
        return f"Shape({self._mark} {self._version})"

    @cached_property
    def schema(self) -> structural.Schema:
        import orjson
        versions = orjson.loads(self._item.data)["spec"]["versions"]
        return schema_of(next(v for v in versions if v["name"] == self._version))

    @cached_property
    def node(self) -> structural.Node:
        return structural.node_of(self.schema)

    @cached_property
    def defaulted(self) -> bool:
        return structural.has_defaults(self.schema)

    @cached_property
    def ruled(self) -> bool:
        return any(node.get("x-kubernetes-validations") for _, node in structural.nodes(self.schema))

    def check(self, obj: Object) -> Problems:
        """Prune a body; the paths of what went, and type errors of metadata."""
        unknown, errors = structural.check_metadata(obj)
        unknown += structural.prune(obj, self.schema)
        for path, inner in structural.embedded(obj, self.schema):
            more, faults = structural.check_metadata(inner, path)
            unknown += more
            errors += faults
        return Problems(unknown, errors)

    def complete(self, obj: Object) -> None:
        """Prune and default an object read from the store, or changed by admission."""
        structural.prune(obj, self.schema)
        if self.defaulted:
            structural.default(obj, self.schema)


class CustomStrategy(Strategy):
    """How objects of one version are written."""

    def __init__(self, resource: Resource, shape: Shape, deprecated: str) -> None:
        super().__init__(resource)
        self._shape = shape
        self._default = shape.complete
        self.deprecated = deprecated

    def validate(self, obj: Object) -> list[Cause]:
        return super().validate(obj) + self._values(obj, values.ABSENT)

    def changes(self, new: Object, old: Object) -> list[Cause]:
        return super().validate(new) + self._values(new, old) + self.validate_update(new, old)

    def _values(self, obj: Object, old: Any) -> list[Cause]:
        found = values.validate(obj, self._shape.schema, old)
        if not self._shape.ruled:
            return found
        if found:
            return [*found, _UNCHECKED]
        from controlplane.machinery.cel import rules
        return rules.evaluate(obj, None if old is values.ABSENT else old, self._shape.schema)


def _subresources(version: Object, kind: str) -> tuple[Subresource, ...]:
    given = version.get("subresources") or {}
    found = []
    if isinstance(given.get("scale"), dict):
        found.append(Subresource("scale", STATUS_VERBS, "Scale", "autoscaling", "v1"))
    if isinstance(given.get("status"), dict):
        found.append(Subresource("status", STATUS_VERBS, kind))
    return tuple(found)


def entry(definition: Object, item: Item, version: Object, converter: Converter) -> Resource:
    """The Resource of one version of an accepted definition."""
    spec = definition["spec"]
    names = (definition.get("status") or {}).get("acceptedNames") or spec["names"]
    group, name = spec["group"], version["name"]
    metadata = definition["metadata"]
    shape = Shape(item, name, f"{metadata['uid']}/{metadata.get('generation')}")
    selectable = tuple(f["jsonPath"] for f in version.get("selectableFields") or ())
    extra: dict[str, object] = {
        "shape": shape, "printer": Columns(version.get("additionalPrinterColumns") or []), "converter": converter,
        "memory": converter.memory,
        "scale": (version.get("subresources") or {}).get("scale"), "selectable_fields": selectable,
        # With one version and one schema ever, what is stored is just what would be read: no need to look.
        "verbatim": len(spec["versions"]) == 1 and metadata.get("generation") == 1}
    made = Resource(
        group, name, names["plural"], names["kind"], namespaced=spec["scope"] == "Namespaced",
        short_names=tuple(names.get("shortNames") or ()), categories=tuple(names.get("categories") or ()),
        verbs=ENDING_VERBS if objects.deleting(definition) else ALL_VERBS,
        subresources=_subresources(version, names["kind"]), storage_version=storage_version(definition), custom=True,
        singular_name=names.get("singular") or "", list_kind=names.get("listKind") or "", extra=extra)
    warning = version.get("deprecationWarning") or f"{group}/{name} {names['kind']} is deprecated"
    extra["strategy"] = CustomStrategy(made, shape, warning if version.get("deprecated") else "")
    return made

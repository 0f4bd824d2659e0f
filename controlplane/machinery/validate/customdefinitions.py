"""Validation of CustomResourceDefinitions: names, versions, schemas, conversion, columns, subresources.

What all versions have alike is told of at the definition's top, as upstream tells it: a schema at `spec.validation`.
Rules of CEL are compiled here, which loads the library the first time a definition has one.

Upstream: k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controlplane.machinery import names, objects
from controlplane.machinery import schema as schemas
from controlplane.machinery.customdefinitions import APPROVED, protected
from controlplane.machinery.errors import (
    IMMUTABLE,
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_many,
    type_invalid,
)
from controlplane.machinery.structural import rules, structural
from controlplane.machinery.validate import hooks

Object = dict[str, Any]
_PROPS = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
MAX_SELECTABLE = 8  # selectable fields of one version; upstream's bound: each is read for every object of a list
MAX_WARNING = 256  # bytes of what users of a deprecated version are told
COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
# What a root schema may say when its status has a resource of its own, in upstream's words and order.
_AT_ROOT = ("Description", "Type", "Format", "Title", "Maximum", "ExclusiveMaximum", "Minimum", "ExclusiveMinimum",
            "MaxLength", "MinLength", "Pattern", "MaxItems", "MinItems", "UniqueItems", "MultipleOf", "Required",
            "Items", "Properties", "ExternalDocs", "Example", "XPreserveUnknownFields", "XValidations")
_GO_NAMES = {"x-kubernetes-preserve-unknown-fields": "XPreserveUnknownFields",
             "x-kubernetes-validations": "XValidations"}


def definition(obj: Object) -> list[Cause]:
    """What is wrong with a definition."""
    spec = obj.get("spec") or {}
    group, plural = spec.get("group") or "", (spec.get("names") or {}).get("plural") or ""
    name = (obj.get("metadata") or {}).get("name") or ""
    found: list[Cause] = []
    if name != f"{plural}.{group}":
        found.append(invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    found += _group(group)
    scope = spec.get("scope") or ""
    if not scope:
        found.append(required("spec.scope"))
    elif scope not in ("Cluster", "Namespaced"):
        found.append(not_supported("spec.scope", scope, ("Cluster", "Namespaced")))
    found += _versions(spec)
    wrong = [*_names(spec.get("names") or {}, "spec.names", True)]
    for _, schema, at, status in _schemas(spec):
        wrong_here, costly = _schema(schema, at, status)
        wrong += wrong_here
        if not (obj.get("status") or {}).get("conditions"):  # what serves already is asked when it changes
            wrong += costly
    for at, version in _alike(spec, "subresources", "spec"):
        wrong += _subresources(version, at)
    for at, version in _alike(spec, "additionalPrinterColumns", "spec"):
        wrong += _columns(version, at)
    if not any(_misshapen(schema, at) for _, schema, at, _ in _schemas(spec)):
        wrong += _selectable(spec)
    return [*found, *wrong, *_conversion(spec.get("conversion") or {}),
            *_names((obj.get("status") or {}).get("acceptedNames") or {}, "status.acceptedNames", False),
            *_stored(obj), *_approval(obj, group), *_preserving(spec)]


def _versions(spec: Object) -> Iterator[Cause]:
    versions = spec.get("versions") or []
    for index, version in enumerate(versions):
        if (version.get("schema") or {}).get("openAPIV3Schema") is None:
            yield required(f"spec.versions[{index}].schema.openAPIV3Schema")
    for index, version in enumerate(versions):
        name, at = version.get("name") or "", f"spec.versions[{index}]"
        if faults := names.dns_1035_label(name):
            yield invalid(f"{at}.name", name, ",".join(faults))
            if not index and name:  # which is the definition's version, too
                yield invalid("spec.version", name, ",".join(faults))
        yield from _deprecation(version, at)
    given = [v.get("name") or "" for v in versions]
    if len(set(given)) != len(given):
        yield invalid("spec.versions", given, "must contain unique version names")
    if sum(1 for v in versions if v.get("storage")) != 1:
        yield invalid("spec.versions", given, "must have exactly one version marked as storage version")


def _deprecation(version: Object, at: str) -> Iterator[Cause]:
    warning = version.get("deprecationWarning")
    if warning is None:
        return
    faults = []
    if not version.get("deprecated"):
        faults = ["can only be set for deprecated versions"]
    else:
        if len(warning.encode()) > MAX_WARNING:
            faults.append(f"must be <= {MAX_WARNING} characters long")
        if not warning:
            faults.append("must not be an empty string")
        strange = next((i for i, sign in enumerate(warning) if not sign.isprintable()), None)
        if strange is not None:
            faults.append("must only contain printable UTF-8 characters; non-printable character found at index "
                          f"{len(warning[:strange].encode())}")
    for fault in faults:
        yield invalid(f"{at}.deprecationWarning", warning, fault)


def _alike(spec: Object, field: str, top: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of a field of the versions: once, at the top, when all have the same."""
    versions = spec.get("versions") or []
    values = [version.get(field) for version in versions]
    if values and all(value == values[0] for value in values):
        yield f"{top}.{field}", values[0]
    else:
        yield from ((f"spec.versions[{index}].{field}", value) for index, value in enumerate(values))


def _schemas(spec: Object) -> Iterator[tuple[list[Object], Object, str, bool]]:
    """(versions that have it, schema, its path, whether their status has a resource of its own)."""
    versions = spec.get("versions") or []
    schemas = [_dense(version.get("schema")) for version in versions]
    statuses = ["status" in (version.get("subresources") or {}) for version in versions]
    if versions and all(schema == schemas[0] for schema in schemas):
        schemas, statuses, paths, held = schemas[:1], [any(statuses)], ["spec.validation"], [versions]
    else:
        paths, held = [f"spec.versions[{index}].schema" for index in range(len(versions))], [[v] for v in versions]
    for schema, path, status, which in zip(schemas, paths, statuses, held):
        if isinstance(schema, dict) and isinstance(schema.get("openAPIV3Schema"), dict):
            yield which, schema["openAPIV3Schema"], f"{path}.openAPIV3Schema", status


def _dense(value: Any) -> Any:
    """A schema without what Go cannot tell from absent: two that differ in nothing else are the same."""
    if isinstance(value, list):
        return [_dense(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: _dense(one) for key, one in value.items()
            if key == "default" or (one not in (None, "", []) and not (key == "properties" and one == {}))}


def _misshapen(node: Object, path: str) -> list[Cause]:
    """What no schema can look like, below the fields whose own type is open: the rest of a body was checked before."""
    return list(_misshapen_parts(node, path))


def _misshapen_parts(node: Object, path: str) -> Iterator[Cause]:
    for key, inner in node.items():
        at = f"{path}.{key}"
        if key in ("items", "additionalProperties") and isinstance(inner, dict):
            faults = schemas.load().check(_PROPS, inner).errors
            yield from (type_invalid(at, "object", fault) for fault in faults)
            yield from () if faults else _misshapen_parts(inner, at)
        elif key in ("allOf", "anyOf", "oneOf", "x-kubernetes-validations"):
            for index, one in enumerate(inner or ()):
                if not isinstance(one, dict):
                    yield type_invalid(f"{at}[{index}]", one, "must be an object")
                elif key != "x-kubernetes-validations":
                    yield from _misshapen_parts(one, f"{at}[{index}]")
        elif key == "properties":
            for name, one in (inner or {}).items():
                if isinstance(one, dict):
                    yield from _misshapen_parts(one, f"{at}[{name}]")
        elif key == "not" and isinstance(inner, dict):
            yield from _misshapen_parts(inner, at)


def _schema(schema: Object, path: str, status: bool) -> tuple[list[Cause], list[Cause]]:
    """(what is wrong, what costs too much) of one schema."""
    if misshapen := _misshapen(schema, path):
        return misshapen, []
    found = [*_at_root(schema, path)] if status else []
    structure, openapi = rules.check(schema, path)
    found += structure + openapi
    if not any(node.get("x-kubernetes-validations") for _, node in structural.everywhere(schema, path)):
        return found, []
    from controlplane.machinery.cel import checks  # heavy: 16 MB of library
    wrong, costly = checks.examine(schema, path, not structure, openapi)
    return found + wrong, costly


def _at_root(schema: Object, path: str) -> Iterator[Cause]:
    """Of the root only what is not lost when the status is validated alone."""
    for key, value in schema.items():
        if not value:
            continue
        if key == "type":
            if value != "object":
                yield invalid(f"{path}.type", value, 'only "object" is allowed as the type at the root of the schema '
                              "if the status subresource is enabled")
        elif _GO_NAMES.get(key, key[:1].upper() + key[1:]) not in _AT_ROOT:
            yield invalid(path, schema, f"only [{' '.join(_AT_ROOT)}] fields are allowed at the root of the schema if "
                          "the status subresource is enabled")
            return


def _group(group: str) -> Iterator[Cause]:
    if not group:
        yield required("spec.group")
    elif faults := names.dns_subdomain(group):
        yield invalid("spec.group", group, ",".join(faults))
    elif "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")


def _approval(obj: Object, group: str) -> Iterator[Cause]:
    if not protected(group):
        return
    given = ((obj.get("metadata") or {}).get("annotations") or {}).get(APPROVED)
    at = f"metadata.annotations[{APPROVED}]"
    if not given:
        yield required(at, f'protected groups must have approval annotation "{APPROVED}", see '
                       "https://github.com/kubernetes/enhancements/pull/1111")
    elif not given.startswith(("unapproved", "https://", "http://")):
        yield invalid(at, given, "protected groups must have approval annotation \"" + APPROVED + "\" with either "
                      "a URL or a reason starting with \"unapproved\", see "
                      "https://github.com/kubernetes/enhancements/pull/1111")


def _preserving(spec: Object) -> Iterator[Cause]:
    if spec.get("preserveUnknownFields"):
        yield invalid("spec.preserveUnknownFields", True, "cannot set to true, set "
                      "x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead")
        if any(node.get("default") is not None for _, schema, at, _ in _schemas(spec)
               for _, node in structural.everywhere(schema, at)):
            yield invalid("spec.preserveUnknownFields", True, "must be false in order to use defaults in the schema")


def _names(given: Object, at: str, needed: bool) -> Iterator[Cause]:
    for field in ("plural", "singular", "kind", "listKind"):
        value = given.get(field) or ""
        if not value and needed:
            yield required(f"{at}.{field}")
        kind = field.endswith("ind")
        if value and (faults := names.dns_1035_label(value.lower() if kind else value)):
            note = "may have mixed case, but should otherwise match: " if kind else ""
            yield invalid(f"{at}.{field}", value, note + ",".join(faults))
    for field in ("shortNames", "categories"):
        for index, name in enumerate(given.get(field) or ()):
            if faults := names.dns_1035_label(name):
                yield invalid(f"{at}.{field}[{index}]", name, ",".join(faults))
    if given.get("kind") and given.get("kind") == given.get("listKind"):
        yield invalid(f"{at}.listKind", given["listKind"], "kind and listKind may not be the same")


def _columns(columns: list[Object] | None, at: str) -> Iterator[Cause]:
    for index, column in enumerate(columns or ()):
        where, kind, form = f"{at}[{index}]", column.get("type") or "", column.get("format") or ""
        if not column.get("name"):
            yield required(f"{where}.name")
        if not kind:
            yield required(f"{where}.type", f"must be one of {','.join(COLUMN_TYPES)}")
        elif kind not in COLUMN_TYPES:
            yield invalid(f"{where}.type", kind, f"must be one of {','.join(COLUMN_TYPES)}")
        if form and form not in COLUMN_FORMATS:
            yield invalid(f"{where}.format", form, f"must be one of {','.join(COLUMN_FORMATS)}")
        if not column.get("jsonPath"):
            yield required(f"{where}.JSONPath")
        else:
            yield from _simple_path(column["jsonPath"], f"{where}.JSONPath")


def _simple_path(path: str, at: str) -> Iterator[Cause]:
    if not path.startswith("."):
        yield invalid(at, path, "must be a simple json path starting with .")


def _subresources(given: Object | None, at: str) -> Iterator[Cause]:
    scale = (given or {}).get("scale")
    if scale is None:
        return
    for field, roots, form in (("specReplicasPath", (".spec.",), ".spec"),
                               ("statusReplicasPath", (".status.",), ".status"),
                               ("labelSelectorPath", (".spec.", ".status."), "either .spec or .status")):
        path, where = scale.get(field) or "", f"{at}.scale.{field}"
        faults = list(_simple_path(path, where)) if path else []
        yield from faults
        if not path and field != "labelSelectorPath":
            yield required(where)
        elif path and not faults and not path.startswith(roots):
            yield invalid(where, path, f"should be a json path under {form}")


def _selectable(spec: Object) -> Iterator[Cause]:
    versions = spec.get("versions") or []
    schemas = [(_dense(version.get("schema")) or {}).get("openAPIV3Schema") or {} for version in versions]
    alike = all(schema == schemas[0] for schema in schemas) and versions[0].get("schema") is not None
    for index, (at, fields) in enumerate(_alike(spec, "selectableFields", "spec")):
        if not fields:
            continue
        if at.startswith("spec.versions[") and alike:  # the schema is no version's own, as upstream has it
            yield invalid(at, "", "may only be set when `version.schema.openAPIV3Schema` is not included")
        elif not at.startswith("spec.versions[") and not alike:
            yield invalid(at, "", "may only be set when validations.schema is included")
        else:
            yield from _selectable_of(fields, schemas[index], at)


def _selectable_of(fields: list[Object], schema: Object, at: str) -> Iterator[Cause]:
    seen: set[str] = set()
    for index, field in enumerate(fields):
        path, where = field.get("jsonPath") or "", f"{at}[{index}].jsonPath"
        if not path:
            yield required(where)
            continue
        try:
            shown, node = structural.field_path(path, schema, arrays=False)
        except ValueError as error:
            yield invalid(where, path, f"is an invalid path: {error}")
            continue
        if shown.split(".")[0] == "metadata":
            yield invalid(where, path, "must not point to fields in metadata")
        if node.get("type") not in ("boolean", "integer", "string"):
            yield invalid(where, path, "must point to a field of type string, boolean or integer. Enum string fields "
                          "and strings with formats are allowed.")
        if shown in seen:
            yield duplicate(where, path)
        seen.add(shown)
    if len(seen) > MAX_SELECTABLE:
        yield too_many(at, len(seen), MAX_SELECTABLE)


def _conversion(given: Object) -> Iterator[Cause]:
    strategy, webhook, at = given.get("strategy") or "None", given.get("webhook") or {}, "spec.conversion"
    config, reviews = webhook.get("clientConfig"), webhook.get("conversionReviewVersions") or []
    if strategy not in ("None", "Webhook"):
        yield not_supported(f"{at}.strategy", strategy, ("None", "Webhook"))
    if strategy != "Webhook":
        for field, value in (("webhookClientConfig", config), ("conversionReviewVersions", reviews)):
            if value:
                yield forbidden(f"{at}.{field}", "should not be set when strategy is not set to Webhook")
        return
    if config is None:
        yield required(f"{at}.webhookClientConfig", "required when strategy is set to Webhook")
    else:
        yield from hooks.client_config(config, f"{at}.webhookClientConfig")
    if not reviews:
        yield required(f"{at}.conversionReviewVersions")
        return
    for index, version in enumerate(reviews):
        if version in reviews[:index]:
            yield invalid(f"{at}.conversionReviewVersions[{index}]", version, "duplicate version")
        else:
            yield from (invalid(f"{at}.conversionReviewVersions[{index}]", version, m)
                        for m in names.dns_1035_label(version))
    if not {"v1", "v1beta1"} & set(reviews):
        yield invalid(f"{at}.conversionReviewVersions", reviews, "must include at least one of v1, v1beta1")


def _stored(obj: Object) -> Iterator[Cause]:
    """Nothing that was ever stored may lose its version."""
    stored = (obj.get("status") or {}).get("storedVersions") or []
    given = [v.get("name") for v in (obj.get("spec") or {}).get("versions") or ()]
    if not stored:
        yield invalid("status.storedVersions", stored, "must have at least one stored version")
        return
    for version in (obj.get("spec") or {}).get("versions") or ():
        if version.get("storage") and (name := version.get("name") or "") not in stored:
            yield invalid("status.storedVersions", stored, f"must have the storage version {name}")
    for index, version in enumerate(stored):
        if version not in given:
            yield invalid(f"status.storedVersions[{index}]", version, f"missing from spec.versions; {version} was "
                          "previously a storage version, and must remain in spec.versions until a storage migration "
                          f"ensures no data remains persisted in {version} and removes {version} from "
                          "status.storedVersions")


def changes(new: Object, old: Object) -> list[Cause]:
    """What an update of a definition may not change."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found: list[Cause] = []
    fields = ["group", "names.plural"]
    if objects.holds(old, "Established"):
        fields += ["scope", "names.kind"]
    for field in fields:
        left, right = after, before
        for step in field.split(".")[:-1]:
            left, right = left.get(step) or {}, right.get(step) or {}
        last = field.rpartition(".")[2]
        if left.get(last) != right.get(last):
            found.append(invalid(f"spec.{field}", left.get(last) or "", IMMUTABLE))
    former = {version.get("name"): (version.get("schema") or {}).get("openAPIV3Schema")
              for version in before.get("versions") or ()}
    for versions, schema, at, status in _schemas(after):
        if any(former.get(version.get("name")) != schema for version in versions):
            found += _schema(schema, at, status)[1]
    return found

"""Validation of CustomResourceDefinitions: names, versions, schemas, conversion, columns, subresources.

Rules of CEL are compiled here, which loads the library the first time a definition has one.

Upstream: k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from controlplane.machinery import names, structural, structuralrules
from controlplane.machinery.customdefinitions import APPROVED, holds, protected, schema_of, storage_version
from controlplane.machinery.errors import IMMUTABLE, Cause, invalid, not_supported, required

Object = dict[str, Any]
MAX_SELECTABLE = 8  # selectable fields of one version; upstream's bound: each is read for every object of a list
COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
COLUMN_FORMATS = ("byte", "date", "date-time", "double", "float", "int32", "int64", "password")
_SIMPLE_PATH = re.compile(r"(\.[A-Za-z_$][\w$-]*)+")
_SCHEMA = "schema.openAPIV3Schema"


def definition(obj: Object) -> list[Cause]:
    """What is wrong with a definition."""
    spec = obj.get("spec") or {}
    group, plural = spec.get("group") or "", (spec.get("names") or {}).get("plural") or ""
    name = (obj.get("metadata") or {}).get("name") or ""
    found: list[Cause] = []
    if name != f"{plural}.{group}":
        found.append(invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    found += _group(obj, group)
    found += _names(spec.get("names") or {})
    scope = spec.get("scope") or ""
    if not scope:
        found.append(required("spec.scope"))
    elif scope not in ("Cluster", "Namespaced"):
        found.append(not_supported("spec.scope", scope, ("Cluster", "Namespaced")))
    if spec.get("preserveUnknownFields"):
        found.append(invalid("spec.preserveUnknownFields", True, "cannot set to true, set "
                             "x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"))
    found += _versions(spec.get("versions") or [])
    found += _conversion(spec.get("conversion") or {})
    if not found and not (obj.get("status") or {}).get("conditions"):  # what serves already is asked when it changes
        found += _costs(spec.get("versions") or [], [])
    return [*found, *_stored(obj)]


def _group(obj: Object, group: str) -> Iterator[Cause]:
    if not group:
        yield required("spec.group")
        return
    for message in names.dns_subdomain(group):
        yield invalid("spec.group", group, message)
    if "." not in group:
        yield invalid("spec.group", group, "should be a domain with at least one dot")
    if protected(group):
        given = ((obj.get("metadata") or {}).get("annotations") or {}).get(APPROVED)
        at = f"metadata.annotations[{APPROVED}]"
        if not given:
            yield required(at, f'protected groups must have approval annotation "{APPROVED}", see '
                           "https://github.com/kubernetes/enhancements/pull/1111")
        elif not given.startswith(("unapproved", "https://", "http://")):
            yield invalid(at, given, "protected groups must have approval annotation \"" + APPROVED + "\" with either "
                          "a URL or a reason starting with \"unapproved\", see "
                          "https://github.com/kubernetes/enhancements/pull/1111")


def _names(given: Object) -> Iterator[Cause]:
    for field in ("plural", "singular", "kind", "listKind"):
        value = given.get(field) or ""
        if not value:
            yield required(f"spec.names.{field}")
            continue
        lower = value.lower() if field.endswith("ind") else value
        for message in names.dns_1035_label(lower):
            note = "may have mixed case, but should otherwise match: " if lower is not value else ""
            yield invalid(f"spec.names.{field}", value, note + message)
    for index, short in enumerate(given.get("shortNames") or ()):
        for message in names.dns_1035_label(short):
            yield invalid(f"spec.names.shortNames[{index}]", short, message)
    for index, category in enumerate(given.get("categories") or ()):
        for message in names.dns_1035_label(category):
            yield invalid(f"spec.names.categories[{index}]", category, message)
    if given.get("kind") and given.get("kind") == given.get("listKind"):
        yield invalid("spec.names.listKind", given["listKind"], "kind and listKind may not be the same")


def _versions(versions: list[Object]) -> list[Cause]:
    found: list[Cause] = []
    given = [v.get("name") or "" for v in versions]
    if len(set(given)) != len(given):
        found.append(invalid("spec.versions", given, "must contain unique version names"))
    if sum(1 for v in versions if v.get("storage")) != 1:
        found.append(invalid("spec.versions", given, "must have exactly one version marked as storage version"))
    for index, version in enumerate(versions):
        at = f"spec.versions[{index}]"
        found += [invalid(f"{at}.name", version.get("name") or "", m)
                  for m in names.dns_1035_label(version.get("name") or "")]
        warning = version.get("deprecationWarning")
        if warning and not version.get("deprecated"):
            found.append(invalid(f"{at}.deprecationWarning", warning, "can only be set for deprecated versions"))
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        found += structuralrules.check(schema, f"{at}.{_SCHEMA}")
        found += _columns(version.get("additionalPrinterColumns") or [], at)
        found += _subresources(version.get("subresources") or {}, at)
        found += _selectable(version, at)
        if isinstance(schema, dict):
            found += _rules(schema, f"{at}.{_SCHEMA}")
    return found


def _costs(versions: list[Object], known: list[Object]) -> list[Cause]:
    """What the rules of schemas that are not among the known ones cost too much."""
    schemas = [(v.get("schema") or {}).get("openAPIV3Schema") for v in known]
    found: list[Cause] = []
    for index, version in enumerate(versions):
        schema = (version.get("schema") or {}).get("openAPIV3Schema")
        if isinstance(schema, dict) and schema not in schemas and any(
                node.get("x-kubernetes-validations") for _, node in structural.nodes(schema)):
            from controlplane.machinery import celrules
            found += celrules.costs(schema, f"spec.versions[{index}].{_SCHEMA}")
    return found


def _rules(schema: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    for at, node in structural.nodes(schema):
        if node.get("x-kubernetes-validations"):
            from controlplane.machinery import celrules  # heavy: 16 MB of library
            found += celrules.check(node, structural.join(path, at), not at)
    return found


def _columns(columns: list[Object], at: str) -> Iterator[Cause]:
    for index, column in enumerate(columns):
        where = f"{at}.additionalPrinterColumns[{index}]"
        if not column.get("name"):
            yield required(f"{where}.name")
        kind = column.get("type") or ""
        if not kind:
            yield required(f"{where}.type", f"must be one of {','.join(COLUMN_TYPES)}")
        elif kind not in COLUMN_TYPES:
            yield invalid(f"{where}.type", kind, f"must be one of {','.join(COLUMN_TYPES)}")
        if column.get("format") and column["format"] not in COLUMN_FORMATS:
            yield invalid(f"{where}.format", column["format"], f"must be one of {','.join(COLUMN_FORMATS)}")
        path = column.get("jsonPath") or ""
        if not path:
            yield required(f"{where}.jsonPath")
        elif not path.startswith((".", "[")) or path.count("[") != path.count("]"):
            yield invalid(f"{where}.jsonPath", path, "must be a valid simple JSON path, such as .spec.foo")


def _subresources(given: Object, at: str) -> Iterator[Cause]:
    scale = given.get("scale")
    if not isinstance(scale, dict):
        return
    for field, root, needed in (("specReplicasPath", ".spec", True), ("statusReplicasPath", ".status", True),
                                ("labelSelectorPath", "", False)):
        path, where = scale.get(field) or "", f"{at}.subresources.scale.{field}"
        if not path:
            if needed:
                yield required(where)
        elif not _SIMPLE_PATH.fullmatch(path):
            yield invalid(where, path, "must be a simple json path" + (f" under {root}" if root else ""))
        elif (root and not path.startswith(root + ".")) or not path.startswith((".spec.", ".status.")):
            yield invalid(where, path, f"should be a json path under {root or '.spec or .status'}")


def _selectable(version: Object, at: str) -> Iterator[Cause]:
    fields = version.get("selectableFields") or []
    if len(fields) > MAX_SELECTABLE:
        yield Cause("FieldValueTooMany", f"Too many: {len(fields)}: must have at most {MAX_SELECTABLE} items",
                    f"{at}.selectableFields")
    seen: set[str] = set()
    for index, field in enumerate(fields):
        path, where = field.get("jsonPath") or "", f"{at}.selectableFields[{index}].jsonPath"
        if not path:
            yield required(where)
            continue
        if path in seen:
            yield Cause("FieldValueDuplicate", f'Duplicate value: "{path}"', where)
        seen.add(path)
        if not _SIMPLE_PATH.fullmatch(path) or path.startswith(".metadata"):
            yield invalid(where, path, "is an invalid path: must be a simple path to a field outside metadata")
            continue
        node: Object | None = schema_of(version)
        for step in path[1:].split("."):
            node = (node.get("properties") or {}).get(step) if node else None
        if not isinstance(node, dict):
            yield invalid(where, path, f"is an invalid path: field {path} does not exist in the schema")
        elif node.get("type") not in ("boolean", "integer", "string"):
            yield invalid(where, path, "must point to a field of type string, boolean or integer. Enum string fields "
                          "and strings with formats are allowed.")


def _conversion(given: Object) -> Iterator[Cause]:
    strategy, webhook = given.get("strategy") or "None", given.get("webhook")
    at = "spec.conversion"
    if strategy not in ("None", "Webhook"):
        yield not_supported(f"{at}.strategy", strategy, ("None", "Webhook"))
        return
    if strategy == "None":
        if webhook:
            yield Cause("FieldValueForbidden", "Forbidden: should not be set when strategy is not set to Webhook",
                        f"{at}.webhook")
        return
    if not isinstance(webhook, dict):
        yield required(f"{at}.webhook", "required when strategy is set to Webhook")
        return
    reviews = webhook.get("conversionReviewVersions") or []
    if not reviews:
        yield required(f"{at}.webhook.conversionReviewVersions")
    elif not {"v1", "v1beta1"} & set(reviews):
        yield invalid(f"{at}.webhook.conversionReviewVersions", reviews, "must include at least one of v1, v1beta1")
    yield from client_config(webhook.get("clientConfig"), f"{at}.webhook.clientConfig")


def client_config(config: Any, at: str) -> Iterator[Cause]:
    """What is wrong with how a webhook is reached."""
    if not isinstance(config, dict):
        yield required(at, "required when strategy is set to Webhook")
        return
    url, service = config.get("url"), config.get("service")
    if bool(url) == bool(service):
        yield required(f"{at}", "exactly one of url or service is required")
        return
    if url:
        if not str(url).startswith("https://"):
            yield invalid(f"{at}.url", url, "'https' is the only allowed URL scheme; desired format: "
                          "https://host[/path]")
        return
    if not isinstance(service, dict):
        return
    for field in ("name", "namespace"):
        if not service.get(field):
            yield required(f"{at}.service.{field}")
    port = service.get("port")
    if port is not None and not 1 <= port <= 65535:
        yield invalid(f"{at}.service.port", port, f"port is not valid: {names.in_range(1, 65535)}")
    path = service.get("path")
    if path and not path.startswith("/"):
        yield invalid(f"{at}.service.path", path, "must start with a '/'")


def _stored(obj: Object) -> Iterator[Cause]:
    """Nothing that was ever stored may lose its version."""
    stored = (obj.get("status") or {}).get("storedVersions") or []
    given = [v.get("name") for v in (obj.get("spec") or {}).get("versions") or ()]
    if not stored:
        yield invalid("status.storedVersions", stored, "must have at least one stored version")
        return
    for index, version in enumerate(stored):
        if version not in given:
            yield invalid(f"status.storedVersions[{index}]", version, "must appear in spec.versions")
    if (storage := storage_version(obj)) and storage not in stored:
        yield invalid("status.storedVersions", stored, f"must have the storage version {storage}")


def changes(new: Object, old: Object) -> list[Cause]:
    """What an update of a definition may not change."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found: list[Cause] = []
    fields = ["group", "names.plural"]
    if holds(old, "Established"):
        fields += ["scope", "names.kind"]
    for field in fields:
        left, right = after, before
        for step in field.split(".")[:-1]:
            left, right = left.get(step) or {}, right.get(step) or {}
        last = field.rpartition(".")[2]
        if left.get(last) != right.get(last):
            found.append(invalid(f"spec.{field}", left.get(last) or "", IMMUTABLE))
    return [*found, *_costs(after.get("versions") or [], before.get("versions") or [])]

"""Validation of what every object has: names, labels, annotations, finalizers, owner references; and of selectors.

Upstream: k8s.io/apimachinery/pkg/api/validation/objectmeta.go.
"""

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, required, too_long

Object = dict[str, Any]
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
_OWN_FINALIZERS = frozenset(("kubernetes", "orphan", "foregroundDeletion"))
_BANNED_OWNERS = frozenset((("v1", "Event"),))


def check(obj: Object, namespaced: bool, name_rule: names.Validator) -> list[Cause]:
    """Everything wrong with `obj["metadata"]`."""
    meta = obj.get("metadata") or {}
    found: list[Cause] = []
    prefix = meta.get("generateName")
    if prefix:  # a trailing dash is what generated names continue
        found += [invalid("metadata.generateName", prefix, m) for m in name_rule(prefix.rstrip("-") or prefix)]
    name = meta.get("name") or ""
    if not name:
        found.append(required("metadata.name", "name or generateName is required"))
    else:
        found += [invalid("metadata.name", name, m) for m in name_rule(name)]
    namespace = meta.get("namespace") or ""
    if namespaced:
        if not namespace:
            found.append(required("metadata.namespace"))
        else:
            found += [invalid("metadata.namespace", namespace, m) for m in names.dns_label(namespace)]
    elif namespace:
        found.append(forbidden("metadata.namespace", "not allowed on this type"))
    if meta.get("labels"):
        found += labels(meta["labels"], "metadata.labels")
    if meta.get("annotations"):
        found += annotations(meta["annotations"], "metadata.annotations")
    if meta.get("ownerReferences"):
        found += owners(meta["ownerReferences"], "metadata.ownerReferences")
    if meta.get("finalizers"):
        found += finalizers(meta["finalizers"], "metadata.finalizers")
    return found


def labels(found: dict[str, str], path: str) -> list[Cause]:
    causes: list[Cause] = []
    for key, value in found.items():
        causes += [invalid(path, key, m) for m in names.label_key(key)]
        causes += [invalid(path, value, m) for m in names.label_value(value or "")]
    return causes


def annotations(found: dict[str, str], path: str) -> list[Cause]:
    causes: list[Cause] = []
    total = 0
    for key, value in found.items():
        causes += [invalid(path, key, m) for m in names.annotation_key(key)]
        total += len(key.encode()) + len((value or "").encode())
    if total > names.ANNOTATIONS_MAX:
        causes.append(too_long(path, names.ANNOTATIONS_MAX))
    return causes


def label_selector(selector: Object, path: str) -> list[Cause]:
    """A metav1.LabelSelector."""
    found = labels(selector.get("matchLabels") or {}, f"{path}.matchLabels")
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        at = f"{path}.matchExpressions[{index}]"
        operator, values = expression.get("operator", ""), expression.get("values") or []
        if operator in ("In", "NotIn") and not values:
            found.append(required(f"{at}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist") and values:
            found.append(forbidden(f"{at}.values", "may not be specified when `operator` is 'Exists' or "
                                   "'DoesNotExist'"))
        elif operator not in _OPERATORS:
            found.append(invalid(f"{at}.operator", operator, "not a valid selector operator"))
        key = expression.get("key", "")
        found += [invalid(f"{at}.key", key, m) for m in names.label_key(key)]
        for position, value in enumerate(values):
            found += [invalid(f"{at}.values[{position}]", value, m) for m in names.label_value(value)]
    return found


def owners(found: list[Object], path: str) -> list[Cause]:
    causes: list[Cause] = []
    controller = ""
    for index, owner in enumerate(found):
        at = f"{path}[{index}]"
        version = owner.get("apiVersion") or ""
        if not version.rpartition("/")[2]:
            causes.append(invalid(f"{at}.apiVersion", version, "version must not be empty"))
        causes += [invalid(f"{at}.{field}", owner.get(field) or "", "must not be empty")
                   for field in ("kind", "name", "uid") if not owner.get(field)]
        if (version, owner.get("kind")) in _BANNED_OWNERS:
            causes.append(invalid(at, owner, f"/{version}, Kind={owner['kind']} is disallowed from being an owner"))
        if owner.get("controller"):
            if controller:
                causes.append(invalid(path, found, "Only one reference can have Controller set to true. Found "
                                      f'"true" in references for {controller} and {owner.get("name", "")}'))
            else:
                controller = owner.get("name") or "?"
    return causes


def finalizers(found: list[str], path: str) -> list[Cause]:
    causes: list[Cause] = []
    for name in found:
        causes += [invalid(path, name, m) for m in names.qualified_name(name)]
    if "orphan" in found and "foregroundDeletion" in found:
        causes.append(invalid(path, found, 'finalizer "orphan" and "foregroundDeletion" cannot be both set'))
    return causes


def short_finalizers(obj: Object) -> list[Cause]:
    """Finalizers without a path, which only custom kinds and the groups that extend the API may have."""
    return [invalid("metadata.finalizers", name, "name is neither a standard finalizer name nor is it fully qualified")
            for name in (obj.get("metadata") or {}).get("finalizers") or ()
            if "/" not in name and name not in _OWN_FINALIZERS and not names.qualified_name(name)]


def changes(new: Object, old: Object) -> list[Cause]:
    """What an update may not change of the metadata; identity and deletion marks are the handlers' to restore."""
    after, before = new.get("metadata") or {}, old.get("metadata") or {}
    return [invalid(f"metadata.{field}", after.get(field) or "", IMMUTABLE)
            for field in ("name", "namespace") if (after.get(field) or "") != (before.get(field) or "")]

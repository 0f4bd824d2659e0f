"""AdmissionReview v1: what a webhook is asked, and what its answer means. Pure.

Owns the form of the request (object and old object as the webhook's rule knows them, options, user), the checks of an
answer, the wording of refusals, and the application of a JSON patch. It never calls anybody. Called by `dispatch`; the
policies use the same request as their variable `request`.

Upstream: k8s.io/apiserver/pkg/admission/plugin/webhook/{request,errors}.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from controlplane.machinery import patch, wire
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import Resource

if TYPE_CHECKING:
    from controlplane.apiserver.admission import Attributes
    from controlplane.apiserver.request import Request

VERSION = "admission.k8s.io/v1"
MAX_WARNINGS, MAX_WARNING = 4096, 256  # bytes of all warnings of one answer, and of one when they are more
Object = dict[str, Any]
_OPTIONS = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions"}


class BadAnswer(ValueError):  # noqa: N818 - a webhook, not this program, is at fault
    """A webhook answered what it must not; the text says what."""


@dataclass(slots=True)
class Verdict:
    """What a webhook said. `patch` is the list of operations, None when it changes nothing."""

    allowed: bool
    result: Object | None = None
    patch: list[Any] | None = None
    warnings: list[str] = field(default_factory=list)
    audit: dict[str, str] = field(default_factory=dict)


def kind_of(attributes: Attributes, resource: Resource) -> Object:
    """The type of the object in hand: the resource's own, or its subresource's."""
    sub = resource.subresource(attributes.subresource) if attributes.subresource else None
    if sub is None or sub.kind == resource.kind:
        return {"group": resource.group, "version": resource.version, "kind": resource.kind}
    return {"group": sub.group or ("" if sub.version == "v1" and sub.kind.endswith(("Options", "Binding"))
                                   else resource.group),
            "version": sub.version or resource.version, "kind": sub.kind}


def shown(attributes: Attributes, obj: Object | None, resource: Resource) -> Object | None:
    """An object as it is told: the view a subresource speaks, in the version asked for (see `versions`)."""
    if obj is None:
        return None
    if attributes.subresource == "scale":
        from controlplane.apiserver.subresources import scale_of
        return scale_of(obj)
    view = attributes.views.get(resource.api_version) if resource is not attributes.resource else None
    if view is None:
        return obj
    shown_as: Object | None = view[0] if obj is attributes.obj else view[1]
    return shown_as


def request_of(attributes: Attributes, resource: Resource, uid: str) -> Object:
    """The `request` of a review. `resource` is the one the rule matched."""
    own, user = attributes.resource, attributes.user
    made: Object = {"uid": uid, "kind": kind_of(attributes, resource), "resource": _gvr(resource)}
    if attributes.subresource:
        made["subResource"] = attributes.subresource
    made["requestKind"], made["requestResource"] = kind_of(attributes, own), _gvr(own)
    if attributes.subresource:
        made["requestSubResource"] = attributes.subresource
    if attributes.name:
        made["name"] = attributes.name
    space = attributes.name if own.name == "namespaces" else attributes.namespace if own.namespaced else ""
    if space:
        made["namespace"] = space
    made |= {"operation": attributes.operation, "userInfo": {
        "username": user.name, **({"uid": user.uid} if user.uid else {}), "groups": list(user.groups),
        **({"extra": {key: list(values) for key, values in dict(user.extra).items()}} if user.extra else {})},
        "object": shown(attributes, attributes.obj, resource),
        "oldObject": shown(attributes, attributes.old, resource),
        "dryRun": attributes.dry_run, "options": options_of(attributes)}
    return made


def _gvr(resource: Resource) -> Object:
    return {"group": resource.group, "version": resource.version, "resource": resource.plural}


def options_of(attributes: Attributes) -> Object | None:
    """The options of the verb as the request gave them; None of a CONNECT."""
    kind = _OPTIONS.get(attributes.operation)
    if kind is None:
        return None
    request = attributes.request
    if kind == "UpdateOptions" and request is not None and request.verb == "patch":
        kind = "PatchOptions"
    made: Object = {"kind": kind, "apiVersion": "meta.k8s.io/v1"}
    if attributes.dry_run:
        made["dryRun"] = ["All"]
    if request is not None and request.raw_query and kind != "DeleteOptions":
        made |= {name: request.query.get(name) for name in ("fieldManager", "fieldValidation")
                 if request.query.get(name)}
        if kind == "PatchOptions" and "force" in request.query:
            made["force"] = request.query.flag("force")
    if kind == "DeleteOptions" and request is not None and request.verb in ("delete", "deletecollection"):
        made |= _delete_options(request)
    return made


def _delete_options(request: Request) -> Object:
    """What a deletion said in its body; it was decoded before, so it can be."""
    body = request.read_body()
    if not body:
        return {}
    given = wire.decode(body, request.content_type)
    return {name: given[name] for name in ("gracePeriodSeconds", "propagationPolicy", "orphanDependents",
                                           "preconditions") if given.get(name) is not None}


def verdict(answer: Object, uid: str, mutating: bool) -> Verdict:
    """What an answered review says. Raises BadAnswer."""
    if (answer.get("apiVersion"), answer.get("kind")) != (VERSION, "AdmissionReview"):
        group, _, version = str(answer.get("apiVersion") or "").rpartition("/")
        raise BadAnswer(f"expected webhook response of {VERSION}, Kind=AdmissionReview, got "
                        f"{group}/{version}, Kind={answer.get('kind') or ''}")
    given = answer.get("response")
    if not isinstance(given, dict):
        raise BadAnswer("webhook response was absent")
    if given.get("uid") != uid:
        raise BadAnswer(f'expected response.uid="{uid}", got "{given.get("uid") or ""}"')
    text, kind = given.get("patch"), given.get("patchType")
    if not mutating and (text or kind):
        raise BadAnswer("validating webhook may not return response.patch" + ("" if text else "Type"))
    made = Verdict(bool(given.get("allowed")), given.get("status"), None, _warnings(given.get("warnings")),
                   {str(k): str(v) for k, v in (given.get("auditAnnotations") or {}).items()})
    if text and not kind:
        raise BadAnswer("webhook returned response.patch but not response.patchType")
    if kind and not text:
        raise BadAnswer("webhook returned response.patchType but not response.patch")
    if text:
        if kind != "JSONPatch":
            raise BadAnswer(f'webhook returned invalid response.patchType of "{kind}"')
        made.patch = _operations(text)
    return made


def _operations(text: Any) -> list[Any]:
    try:
        found = orjson.loads(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error) as error:
        raise BadAnswer(f"response.patch cannot be decoded: {error}") from None
    if not isinstance(found, list):
        raise BadAnswer("response.patch is no list of operations")
    return found


def _warnings(given: Any) -> list[str]:
    """Warnings fit for a header: printable, and short when they are many."""
    texts = ["".join(c if c.isprintable() else " " for c in str(t)) for t in given or [] if t]
    if sum(len(t) for t in texts) > MAX_WARNINGS:
        texts = [t[:MAX_WARNING] for t in texts]
        texts = texts[:MAX_WARNINGS // MAX_WARNING]
    return texts


def patched(obj: Object, operations: list[Any]) -> Object:
    """The object with a webhook's patch. Raises BadAnswer."""
    try:
        made = patch.json_patch(obj, operations)
    except ApiError as error:
        raise BadAnswer(f"unable to apply the patch: {error.message}") from None
    if not isinstance(made, dict) or not isinstance(made.get("metadata"), dict):
        raise BadAnswer("the patch does not leave an object")
    return made


def denied(name: str, result: Object | None) -> ApiError:
    """The refusal a webhook asked for, with its own code, reason and details."""
    result = result or {}
    by = f'admission webhook "{name}" denied the request'
    told = result.get("message") or result.get("reason")
    code = result.get("code")
    return ApiError(f"{by}: {told}" if told else f"{by} without explanation", result.get("details"),
                    code=code if isinstance(code, int) and code >= 400 else 400, reason=result.get("reason") or "")

"""Objects of a request in the version a rule names, when that is not the request's own.

Owns the way there and back for webhooks and policies that match by `matchPolicy: Equivalent`. A request matched under
its own version, as nearly all are, passes through untouched. Called before each evaluation, since objects change in
between.

Upstream: k8s.io/apiserver/pkg/admission/plugin/webhook/generic (VersionedAttributes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlplane.machinery import conversion, objects
from controlplane.machinery.resources import Resource

if TYPE_CHECKING:
    from controlplane.apiserver.admission import Attributes

Object = dict[str, Any]


async def _to(obj: Object, own: Resource, other: Resource) -> Object:
    if not own.custom:
        return conversion.from_storage(other.api_version, conversion.to_storage(own.api_version, obj))
    extra: Any = own.extra
    converted: list[Object] = await extra["converter"].to(other.api_version, [obj])
    return converted[0]


async def prepare(attributes: Attributes, resource: Resource) -> None:
    """Make the request's objects ready to be shown as `resource`. Raises InternalError when a conversion fails."""
    own = attributes.resource
    if resource is own or attributes.subresource not in ("", "status"):
        return
    shown = [None if obj is None else await _to(objects.deep_copy(obj), own, resource)
             for obj in (attributes.obj, attributes.old)]
    attributes.views[resource.api_version] = (shown[0], shown[1])


async def back(attributes: Attributes, resource: Resource, made: Object) -> Object:
    """An object made in the version of `resource`, in the request's own. Raises InternalError."""
    if resource is attributes.resource or attributes.subresource not in ("", "status"):
        return made
    return await _to(made, resource, attributes.resource)

"""Objects of one kind between its versions: relabelled, or converted by the definition's webhook.

Owns the check that a converted object is still the same object. A webhook gets all objects of one call together, which
is how a list of many versions costs one round trip. Promises the order of the objects, and that only their labels and
annotations of the metadata can have changed. Called by `views`.

Upstream: k8s.io/apiextensions-apiserver/pkg/apiserver/conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.crd.memory import Memory
from controlplane.apiserver.webhooks.caller import CallFailed
from controlplane.machinery.errors import InternalError

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context
    from controlplane.apiserver.webhooks.caller import Caller

SECONDS = 30.0  # for one conversion; upstream's bound
BATCH = 500  # objects of one review: a page of a list
Object = dict[str, Any]


class Converter:
    """The conversions of one definition."""

    def __init__(self, context: Context, caller: Caller, definition: Object) -> None:
        self.memory = Memory()
        self._context = context
        self._caller = caller
        conversion = definition["spec"].get("conversion") or {}
        hook = conversion.get("webhook") or {}
        self._config: Object | None = hook.get("clientConfig") if conversion.get("strategy") == "Webhook" else None
        given = hook.get("conversionReviewVersions") or ()
        self._review = next((v for v in given if v in ("v1", "v1beta1")), "v1")

    async def to(self, api_version: str, objects: Sequence[Object]) -> list[Object]:
        """The objects in another version. Raises InternalError."""
        if self._config is None:
            return [{**obj, "apiVersion": api_version} for obj in objects]
        foreign = [obj for obj in objects if obj["apiVersion"] != api_version]
        made: list[Object] = []
        for start in range(0, len(foreign), BATCH):
            made += await self._call(api_version, foreign[start:start + BATCH])
        converted = iter(made)
        return [obj if obj["apiVersion"] == api_version else next(converted) for obj in objects]

    async def _call(self, api_version: str, objects: list[Object]) -> list[Object]:
        uid = self._context.clock.uid()
        review = f"apiextensions.k8s.io/{self._review}"
        body = {"apiVersion": review, "kind": "ConversionReview",
                "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects}}
        about = f"{objects[0]['apiVersion']}, Kind={objects[0]['kind']}"
        try:
            assert self._config is not None
            answer = await self._caller.post(self._config, body, SECONDS)
            return _checked(answer, uid, review, api_version, objects)
        except CallFailed as error:
            raise InternalError(f"conversion webhook for {about} failed: {error}") from None


def _checked(answer: Object, uid: str, review: str, api_version: str, objects: list[Object]) -> list[Object]:
    """The converted objects of an answer. Raises CallFailed. Pure."""
    given = answer.get("response")
    if answer.get("kind") != "ConversionReview" or answer.get("apiVersion") != review or not isinstance(given, dict):
        raise CallFailed(f"invalid response: expected a ConversionReview of {review} with a response")
    if given.get("uid") != uid:
        raise CallFailed(f'invalid response: expected response.uid="{uid}", got "{given.get("uid")}"')
    result = given.get("result") or {}
    if result.get("status") != "Success":
        raise CallFailed(result.get("message") or "response.result.status was "
                                 f"\"{result.get('status') or ''}\", not \"Success\"")
    made = given.get("convertedObjects") or []
    if len(made) != len(objects):
        raise CallFailed(f"invalid response: webhook returned {len(made)} objects, expected {len(objects)}")
    return [_same(new, old, api_version, index) for index, (new, old) in enumerate(zip(made, objects, strict=True))]


def _same(new: Any, old: Object, api_version: str, index: int) -> Object:
    if not isinstance(new, dict) or not isinstance(new.get("metadata"), dict):
        raise CallFailed(f"invalid converted object at index {index}: it has no metadata")
    if new.get("apiVersion") != api_version or new.get("kind") != old["kind"]:
        raise CallFailed(f"invalid converted object at index {index}: invalid groupVersion (expected "
                                 f"{api_version}, received {new.get('apiVersion')})")
    before = old["metadata"]
    for field in ("name", "namespace", "uid"):
        if new["metadata"].get(field, before.get(field)) != before.get(field):
            raise CallFailed(f"invalid metadata of converted object at index {index}: {field} must not change")
    kept = {**before, **{f: new["metadata"][f] for f in ("labels", "annotations") if f in new["metadata"]}}
    for field in ("labels", "annotations"):
        if field not in new["metadata"]:
            kept.pop(field, None)
    return {**new, "metadata": kept}

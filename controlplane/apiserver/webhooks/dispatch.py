"""The plugin that asks webhooks: mutating ones one after the other, validating ones all at once.

Owns the two indexes of configured hooks, the order of calls (configurations by name, hooks as listed), what a failed
call means under each failure policy, dry runs, and the second round for mutating hooks that want to see what others
changed. Promises that an object changed by a hook is brought to its form and type again before anybody else sees it,
and that a request costs one look-up while no hooks are configured. Called by the admission chain.

Upstream: k8s.io/apiserver/pkg/admission/plugin/webhook/{mutating,validating}.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from controlplane.apiserver.admission import CONNECT, Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.apiserver.policies import authorizer, expressions
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.webhooks import reviews, versions
from controlplane.apiserver.webhooks.caller import Caller, CallFailed
from controlplane.apiserver.webhooks.matching import Matcher, exempt
from controlplane.machinery.cel.expression import EvaluationError
from controlplane.machinery.errors import ApiError, BadRequest, InternalError
from controlplane.machinery.resources import Resource, named
from controlplane.store.item import Item

LOG = logging.getLogger("apiserver.admission")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hook:
    """One webhook of a configuration, ready to be matched."""

    name: str
    key: str  # unique: configuration and position
    matcher: Matcher
    conditions: tuple[Object, ...]
    client: Object
    seconds: float
    fails_open: bool
    quiet: bool  # has no side effects that a dry run must not have
    again: bool  # wants to be asked again when others changed the object


def hooks_of(item: Item) -> tuple[Hook, ...]:
    """The webhooks of a stored configuration; one that cannot be read matches nothing, and is told in the log."""
    found = []
    for index, hook in enumerate(item.obj.get("webhooks") or []):
        try:
            matcher = Matcher.build(hook, hook.get("rules") or [])
        except ApiError as error:
            LOG.warning("webhook %s of %s cannot be read: %s", hook.get("name"), item.key, error.message)
            continue
        if not matcher.rules:
            continue
        found.append(Hook(hook.get("name", ""), f"{item.key}/{index}", matcher,
                          tuple(hook.get("matchConditions") or ()),
                          hook.get("clientConfig") or {}, float(hook.get("timeoutSeconds") or 10),
                          hook.get("failurePolicy") == "Ignore", hook.get("sideEffects") in ("None", "NoneOnDryRun"),
                          hook.get("reinvocationPolicy") == "IfNeeded"))
    return tuple(found)


class Webhooks(Plugin):
    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._mutating: Index[tuple[Hook, ...]] = Index(
            context.cache, "mutatingwebhookconfigurations.admissionregistration.k8s.io", hooks_of)
        self._validating: Index[tuple[Hook, ...]] = Index(
            context.cache, "validatingwebhookconfigurations.admissionregistration.k8s.io", hooks_of)
        self._caller = Caller(context)

    async def close(self) -> None:
        await self._caller.close()

    # --- which hooks -------------------------------------------------------------------------------------------------

    def _matching(self, attributes: Attributes,
                  configured: tuple[tuple[Hook, ...], ...]) -> list[tuple[Hook, Resource]]:
        """The hooks to ask, each with the resource under which its rules matched. Conditions are looked at later."""
        space: dict[str, str] = {}
        if attributes.namespace:
            item = self.context.cache.get(object_key(named("namespaces"), "", attributes.namespace))
            space = item.labels if item is not None else {}
        found = []
        for hook in (hook for hooks in configured for hook in hooks):
            resource = hook.matcher.match(attributes, self.context.registry, space)
            if resource is not None:
                found.append((hook, resource))
        return found

    def _wanted(self, attributes: Attributes, hook: Hook, resource: Resource) -> bool:
        """Whether the hook's conditions hold. Raises Forbidden when that cannot be told and the hook fails closed."""
        if not hook.conditions:
            return True
        request = reviews.request_of(attributes, resource, "")
        scope = expressions.Scope(expressions.scope_of(request, request["object"], request["oldObject"],
                                                       authorizer.of(self.context, attributes)))
        try:
            with authorizer.asking(self.context):
                return expressions.holds(hook.conditions, scope, expressions.CONDITION_NAMES)
        except EvaluationError as error:
            if hook.fails_open:
                return False
            raise attributes.forbidden(str(error)) from None

    # --- asking one hook ---------------------------------------------------------------------------------------------

    async def _ask(self, attributes: Attributes, hook: Hook, resource: Resource,
                   mutating: bool) -> reviews.Verdict | None:
        """What the hook says; None when it could not be asked and fails open. Raises ApiError when it says no."""
        if attributes.dry_run and not hook.quiet:
            raise BadRequest(f'admission webhook "{hook.name}" does not support dry run')
        uid = self.context.clock.uid()
        body = {"kind": "AdmissionReview", "apiVersion": reviews.VERSION,
                "request": reviews.request_of(attributes, resource, uid)}
        try:
            answer = await self._caller.post(hook.client, body, hook.seconds)
            said = reviews.verdict(answer, uid, mutating)
        except (CallFailed, reviews.BadAnswer) as error:
            what = "failed to call webhook" if isinstance(error, CallFailed) else "received invalid webhook response"
            text = f'failed calling webhook "{hook.name}": {what}: {error}'
            LOG.warning("%s, failing %s", text, "open" if hook.fails_open else "closed")
            if hook.fails_open:
                attributes.note(f"failed-open.{'mutating' if mutating else 'validating'}.webhook.admission.k8s.io",
                                hook.name)
                return None
            raise InternalError.of(text) from None
        for warning in said.warnings:
            attributes.warn(warning)
        for key, value in said.audit.items():
            attributes.note(f"{hook.name}/{key}", value)
        if not said.allowed:
            raise reviews.denied(hook.name, said.result)
        return said

    # --- the two passes ----------------------------------------------------------------------------------------------

    async def mutate(self, attributes: Attributes) -> None:
        configured = self._mutating.of()
        if not configured or exempt(attributes):
            return
        second = attributes.round > 0
        for hook, resource in self._matching(attributes, configured):
            if second and not (hook.again and attributes.seen.get(hook.key) not in (None, attributes.obj)):
                continue  # not asked for, or it left the object just as it is now
            await versions.prepare(attributes, resource)
            if not self._wanted(attributes, hook, resource):
                continue
            said = await self._ask(attributes, hook, resource, mutating=True)
            if said is not None and said.patch and attributes.operation != CONNECT:
                await self._change(attributes, hook, resource, said.patch)
            if hook.again:
                attributes.remember(hook.key)

    async def _change(self, attributes: Attributes, hook: Hook, resource: Resource, operations: list[Any]) -> None:
        assert attributes.obj is not None
        view = reviews.shown(attributes, attributes.obj, resource)
        assert view is not None
        try:
            made = reviews.patched(view, operations)
        except reviews.BadAnswer as error:
            raise InternalError.of(f'failed calling webhook "{hook.name}": {error}') from None
        attributes.replace(await versions.back(attributes, resource, made), f'admission webhook "{hook.name}"')

    async def validate(self, attributes: Attributes) -> None:
        configured = self._validating.of()
        if not configured or exempt(attributes):
            return
        hooks = []
        for hook, resource in self._matching(attributes, configured):
            await versions.prepare(attributes, resource)
            if self._wanted(attributes, hook, resource):
                hooks.append((hook, resource))
        if len(hooks) == 1:
            await self._ask(attributes, *hooks[0], mutating=False)
        elif hooks:
            answers = await asyncio.gather(*(self._ask(attributes, hook, resource, mutating=False)
                                             for hook, resource in hooks), return_exceptions=True)
            for answer in answers:  # all were asked; the first refusal in order is told
                if isinstance(answer, BaseException):
                    raise answer

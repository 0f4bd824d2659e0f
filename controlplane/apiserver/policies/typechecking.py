"""Type checking of ValidatingAdmissionPolicies: mistakes that compile, told in the policy's status.

Owns `status.typeChecking` and `status.observedGeneration`. Each validation is checked against the kinds the policy's
rules name outright (wildcards name none); a policy without warnings gets an empty `typeChecking`, which says that it
was checked. `warnings` is pure. Follows the store and is idle while no policy changes. Run by the server as a chore.

Upstream: pkg/controller/validatingadmissionpolicystatus, k8s.io/apiserver/pkg/admission/plugin/policy/validating.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.following import follow
from controlplane.machinery import objects, schema
from controlplane.machinery.errors import Finding
from controlplane.machinery.resources import Registry, Resource, named
from controlplane.store.cache import prefix_of
from controlplane.store.log import Stale

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context
    from controlplane.store.item import Item

LOG = logging.getLogger("apiserver")
MAX_KINDS = 10  # of one policy that are checked; upstream's bound
RETRY_SECONDS = 5.0  # after the store refused a status, which it does when the disk is full
POLICIES = named("validatingadmissionpolicies.admissionregistration.k8s.io")
METADATA = {"$ref": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
Object = dict[str, Any]


def kinds(policy: Object, registry: Registry) -> list[Resource]:
    """The resources a policy's rules name, MAX_KINDS at most. Pure."""
    found: dict[tuple[str, str], Resource] = {}
    for rule in (policy["spec"].get("matchConstraints") or {}).get("resourceRules") or ():
        for group in rule.get("apiGroups") or ():
            for version in rule.get("apiVersions") or ():
                for plural in rule.get("resources") or ():
                    resource = registry.at(group, version, plural)
                    if resource is not None:
                        found[resource.api_version, resource.kind] = resource
    return [found[key] for key in sorted(found)][:MAX_KINDS]


def _node(resource: Resource) -> Object:
    from controlplane.machinery.cel import types
    shape: Any = resource.extra.get("shape")
    return {"$ref": resource.definition} if shape is None else types.resource(shape.schema, METADATA)


def warnings(policy: Object, resources: list[Resource], parameters: Resource | None) -> list[Object]:
    """The expressionWarnings of a policy for these kinds. Pure; takes some 30 ms for each large kind."""
    from controlplane.machinery.cel import types
    spec = policy["spec"]
    checkers = []
    for resource in resources:
        node = _node(resource)
        nodes = {"object": node, "oldObject": node, "params": _node(parameters) if parameters is not None else None,
                 "namespaceObject": {"$ref": "io.k8s.api.core.v1.Namespace"},
                 "request": None, "authorizer": None, "variables": None}
        checkers.append((f"{resource.api_version}, Kind={resource.kind}",
                         types.Checker(nodes, schema.load().definition)))
    found = []
    for index, validation in enumerate(spec.get("validations") or ()):
        for field in ("expression", "messageExpression"):
            text = validation.get(field)
            if not text:
                continue
            told = [f"{about}: {fault}" for about, checker in checkers if (fault := checker.fault(text))]
            if told:
                found.append({"fieldRef": f"spec.validations[{index}].{field}", "warning": "\n".join(told)})
    return found


class TypeChecks:
    """`run()` until cancelled."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        await follow(self._context.cache, prefix_of(POLICIES.name), self._tell)

    async def _tell(self, item: Item) -> None:
        generation = item.obj["metadata"].get("generation") or 0
        status = item.obj.get("status") or {}
        if generation <= (status.get("observedGeneration") or 0) or item.obj["metadata"].get("deletionTimestamp"):
            return
        registry = self._context.registry
        parameters = item.obj["spec"].get("paramKind") or {}
        found = await asyncio.get_running_loop().run_in_executor(
            None, warnings, item.obj, kinds(item.obj, registry),
            registry.of(parameters.get("apiVersion", ""), parameters.get("kind", "")))
        obj = objects.deep_copy(item.obj)
        obj["status"] = {**status, "observedGeneration": generation,
                         "typeChecking": {"expressionWarnings": found} if found else {}}
        try:
            await self._context.cache.write(item.key, obj, item.revision)
        except Stale:
            pass  # its writer's event follows
        except Finding as finding:
            LOG.error("the status of %s cannot be stored: %s", item.key, finding.fact)
            await self._context.clock.sleep(RETRY_SECONDS)

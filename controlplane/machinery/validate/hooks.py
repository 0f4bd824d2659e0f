"""Validation of admissionregistration: webhook configurations, admission policies and their bindings.

Owns what their shape must be; expressions are compiled, and so judged, where they are evaluated.

Upstream: k8s.io/kubernetes/pkg/apis/admissionregistration/validation.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from controlplane.machinery import names
from controlplane.machinery.errors import (
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_many,
)
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
MAX_CONDITIONS = 64
REVIEW_VERSIONS = ("v1", "v1beta1")
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_SCOPES = ("*", "Cluster", "Namespaced")
_FAILURE, _MATCH, _REINVOCATION = ("Fail", "Ignore"), ("Equivalent", "Exact"), ("IfNeeded", "Never")
_ACTIONS = ("Audit", "Deny", "Warn")
_REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized")


def webhooks(obj: Object) -> list[Cause]:
    """A webhook configuration of either kind."""
    found: list[Cause] = []
    seen: set[str] = set()
    mutating = obj.get("kind") == "MutatingWebhookConfiguration"
    for index, hook in enumerate(obj.get("webhooks") or ()):
        at = f"webhooks[{index}]"
        name = hook.get("name") or ""
        found += _webhook(hook, at)
        if mutating and hook.get("reinvocationPolicy") not in (None, *_REINVOCATION):
            found.append(not_supported(f"{at}.reinvocationPolicy", hook["reinvocationPolicy"], _REINVOCATION))
        if name in seen:
            found.append(duplicate(f"{at}.name", name))
        seen.add(name)
    return found


def _webhook(hook: Object, path: str) -> list[Cause]:
    name = hook.get("name") or ""
    found = [invalid(f"{path}.name", name, m) for m in _qualified(name)]
    for index, rule in enumerate(hook.get("rules") or ()):
        found += _rule(rule, f"{path}.rules[{index}]")
    found += _chosen(hook, path)
    effects = hook.get("sideEffects")
    if effects is None:
        found.append(required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun"))
    elif effects not in ("None", "NoneOnDryRun"):
        found.append(not_supported(f"{path}.sideEffects", effects, ("None", "NoneOnDryRun")))
    seconds = hook.get("timeoutSeconds")
    if seconds is not None and not 1 <= seconds <= 30:
        found.append(invalid(f"{path}.timeoutSeconds", seconds, "the timeout value must be between 1 and 30 seconds"))
    versions = hook.get("admissionReviewVersions") or []
    at = f"{path}.admissionReviewVersions"
    if not versions:
        found.append(required(at, "must specify one of v1, v1beta1"))
    elif not set(versions) & set(REVIEW_VERSIONS):
        found.append(invalid(at, versions, "must include at least one of v1, v1beta1"))
    found += [duplicate(f"{at}[{i}]", v) for i, v in enumerate(versions) if v in versions[:i]]
    found += _conditions(hook.get("matchConditions") or [], f"{path}.matchConditions")
    return found + client_config(hook.get("clientConfig") or {}, f"{path}.clientConfig")


def _qualified(name: str) -> list[str]:
    if not name:
        return ["must be non-empty"]
    faults = names.dns_subdomain(name)
    if not faults and name.count(".") < 2:
        return ["should be a domain with at least three segments separated by dots"]
    return faults


def _chosen(obj: Object, path: str) -> list[Cause]:
    """The policies and selectors that webhooks and policies share."""
    found: list[Cause] = []
    for field, offered in (("failurePolicy", _FAILURE), ("matchPolicy", _MATCH)):
        if obj.get(field) not in (None, *offered):
            found.append(not_supported(f"{path}.{field}", obj[field], offered))
    for field in ("namespaceSelector", "objectSelector"):
        if obj.get(field) is not None:
            found += label_selector(obj[field], f"{path}.{field}")
    return found


def client_config(config: Object, path: str) -> list[Cause]:
    """Where a webhook is: a URL or a Service, never both."""
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        return [required(path, "exactly one of url or service is required")]
    return _url(url, f"{path}.url") if url is not None else _service(service or {}, f"{path}.service")


def _url(text: str, path: str) -> list[Cause]:
    form = "; desired format: https://host[/path]"
    try:
        parts = urlsplit(text)
        host = parts.netloc
    except ValueError as error:
        return [required(path, f"url must be a valid URL: {error}{form}")]
    found = []
    if parts.scheme != "https":
        found.append(invalid(path, parts.scheme, f"'https' is the only allowed URL scheme{form}"))
    if not host:
        found.append(invalid(path, host, f"host must be specified{form}"))
    if "@" in host:
        found.append(invalid(path, host.split("@")[0], "user information is not permitted in the URL"))
    if parts.fragment:
        found.append(invalid(path, parts.fragment, "fragments are not permitted in the URL"))
    if parts.query:
        found.append(invalid(path, parts.query, "query parameters are not permitted in the URL"))
    return found


def _service(service: Object, path: str) -> list[Cause]:
    found = [required(f"{path}.{field}") for field in ("name", "namespace") if not service.get(field)]
    port, where = service.get("port"), service.get("path")
    if port is not None and (faults := names.port_number(port)):
        found.append(invalid(f"{path}.port", port, f"port is not valid: {', '.join(faults)}"))
    if not where or where == "/":
        return found
    if not where.startswith("/") and where != "//":
        found.append(invalid(f"{path}.path", where, "must start with a '/'"))
    for index, step in enumerate(where[1:].removesuffix("/").split("/")):
        faults = [f": {m}" for m in names.dns_subdomain(step)] if step else [" may not be empty"]
        found += [invalid(f"{path}.path", where, f"segment[{index}]{m}") for m in faults]
    return found


def _rule(rule: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    for field in ("apiGroups", "apiVersions", "resources", "operations"):
        listed = rule.get(field) or []
        at = f"{path}.{field}"
        if not listed:
            found.append(required(at))
        elif "*" in listed and len(listed) > 1 and field != "resources":
            found.append(invalid(at, listed, "if '*' is present, must not specify other "
                                 + {"apiGroups": "API groups", "apiVersions": "API versions",
                                    "operations": "operations"}[field]))
        if field in ("apiVersions", "resources"):
            found += [required(f"{at}[{i}]") for i, text in enumerate(listed) if not text]
        if field == "operations":
            found += [not_supported(f"{at}[{i}]", text, _OPERATIONS)
                      for i, text in enumerate(listed) if text not in _OPERATIONS]
    resources = rule.get("resources") or []
    if "*/*" in resources and len(resources) > 1:
        found.append(invalid(f"{path}.resources", resources, "if '*/*' is present, must not specify other resources"))
    elif "*" in resources and any("/" not in r for r in resources if r != "*"):
        found.append(invalid(f"{path}.resources", resources, "if '*' is present, must not specify other resources "
                             "without subresources"))
    if rule.get("scope") not in (None, *_SCOPES):
        found.append(not_supported(f"{path}.scope", rule["scope"], _SCOPES))
    return found


def _conditions(listed: list[Object], path: str) -> list[Cause]:
    if len(listed) > MAX_CONDITIONS:
        return [too_many(path, len(listed), MAX_CONDITIONS)]
    found: list[Cause] = []
    seen: set[str] = set()
    for index, condition in enumerate(listed):
        at, name = f"{path}[{index}]", condition.get("name") or ""
        found += [invalid(f"{at}.name", name, m) for m in names.qualified_name(name)] if name else [
            required(f"{at}.name")]
        if name in seen:
            found.append(duplicate(f"{at}.name", name))
        seen.add(name)
        if not (condition.get("expression") or "").strip():
            found.append(required(f"{at}.expression"))
    return found


def _match_resources(resources: Object, path: str) -> list[Cause]:
    found = _chosen(resources, path)
    for field in ("resourceRules", "excludeResourceRules"):
        for index, rule in enumerate(resources.get(field) or ()):
            found += _rule(rule, f"{path}.{field}[{index}]")
    return found


def policy(obj: Object) -> list[Cause]:
    """An admission policy of either kind."""
    spec = obj.get("spec") or {}
    found = _chosen(spec, "spec")
    kind = spec.get("paramKind")
    if kind is not None:
        found += [required(f"spec.paramKind.{f}") for f in ("apiVersion", "kind") if not kind.get(f)]
    constraints = spec.get("matchConstraints")
    if constraints is None:
        found.append(required("spec.matchConstraints"))
    else:
        found += _match_resources(constraints, "spec.matchConstraints")
        if not constraints.get("resourceRules"):
            found.append(required("spec.matchConstraints.resourceRules"))
    found += _conditions(spec.get("matchConditions") or [], "spec.matchConditions")
    found += _variables(spec.get("variables") or [], "spec.variables")
    return found + (_validations(spec) if obj.get("kind") == "ValidatingAdmissionPolicy" else _mutations(spec))


def _variables(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, variable in enumerate(listed):
        at, name = f"{path}[{index}]", variable.get("name") or ""
        if not name or not name.isidentifier():
            found.append(invalid(f"{at}.name", name, "name is not a valid CEL identifier") if name
                         else required(f"{at}.name", "name is not specified"))
        if not (variable.get("expression") or "").strip():
            found.append(required(f"{at}.expression", "expression is not specified"))
    return found


def _validations(spec: Object) -> list[Cause]:
    found: list[Cause] = []
    if not spec.get("validations") and not spec.get("auditAnnotations"):
        found.append(required("spec.validations", "validations or auditAnnotations must contain at least one item"))
    for index, rule in enumerate(spec.get("validations") or ()):
        at = f"spec.validations[{index}]"
        if not (rule.get("expression") or "").strip():
            found.append(required(f"{at}.expression", "expression is not specified"))
        message = rule.get("message") or ""
        if message and not message.strip():
            found.append(invalid(f"{at}.message", message, "message must be non-empty if specified"))
        elif "\n" in message:
            found.append(invalid(f"{at}.message", message, "message must not contain line breaks"))
        if rule.get("reason") not in (None, "", *_REASONS):
            found.append(not_supported(f"{at}.reason", rule["reason"], _REASONS))
    for index, annotation in enumerate(spec.get("auditAnnotations") or ()):
        found += [required(f"spec.auditAnnotations[{index}].{f}") for f in ("key", "valueExpression")
                  if not (annotation.get(f) or "").strip()]
    return found


def _mutations(spec: Object) -> list[Cause]:
    found: list[Cause] = []
    if not spec.get("mutations"):
        found.append(required("spec.mutations", "mutations must contain at least one item"))
    fields = {"ApplyConfiguration": "applyConfiguration", "JSONPatch": "jsonPatch"}
    for index, mutation in enumerate(spec.get("mutations") or ()):
        at, kind = f"spec.mutations[{index}]", mutation.get("patchType") or ""
        if kind not in fields:
            found.append(not_supported(f"{at}.patchType", kind, tuple(fields)) if kind
                         else required(f"{at}.patchType"))
            continue
        if not ((mutation.get(fields[kind]) or {}).get("expression") or "").strip():
            found.append(required(f"{at}.{fields[kind]}.expression", "expression is not specified"))
        found += [forbidden(f"{at}.{other}", f"may not be specified when patchType is {kind}")
                  for name, other in fields.items() if name != kind and mutation.get(other) is not None]
    if spec.get("reinvocationPolicy") not in _REINVOCATION:
        policy_ = spec.get("reinvocationPolicy") or ""
        found.append(not_supported("spec.reinvocationPolicy", policy_, _REINVOCATION) if policy_
                     else required("spec.reinvocationPolicy"))
    return found


def binding(obj: Object) -> list[Cause]:
    """The binding of a policy of either kind."""
    spec = obj.get("spec") or {}
    name = spec.get("policyName") or ""
    found = [invalid("spec.policyName", name, m) for m in names.dns_subdomain(name)] if name else [
        required("spec.policyName")]
    reference = spec.get("paramRef")
    if reference is not None:
        found += _parameters(reference, "spec.paramRef")
    if spec.get("matchResources") is not None:
        found += _match_resources(spec["matchResources"], "spec.matchResources")
    if obj.get("kind") == "ValidatingAdmissionPolicyBinding":
        actions = spec.get("validationActions") or []
        if not actions:
            found.append(required("spec.validationActions"))
        found += [not_supported(f"spec.validationActions[{i}]", a, _ACTIONS)
                  for i, a in enumerate(actions) if a not in _ACTIONS]
        found += [duplicate(f"spec.validationActions[{i}]", a) for i, a in enumerate(actions) if a in actions[:i]]
        if {"Deny", "Warn"} <= set(actions):
            found.append(invalid("spec.validationActions", actions, "must not contain both Deny and Warn (repeating "
                                 "the same validation failure information in the API response and headers serves no "
                                 "purpose)"))
    return found


def _parameters(reference: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    name, selector = reference.get("name") or "", reference.get("selector")
    if name and selector is not None:
        found.append(forbidden(f"{path}.name", "name and selector are mutually exclusive"))
    elif not name and selector is None:
        found.append(required(path, "one of name or selector must be specified"))
    if selector is not None:
        found += label_selector(selector, f"{path}.selector")
    action = reference.get("parameterNotFoundAction")
    if action is None:
        found.append(required(f"{path}.parameterNotFoundAction"))
    elif action not in ("Allow", "Deny"):
        found.append(not_supported(f"{path}.parameterNotFoundAction", action, ("Allow", "Deny")))
    return found

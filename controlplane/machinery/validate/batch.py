"""Validation of Jobs and CronJobs: selectors, completion modes, failure and success policies, schedules.

Upstream: k8s.io/kubernetes/pkg/apis/batch/validation.
"""

from __future__ import annotations

import re
from typing import Any

from controlplane.machinery import cron, names, objects, selectors
from controlplane.machinery.errors import (
    IMMUTABLE,
    ApiError,
    Cause,
    duplicate,
    invalid,
    not_supported,
    required,
    too_many,
)
from controlplane.machinery.validate import metadata, pods
from controlplane.machinery.validate.metadata import label_selector
from controlplane.machinery.validate.workloads import non_negative

Object = dict[str, Any]
MAX_PARALLEL_INDEXED = 100_000
MAX_RULES, MAX_EXIT_CODES, MAX_PATTERNS = 20, 255, 20
MAX_CRON_NAME = 52  # its jobs' names add eleven characters to it
_COUNTS = ("parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished",
           "backoffLimitPerIndex", "maxFailedIndexes")
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_FIXED = ("selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy")
_ZONE = re.compile(r"[A-Za-z_]+([+-]?[0-9]+)?(/[A-Za-z0-9_+-]+)*")


def job(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = job_spec(spec, "spec")
    selector = spec.get("selector")
    if selector is None:
        found.append(required("spec.selector"))
    else:
        faults = label_selector(selector, "spec.selector")
        found += faults
        carried = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
        if not faults and not _matches(selector, carried):
            found.append(invalid("spec.template.metadata.labels", carried,
                                 "`selector` does not match template `labels`"))
        uid = (obj.get("metadata") or {}).get("uid")
        if not spec.get("manualSelector") and uid and selector != {
                "matchLabels": {"batch.kubernetes.io/controller-uid": uid}}:
            found.append(invalid("spec.selector", selector, "`selector` not auto-generated"))
    completions = spec.get("completions")
    if spec.get("completionMode") == "Indexed" and completions:
        host = f"{(obj.get('metadata') or {}).get('name') or ''}-{completions - 1}"
        if names.dns_label(host):
            found.append(invalid("metadata.name", obj["metadata"]["name"],
                                 f"will not able to create pod with invalid DNS label: {host}"))
    return found


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    try:
        return selectors.from_label_selector(selector).matches(labels)
    except ApiError:
        return False


def job_spec(spec: Object, path: str) -> list[Cause]:
    """What holds for a Job and for a CronJob's template of one."""
    found: list[Cause] = []
    for field in _COUNTS:
        found += non_negative(spec, field, path)
    found += _mode(spec, path)
    if spec.get("managedBy") is not None:
        found += _managed_by(spec["managedBy"], f"{path}.managedBy")
    if spec.get("podFailurePolicy") is not None:
        found += _failure_policy(spec, f"{path}.podFailurePolicy")
    replacement = spec.get("podReplacementPolicy")
    if replacement is not None:
        allowed = ("Failed", "TerminatingOrFailed") if spec.get("podFailurePolicy") is None else ("Failed",)
        if replacement not in allowed:
            found.append(not_supported(f"{path}.podReplacementPolicy", replacement, allowed))
    template = spec.get("template") or {}
    found += pods.template(template, f"{path}.template")
    policy = (template.get("spec") or {}).get("restartPolicy") or ""
    at = f"{path}.template.spec.restartPolicy"
    if policy in ("", "Always"):
        found.append(required(at, 'valid values: "OnFailure", "Never"'))
    elif policy not in ("OnFailure", "Never"):
        found.append(not_supported(at, policy, ("OnFailure", "Never")))
    elif spec.get("podFailurePolicy") is not None and policy != "Never":
        found.append(invalid(at, policy, 'only "Never" is supported when podFailurePolicy is specified'))
    return found


def _mode(spec: Object, path: str) -> list[Cause]:
    """What indexed and other jobs may ask for."""
    found: list[Cause] = []
    mode, completions = spec.get("completionMode"), spec.get("completions")
    if mode not in (None, "Indexed", "NonIndexed"):
        return [not_supported(f"{path}.completionMode", mode, ("Indexed", "NonIndexed"))]
    if mode == "Indexed":
        if completions is None:
            found.append(required(f"{path}.completions", f"when completion mode is {mode}"))
        if (spec.get("parallelism") or 0) > MAX_PARALLEL_INDEXED:
            found.append(invalid(f"{path}.parallelism", spec["parallelism"], "must be less than or equal to "
                                 f"{MAX_PARALLEL_INDEXED} when completion mode is {mode}"))
        failed = spec.get("maxFailedIndexes")
        if failed is not None and completions is not None and failed > completions:
            found.append(invalid(f"{path}.maxFailedIndexes", failed, "must be less than or equal to completions"))
        if spec.get("successPolicy") is not None:
            found += _success_policy(spec["successPolicy"], completions or 0, f"{path}.successPolicy")
    else:
        for field in ("backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"):
            if spec.get(field) is not None:
                found.append(invalid(f"{path}.{field}", spec[field], "requires indexed completion mode"))
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        found.append(required(f"{path}.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    return found


def _managed_by(text: str, path: str) -> list[Cause]:
    domain, slash, rest = text.partition("/")
    if not slash or not domain or not rest:
        return [invalid(path, text, "must be a domain-prefixed path (such as \"acme.io/foo\")")]
    found = [invalid(path, text, m) for m in names.dns_subdomain(domain)]
    if len(text) > 63:
        found.append(Cause("FieldValueTooLong", "Too long: may not be more than 63 bytes", path))
    return found


def _failure_policy(spec: Object, path: str) -> list[Cause]:
    rules = spec["podFailurePolicy"].get("rules") or []
    if len(rules) > MAX_RULES:
        return [too_many(f"{path}.rules", len(rules), MAX_RULES)]
    inner = (spec.get("template") or {}).get("spec") or {}
    known = {c.get("name") for c in (*(inner.get("containers") or ()), *(inner.get("initContainers") or ()))}
    found: list[Cause] = []
    for index, rule in enumerate(rules):
        at = f"{path}.rules[{index}]"
        action = rule.get("action") or ""
        if not action:
            found.append(required(f"{at}.action", 'valid values: "Count", "FailIndex", "FailJob", "Ignore"'))
        elif action not in _ACTIONS:
            found.append(not_supported(f"{at}.action", action, _ACTIONS))
        elif action == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            found.append(invalid(f"{at}.action", action, "requires the backoffLimitPerIndex to be set"))
        codes, patterns = rule.get("onExitCodes"), rule.get("onPodConditions") or []
        if codes is not None and patterns:
            found.append(invalid(at, rule, "specifying both OnExitCodes and OnPodConditions is not supported"))
        elif codes is None and not patterns:
            found.append(invalid(at, rule, "specifying one of OnExitCodes and OnPodConditions is required"))
        if codes is not None:
            found += _exit_codes(codes, known, f"{at}.onExitCodes")
        if len(patterns) > MAX_PATTERNS:
            found.append(too_many(f"{at}.onPodConditions", len(patterns), MAX_PATTERNS))
        for position, pattern in enumerate(patterns):
            found += _pattern(pattern, f"{at}.onPodConditions[{position}]")
    return found


def _exit_codes(codes: Object, known: set[Any], path: str) -> list[Cause]:
    found: list[Cause] = []
    operator, values = codes.get("operator") or "", codes.get("values") or []
    if not operator:
        found.append(required(f"{path}.operator", 'valid values: "In", "NotIn"'))
    elif operator not in ("In", "NotIn"):
        found.append(not_supported(f"{path}.operator", operator, ("In", "NotIn")))
    if codes.get("containerName") is not None and codes["containerName"] not in known:
        found.append(invalid(f"{path}.containerName", codes["containerName"],
                             "must be one of the container or initContainer names in the pod template"))
    if not values:
        found.append(invalid(f"{path}.values", values, "at least one value is required"))
    elif len(values) > MAX_EXIT_CODES:
        found.append(too_many(f"{path}.values", len(values), MAX_EXIT_CODES))
    seen: set[int] = set()
    for index, value in enumerate(values):
        if operator == "In" and value == 0:
            found.append(invalid(f"{path}.values[{index}]", value, "must not be 0 for the In operator"))
        if value in seen:
            found.append(duplicate(f"{path}.values[{index}]", value))
        seen.add(value)
    if values != sorted(values):
        found.append(invalid(f"{path}.values", values, "must be ordered"))
    return found


def _pattern(pattern: Object, path: str) -> list[Cause]:
    kind = pattern.get("type") or ""
    found = [required(f"{path}.type")] if not kind else [
        invalid(f"{path}.type", kind, m) for m in names.qualified_name(kind)]
    status = pattern.get("status") or ""
    if not status:
        found.append(required(f"{path}.status", 'valid values: "False", "True", "Unknown"'))
    elif status not in ("True", "False", "Unknown"):
        found.append(not_supported(f"{path}.status", status, ("False", "True", "Unknown")))
    return found


def _success_policy(policy: Object, completions: int, path: str) -> list[Cause]:
    rules = policy.get("rules") or []
    if not rules:
        return [required(f"{path}.rules", "at least one rules must be specified when the `successPolicy` is specified")]
    if len(rules) > MAX_RULES:
        return [too_many(f"{path}.rules", len(rules), MAX_RULES)]
    found: list[Cause] = []
    for index, rule in enumerate(rules):
        at = f"{path}.rules[{index}]"
        indexes, count = rule.get("succeededIndexes"), rule.get("succeededCount")
        if indexes is None and count is None:
            found.append(required(at, "at least one of succeededCount or succeededIndexes must be specified"))
        if indexes is not None and not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", indexes):
            found.append(invalid(f"{at}.succeededIndexes", indexes, "error parsing succeededIndexes: cannot convert "
                                 "string to integer for index"))
        if count is not None and count > completions:
            found.append(invalid(f"{at}.succeededCount", count, "must be less than or equal to "
                                 f"{completions} (the number of specified completions)"))
    return found


def job_changes(new: Object, old: Object) -> list[Cause]:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found = [invalid(f"spec.{field}", after.get(field), IMMUTABLE) for field in _FIXED
             if after.get(field) != before.get(field)]
    if after.get("completions") != before.get("completions"):
        if after.get("completionMode") != "Indexed" or after.get("completions") is None:
            found.append(invalid("spec.completions", after.get("completions"), IMMUTABLE))
        elif after["completions"] != after.get("parallelism"):
            found.append(invalid("spec.completions", after["completions"],
                                 "can only be modified in tandem with spec.parallelism"))
    template, fixed = after.get("template") or {}, _pending if _idle(old) else dict
    if fixed(template) != fixed(before.get("template") or {}):
        found.append(invalid("spec.template", template, IMMUTABLE))
    return found


def _idle(job: Object) -> bool:
    """Whether it is suspended and has no pods, now that it never had any or was told to be without."""
    status = job.get("status") or {}
    return bool((job.get("spec") or {}).get("suspend")) and not status.get("active") and (
        not status.get("startTime") or objects.holds(job, "Suspended"))


def _pending(template: Object) -> Object:
    """A template without what may change while no pod is made of it: where pods go, and what they ask for."""
    made = pods.unscheduled(template)
    for field in ("containers", "initContainers"):
        made["spec"][field] = [{**one, "resources": {
            name: value for name, value in (one.get("resources") or {}).items() if name not in ("requests", "limits")}}
            for one in made["spec"].get(field) or ()]
    return made


def cron_job(obj: Object) -> list[Cause]:
    spec, name = obj.get("spec") or {}, (obj.get("metadata") or {}).get("name") or ""
    found: list[Cause] = []
    if len(name) > MAX_CRON_NAME:
        found.append(invalid("metadata.name", name, f"must be no more than {MAX_CRON_NAME} characters"))
    if not spec.get("schedule"):
        found.append(required("spec.schedule"))
    else:
        found += _schedule(spec["schedule"], spec.get("timeZone"))
    if spec.get("timeZone") is not None:
        found += _time_zone(spec["timeZone"])
    for field in ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        found += non_negative(spec, field, "spec")
    policy = spec.get("concurrencyPolicy") or ""
    if not policy:
        found.append(required("spec.concurrencyPolicy"))
    elif policy not in ("Allow", "Forbid", "Replace"):
        found.append(not_supported("spec.concurrencyPolicy", policy, ("Allow", "Forbid", "Replace")))
    template = spec.get("jobTemplate") or {}
    meta = template.get("metadata") or {}
    found += metadata.labels(meta.get("labels") or {}, "spec.jobTemplate.metadata.labels")
    found += metadata.annotations(meta.get("annotations") or {}, "spec.jobTemplate.metadata.annotations")
    inner = template.get("spec") or {}
    if inner.get("manualSelector"):
        found.append(not_supported("spec.jobTemplate.spec.manualSelector", True, ("false",)))
    return found + job_spec(inner, "spec.jobTemplate.spec")


def _schedule(text: str, zone: str | None) -> list[Cause]:
    if "TZ" in text:
        why = ("cannot use TZ or CRON_TZ in schedule, use timeZone field instead" if zone is None
               else "cannot use both timeZone field and TZ or CRON_TZ in schedule")
        return [invalid("spec.schedule", text, why)]
    try:
        cron.parse(text)
    except ValueError as error:
        return [invalid("spec.schedule", text, str(error))]
    return []


def _time_zone(zone: str) -> list[Cause]:
    if not zone:
        return [invalid("spec.timeZone", zone, "timeZone must be nil or non-empty string")]
    if zone.lower() == "local":
        return [invalid("spec.timeZone", zone, "timeZone must be an explicit time zone as defined in "
                        "https://www.iana.org/time-zones")]
    if zone == "UTC":
        return []
    from zoneinfo import ZoneInfo  # only who names a zone pays for the table of zones
    try:
        if not _ZONE.fullmatch(zone):
            raise ValueError(zone)
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        return [invalid("spec.timeZone", zone, f"unknown time zone {zone}")]
    return []

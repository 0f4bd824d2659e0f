"""The rules a Job is judged by: index sets, pod failure policy, success policy.

Pure. Owns how indexes are written ("0-2,5"), which rule a failed pod meets first, and the words that say so. Called by
`completion`, `tally` and `attempts`.

Upstream: pkg/controller/job (indexed_job_utils.go, pod_failure_policy.go, success_policy.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from controlplane.machinery import objects

INDEX = "batch.kubernetes.io/job-completion-index"  # annotation and label of a pod

Obj = dict[str, Any]


def parse_indexes(text: str, completions: int) -> set[int]:
    """The indexes below `completions` that `1,3-5` names."""
    result: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        result.update(range(int(first), min(int(last or first) + 1, completions)))
    return result


def format_indexes(indexes: Iterable[int]) -> str:
    """`1,3-5`: runs of three and more are written as a range."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(a) if a == b else f"{a}{',' if b == a + 1 else '-'}{b}" for a, b in runs)


def index_of(pod: Obj) -> int:
    """The pod's completion index, -1 when it has none."""
    text = objects.annotations(pod).get(INDEX, "")
    return int(text) if text.isascii() and text.isdigit() else -1


def failure_action(policy: Obj | None, pod: Obj) -> tuple[str, str]:
    """(the action of the first rule a failed pod meets, why); ("", "") without any."""
    if objects.get(pod, "status.phase") != "Failed":
        return "", ""
    for number, rule in enumerate((policy or {}).get("rules") or ()):
        action = rule.get("action", "")
        if codes := rule.get("onExitCodes"):
            why = _exit_code(codes, pod)
        else:
            why = _condition(rule.get("onPodConditions") or (), pod)
        if why:
            return action, f"{why} matching {action} rule at index {number}"
    return "", ""


def _exit_code(rule: Obj, pod: Obj) -> str:
    status = pod.get("status") or {}
    for one in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
        if rule.get("containerName") not in (None, "", one.get("name")):
            continue
        code = objects.get(one, "state.terminated.exitCode", 0)
        if code and (code in (rule.get("values") or ())) == (rule.get("operator") == "In"):
            return (f"Container {one.get('name')} for pod {objects.namespace(pod)}/{objects.name(pod)} "
                    f"failed with exit code {code}")
    return ""


def _condition(patterns: Iterable[Obj], pod: Obj) -> str:
    for pattern in patterns:
        found = objects.condition(pod, pattern.get("type", ""))
        if found is not None and found.get("status") == (pattern.get("status") or "True"):
            return f"Pod {objects.namespace(pod)}/{objects.name(pod)} has condition {found['type']}"
    return ""


def success(policy: Obj | None, succeeded: Set[int], completions: int) -> str:
    """Why the succeeded indexes suffice, "" while they do not."""
    for number, rule in enumerate((policy or {}).get("rules") or ()):
        counted = succeeded
        needed = rule.get("succeededCount")
        if rule.get("succeededIndexes"):
            wanted = parse_indexes(rule["succeededIndexes"], completions)
            counted = succeeded & wanted
            needed = len(wanted) if needed is None else needed
        if needed is not None and len(counted) >= needed:
            return f"Matched rules at index {number}"
    return ""

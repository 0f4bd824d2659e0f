"""What writing a Job or a DaemonSet adds of its own: a Job's selector and labels, a daemon template's generation.

Pure, in place; called by `strategy` after identity was given and before validation. `old` is None at a create.

Upstream: the strategy.go of k8s.io/kubernetes/pkg/registry/{batch/job,apps/daemonset}.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
CONTROLLER_UID, JOB_NAME = "controller-uid", "job-name"
PREFIX = "batch.kubernetes.io/"
TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


def prepare_job(new: Object, old: Object | None) -> None:
    """A Job selects its pods by its own uid, unless its writer chose `manualSelector`."""
    spec = new["spec"]
    if old is not None:
        return
    meta = new["metadata"]
    template = spec["template"]
    if not spec.get("manualSelector"):
        inner = template["metadata"] = template.get("metadata") or {}
        uid, name = meta["uid"], meta["name"]
        inner["labels"] = {**(inner.get("labels") or {}), CONTROLLER_UID: uid, PREFIX + CONTROLLER_UID: uid,
                           JOB_NAME: name, PREFIX + JOB_NAME: name}
        selector = spec["selector"] = spec.get("selector") or {}
        selector["matchLabels"] = {**(selector.get("matchLabels") or {})}
        selector["matchLabels"].setdefault(PREFIX + CONTROLLER_UID, uid)
        if all((inner["labels"].get(k) == v) for k, v in (meta.get("labels") or {}).items()):
            meta["labels"] = dict(inner["labels"])  # they were the template's before it got these


def prepare_daemon_set(new: Object, old: Object | None) -> None:
    """The number of templates it had, kept in an annotation since its field is gone."""
    meta = new["metadata"]
    annotations = dict(meta.get("annotations") or {})
    if old is None:
        annotations[TEMPLATE_GENERATION] = "1"
    else:
        before = (old["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION) or "0"
        changed = (new.get("spec") or {}).get("template") != (old.get("spec") or {}).get("template")
        annotations[TEMPLATE_GENERATION] = str(int(before) + changed) if before.isdigit() else "1"
    meta["annotations"] = annotations

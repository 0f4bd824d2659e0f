"""What this node is registered with: labels and taints others go by from its first moment.

Pure. Owns the flags that name them and which ones are refused. A node that is there already keeps what it has: whoever
looks after the cluster may have changed it since. Called by `config`; `nodestatus` puts them into the Node.

Upstream: cmd/kubelet/app/options, pkg/util/taints.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import names, nodelabels
from controlplane.machinery.errors import Finding
from controlplane.machinery.validate.nodes import taints

FORM = "key=value:effect, or key:effect, with commas between; an effect is NoSchedule, PreferNoSchedule or NoExecute"


@dataclass(frozen=True, slots=True)
class Registration:
    """Beside the labels every node has, and the taint of one whose cloud has not told what it is."""

    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, Any], ...] = ()


def add_flags(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--node-labels", default="", help="labels the node is registered with: key=value, with commas "
                       "between")
    flags.add_argument("--register-with-taints", default="", help=f"taints it is registered with: {FORM}")


def of(given: argparse.Namespace) -> Registration:
    """What the flags say. Raises Finding."""
    return Registration(_labels(given.node_labels), _taints(given.register_with_taints))


def _labels(text: str) -> dict[str, str]:
    found = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.strip().partition("=")
        faults = [*names.label_key(key), *names.label_value(value)]
        if not faults and not nodelabels.may_label(key):
            faults = ["a node may set no label of kubernetes.io or k8s.io on itself but those below "
                      f"{' and '.join(nodelabels.PREFIXES)}, and {', '.join(sorted(nodelabels.ALLOWED))}"]
        if faults:
            raise Finding(f"the label {part} of --node-labels cannot be used", "; ".join(faults),
                          "write key=value, with commas between")
        found[key] = value
    return found


def _taints(text: str) -> tuple[dict[str, Any], ...]:
    found = []
    for part in filter(None, text.split(",")):
        rest, _, effect = part.strip().rpartition(":")
        key, _, value = rest.partition("=")
        found.append({"key": key, "effect": effect, **({"value": value} if value else {})})
    faults = taints(found, "taints")
    if faults:
        raise Finding("the taints of --register-with-taints cannot be used",
                      "; ".join(f"{cause.field}: {cause.message}" for cause in faults), f"write {FORM}")
    return tuple(found)

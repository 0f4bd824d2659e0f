"""Printing: every column of the golden rows, the words for durations, and that nothing odd in an object breaks it."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import tables
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.resources import BUILTIN, Resource
from controlplane.machinery.tables.text import human_duration

GOLDEN = Path(__file__).parents[2] / "golden/tables"
NOW = parse_rfc3339("2024-01-01T12:00:00Z")
UNSERVED = {"roles.rbac.authorization.k8s.io": Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")}


def resource_named(name):
    return UNSERVED[name] if name in UNSERVED else BUILTIN.named(name)


def rendered() -> str:
    lines = []
    for entry in yaml.safe_load((GOLDEN / "objects.yaml").read_text()):
        made = tables.table(resource_named(entry["resource"]), entry["items"], NOW)
        heads = [c["name"] + ("*" if c["priority"] else "") for c in made["columnDefinitions"]]
        lines += [f"== {entry['resource']}", " | ".join(heads)]
        lines += [" | ".join(str(cell) for cell in row["cells"]) for row in made["rows"]]
    return "\n".join(lines) + "\n"


def test_rows_are_the_golden_ones():
    assert rendered() == (GOLDEN / "rows.txt").read_text()


@pytest.mark.parametrize(("seconds", "text"), [
    (-2, "<invalid>"), (-1, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (330, "5m30s"), (599, "9m59s"),
    (600, "10m"), (10799, "179m"), (10800, "3h"), (11100, "3h5m"), (28800, "8h"), (172799, "47h"), (172800, "2d"),
    (176400, "2d1h"), (691199, "7d23h"), (691200, "8d"), (729 * 86400, "729d"), (730 * 86400, "2y"),
    (740 * 86400, "2y10d"), (2919 * 86400, "7y364d"), (2920 * 86400, "8y"), (4000 * 86400, "10y")])
def test_durations(seconds, text):
    assert human_duration(seconds) == text


def test_finished_pods_are_marked_so_that_kubectl_can_hide_them():
    row = tables.row(BUILTIN.named("pods"), {"metadata": {"name": "p"}, "status": {"phase": "Succeeded"}}, NOW)
    assert row["conditions"][0]["type"] == "Completed"


@given(st.sampled_from(list(BUILTIN)), st.sampled_from([{}, {"spec": None, "status": None, "metadata": None},
                                                        {"spec": {}, "status": {}, "metadata": {"name": "x"}}]))
def test_a_row_has_a_cell_for_every_column_of_any_object(resource, obj):
    assert len(tables.row(resource, obj, NOW)["cells"]) == len(tables.columns(resource))

import pytest

from controlplane.machinery import objects


def test_readers_answer_on_bare_objects():
    assert (objects.name({}), objects.labels({"metadata": None}), objects.controller_of({})) == ("", {}, None)
    assert objects.get({"spec": {"template": None}}, "spec.template.spec", 7) == 7
    assert objects.get({"spec": {"replicas": 0}}, "spec.replicas", 7) == 0


def test_owner_reference_is_found_as_the_controller():
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "uid": "u"}}
    child = {"metadata": {"ownerReferences": [objects.owner_reference(owner, controller=False),
                                              objects.owner_reference(owner)]}}
    assert objects.controller_of(child) == {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u",
                                            "controller": True, "blockOwnerDeletion": True}


def test_a_condition_moves_its_time_only_with_its_status():
    conditions: list[dict] = []
    assert objects.set_condition(conditions, "Ready", "False", "Starting", "", "t1")
    assert not objects.set_condition(conditions, "Ready", "False", "Starting", "", "t2")
    assert objects.set_condition(conditions, "Ready", "False", "Waiting", "for it", "t3")
    assert conditions == [{"type": "Ready", "status": "False", "lastTransitionTime": "t1", "reason": "Waiting",
                           "message": "for it"}]
    assert objects.set_condition(conditions, "Ready", "True", "", "", "t4")
    assert conditions == [{"type": "Ready", "status": "True", "lastTransitionTime": "t4"}]


def test_copies_share_nothing_even_with_numbers_beyond_64_bits():
    for leaf in (1, 2**70):
        one = {"a": [{"b": leaf}]}
        two = objects.deep_copy(one)
        two["a"][0]["b"] = 0
        assert one == {"a": [{"b": leaf}]}


@pytest.mark.parametrize(("value", "total", "up", "want"), [
    ("25%", 10, True, 3), ("25%", 10, False, 2), (4, 10, True, 4), (None, 10, True, 0), ("0%", 3, True, 0)])
def test_int_or_percent(value, total, up, want):
    assert objects.int_or_percent(value, total, up) == want


def test_a_text_that_is_no_percentage_is_refused():
    with pytest.raises(ValueError, match="not a percentage"):
        objects.int_or_percent("5", 10, True)

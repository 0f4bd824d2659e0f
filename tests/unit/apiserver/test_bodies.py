from controlplane.apiserver.bodies import drop


def test_an_unknown_field_is_dropped_wherever_it_is():
    obj = {"spec": {"containers": [{"name": "a"}, {"name": "b", "x.y": 1, "z": {"q": 2}}]}, "zz": 3}
    for path in ("spec.containers[1].x.y", "spec.containers[1].z.q", "zz"):
        drop(obj, path)
    assert obj == {"spec": {"containers": [{"name": "a"}, {"name": "b", "z": {}}]}}

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import resources, schema
from controlplane.machinery.checker import _Walk
from controlplane.machinery.data import DESCRIPTIONS, SCHEMAS

CORE, APPS = "io.k8s.api.core.v1.", "io.k8s.api.apps.v1."
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
       "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "100m", "memory": 5}},
                                "livenessProbe": {"httpGet": {"port": 80}}, "env": [{"name": "A", "value": None}]}]}}


def test_every_kind_served_or_not_has_its_definition():
    schemas = schema.load()
    missing = [r.kind for r in resources.BUILTIN if r.definition not in schemas]
    assert missing == ["ComponentStatus"] * ("ComponentStatus" in missing)


def test_shape_of_the_committed_data():
    schemas = schema.load()
    found = {"x-kubernetes-patch-merge-key": 0, "x-kubernetes-patch-strategy": 0, "x-kubernetes-list-type": 0}
    references = set()

    def visit(node):
        for key in found:
            found[key] += key in node
        if "$ref" in node:
            references.add(node["$ref"])
        for sub in (*node.get("properties", {}).values(), node.get("items"), node.get("additionalProperties")):
            if isinstance(sub, dict):
                visit(sub)

    for name in schemas.names():
        visit({k: v for k, v in schemas.definition(name).items() if k != "$ref"})
    assert references <= set(schemas.names())
    assert found == {"x-kubernetes-patch-merge-key": 55, "x-kubernetes-patch-strategy": 59,
                     "x-kubernetes-list-type": 304}
    ports = schemas.definition(CORE + "Container")["properties"]["ports"]
    assert ports["x-kubernetes-patch-merge-key"] == "containerPort"
    assert ports["x-kubernetes-list-map-keys"] == ["containerPort", "protocol"]
    assert schemas.definition(CORE + "PodSpec")["properties"]["volumes"]["x-kubernetes-patch-strategy"] == (
        "merge,retainKeys")
    assert schemas.definition("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector")["x-kubernetes-map-type"] == "atomic"
    assert schema.descriptions(CORE + "Pod")["spec"].startswith("Specification of the desired behavior of the pod")


def test_regenerating_gives_the_committed_bytes():
    pytest.importorskip("kubernetes_validate")
    import gzip

    from controlplane.machinery.data import extract
    if not extract.source().exists():
        pytest.skip("another version of kubernetes_validate is installed")
    nodes, prose = extract.extract(json.loads(extract.source().read_text())["$defs"])
    assert extract.lines(nodes) == gzip.decompress(SCHEMAS.read_bytes())
    assert extract.lines(prose) == gzip.decompress(DESCRIPTIONS.read_bytes())


def test_good_bodies_pass():
    assert not schema.check(CORE + "Pod", POD)
    assert not schema.check("", {"any": 1})
    crd = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
    assert not schema.check(crd, {"$ref": "x", "properties": {"a": {"type": "object", "default": {"x": [1]}}}})


@pytest.mark.parametrize(("name", "obj", "unknown"), [
    (CORE + "Pod", {"spec": {"foo": 1, "containers": [{"name": "c", "foo": 1}]}},
     ["spec.foo", "spec.containers[0].foo"]),
    (CORE + "ConfigMap", {"foo": {}, "metadata": {"Name": "x"}}, ["foo", "metadata.Name"])])
def test_unknown_fields(name, obj, unknown):
    assert schema.check(name, obj) == schema.Problems(unknown, [])


@pytest.mark.parametrize(("name", "obj", "message"), [
    (CORE + "ConfigMap", {"data": {"a": 1}},
     "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"),
    (APPS + "Deployment", {"spec": {"replicas": "3"}},
     "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"),
    (APPS + "Deployment", {"spec": {"replicas": 1 << 31}},
     "json: cannot unmarshal number 2147483648 into Go struct field DeploymentSpec.spec.replicas of type int32"),
    (CORE + "Pod", {"spec": {"containers": [{"env": [{"name": "A", "value": True}]}]}},
     "json: cannot unmarshal bool into Go struct field EnvVar.spec.containers.env.value of type string"),
    (CORE + "Pod", {"spec": {"containers": {}}},
     "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"),
    (CORE + "Pod", {"spec": []}, "json: cannot unmarshal array into Go struct field Pod.spec of type v1.PodSpec"),
    (CORE + "Pod", {"metadata": {"labels": []}},
     "json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string"),
    (CORE + "Secret", {"data": {"a": "%"}}, "illegal base64 data at input byte 0"),
    (CORE + "Secret", {"data": {"a": "YWJjZ"}}, "illegal base64 data at input byte 4"),
    (CORE + "Event", {"firstTimestamp": "20260102T030405Z"}, 'parsing time "20260102T030405Z" as '
     '"2006-01-02T15:04:05Z07:00": cannot parse "20260102T030405Z" as "2006"'),
    (CORE + "ServicePort", {"targetPort": 1 << 31}, "json: cannot unmarshal number into Go value of type int32"),
    (CORE + "Pod", {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}},
     "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")])
def test_type_errors_in_gos_words(name, obj, message):
    problems = schema.check(name, obj)
    assert (problems.unknown, problems.errors) == ([], [message])


_JSON = st.recursive(st.none() | st.booleans() | st.integers(-9, 2**33) | st.floats(0, 1)
                     | st.sampled_from(["", "1", "YQ=="]),
                     lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
                         st.sampled_from(["spec", "metadata", "containers", "resources", "limits", "labels", "x",
                                          "creationTimestamp", "ports", "containerPort"]), inner, max_size=3))


@given(_JSON)
@settings(max_examples=150)
def test_the_fast_answer_and_the_walk_agree(body):
    schemas = schema.load()
    walk = _Walk(schemas)
    walk.value({"$ref": CORE + "Pod"}, body, "", [], "")
    assert bool(schemas._checkers._definition(CORE + "Pod")(body)) is not bool(walk.unknown or walk.errors)

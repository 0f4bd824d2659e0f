"""Protobuf bodies: what kubectl 1.32 really sent, a hand-made encoder's round trips, and hostile bytes."""

from base64 import b64decode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import protobuf
from controlplane.machinery.protobuf import Malformed, Unregistered, decode

# kubectl create deployment web --image=nginx --replicas=0 --port=80
DEPLOYMENT = (
    "azhzAAoVCgdhcHBzL3YxEgpEZXBsb3ltZW50ErgBCh8KA3dlYhIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEoYBCAASDAoKCgNhcHASA3dlYhpsChwK"
    "ABIAGgAiACoAMgA4AEIAWgoKA2FwcBIDd2ViEkwSLgoFbmdpbngSBW5naW54KgAyCgoAEAAYUCIAKgBCAGoAcgCAAQCIAQCQAQCiAQAaADIAQgBKAFIA"
    "WABgAGgAggEAigEAmgEAwgEAIgIKACgAOAAaDAgAEAAYACAAKAA4ABoAIgA=")
# kubectl create service nodeport svc --tcp=80:http --node-port=30080
SERVICE = (
    "azhzAAoNCgJ2MRIHU2VydmljZRJtCh8KA3N2YxIAGgAiACoAMgA4AEIAWgoKA2FwcBIDc3ZjEkYKIAoHODAtaHR0cBIDVENQGFAiCggBEAAaBGh0dHAo"
    "gOsBEgoKA2FwcBIDc3ZjGgAiCE5vZGVQb3J0OgBCAFIAWgBgAGgAGgIKABoAIgA=")
# kubectl create secret generic s --from-literal=k=v
SECRET = "azhzAAoMCgJ2MRIGU2VjcmV0Eh0KEQoBcxIAGgAiACoAMgA4AEIAEgYKAWsSAXYaABoAIgA="
# kubectl create quota q --hard=cpu=1,memory=1Gi --scopes=BestEffort
QUOTA = (
    "azhzAAoTCgJ2MRINUmVzb3VyY2VRdW90YRJAChEKAXESABoAIgAqADIAOABCABIpCgoKA2NwdRIDCgExCg8KBm1lbW9yeRIFCgMx"
    "R2kSCkJlc3RFZmZvcnQaABoAIgA=")


def test_what_kubectl_sent_becomes_what_its_json_would_have_been():
    assert decode(b64decode(DEPLOYMENT)) == {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}}, "strategy": {},
                 "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [
                     {"name": "nginx", "image": "nginx", "ports": [{"containerPort": 80}], "resources": {}}]}}},
        "status": {}}
    assert decode(b64decode(SERVICE))["spec"] == {
        "ports": [{"name": "80-http", "protocol": "TCP", "port": 80, "targetPort": "http", "nodePort": 30080}],
        "selector": {"app": "svc"}, "type": "NodePort"}
    assert decode(b64decode(SECRET))["data"] == {"k": "dg=="}
    assert decode(b64decode(QUOTA))["spec"] == {"hard": {"cpu": "1", "memory": "1Gi"}, "scopes": ["BestEffort"]}


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, value) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def enveloped(api_version: str, kind: str, raw: bytes, *more: bytes) -> bytes:
    meta = field(1, field(1, api_version) + field(2, kind))
    return protobuf.MAGIC + meta + field(2, raw) + b"".join(more)


def test_messages_with_a_json_form_of_their_own():
    time = field(1, 1_700_000_000) + field(2, 123_456_789)
    meta = field(1, "e") + field(8, time) + field(9, b"")
    event = decode(enveloped("v1", "Event", field(1, meta) + field(6, time) + field(10, time)))
    assert event["metadata"] == {"name": "e", "creationTimestamp": "2023-11-14T22:13:20Z"}
    assert (event["firstTimestamp"], event["eventTime"]) == ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20.123456Z")
    spec = field(1, "me") + field(2, 0) + field(4, time)
    lease = decode(enveloped("coordination.k8s.io/v1", "Lease", field(2, spec)))
    assert lease["spec"] == {"holderIdentity": "me", "leaseDurationSeconds": 0,
                             "renewTime": "2023-11-14T22:13:20.123456Z"}
    inner = enveloped("v1", "ConfigMap", field(2, field(1, "a") + field(2, "b")))
    revision = decode(enveloped("apps/v1", "ControllerRevision", field(2, field(1, inner)) + field(3, -1)))
    assert revision["revision"] == -1 and revision["data"] == {"apiVersion": "v1", "kind": "ConfigMap",
                                                               "data": {"a": "b"}}
    options = decode(enveloped("apps/v1", "DeleteOptions", field(1, 0) + field(4, "Background")))
    assert options == {"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                       "propagationPolicy": "Background"}


def test_embedded_messages_unknown_fields_and_schemas():
    volume = field(1, "v") + field(2, field(2, b""))
    pod = decode(enveloped("v1", "Pod", field(2, field(1, volume) + field(900, b"newer") + field(999, 7))))
    assert pod["spec"] == {"volumes": [{"name": "v", "emptyDir": {}}]}
    schema = field(29, field(1, "x") + field(2, field(5, "string"))) + field(30, field(1, 0))
    schema += field(8, field(1, b"[1]"))
    version = field(1, "v1") + field(4, field(1, schema))
    crd = decode(enveloped("apiextensions.k8s.io/v1", "CustomResourceDefinition", field(2, field(7, version))))
    assert crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] == {
        "properties": {"x": {"type": "string"}}, "additionalProperties": False, "default": [1]}


@pytest.mark.parametrize(("body", "error"), [
    (b"{}", Malformed), (protobuf.MAGIC + b"\xff", Malformed), (b64decode(SERVICE)[:-3], Malformed),
    (enveloped("v1", "ConfigMap", field(1, 7)), Malformed), (enveloped("v1", "ConfigMap", b"\x0a\x02\x0a"), Malformed),
    (enveloped("v1", "Secret", field(3, b"\xff")), Malformed), (protobuf.MAGIC + field(1, 3), Malformed),
    (enveloped("v9", "Frob", b""), Unregistered),
])
def test_bad_bytes_are_refused(body, error):
    with pytest.raises(error):
        decode(body)


def test_nesting_is_bounded():
    schema = b""
    for _ in range(2000):
        schema = field(28, schema)
    with pytest.raises(Malformed, match="nested"):
        decode(enveloped("apiextensions.k8s.io/v1", "CustomResourceDefinition",
                         field(2, field(7, field(4, field(1, schema))))))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 255))
def test_no_bytes_bring_it_down(noise, at, byte):
    damaged = bytearray(b64decode(DEPLOYMENT))
    damaged[4 + at % (len(damaged) - 4)] = byte
    for body in (bytes(damaged), enveloped("v1", "Pod", noise), protobuf.MAGIC + noise):
        try:
            assert isinstance(decode(body), dict)
        except ValueError:
            pass


@pytest.mark.parametrize(("message", "name", "kept"), [
    ("apps.v1.DeploymentSpec", "replicas", True), ("apps.v1.DeploymentSpec", "minReadySeconds", False),
    ("core.v1.ContainerStatus", "restartCount", True), ("core.v1.Container", "workingDir", False),
    ("core.v1.Container", "restartPolicy", True), ("core.v1.PodSpec", "restartPolicy", False),
    ("core.v1.PodSpec", "priority", True), ("discovery.v1.EndpointPort", "port", True),
    ("core.v1.EndpointSubset", "ports", False), ("core.v1.ServiceSpec", "clusterIP", False),
])
def test_the_tables_tell_which_zero_values_count(message, name, kept):
    fields = protobuf._table("k8s.io.api." + message).fields.values()
    assert [keep for field_name, _, _, _, keep, _, _ in fields if field_name == name] == [kept]


def test_the_tables_know_every_served_kind():
    from controlplane.machinery.resources import BUILTIN
    missing = [entry.name for entry in BUILTIN
               if protobuf.message_of(entry.api_version, entry.kind) not in protobuf._lines()]
    assert missing == []

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.machinery import objects, podresources
from controlplane.machinery.defaults import defaults, pods


def _defaulted(group, kind, obj):
    defaults.of(group, kind)(obj)
    again = objects.deep_copy(obj)
    defaults.of(group, kind)(again)
    assert again == obj, "defaulting must be idempotent"
    return obj


def test_a_minimal_pod():
    pod = _defaulted("", "Pod", {"spec": {"containers": [{
        "name": "c", "image": "nginx:1", "ports": [{"containerPort": 80}],
        "resources": {"limits": {"cpu": "0.5", "memory": "1024Mi"}}, "livenessProbe": {"httpGet": {"port": 80}}}],
        "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}], "serviceAccountName": "me"}})
    assert pod["spec"] == {
        "containers": [{"name": "c", "image": "nginx:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "resources": {"limits": {"cpu": "500m", "memory": "1Gi"},
                                      "requests": {"cpu": "500m", "memory": "1Gi"}},
                        "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                                          "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                        "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                        "terminationMessagePolicy": "File"}],
        "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}],
        "serviceAccountName": "me", "serviceAccount": "me", "enableServiceLinks": True, "restartPolicy": "Always",
        "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
        "securityContext": {}}
    assert pod["status"] == {"phase": "Pending", "qosClass": "Guaranteed"}


def test_what_only_pods_get_and_templates_do_not():
    spec = {"hostNetwork": True, "containers": [{"name": "c", "image": "a", "ports": [{"containerPort": 80}],
                                                 "resources": {"limits": {"cpu": "1"}}}]}
    pod = _defaulted("", "Pod", {"spec": objects.deep_copy(spec)})["spec"]
    template = _defaulted("apps", "Deployment", {"spec": {"template": {"spec": spec}}})["spec"]["template"]["spec"]
    assert pod["containers"][0]["ports"][0]["hostPort"] == 80 and pod["enableServiceLinks"] is True
    assert pod["containers"][0]["resources"]["requests"] == {"cpu": "1"}
    assert "hostPort" not in template["containers"][0]["ports"][0] and "enableServiceLinks" not in template
    assert "requests" not in template["containers"][0]["resources"]


@pytest.mark.parametrize(("image", "want"), [
    ("nginx", "Always"), ("nginx:latest", "Always"), ("nginx:1", "IfNotPresent"), ("r:5000/nginx", "Always"),
    ("r:5000/n:1", "IfNotPresent"), ("nginx@sha256:" + "0" * 64, "IfNotPresent")])
def test_image_pull_policy(image, want):
    assert pods.image_pull_policy(image) == want


@pytest.mark.parametrize(("resources", "want"), [
    ({}, "BestEffort"), ({"requests": {"cpu": "1"}}, "Burstable"), ({"limits": {"cpu": "1"}}, "Burstable"),
    ({"requests": {"cpu": "1000m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1024Mi"}}, "Guaranteed"),
    ({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "1Gi"}}, "Burstable"),
    ({"requests": {"example.com/x": "1"}}, "BestEffort")])
def test_quality_of_service(resources, want):
    assert podresources.qos_class({"containers": [{"resources": resources}]}) == want


def test_services():
    plain = _defaulted("", "Service", {"spec": {"ports": [{"port": 80}]}})
    assert plain["spec"] == {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "type": "ClusterIP",
                             "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}
    sticky = _defaulted("", "Service", {"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}})["spec"]
    assert sticky["sessionAffinityConfig"] == {"clientIP": {"timeoutSeconds": 10800}}
    assert sticky["externalTrafficPolicy"] == "Cluster" and sticky["allocateLoadBalancerNodePorts"] is True
    assert _defaulted("", "Service", {"spec": {"type": "ExternalName"}})["spec"] == {
        "type": "ExternalName", "sessionAffinity": "None"}


def test_secrets_take_their_texts():
    secret = _defaulted("", "Secret", {"stringData": {"a": "é"}, "data": {"a": "eA==", "b": "eQ=="}})
    assert secret == {"type": "Opaque", "data": {"a": base64.b64encode("é".encode()).decode(), "b": "eQ=="}}


def test_workloads():
    deployment = _defaulted("apps", "Deployment", {"spec": {"replicas": 0, "template": {"spec": {}}}})["spec"]
    assert (deployment["replicas"], deployment["revisionHistoryLimit"], deployment["progressDeadlineSeconds"]) == (
        0, 10, 600)
    assert deployment["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%",
                                                                                 "maxSurge": "25%"}}
    controller = _defaulted("", "ReplicationController", {
        "metadata": {}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}, "spec": {}}}})
    assert controller["spec"]["selector"] == controller["metadata"]["labels"] == {"a": "b"}


_KINDS = st.sampled_from([("", "Pod"), ("", "Service"), ("apps", "Deployment"), ("", "Namespace"), ("", "Node"),
                          ("", "Endpoints"), ("discovery.k8s.io", "EndpointSlice"), ("", "Secret"), ("", "Event")])


@given(_KINDS, st.dictionaries(st.sampled_from(["spec", "status", "metadata", "data"]), st.none() | st.just({})))
def test_nothing_at_all_is_defaulted_without_a_fault(kind, obj):
    _defaulted(*kind, obj)

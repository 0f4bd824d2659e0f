import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import objects, schema, strategy
from controlplane.machinery.resources import named


def made(plural, **body):
    """A created object of a kind: defaulted and prepared."""
    resource = named(plural)
    obj = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": "x"}, **body}
    if resource.namespaced:
        obj["metadata"].setdefault("namespace", "default")
    plan = strategy.of(resource)
    plan.default(obj)
    plan.prepare_create(obj)
    return obj


def faults(plural, obj):
    return [str(c) for c in strategy.of(named(plural)).validate(obj)]


def pod(container=None, **spec):
    return made("pods", spec={"containers": [{"name": "c", "image": "i", **(container or {})}], **spec})


GOOD = {"pods": pod(), "services": made("services", spec={"ports": [{"port": 80}]}),
        "configmaps": made("configmaps", data={"a": "b"}), "secrets": made("secrets", stringData={"a": "b"}),
        "namespaces": made("namespaces"), "nodes": made("nodes"), "serviceaccounts": made("serviceaccounts"),
        "leases.coordination.k8s.io": made("leases.coordination.k8s.io", spec={"leaseDurationSeconds": 40}),
        "endpoints": made("endpoints", subsets=[{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1}]}]),
        "endpointslices.discovery.k8s.io": made("endpointslices.discovery.k8s.io", addressType="IPv4",
                                                endpoints=[{"addresses": ["10.0.0.1"]}]),
        "events": made("events", involvedObject={"namespace": "default"}),
        **{plural: made(plural, spec={"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}})
           for plural in ("deployments.apps", "replicasets.apps")},
        "replicationcontrollers": made("replicationcontrollers", spec={"template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}})}


@pytest.mark.parametrize("plural", GOOD)
def test_good_objects_are_good(plural):
    assert faults(plural, GOOD[plural]) == []
    assert strategy.of(named(plural)).validate_update(objects.deep_copy(GOOD[plural]), GOOD[plural]) == []


@pytest.mark.parametrize(("meta", "want"), [
    ({"name": "X"}, 'metadata.name: Invalid value: "X": a lowercase RFC 1123 subdomain must consist of'),
    ({"name": ""}, "metadata.name: Required value: name or generateName is required"),
    ({"labels": {"a b": "c"}}, 'metadata.labels: Invalid value: "a b": name part must consist of'),
    ({"labels": {"a": "-"}}, 'metadata.labels: Invalid value: "-": a valid label must be an empty string or'),
    ({"annotations": {"a": "x" * (256 << 10)}}, "metadata.annotations: Too long: may not be more than 262144 bytes"),
    ({"finalizers": ["a"]}, 'metadata.finalizers: Invalid value: "a": name is neither a standard finalizer name nor'),
    ({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p"}]},
     'metadata.ownerReferences[0].uid: Invalid value: "": must not be empty'),
    ({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": n, "uid": n, "controller": True} for n in "ab"]},
     'Only one reference can have Controller set to true. Found "true" in references for a and b')])
def test_metadata(meta, want):
    config = objects.deep_copy(GOOD["configmaps"])
    config["metadata"].update(meta)
    found = faults("configmaps", config)
    assert len(found) == 1 and want in found[0]


@pytest.mark.parametrize(("obj", "want"), [
    (pod({"name": "C"}), 'spec.containers[0].name: Invalid value: "C": a lowercase RFC 1123 label'),
    (pod({"image": ""}), "spec.containers[0].image: Required value"),
    (pod({"ports": [{"containerPort": 0}]}), "spec.containers[0].ports[0].containerPort: Required value"),
    (pod({"ports": [{"containerPort": 70000}]}), "Invalid value: 70000: must be between 1 and 65535, inclusive"),
    (pod({"env": [{"name": "a=b"}]}), 'spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment'),
    (pod({"volumeMounts": [{"name": "v", "mountPath": "/a"}]}),
     'spec.containers[0].volumeMounts[0].name: Not found: "v"'),
    (pod({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
     'spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1'),
    (pod({"resources": {"limits": {"a.b/x": "2"}, "requests": {"a.b/x": "1"}}}),
     "must be equal to a.b/x limit of 2"),
    (pod({"livenessProbe": {}}), "spec.containers[0].livenessProbe: Required value: must specify a handler type"),
    (pod({"livenessProbe": {"exec": {"command": ["a"]}, "httpGet": {"port": 1}}}),
     "spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type"),
    (pod({"livenessProbe": {"tcpSocket": {"port": 1}, "successThreshold": 2}}), "Invalid value: 2: must be 1"),
    (pod({"lifecycle": {"stopSignal": "SIGUSR1"}}), "lifecycle.stopSignal: Forbidden: may not be set for "
     "containers with empty `spec.os.name`"),
    (pod({"lifecycle": {"stopSignal": "SIGUSR1"}}, os={"name": "windows"}), '"SIGUSR1": supported values: "SIGKILL", '),
    (pod({"lifecycle": {"stopSignal": "SIGNONE"}}, os={"name": "linux"}), 'Unsupported value: "SIGNONE": supported'),
    (pod({"restartPolicy": "Never", "restartPolicyRules": [{"action": "RestartAllContainers", "exitCodes": {
        "operator": "In", "values": [1]}}, {"action": "Terminate", "exitCodes": {"operator": "In", "values": [2]}}]}),
     'Rules[1].action: Unsupported value: "Terminate": supported values: "Restart", "RestartAllContainers"'),
    (pod({"restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]}),
     "spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used"),
    (pod({"restartPolicy": "Never", "restartPolicyRules": [{"action": "Restart"}]}), "exitCodes: Required value"),
    (pod(hostnameOverride="Not-a-name"), 'spec.hostnameOverride: Invalid value: "Not-a-name": a lowercase RFC 1123'),
    (pod(hostnameOverride="h", setHostnameAsFQDN=True),
     "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true"),
    (pod(hostnameOverride="h" * 63 + ".hh"), "spec.hostnameOverride: Too long: may not be more than 64 bytes"),
    (pod({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "K"}}}]}),
     'spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Not found: "v"'),
    (pod({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "K"}}}]},
         volumes=[{"name": "v", "secret": {"secretName": "s"}}]), '"v": referenced volume must be of type emptyDir'),
    (pod({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "../p", "key": "K"}}}]},
         volumes=[{"name": "v", "emptyDir": {}}]), "fileKeyRef.path: Invalid value: \"../p\": must not contain '..'"),
    (pod(initContainers=[{"name": "c", "image": "i"}]), 'spec.initContainers[0].name: Duplicate value: "c"'),
    (pod(restartPolicy="Sometimes"), 'spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always",'),
    (pod(volumes=[{"name": "v"}, {"name": "v"}]), 'spec.volumes[1].name: Duplicate value: "v"'),
    (pod(volumes=[{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
     "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"),
    (pod(volumes=[{"name": "v", "configMap": {"name": "c", "items": [{"key": "k", "path": "../x"}]}}]),
     "must not contain '..'"),
    (pod(tolerations=[{"operator": "Equal"}]), "operator must be Exists when `key` is empty"),
    (pod(schedulingGates=[{"name": "a/b"}], nodeName="n"), "cannot be set until all schedulingGates have been cleared"),
    (pod({"securityContext": {"privileged": True, "allowPrivilegeEscalation": False}}), "and `privileged` to true"),
    *((pod(securityContext={"sysctls": [{"name": "kernel.shmmax", "value": "1"}, {"name": name, "value": "1"}]}),
       f'spec.securityContext.sysctls[1].name: {want}') for name, want in (
        ("foo-", 'Invalid value: "foo-": must have at most 253 characters and match regex ^([a-z0-9]'),
        ("bar..", 'Invalid value: "bar..": must have'), ("kernel.shmmax", 'Duplicate value: "kernel.shmmax"'))),
    (pod(securityContext={"sysctls": [{"name": "net/ipv4/x", "value": "1"}]}, hostNetwork=True),
     "may not be specified when 'hostNetwork' is true"),
    (pod({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]}),
     'spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//5"')])
def test_pods(obj, want):
    found = faults("pods", obj)
    assert len(found) == 1 and want in found[0], found


def service(**spec):
    return made("services", spec={"ports": [{"port": 80}], **spec})


@pytest.mark.parametrize(("plural", "obj", "want"), [
    ("services", service(ports=[]), "spec.ports: Required value"),
    ("services", service(ports=[{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name: Required value"),
    ("services", service(ports=[{"port": 0, "targetPort": 1}]),
     "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535"),
    ("services", service(selector={"a b": "c"}), 'spec.selector: Invalid value: "a b": name part must consist of'),
    ("services", service(selector={"a": "c d"}), 'spec.selector: Invalid value: "c d": a valid label must be'),
    ("services", service(type="X"), 'spec.type: Unsupported value: "X": supported values: "ClusterIP", "ExternalName"'),
    ("services", service(type="NodePort", clusterIP="None"), "may not be set to 'None' for NodePort services"),
    ("services", service(type="ExternalName"), "spec.externalName: Required value"),
    ("services", service(ports=[{"port": 1, "nodePort": 30000}]), "may not be used when `type` is 'ClusterIP'"),
    ("services", service(clusterIP="10.0.0.x"), 'spec.clusterIPs[0]: Invalid value: "10.0.0.x": must be a valid IP'),
    ("configmaps", made("configmaps", data={"a/b": ""}), 'data[a/b]: Invalid value: "a/b": a valid config key must'),
    ("configmaps", made("configmaps", data={"a": "x" * (1 << 20 | 1)}), "Too long: may not be more than 1048576 bytes"),
    ("secrets", made("secrets", type="kubernetes.io/tls", data={"tls.crt": ""}), "data[tls.key]: Required value"),
    ("deployments.apps", made("deployments.apps", spec={**GOOD["deployments.apps"]["spec"], "replicas": -1}),
     "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
    ("deployments.apps", made("deployments.apps", spec={**GOOD["deployments.apps"]["spec"],
                                                        "selector": {"matchLabels": {"a": "c"}}}),
     'spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`'),
    ("deployments.apps", made("deployments.apps", spec={
        **GOOD["deployments.apps"]["spec"], "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}}),
     "may not be 0 when `maxSurge` is 0"),
    ("endpoints", made("endpoints", subsets=[{"addresses": [{"ip": "127.0.0.1"}]}]),
     "may not be in the loopback range"),
    ("nodes", made("nodes", spec={"taints": [{"key": "a", "effect": "Never"}]}), 'Unsupported value: "Never"'),
    ("events", made("events", involvedObject={"namespace": "b"}), "does not match event.namespace")])
def test_other_kinds(plural, obj, want):
    found = faults(plural, obj)
    assert len(found) == 1 and want in found[0], found


@pytest.mark.parametrize(("plural", "path", "value", "want"), [
    ("pods", "spec.nodeName", "n", "spec: Forbidden: pod updates may not change fields other than `spec.containers[*]"
     ".image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to"),
    ("pods", "spec.containers", [], "spec.containers: Forbidden: pod updates may not add or remove containers"),
    ("deployments.apps", "spec.selector", {"matchLabels": {"a": "b", "c": "d"}},
     'spec.selector: Invalid value: {"matchLabels":{"a":"b","c":"d"}}: field is immutable'),
    ("secrets", "type", "x", 'type: Invalid value: "x": field is immutable'),
    ("endpointslices.discovery.k8s.io", "addressType", "IPv6", "field is immutable")])
def test_what_updates_may_not_change(plural, path, value, want):
    old = GOOD[plural]
    new = objects.deep_copy(old)
    *steps, last = path.split(".")
    place = new
    for step in steps:
        place = place[step]
    place[last] = value
    found = [str(c) for c in strategy.of(named(plural)).validate_update(new, old)]
    assert len(found) == 1 and want in found[0], found


def test_what_pod_updates_may_change():
    old = GOOD["pods"]
    new = objects.deep_copy(old)
    new["spec"]["containers"][0]["image"] = "j"
    new["spec"]["tolerations"] = [{"operator": "Exists"}]
    new["spec"]["activeDeadlineSeconds"] = 5
    plan = strategy.of(named("pods"))
    assert plan.validate_update(new, old) == []
    moved = objects.deep_copy(new)
    moved["spec"]["containers"][0]["command"] = ["x"]
    assert '\n+ spec.containers[0].command: ["x"]\n' in str(plan.validate_update(moved, old)[0])


def test_immutable_locks_the_data():
    old = made("configmaps", data={"a": "1"}, immutable=True)
    found = strategy.of(named("configmaps")).validate_update(made("configmaps", data={"a": "2"}), old)
    assert [str(c) for c in found] == [f"{field}: Forbidden: field is immutable when `immutable` is set"
                                       for field in ("immutable", "data")]


_TEXTS = ["", "a", "A b", "x/y", "10.0.0.1", "50%", "None", "ClusterIP", "Always", "a" * 300, "..", "é"]
_FORMS = {"byte": ["", "YQ=="], "quantity": ["0", "1", "-1", "1.5", "100m", 2], "date-time": ["2024-01-01T00:00:00Z"],
          "int-or-string": [0, -1, 80, "50%", "http"]}


def _body(node, dice, depth=0):
    """A random value of a type, right in type and mostly wrong in everything else."""
    node = schema.load().resolve(node)
    kind = node.get("type")
    if dice.random() < 0.05 or depth > 8:
        return None
    if node.get("format") in _FORMS:
        return dice.choice(_FORMS[node["format"]])
    if "properties" in node:
        odds = 1.0 if depth == 0 else 0.35
        return {k: _body(v, dice, depth + 1) for k, v in node["properties"].items()
                if dice.random() < odds or k in node.get("required", ())}
    if "additionalProperties" in node:
        return {dice.choice(_TEXTS): _body(node["additionalProperties"], dice, depth + 1)
                for _ in range(dice.randint(0, 2))}
    if kind == "array":
        return [_body(node["items"], dice, depth + 1) for _ in range(dice.randint(0, 2))]
    if kind == "string":
        return dice.choice(_TEXTS)
    if kind == "boolean":
        return dice.random() < 0.5
    return dice.choice([0, 1, -1, 80, 70000]) if kind in ("integer", "number") else {}


@pytest.mark.parametrize("plural", GOOD)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_whatever_passes_the_type_check_is_judged_without_a_fault(plural, seed):
    resource = named(plural)
    plan, dice = strategy.of(resource), random.Random(seed)

    def body():
        made = _body({"$ref": resource.definition}, dice) or {}
        made["metadata"] = made.get("metadata") or {}
        assert schema.check(resource.definition, made) == schema.Problems([], [])
        return made

    old, new = body(), body()
    plan.default(old)
    plan.prepare_create(old)
    plan.validate(old)
    plan.default(new)
    before = objects.deep_copy(old)
    plan.prepare_update(new, old)
    plan.validate_update(new, old)
    plan.warnings(new, old)
    plan.prepare_status(new, old)
    assert old == before, "what is stored is shared and must not change"

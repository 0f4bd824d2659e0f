"""Every built-in kind: what a small good object of it becomes, and what upstream's users are told about bad ones."""

import pytest

from controlplane.machinery import cron, objects, schema, strategy
from controlplane.machinery.resources import BUILTIN, named

TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
ENDING = {**TEMPLATE, "spec": {**TEMPLATE["spec"], "restartPolicy": "Never"}}
SELECTED = {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}
CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
RULE = {"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}
HOOKS = [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"], "rules": [RULE],
          "clientConfig": {"service": {"name": "s", "namespace": "n"}}}]
MATCHED = {"matchConstraints": {"resourceRules": [RULE]}}
BOUND = {"policyName": "p", "paramRef": {"name": "c", "parameterNotFoundAction": "Deny"}}
DEVICES = {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu"}}]}}
BODIES = {
    "jobs.batch": {"spec": {"template": ENDING}},
    "cronjobs.batch": {"spec": {"schedule": "*/5 * * * *", "timeZone": "UTC",
                                "jobTemplate": {"spec": {"template": ENDING}}}},
    "daemonsets.apps": {"spec": SELECTED}, "statefulsets.apps": {"spec": {
        **SELECTED, "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": CLAIM}]}},
    "controllerrevisions.apps": {"data": {}, "revision": 1}, "podtemplates": {"template": TEMPLATE},
    "poddisruptionbudgets.policy": {"spec": {"minAvailable": "50%", "selector": {}}},
    "horizontalpodautoscalers.autoscaling": {"spec": {"maxReplicas": 3, "scaleTargetRef": {
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "behavior": {"scaleDown": {}}}},
    "ingresses.networking.k8s.io": {"spec": {"rules": [{"host": "*.a.b", "http": {"paths": [{
        "path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}},
    "ingressclasses.networking.k8s.io": {"spec": {"controller": "a.b/c", "parameters": {"kind": "K", "name": "n"}}},
    "networkpolicies.networking.k8s.io": {"spec": {"egress": [{"to": [{"ipBlock": {
        "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 1, "endPort": 2}]}]}},
    "servicecidrs.networking.k8s.io": {"spec": {"cidrs": ["10.0.0.0/24"]}},
    "ipaddresses.networking.k8s.io": {"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {
        "resource": "services", "namespace": "n", "name": "s"}}},
    "storageclasses.storage.k8s.io": {"provisioner": "a.b/c"},
    "volumeattributesclasses.storage.k8s.io": {"driverName": "a.b", "parameters": {"a": "b"}},
    "csidrivers.storage.k8s.io": {"spec": {}}, "csinodes.storage.k8s.io": {"spec": {"drivers": [
        {"name": "a.b", "nodeID": "n"}]}},
    "csistoragecapacities.storage.k8s.io": {"storageClassName": "c", "capacity": "1Gi"},
    "volumeattachments.storage.k8s.io": {"spec": {"attacher": "a.b", "nodeName": "n", "source": {
        "persistentVolumeName": "p"}}},
    "persistentvolumes": {"spec": {"capacity": {"storage": "1024Mi"}, "accessModes": ["ReadWriteOnce"],
                                   "hostPath": {"path": "/a"}}},
    "persistentvolumeclaims": {"spec": CLAIM},
    "limitranges": {"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}}]}},
    "resourcequotas": {"spec": {"hard": {"pods": "5", "count/jobs.batch": "1"}, "scopes": ["BestEffort"]}},
    "priorityclasses.scheduling.k8s.io": {"value": 5}, "runtimeclasses.node.k8s.io": {"handler": "h"},
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": {"webhooks": HOOKS},
    "validatingwebhookconfigurations.admissionregistration.k8s.io": {"webhooks": HOOKS},
    "validatingadmissionpolicies.admissionregistration.k8s.io": {"spec": {
        **MATCHED, "validations": [{"expression": "true"}]}},
    "validatingadmissionpolicybindings.admissionregistration.k8s.io": {"spec": {
        **BOUND, "validationActions": ["Deny"]}},
    "mutatingadmissionpolicies.admissionregistration.k8s.io": {"spec": {
        **MATCHED, "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]}},
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io": {"spec": BOUND},
    "flowschemas.flowcontrol.apiserver.k8s.io": {"spec": {"priorityLevelConfiguration": {"name": "p"}, "rules": [{
        "subjects": [{"kind": "User", "user": {"name": "*"}}],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/a"]}]}]}},
    "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io": {"spec": {"type": "Limited", "limited": {
        "limitResponse": {"type": "Queue"}}}},
    "deviceclasses.resource.k8s.io": {"spec": {"selectors": [{"cel": {"expression": "true"}}]}},
    "resourceclaims.resource.k8s.io": {"spec": DEVICES},
    "resourceclaimtemplates.resource.k8s.io": {"spec": {"spec": DEVICES}},
    "resourceslices.resource.k8s.io": {"spec": {"driver": "a.b", "nodeName": "n", "pool": {
        "name": "p", "generation": 1, "resourceSliceCount": 1}, "devices": [{"name": "d0"}]}},
}


def made(name, **change):
    resource = named(name)
    body = objects.deep_copy({**BODIES[name], **change})
    obj = {"apiVersion": resource.api_version, "kind": resource.kind, **body,
           "metadata": {"name": "x", "uid": "u-1", **(body.get("metadata") or {})}}
    if resource.namespaced:
        obj["metadata"]["namespace"] = "default"
    plan = strategy.of(resource)
    plan.default(obj)
    plan.prepare_create(obj)
    return obj


def faults(name, obj):
    return [str(c) for c in strategy.of(named(name)).validate(obj)]


def refusals(name, change):
    """What an update that makes `change` is told."""
    old = made(name)
    new = objects.deep_copy(old)
    change(new)
    plan = strategy.of(named(name))
    plan.default(new)
    plan.prepare_update(new, old)
    return [str(c) for c in (*plan.validate(new), *plan.validate_update(new, old))]


@pytest.mark.parametrize("name", BODIES)
def test_a_good_object_is_good_typed_and_defaulted_once(name):
    obj = made(name)
    assert faults(name, obj) == []
    assert not schema.check(named(name).definition, obj)
    again = objects.deep_copy(obj)
    strategy.of(named(name)).default(again)
    assert again == obj
    assert refusals(name, lambda _: None) == []


def test_only_kinds_that_extend_the_api_have_finalizers_without_a_path():
    for name, want in (("validatingadmissionpolicies.admissionregistration.k8s.io", 0), ("limitranges", 1)):
        held = made(name)
        held["metadata"]["finalizers"] = ["held"]
        assert len(faults(name, held)) == want


def test_every_stored_kind_has_rules_of_its_own():
    from controlplane.machinery import validate
    plain = {r.name for r in BUILTIN if "create" in r.verbs and "get" in r.verbs
             and validate.of(r.group, r.kind) is validate.GENERAL}
    assert plain == set()


@pytest.mark.parametrize(("name", "path", "want"), [
    ("jobs.batch", "spec.completionMode", "NonIndexed"), ("jobs.batch", "spec.backoffLimit", 6),
    ("jobs.batch", "spec.podReplacementPolicy", "TerminatingOrFailed"),
    ("jobs.batch", "spec.selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": "u-1"}}),
    ("jobs.batch", "metadata.labels", {"a": "b", "controller-uid": "u-1", "job-name": "x",
                                       "batch.kubernetes.io/controller-uid": "u-1",
                                       "batch.kubernetes.io/job-name": "x"}),
    ("cronjobs.batch", "spec.successfulJobsHistoryLimit", 3), ("cronjobs.batch", "spec.concurrencyPolicy", "Allow"),
    ("daemonsets.apps", "spec.updateStrategy", {"type": "RollingUpdate", "rollingUpdate": {
        "maxUnavailable": 1, "maxSurge": 0}}),
    ("statefulsets.apps", "spec.persistentVolumeClaimRetentionPolicy", {"whenDeleted": "Retain",
                                                                        "whenScaled": "Retain"}),
    ("horizontalpodautoscalers.autoscaling", "spec.behavior.scaleUp.stabilizationWindowSeconds", 0),
    ("horizontalpodautoscalers.autoscaling", "spec.minReplicas", 1),
    ("networkpolicies.networking.k8s.io", "spec.policyTypes", ["Ingress", "Egress"]),
    ("persistentvolumes", "spec.capacity", {"storage": "1Gi"}), ("persistentvolumes", "status", {"phase": "Pending"}),
    ("limitranges", "spec.limits", [{"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"},
                                     "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}}]),
    ("storageclasses.storage.k8s.io", "volumeBindingMode", "Immediate"),
    ("csidrivers.storage.k8s.io", "spec.volumeLifecycleModes", ["Persistent"]),
    ("flowschemas.flowcontrol.apiserver.k8s.io", "spec.matchingPrecedence", 1000)])
def test_defaults(name, path, want):
    assert objects.get(made(name), path) == want


@pytest.mark.parametrize(("name", "body", "want"), [
    ("deviceclasses.resource.k8s.io", {"spec": {"extendedResourceName": "gpu"}},
     'spec.extendedResourceName: Invalid value: "gpu": must be a valid extended resource name'),
    ("jobs.batch", {"spec": {"template": TEMPLATE}},
     'spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"'),
    ("jobs.batch", {"spec": {"template": ENDING, "parallelism": 2, "completionMode": "Indexed"}},
     "spec.completions: Required value: when completion mode is Indexed"),
    ("jobs.batch", {"spec": {"template": ENDING, "backoffLimit": -1}},
     "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0"),
    ("jobs.batch", {"spec": {"template": ENDING, "podFailurePolicy": {"rules": [{
        "action": "FailJob", "onExitCodes": {"operator": "In", "values": [0]}}]}}},
     "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator"),
    ("cronjobs.batch", {"spec": {"schedule": "* * *", "jobTemplate": {"spec": {"template": ENDING}}}},
     'spec.schedule: Invalid value: "* * *": expected exactly 5 fields, found 3: [* * *]'),
    ("cronjobs.batch", {"spec": {"schedule": "@daily", "timeZone": "Mars/Base",
                                 "jobTemplate": {"spec": {"template": ENDING}}}},
     'spec.timeZone: Invalid value: "Mars/Base": unknown time zone Mars/Base'),
    ("daemonsets.apps", {"spec": {**SELECTED, "selector": {"matchLabels": {"x": "y"}}}},
     'spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`'),
    ("daemonsets.apps", {"spec": {**SELECTED, "updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}},
     "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"),
    ("statefulsets.apps", {"spec": {**SELECTED, "template": ENDING}},
     'spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"'),
    ("poddisruptionbudgets.policy", {"spec": {"minAvailable": 1, "maxUnavailable": 1}},
     'spec: Invalid value: {"maxUnavailable":1,"minAvailable":1}: minAvailable and maxUnavailable cannot be both set'),
    ("horizontalpodautoscalers.autoscaling", {"spec": {"maxReplicas": 0, "scaleTargetRef": {
        "kind": "K", "name": "n"}}}, "spec.maxReplicas: Invalid value: 0: must be greater than 0"),
    ("ingresses.networking.k8s.io", {"spec": {}},
     "spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"),
    ("networkpolicies.networking.k8s.io", {"spec": {"ingress": [{"from": [{}]}]}},
     "spec.ingress[0].from[0]: Required value: must specify a peer"),
    ("networkpolicies.networking.k8s.io", {"spec": {"podSelector": {"matchExpressions": [{
        "key": "a", "operator": "X"}]}}},
     'spec.podSelector.matchExpressions[0].operator: Invalid value: "X": not a valid selector operator'),
    ("networkpolicies.networking.k8s.io", {"spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {
        "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]}},
     'spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `cidr`'),
    ("persistentvolumeclaims", {"spec": {"accessModes": []}},
     "spec.accessModes: Required value: at least 1 access mode is required"),
    ("persistentvolumes", {"spec": {"capacity": {"storage": "1"}, "accessModes": ["ReadWriteOnce"]}},
     "spec: Required value: must specify a volume type"),
    ("priorityclasses.scheduling.k8s.io", {"value": 2000000000},
     "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"),
    ("priorityclasses.scheduling.k8s.io", {"metadata": {"name": "system-x"}, "value": 1},
     "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: "
     "name system-x is not in the list of known system priority classes"),
    ("limitranges", {"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"},
                                          "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1"}}]}},
     'spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1'),
    ("resourcequotas", {"spec": {"hard": {"things": "1"}}},
     'spec.hard[things]: Invalid value: "things": must be a standard resource for quota'),
    ("validatingwebhookconfigurations.admissionregistration.k8s.io", {"webhooks": [{**HOOKS[0], "name": "a"}]},
     'webhooks[0].name: Invalid value: "a": should be a domain with at least three segments separated by dots'),
    ("resourceclaims.resource.k8s.io", {"spec": {"devices": {"requests": [{"name": "a"}]}}},
     "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required")])
def test_what_is_wrong(name, body, want):
    assert want in faults(name, made(name, **body))


def _set(path, value):
    def change(obj):
        *steps, last = path.split(".")
        for step in steps:
            obj = obj[step]
        obj[last] = value
    return change


@pytest.mark.parametrize(("name", "path", "value", "want"), [
    ("jobs.batch", "spec.completions", 3, "spec.completions: Invalid value: 3: field is immutable"),
    ("jobs.batch", "spec.template.spec.hostname", "h", "spec.template: Invalid value"),
    ("statefulsets.apps", "spec.serviceName", "s", "spec: Forbidden: updates to statefulset spec for fields other than "
     "'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', "
     "'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"),
    ("daemonsets.apps", "spec.selector", {"matchLabels": {"a": "b"}, "matchExpressions": [
        {"key": "a", "operator": "Exists"}]}, "spec.selector: Invalid value"),
    ("persistentvolumeclaims", "spec.accessModes", ["ReadWriteMany"], "spec: Forbidden: spec is immutable after "
     "creation except resources.requests and volumeAttributesClassName for bound claims"),
    ("persistentvolumes", "spec.hostPath.path", "/b", "spec.persistentvolumesource: Forbidden: "
     "spec.persistentvolumesource is immutable after creation"),
    ("storageclasses.storage.k8s.io", "provisioner", "x.y/z", "provisioner: Forbidden: updates to provisioner are"),
    ("priorityclasses.scheduling.k8s.io", "value", 6, "value: Forbidden: may not be changed in an update."),
    ("runtimeclasses.node.k8s.io", "handler", "i", 'handler: Invalid value: "i": field is immutable'),
    ("ingressclasses.networking.k8s.io", "spec.controller", "a.b/d", 'spec.controller: Invalid value: "a.b/d": field'),
    ("controllerrevisions.apps", "data", {"x": 1}, 'data: Invalid value: {"x":1}: field is immutable'),
    ("resourcequotas", "spec.scopes", ["NotBestEffort"], "spec.scopes: Invalid value"),
    ("volumeattachments.storage.k8s.io", "spec.nodeName", "m", "spec: Invalid value"),
    ("servicecidrs.networking.k8s.io", "spec.cidrs", ["10.1.0.0/24"], "spec.cidrs: Invalid value")])
def test_what_an_update_may_not_do(name, path, value, want):
    found = refusals(name, _set(path, value))
    assert len(found) == 1 and found[0].startswith(want)


def test_a_suspended_job_may_choose_its_nodes_and_size_and_a_bound_claim_may_grow():
    def choose(obj):
        obj["spec"]["template"]["spec"]["nodeSelector"] = {"disk": "ssd"}
    assert refusals("jobs.batch", choose)
    old = made("jobs.batch", spec={"template": ENDING, "suspend": True})
    new = objects.deep_copy(old)
    choose(new)
    plan = strategy.of(named("jobs.batch"))
    assert plan.validate_update(new, old) == []
    new["spec"]["template"]["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "4"}, "limits": {"cpu": "8"}}
    old["status"] = {"startTime": "2026-01-01T00:00:00Z"}
    assert plan.validate_update(new, old), "it runs, and nobody has stopped it yet"
    old["status"]["conditions"] = [{"type": "Suspended", "status": "True"}]
    assert plan.validate_update(new, old) == []
    old["status"]["active"] = 1
    assert plan.validate_update(new, old), "a pod of the old template still runs"
    old["status"] = {}
    new["spec"]["template"]["spec"]["containers"][0]["image"] = "another"
    assert plan.validate_update(new, old)
    claim = made("persistentvolumeclaims")
    grown = objects.deep_copy(claim)
    grown["spec"]["resources"]["requests"]["storage"] = "2Gi"
    plan = strategy.of(named("persistentvolumeclaims"))
    assert plan.validate_update(grown, claim)
    claim["status"]["phase"] = "Bound"
    assert plan.validate_update(grown, claim) == []


@pytest.mark.parametrize(("name", "body", "want"), [
    ("ingresses.networking.k8s.io", {"metadata": {"annotations": {"kubernetes.io/ingress.class": "n"}}},
     "annotation \"kubernetes.io/ingress.class\" is deprecated, please use 'spec.ingressClassName' instead"),
    ("cronjobs.batch", {"metadata": {"name": "a.b"}}, 'metadata.name: "a.b" is used in Pod names and hostnames, which '
     "can result in surprising behavior; a DNS label is recommended"),
    ("persistentvolumeclaims", {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {
        "storage": "100m"}}}}, 'spec.resources.requests[storage]: fractional byte value "100m" is invalid, must be an '
     "integer")])
def test_what_a_writer_is_warned_of(name, body, want):
    plan = strategy.of(named(name))
    assert plan.warnings(made(name, **body), None) == [want] and plan.warnings(made(name), None) == []


@pytest.mark.parametrize(("text", "want"), [
    ("61 * * * *", r"end of range (61) above maximum (59): 61"), ("@often", "unrecognized descriptor: @often"),
    ("a * * * *", 'failed to parse int from a: strconv.Atoi: parsing "a": invalid syntax'),
    ("*/0 * * * *", "step of range should be a positive number: */0")])
def test_bad_schedules(text, want):
    with pytest.raises(ValueError) as told:
        cron.parse(text)
    assert str(told.value) == want


def test_good_schedules():
    found = cron.parse("*/20 9-17/4 1,15 jan-MAR mon")
    assert (found.minutes, found.hours, found.days) == ({0, 20, 40}, {9, 13, 17}, {1, 15})
    assert (found.months, found.weekdays, found.either_day) == ({1, 2, 3}, {1}, True)
    assert not cron.parse("0 0 * * 1").either_day and cron.parse("@every 1h30m").every == 5400

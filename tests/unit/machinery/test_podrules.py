"""The rules for pods that people meet one by one: each with a pod that breaks it, and upstream's words."""

import pytest

from controlplane.machinery.validate import pods, podupdates

CLAIM = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
FOLDER = {"name": "v", "emptyDir": {}}


def spec(container=None, **more):
    return {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "containers": [
        {"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
         **(container or {})}], **more}


def context(**fields):
    return spec({"securityContext": fields})


def mount(volume=FOLDER, **fields):
    return spec({"volumeMounts": [{"name": "v", "mountPath": "/v", **fields}]}, volumes=[volume])


def device(volume=CLAIM, mounts=(), **fields):
    return spec({"volumeDevices": [{"name": "v", "devicePath": "/dev/v", **fields}], "volumeMounts": list(mounts)},
                volumes=[volume])


def probe(kind="readinessProbe", **fields):
    return spec({kind: {"exec": {"command": ["x"]}, "successThreshold": 1, **fields}})


@pytest.mark.parametrize("good", [
    spec(), context(procMount="Default", runAsUser=0), mount(mountPropagation="HostToContainer"), device(),
    mount(readOnly=True, recursiveReadOnly="IfPossible"), spec(os={"name": "windows"}), spec(hostUsers=False),
    spec({"lifecycle": {"preStop": {"sleep": {"seconds": 0}}}}), spec(overhead={"cpu": "1"}),
    spec(resourceClaims=[{"name": "a", "resourceClaimName": "b"}]), spec(preemptionPolicy="Never"),
    spec(dnsConfig={"searches": ["_a.b", ".", "c.d."], "options": [{"name": "ndots"}]}),
    spec({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}, restartPolicy="Never"),
    spec(securityContext={"appArmorProfile": {"type": "Localhost", "localhostProfile": "a"}, "sysctls": []})])
def test_good_ones_pass(good):
    assert [str(c) for c in pods.pod_spec(good, "spec")] == []


@pytest.mark.parametrize(("bad", "want"), [
    (context(procMount="Unmasked"), "procMount: Invalid value: \"Unmasked\": `hostUsers` must be false"),
    (context(seccompProfile={"type": ""}), "seccompProfile.type: Required value: type is required when seccompProfile"),
    (context(seccompProfile={"type": "Unconfined", "localhostProfile": "x"}), "can only be set when seccomp type is "),
    (context(seccompProfile={"type": "Localhost", "localhostProfile": "../x"}), "must not contain '..'"),
    (context(appArmorProfile={"type": "Localhost"}), "localhostProfile: Required value: must be set when AppArmor"),
    (context(appArmorProfile={"type": "Localhost", "localhostProfile": " a"}), "must not be padded with whitespace"),
    (spec(securityContext={"supplementalGroups": [1, -1]}), "supplementalGroups[1]: Invalid value: -1: must be"),
    (spec(securityContext={"fsGroupChangePolicy": "X"}), 'Unsupported value: "X": supported values: "Always", "OnRoot'),
    (spec(hostUsers=False, hostNetwork=True, hostPID=True), "HostPID: Forbidden: when `pod.Spec.HostUsers` is false"),
    (spec(os={"name": "mac"}), 'spec.os: Unsupported value: "mac": supported values: "linux", "windows"'),
    (spec({"securityContext": {"privileged": False}}, os={"name": "windows"}),
     "containers[0].securityContext.privileged: Forbidden: cannot be set for a windows pod"),
    (spec(os={"name": "linux"}, securityContext={"windowsOptions": {}}), "cannot be set for a linux pod"),
    (mount(mountPropagation="Bidirectional"), "available only to privileged containers"),
    (mount(recursiveReadOnly="Enabled"), "recursiveReadOnly: Forbidden: may only be specified when readOnly is true"),
    (mount(recursiveReadOnly="Enabled", readOnly=True, mountPropagation="HostToContainer"), "mountPropagation is None"),
    (device(FOLDER), "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"),
    (device(devicePath="/a/../b"), "can not contain backsteps ('..')"),
    (device(mounts=[{"name": "v", "mountPath": "/v"}]), "volumeMounts[0].name: Invalid value: \"v\": must not"),
    (device({"name": "w", "emptyDir": {}}), 'volumeDevices[0].name: Not found: "v"'),
    (probe(terminationGracePeriodSeconds=1), "must not be set for readinessProbes"),
    (probe("livenessProbe", successThreshold=2), "successThreshold: Invalid value: 2: must be 1"),
    (spec({"lifecycle": {"preStop": {"sleep": {"seconds": 31}}}}), "preStop.sleep: Invalid value: 31: must be "
     "non-negative and less than terminationGracePeriodSeconds (30)"),
    (spec({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}, restartPolicy="Never"),
     "must be 'NotRequired' when `restartPolicy` is 'Never'"),
    (spec({"resizePolicy": [{"resourceName": "gpu", "restartPolicy": "NotRequired"}]}), 'values: "cpu", "memory"'),
    (spec({"imagePullPolicy": ""}), "imagePullPolicy: Required value"),
    (spec(restartPolicy="No"), 'supported values: "Always", "OnFailure", "Never"'),
    (spec(preemptionPolicy="X"), 'preemptionPolicy: Unsupported value: "X": supported'),
    (spec(readinessGates=[{"conditionType": "a b"}]), "readinessGates[0].conditionType: Invalid value: \"a b\""),
    (spec(resourceClaims=[{"name": "a"}]), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
    (spec(resourceClaims=[{"name": "a", "resourceClaimName": "b"}] * 2), 'resourceClaims[1].name: Duplicate'),
    (spec(overhead={"x y": "1"}), "spec.overhead.limits[x y]: Invalid value: \"x y\": name part must consist of"),
    (spec(priorityClassName="A"), 'spec.priorityClassName: Invalid value: "A": a lowercase RFC 1123 subdomain'),
    (spec(dnsConfig={"searches": ["a"] * 33}), "must not have more than 32 search paths"),
    (spec(dnsConfig={"searches": ["A"]}), "searches[0]: Invalid value: \"A\": a lowercase RFC 1123 subdomain must "
     "consist of lower case alphanumeric characters, '_', '-' or '.'"),
    (spec(dnsConfig={"options": [{"value": "1"}]}), "dnsConfig.options[0]: Required value: must not be empty"),
    (spec({"ports": [{"containerPort": 1, "hostPort": 2, "protocol": "TCP"}]}, hostNetwork=True),
     "ports[0].hostPort: Invalid value: 2: must match `containerPort` when `hostNetwork` is true")])
def test_broken_rules_are_named(bad, want):
    found = [f"{c.field}: {c.message}" for c in pods.pod_spec(bad, "spec")]
    assert any(want in text for text in found), found


@pytest.mark.parametrize(("before", "after", "want"), [
    ({"activeDeadlineSeconds": 5}, {"activeDeadlineSeconds": 9}, "Invalid value: 9: must be less than or equal to"),
    ({}, {"activeDeadlineSeconds": -1}, "Invalid value: -1: must be between 0 and 2147483647, inclusive"),
    ({"schedulingGates": [{"name": "a/b"}]}, {"schedulingGates": [{"name": "c/d"}]},
     "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'c/d'")])
def test_what_an_update_may_not_do(before, after, want):
    found = podupdates.changes({"spec": spec(**after)}, {"spec": spec(**before)})
    assert any(want in f"{c.field}: {c.message}" for c in found), found

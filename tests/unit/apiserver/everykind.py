"""A small good body of every built-in kind that can be made and read, for tests that go through all of them."""

from __future__ import annotations

import base64
import json

from controlplane.machinery.resources import BUILTIN
from tests.unit.apiserver.test_signing import pem
from tests.unit.apiserver.test_trustbundles import FIRST
from tests.unit.machinery.test_kinds import BODIES, SELECTED, TEMPLATE

SCHEMA = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
MORE = {  # what the table of small bodies leaves out
    "pods": {"spec": TEMPLATE["spec"]}, "configmaps": {"data": {"a": "b"}}, "secrets": {"stringData": {"a": "b"}},
    "services": {"spec": {"ports": [{"port": 80}]}}, "serviceaccounts": {}, "namespaces": {}, "nodes": {},
    "endpoints": {"subsets": [{"addresses": [{"ip": "10.1.2.3"}], "ports": [{"port": 1}]}]},
    "replicationcontrollers": {"spec": {"template": TEMPLATE}},
    "deployments.apps": {"spec": SELECTED}, "replicasets.apps": {"spec": SELECTED},
    "leases.coordination.k8s.io": {"spec": {"holderIdentity": "me", "leaseDurationSeconds": 5}},
    "endpointslices.discovery.k8s.io": {"addressType": "IPv4", "ports": [{"port": 80}],
                                        "endpoints": [{"addresses": ["10.1.2.3"], "conditions": {}}]},
    "events": {"involvedObject": {"namespace": "default", "kind": "Pod", "name": "p"}, "reason": "R", "message": "m"},
    "events.events.k8s.io": {"regarding": {"namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
                             "action": "Do", "reason": "R", "type": "Normal", "reportingController": "c",
                             "reportingInstance": "i"},
    "roles.rbac.authorization.k8s.io": {"rules": []}, "clusterroles.rbac.authorization.k8s.io": {"rules": []},
    "rolebindings.rbac.authorization.k8s.io": {"roleRef": {"kind": "Role", "name": "x", "apiGroup": ""}},
    "clusterrolebindings.rbac.authorization.k8s.io": {"roleRef": {"kind": "ClusterRole", "name": "x", "apiGroup": ""}},
    "certificatesigningrequests.certificates.k8s.io": {"spec": {"signerName": "a.b/c", "usages": ["client auth"]}},
    "clustertrustbundles.certificates.k8s.io": {"spec": {"trustBundle": FIRST}},
    "podcertificaterequests.certificates.k8s.io": {"spec": {"signerName": "a.b/c", **dict.fromkeys(
        ("podName", "podUID", "serviceAccountName", "serviceAccountUID", "nodeName", "nodeUID"), "x")}},
    "customresourcedefinitions.apiextensions.k8s.io": {"metadata": {"name": "foos.a.b"}, "spec": {
        "group": "a.b", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
        "versions": [{"name": "v1", "served": True, "storage": True, "schema": SCHEMA}]}},
    "apiservices.apiregistration.k8s.io": {"metadata": {"name": "v1.c.d"}, "spec": {
        "group": "c.d", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
        "service": {"namespace": "default", "name": "s"}}}}


def kinds():
    """Every version of every kind that can be made and read."""
    return [r for r in BUILTIN if {"create", "get", "list"} <= set(r.verbs)]


def body_of(resource):
    body = {**MORE, **BODIES}.get(f"{resource.plural}.{resource.group}".rstrip("."))
    if body is None:
        raise AssertionError(f"no body for {resource.name}")
    if resource.api_version == "autoscaling/v1":
        body = {"spec": {k: v for k, v in body["spec"].items() if k != "behavior"}}
    body = json.loads(json.dumps(body))
    if "roleRef" in body:
        body["roleRef"]["apiGroup"] = "rbac.authorization.k8s.io"
    if resource.kind == "CertificateSigningRequest":
        body["spec"]["request"] = base64.b64encode(pem("jane")).decode()
    if resource.kind == "PodCertificateRequest":
        body["spec"]["stubPKCS10Request"] = "".join(pem("jane").decode().split("-----")[2].split())
    metadata = {"name": "typed", "labels": {"made": "typed"}, **(body.get("metadata") or {})}
    return {"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": metadata}

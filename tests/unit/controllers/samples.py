"""Objects for tests of the plans."""

from controlplane.controllers.workloads.deployments import rollout
from controlplane.machinery.clock import rfc3339


def deployment(name, replicas=3, image="web:1", **spec):
    return {"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, **spec,
                     "template": {"metadata": {"labels": {"app": name}},
                                  "spec": {"containers": [{"name": "c", "image": image}]}}}}


def replica_set(name, replicas, available=0, created=0, revision=0):
    return {"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}",
                         "creationTimestamp": rfc3339(1_700_000_000 + created),
                         "annotations": {rollout.REVISION: str(revision)} if revision else {}},
            "spec": {"replicas": replicas}, "status": {"replicas": available, "availableReplicas": available}}


def pod(name, node="", phase="Running", ready=None, ip="", annotations=None, tolerations=None):
    status = {"phase": phase}
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    if ready is not None:
        status["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": rfc3339(ready)}]
    return {"apiVersion": "v1", "kind": "Pod", "status": status,
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": {"app": "x"},
                         "annotations": annotations or {}, "creationTimestamp": "2025-12-31T00:00:00Z"},
            "spec": {"nodeName": node, "tolerations": tolerations or [],
                     "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]}}


def service(name, **port):
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": {"team": "a"}},
            "spec": {"selector": {"app": "x"}, "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"],
                     "ports": [{"name": "web", "port": 80, "protocol": "TCP", **port}]}}

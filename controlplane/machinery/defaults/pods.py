"""Defaults of pods and of the pod templates that other kinds embed, and the quality of service their resources give.

In place, pure, idempotent; called by `defaults`, and by whoever makes pods from templates. Quantities get their one
spelling here, so that equal pods are equal texts.

Upstream: k8s.io/kubernetes/pkg/apis/core/v1/defaults.go and component-helpers' qos.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import podresources, quantity

Object = dict[str, Any]
FILE_MODE = 0o644
TOKEN_SECONDS = 3600  # lifetime of a projected token when its volume names none
_POD_SPEC = (("restartPolicy", "Always"), ("dnsPolicy", "ClusterFirst"), ("schedulerName", "default-scheduler"))
_PROBE = (("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3))
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


def unset(obj: Object, field: str, value: Any) -> None:
    """Fill a field whose Go type is no pointer: null, "" and 0 mean it was left out."""
    if not obj.get(field):
        obj[field] = value


def absent(obj: Object, field: str, value: Any) -> None:
    """Fill a field whose Go type is a pointer: zero is a value, null is not."""
    if obj.get(field) is None:
        obj[field] = value


def quantities(obj: Object, field: str) -> None:
    """Give each quantity of a resource list its canonical spelling. Bad ones stay for the type check to name."""
    found = obj.get(field)
    if not found:
        return
    for name, text in found.items():
        try:
            found[name] = quantity.canonical(text)
        except ValueError:
            continue


def pod(obj: Object) -> None:
    """A Pod: what a template gets, and what only a pod itself gets."""
    spec = obj["spec"] = obj.get("spec") or {}
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        _requests_from_limits(container)
    _whole(spec)
    absent(spec, "enableServiceLinks", True)
    pod_spec(spec)
    if spec.get("hostNetwork"):
        for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
            for port in container.get("ports") or ():
                if not port.get("hostPort"):
                    port["hostPort"] = port.get("containerPort", 0)
    status = obj["status"] = obj.get("status") or {}
    unset(status, "phase", "Pending")
    unset(status, "qosClass", podresources.qos_class(spec))
    if spec.get("schedulingGates") and not status.get("conditions"):
        status["conditions"] = [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                                 "message": "Scheduling is blocked due to non-empty scheduling gates"}]


def template(obj: Object) -> None:
    """A PodTemplateSpec."""
    if obj.get("metadata") is None:
        obj["metadata"] = {}
    spec = obj["spec"] = obj.get("spec") or {}
    pod_spec(spec)


def pod_spec(spec: Object) -> None:
    for field, value in _POD_SPEC:
        unset(spec, field, value)
    absent(spec, "terminationGracePeriodSeconds", 30)
    absent(spec, "securityContext", {})
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:  # the older name stays a copy of the newer
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for field in _CONTAINERS:
        for each in spec.get(field) or ():
            container(each)
    for each in spec.get("volumes") or ():
        volume(each)
    quantities(spec, "overhead")
    for field in ("limits", "requests"):
        quantities(spec.get("resources") or {}, field)


def image_pull_policy(image: str) -> str:
    """`Always` for what may move (no tag, or `latest`), unless a digest pins it."""
    if "@" in image:
        return "IfNotPresent"
    last = image.rsplit("/", 1)[-1]
    _, colon, tag = last.partition(":")
    return "Always" if not colon or tag == "latest" else "IfNotPresent"


def container(obj: Object) -> None:
    unset(obj, "imagePullPolicy", image_pull_policy(obj.get("image") or ""))
    unset(obj, "terminationMessagePath", "/dev/termination-log")
    unset(obj, "terminationMessagePolicy", "File")
    resources = obj["resources"] = obj.get("resources") or {}
    for field in ("limits", "requests"):
        quantities(resources, field)
    for port in obj.get("ports") or ():
        unset(port, "protocol", "TCP")
    for env in obj.get("env") or ():
        _source(env.get("valueFrom"))
    for field in ("livenessProbe", "readinessProbe", "startupProbe"):
        if obj.get(field):
            _probe(obj[field])
    for hook in (obj.get("lifecycle") or {}).values():
        if isinstance(hook, dict):
            _handler(hook)
    if (obj.get("securityContext") or {}).get("procMount") == "":
        obj["securityContext"]["procMount"] = "Default"


def _requests_from_limits(obj: Object) -> None:
    resources = obj.get("resources") or {}
    limits = resources.get("limits")
    if limits:
        requests = resources["requests"] = resources.get("requests") or {}
        for name, value in limits.items():
            requests.setdefault(name, value)


def _whole(spec: Object) -> None:
    """What a pod states as a whole: of huge pages what its containers may use, and requests where it has limits."""
    stated = spec.get("resources") or {}
    try:
        if stated.get("limits") or stated.get("requests"):
            limits = dict(stated.get("limits") or {})
            limits |= {name: str(most) for name, most in podresources.aggregate(spec, "limits").items()
                       if name.startswith("hugepages-") and name not in limits}
            if limits:
                stated["limits"] = limits
        if stated.get("limits"):
            asked = {name: str(least) for name, least in podresources.aggregate(spec, "requests").items()
                     if name in podresources.COMPUTE}
            stated["requests"] = {**{n: v for n, v in stated["limits"].items() if podresources.supported(n)}, **asked,
                                  **(stated.get("requests") or {})}
    except ValueError:  # a quantity that is none: the type check names it
        return


def _source(source: Object | None) -> None:
    """An env's or a downward-API item's valueFrom."""
    if not source:
        return
    if source.get("fieldRef"):
        unset(source["fieldRef"], "apiVersion", "v1")
    if source.get("resourceFieldRef"):
        reference = source["resourceFieldRef"]
        reference["divisor"] = quantity.canonical(reference.get("divisor") or "0")


def _probe(probe: Object) -> None:
    for field, value in _PROBE:
        unset(probe, field, value)
    _handler(probe)
    if probe.get("grpc") is not None:
        absent(probe["grpc"], "service", "")


def _handler(handler: Object) -> None:
    if handler.get("httpGet") is not None:
        unset(handler["httpGet"], "path", "/")
        unset(handler["httpGet"], "scheme", "HTTP")


def volume(obj: Object) -> None:
    sources = [k for k, v in obj.items() if k != "name" and v is not None]
    if not sources:
        obj["emptyDir"] = {}
        return
    source = obj[sources[0]]
    kind = sources[0]
    if not isinstance(source, dict):
        return
    if kind in ("secret", "configMap", "downwardAPI", "projected"):
        absent(source, "defaultMode", FILE_MODE)
    if kind == "downwardAPI":
        for item in source.get("items") or ():
            _source(item)
    elif kind == "projected":
        for projection in source.get("sources") or ():
            if projection.get("serviceAccountToken"):
                absent(projection["serviceAccountToken"], "expirationSeconds", TOKEN_SECONDS)
            for item in (projection.get("downwardAPI") or {}).get("items") or ():
                _source(item)
    elif kind == "hostPath":
        absent(source, "type", "")
    elif kind == "emptyDir" and source.get("sizeLimit") is not None:
        source["sizeLimit"] = quantity.canonical(source["sizeLimit"])
    elif kind == "iscsi":
        unset(source, "iscsiInterface", "default")
    elif kind == "ephemeral":
        claim = (source.get("volumeClaimTemplate") or {}).get("spec")
        if claim is not None:
            absent(claim, "volumeMode", "Filesystem")


def persistent_source(spec: Object) -> None:
    """The source in a PersistentVolume's spec: as a pod's, but none is made up."""
    for kind, fields in (("hostPath", {"type": ""}), ("iscsi", {"iscsiInterface": "default"}),
                         ("rbd", {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"})):
        source: Object | None = spec.get(kind)
        if source is not None:
            source.update({field: value for field, value in fields.items() if source.get(field) is None})

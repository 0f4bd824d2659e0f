"""Explanations: from what statuses, events, specs and refusals say to a fact, a reason and a fix."""

import asyncio

import pytest
import yaml

from controlplane.apiserver import explain, why
from controlplane.apiserver.explain import refusals
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import Forbidden, Invalid, invalid, not_supported, required
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import config_map, pod, serving


class World:
    """Plain objects by resource name."""

    def __init__(self, refused=(), now=0.0, **objects):
        self.now = now
        self._refused = list(refused)
        self._objects = {name.replace("_", ".", 1): found for name, found in objects.items()}

    def list(self, resource, namespace):
        return [o for o in self._objects.get(resource.split(".")[0], ())
                if not namespace or o["metadata"].get("namespace", "") in ("", namespace)]

    def get(self, resource, namespace, name):
        return next((o for o in self.list(resource, namespace) if o["metadata"]["name"] == name), None)

    def counts(self, namespace):
        return {name: len(self.list(name, namespace)) for name in self._objects}

    def refusals(self, resource, namespace, name=""):
        return [r for r in self._refused if r["resource"] == resource and (not name or r["name"] == name)]


def told(obj, **world):
    return "\n".join(str(f) for f in explain.findings(obj, World(**world)))


def a_pod(name="p", labels=None, node="n1", spec=None, **status):
    return {"kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": name, "labels": labels or {}},
            "spec": {"containers": [{"name": "c", "image": "web:1"}], **({"nodeName": node} if node else {}),
                     **(spec or {})}, "status": {"phase": "Pending", **status}}


def a_node(name="n1", cpu="2", labels=None, **spec):
    return {"kind": "Node", "metadata": {"name": name, "labels": labels or {}}, "spec": spec,
            "status": {"allocatable": {"cpu": cpu, "memory": "2Gi"},
                       "conditions": [{"type": "Ready", "status": "True"}]}}


def unfit(message, **spec):
    return a_pod(node="", spec=spec, conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                                                  "message": message}])


def test_an_unscheduled_pod_names_the_smallest_fix_of_each_reason():
    busy = a_pod("busy", spec={"containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]})
    said = told(unfit("0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {key: value}, "
                      "1 node(s) were unschedulable. preemption: 0/3 nodes are available: 3 No victims."),
                nodes=[a_node(), a_node("n2", "250m", taints=[{"key": "key", "effect": "NoSchedule"}]),
                       a_node("n3", "100m", unschedulable=True)], pods=[busy])
    assert "1 of 3 nodes: Insufficient cpu" in said and "to 500m at most (free on node n1)" in said
    assert "kubectl taint node n2 key-" in said and "kubectl uncordon n3" in said
    said = told(unfit("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
                      nodeSelector={"disk": "ssd"}), nodes=[a_node()])
    assert "kubectl label node n1 disk=ssd" in said


def waiting(reason, message="", **more):
    return {"name": "c", "image": "web:1", "restartCount": 4,
            "state": {"waiting": {"reason": reason, "message": message}}, **more}


@pytest.mark.parametrize("status, expected", [
    (waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 127, "reason": "Error"}}),
     "exit code 127, the command was not found in the image\n  fix: kubectl logs --previous p -n d -c c"),
    (waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
     "raise resources.limits.memory"),
    (waiting("ErrImagePull", "pull access denied for web"), "kubectl create secret docker-registry"),
    (waiting("ErrImagePull", "dial tcp: lookup registry: no such host"), "cannot reach the registry"),
    (waiting("CreateContainerConfigError", 'configmap "settings" not found'), "kubectl create configmap settings -n d"),
])
def test_containers(status, expected):
    assert expected in told(a_pod(containerStatuses=[status]))


def test_probes_and_mounts_are_told_by_events():
    event = {"metadata": {"namespace": "d"}, "type": "Warning", "involvedObject": {"uid": "p"}}
    running = {"name": "c", "ready": False, "state": {"running": {}}}
    said = told(a_pod(phase="Running", containerStatuses=[running]),
                events=[{**event, "reason": "Unhealthy", "message": "Readiness probe failed: HTTP 500"}])
    assert "runs but is not ready: Readiness probe failed: HTTP 500" in said
    said = told(a_pod(), events=[{**event, "reason": "FailedMount", "message": 'secret "key" not found'}])
    assert "kubectl create secret generic key -n d" in said


def a_service(**spec):
    return {"kind": "Service", "metadata": {"name": "web", "namespace": "d"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}], **spec}}


def test_a_service_without_endpoints():
    near = a_pod("near", {"app": "wbe", "tier": "a"})
    assert "wants app=web, the nearest pod near has app=wbe" in told(a_service(), pods=[a_pod("far"), near])
    assert "kubectl set selector service web app=wbe -n d" in told(a_service(), pods=[near])
    assert "there is no pod in the namespace" in told(a_service())
    mine = a_pod("mine", {"app": "web"}, containerStatuses=[waiting("CrashLoopBackOff")],
                 spec={"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 80}]}]})
    said = told(a_service(), pods=[mine])
    assert "none of its 1 pods is ready" in said and "keeps ending" in said
    assert 'its targetPort "http" is the name of none; the pods have web' in said and "set targetPort to web" in said
    ready = {"metadata": {"namespace": "d", "labels": {"kubernetes.io/service-name": "web"}},
             "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]}
    assert told(a_service(ports=[]), pods=[mine], endpointslices=[ready]) == ""


def owned_by(obj, kind, uid):
    obj["metadata"]["ownerReferences"] = [{"kind": kind, "uid": uid, "controller": True, "name": uid}]
    return obj


def test_a_deployment_is_followed_to_its_pods_and_refusals():
    deployment = {"kind": "Deployment", "metadata": {"name": "web", "namespace": "d", "uid": "D"}, "spec": {},
                  "status": {"conditions": [{"type": "Progressing", "status": "False", "message": "timed out"}]}}
    made = owned_by({"metadata": {"name": "web-1", "namespace": "d", "uid": "R"}, "spec": {"replicas": 1}},
                    "Deployment", "D")
    bad = owned_by(a_pod(containerStatuses=[waiting("ErrImagePull", "not found")]), "ReplicaSet", "R")
    said = told(deployment, replicasets=[made], pods=[bad])
    assert "does not progress: timed out" in said and "kubectl rollout undo" in said and "web:1" in said


def test_deletion_names_finalizers_owners_and_what_remains():
    claim = {"kind": "ConfigMap", "metadata": {
        "name": "a", "namespace": "d", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y", "z.io/w"],
        "managedFields": [{"manager": "tool", "fieldsV1": {"f:metadata": {"f:finalizers": {'v:"x.io/y"': {}}}}}]}}
    said = told(claim)
    assert "removed by tool, which set it" in said and "the controller behind z.io" in said
    assert """-p '{"metadata":{"finalizers":["z.io/w"]}}'""" in said
    space = {"kind": "Namespace", "metadata": {"name": "d", "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert "still holds 1 configmaps" in told(space, configmaps=[claim])
    gone = a_pod(node="n9")
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    said = told(gone, now=parse_rfc3339("2026-01-01T00:01:00Z"))
    assert "should have ended 60 seconds ago: its node n9 does not answer" in said


def refused(error, user="jane", verb="create", resource="pods", **where):
    about = {"subresource": "", "namespace": "d", "name": "p", "path": "", **where}
    return refusals.entry(user, verb, named(resource), error=error, time="t", **about)


def test_a_denied_request_gets_the_smallest_role():
    denied = Forbidden.of("deployments", "web", 'User "system:serviceaccount:d:ci" cannot patch resource '
                          '"deployments/scale" in API group "apps" in the namespace "d"', "apps")
    found, = refusals.explain(refused(denied, "system:serviceaccount:d:ci", "patch", "deployments.apps",
                                      subresource="scale", name="web"))
    assert found.fix == ("kubectl create role ci-patch-deployments --verb=patch --resource=deployments.apps/scale -n d "
                         "&& kubectl create rolebinding ci-patch-deployments --role=ci-patch-deployments "
                         "--serviceaccount=d:ci -n d")
    assert "verb patch of deployments/scale in API group \"apps\"" in found.because


def test_a_rejected_field_gets_correct_yaml():
    wrong = Invalid.of("Pod", "p", [not_supported("spec.restartPolicy", "always", ["Always", "Never"]),
                                    required("spec.containers[1].image"),
                                    invalid("metadata.name", "My_Pod", "a lowercase RFC 1123 subdomain must …")])
    policy, image, name = refusals.explain(refused(wrong))
    fixes = [yaml.safe_load(f.fix.removeprefix("for example\n")) for f in (policy, image, name)]
    assert fixes == [{"spec": {"restartPolicy": "Always"}}, {"spec": {"containers": [{"image": "<value>"}]}},
                     {"metadata": {"name": "my-pod"}}]
    assert "# entry 2" in image.fix
    assert refusals.nearest(named("deployments.apps").definition, "spec.replica") == "spec.replicas"
    assert refusals.nearest(named("pods").definition, "spec.containers[0].imagee") == "spec.containers[0].image"


def test_no_value_of_a_secret_is_remembered():
    entry = refused(Invalid.of("Secret", "s", [invalid("data[p]", "hunter2", "no")]), resource="secrets")
    assert "hunter2" not in str(entry) and entry["causes"][0]["field"] == "data[p]"


def test_the_server_says_why_to_whom_it_may(tmp_path):
    async def main():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            jane = {"Impersonate-User": "jane"}
            space = "/api/v1/namespaces/default/configmaps"
            await api.made(space, config_map("settings"))
            assert (await api.call("GET", space, headers=jane))[0] == 403
            assert (await api.call("GET", f"/why{space}/settings", headers=jane))[0] == 403
            wrong = pod("p", restartPolicy="never")
            wrong["metadata"]["finalizers"] = ["x.io/y"]
            await api.call("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            assert (await api.call("POST", "/api/v1/namespaces/default/pods", wrong))[0] == 422
            status, said = await api.call("GET", "/why/api/v1/namespaces/default/pods/p")
            assert status == 200 and "restartPolicy: Never" in said["findings"][0]["fix"], said
            _, said = await api.call("GET", "/why")
            assert "kubectl create role jane-list-configmaps" in str(said)
            assert (await api.call("POST", space, config_map("settings"), headers={"Impersonate-User": "system:node:n",
                                   "Impersonate-Group": "system:masters"}))[0] == 409
            assert "already exists" not in str((await api.call("GET", "/why"))[1])
            _, said = await api.call("GET", f"/why{space}/setings")
            assert said["findings"][0]["because"] == 'there is "settings"'
            assert (await api.call("GET", f"/why{space}/other"))[0] == 404
            assert (await api.call("GET", f"/why{space}/settings"))[1]["findings"] == []
    asyncio.run(main())


def test_all_that_is_wrong_is_told_in_one_answer(tmp_path):
    async def main():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            for name in ("default", "shop"):
                if name != "default":
                    await api.made("/api/v1/namespaces", {"metadata": {"name": name}})
                await api.call("POST", f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
                await api.made(f"/api/v1/namespaces/{name}/services", {"metadata": {"name": f"of-{name}"}, "spec": {
                    "selector": {"app": name}, "ports": [{"port": 80}]}})
            elsewhere = {"metadata": {"name": "dns", "labels": {"service.kubernetes.io/service-proxy-name": "x"}},
                         "spec": {"ports": [{"port": 53}]}}
            await api.made("/api/v1/namespaces/shop/services", elsewhere)
            await api.made("/api/v1/nodes", {"metadata": {"name": "n1"}, "spec": {"unschedulable": True}})
            facts = [f["fact"] for f in (await api.call("GET", "/why"))[1]["findings"]]
            assert facts == ["node n1 is not ready", "node n1 is cordoned",
                             "service default/of-default has no endpoints", "service shop/of-shop has no endpoints"]
            _, said = await api.call("GET", "/why/api/v1/namespaces/shop")
            assert [f["fact"] for f in said["findings"]] == ["service shop/of-shop has no endpoints"]
            for number in range(why.MAX_TOLD):
                await api.made("/api/v1/nodes", {"metadata": {"name": f"m{number}"}})
            _, said = await api.call("GET", "/why")
            assert len(said["findings"]) == why.MAX_TOLD + 1 and "more is wrong" in said["findings"][-1]["fact"]
    asyncio.run(main())


@pytest.mark.parametrize(("reason", "message", "services", "fix"), [
    ("ServiceNotFound", 'service/api in "d" is not present', [], "create service api in namespace d"),
    ("ServicePortError", "", [{"port": 80}], "one of the service's ports: 80"),
    ("MissingEndpoints", "", [{"port": 443}], "pelamis why service/api -n d"),
    ("FailedDiscoveryCheck", "tls: failed to verify certificate: x509: signed by nobody", [{"port": 443}],
     "which must name api.d.svc"),
    ("FailedDiscoveryCheck", "bad status from https://api.d.svc: 500", [{"port": 443}],
     "kubectl logs service/api -n d")])
def test_an_api_server_that_is_away(reason, message, services, fix):
    behind = [{"kind": "Service", "metadata": {"name": "api", "namespace": "d"}, "spec": {"ports": services}}]
    text = told({"kind": "APIService", "metadata": {"name": "v1.x.io"}, "spec": {
        "group": "x.io", "version": "v1", "service": {"name": "api", "namespace": "d"}}, "status": {"conditions": [
            {"type": "Available", "status": "False", "reason": reason, "message": message}]}},
        services=behind if services else [])
    assert "apiservice v1.x.io is not available: nothing of x.io/v1 can be read or written" in text and fix in text
    assert (message or reason) in text
    assert ("service d/api has no endpoints" in text) == (reason == "MissingEndpoints")


@pytest.mark.parametrize(("spec", "beside", "text"), [
    ({"loadBalancerClass": "acme.io/x"}, {}, "the controller of its loadBalancerClass acme.io/x has given it none"),
    ({}, {}, "there is no pool of addresses"),
    ({}, {"events": [{"metadata": {}, "involvedObject": {"uid": "u"}, "type": "Warning",
                      "reason": "SyncLoadBalancerFailed", "message": "no address left: all taken\n  fix: add some"}]},
     "all taken\n  fix: add some"),
    ({}, {"configmaps": [{"metadata": {"name": "load-balancer-pools", "namespace": "kube-system", "uid": "c"}}],
          "events": [{"metadata": {}, "involvedObject": {"uid": "c"}, "type": "Warning", "reason": "InvalidPool",
                      "message": "pool lab: x names no addresses"}]}, "x names no addresses")])
def test_a_load_balancer_without_address(spec, beside, text):
    found = told({"kind": "Service", "metadata": {"name": "s", "namespace": "d", "uid": "u"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.96.0.9", **spec}}, **beside)
    assert "service d/s has no external address" in found and text in found


@pytest.mark.parametrize(("spec", "text"), [
    ({"defaultBackend": {"service": {"name": "no", "port": {"number": 80}}}}, "leads to service no: there is none"),
    ({"defaultBackend": {"service": {"name": "web", "port": {"name": "x"}}}}, "port x of service web, which has none"),
    ({"tls": [{"hosts": ["a.io"], "secretName": "s"}]}, "has no certificate for a.io: secret s is not there"),
    ({}, "it has no class"), ({"ingressClassName": "z"}, "there is no IngressClass z"),
    ({"ingressClassName": "nginx"}, "the controller k8s.io/nginx has told none")])
def test_an_ingress_that_leads_nowhere(spec, text):
    beside = {"services": [{"metadata": {"name": "web", "namespace": "d"}, "spec": {"ports": [{"port": 80}]}}],
              "ingressclasses": [{"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/nginx"}}]}
    made = {"kind": "Ingress", "metadata": {"name": "i", "namespace": "d"}, "spec": spec}
    assert text in told(made, **beside) and "ingress d/i" in told(made, **beside)
    good = {**made, "spec": {"defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    assert not told(good, **beside)

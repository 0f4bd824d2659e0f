"""Who is who, and who may what: identities, refusals, nodes and their pods, and the reviews about all of it."""

import base64

import pytest

from controlplane.apiserver.authentication.authn import ANYBODY, Authenticator, User, from_certificate, impersonated
from controlplane.apiserver.authorization import rolebootstrap
from controlplane.apiserver.authorization.access import attributes_of
from controlplane.apiserver.authorization.authz import Authorizer
from controlplane.apiserver.authorization.nodeauth import refers_to
from controlplane.apiserver.authorization.reviews import Reviews
from controlplane.apiserver.pipeline import Pipeline
from controlplane.machinery.errors import BadRequest, Finding, Forbidden, Unauthorized
from controlplane.machinery.nodelabels import may_label
from tests.unit.apiserver.edge import make_context, put, request, running
from tests.unit.apiserver.test_signing import pem

ADMIN = User("kubernetes-admin", groups=("system:masters", "system:authenticated"))
JANE = User("jane", groups=("system:authenticated",))
N1 = User("system:node:n1", groups=("system:nodes", "system:authenticated"))


@pytest.fixture(scope="module")
def with_roles():
    """A log that holds the default roles and bindings."""
    made = make_context()
    running(made, lambda: rolebootstrap.ensure(made))
    return made


@pytest.fixture
def context(with_roles):
    made = make_context()
    made.cache = with_roles.cache
    made.authorizer = Authorizer(made)
    return made


def may(context, user, path, method="GET"):
    context.authorizer.authorize(attributes_of(request(context, path, method, user)))


def refused(context, user, path, method="GET"):
    with pytest.raises(Forbidden) as caught:
        may(context, user, path, method)
    return caught.value.message


def test_refusals_are_worded_as_clients_know_them(context):
    assert refused(context, JANE, "/api/v1/namespaces/ns/pods") == (
        'pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "ns"')
    assert refused(context, JANE, "/api/v1/namespaces/ns/pods/a/exec", "POST") == (
        'pods "a" is forbidden: User "jane" cannot create resource "pods/exec" in API group "" in the namespace "ns"')
    assert refused(context, JANE, "/apis/apps/v1/deployments?watch=1") == (
        'deployments.apps is forbidden: User "jane" cannot watch resource "deployments" in API group "apps" '
        "at the cluster scope")
    assert refused(context, ANYBODY, "/metrics") == 'forbidden: User "system:anonymous" cannot get path "/metrics"'


def test_built_in_roles(context):
    for path in ("/healthz", "/livez", "/readyz", "/version"):
        may(context, ANYBODY, path)
    for path in ("/api", "/apis/apps/v1", "/openapi/v3/api/v1"):
        may(context, JANE, path)
        refused(context, ANYBODY, path)
    may(context, JANE, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", "POST")
    may(context, ADMIN, "/apis/no.such/v1/things", "DELETE")
    scheduler = User("system:kube-scheduler", groups=("system:authenticated",))
    may(context, scheduler, "/api/v1/namespaces/ns/pods/p/binding", "POST")
    refused(context, scheduler, "/api/v1/namespaces/ns/secrets/s")
    refused(context, scheduler, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/other", "PUT")
    manager = User("system:kube-controller-manager", groups=("system:authenticated",))
    may(context, manager, "/apis/apps/v1/namespaces/ns/replicasets", "POST")
    refused(context, manager, "/api/v1/namespaces/ns/pods/p/exec", "POST")


def test_a_node_reaches_its_own_pods_and_what_they_name():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
           "spec": {"nodeName": "n1", "serviceAccountName": "app", "containers": [
               {"name": "c", "envFrom": [{"configMapRef": {"name": "env"}}]}],
               "volumes": [{"name": "v", "secret": {"secretName": "tls"}}, {"name": "e", "ephemeral": {}},
                           {"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}}
    volume = {"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "ns", "name": "data"}, "csi": {
        "driver": "d", "nodePublishSecretRef": {"namespace": "ns", "name": "disk"}}}}
    attached = {"metadata": {"name": "va"}, "spec": {"nodeName": "n1"}}

    async def play():
        await put(context, "pods", pod)
        await put(context, "persistentvolumes", volume)
        await put(context, "volumeattachments.storage.k8s.io", attached)
        n2 = User("system:node:n2", groups=("system:nodes",))
        for path in ("configmaps/env", "secrets/tls", "secrets?fieldSelector=metadata.name%3Dtls", "secrets/disk",
                     "serviceaccounts/app", "persistentvolumeclaims/data", "persistentvolumeclaims/p-e"):
            may(context, N1, f"/api/v1/namespaces/ns/{path}")
            refused(context, n2, f"/api/v1/namespaces/ns/{path}")
        for path in ("/api/v1/persistentvolumes/pv", "/apis/storage.k8s.io/v1/volumeattachments/va",
                     "/apis/storage.k8s.io/v1/csinodes/n1", "/api/v1/nodes/n1",
                     "/api/v1/nodes?watch=1&fieldSelector=metadata.name%3Dn1"):
            may(context, N1, path)
            refused(context, n2, path)
        assert refused(context, n2, "/api/v1/nodes/n1").endswith(
            ": node 'n2' cannot read 'n1', only its own Node object")
        refused(context, N1, "/api/v1/nodes")
        refused(context, N1, "/api/v1/persistentvolumes/other")
        assert refused(context, n2, "/api/v1/namespaces/ns/secrets/tls").endswith(
            ": no relationship found between node 'n2' and this object")
        refused(context, N1, "/api/v1/namespaces/ns/secrets")
        refused(context, N1, "/api/v1/namespaces/ns/serviceaccounts/other/token", "POST")

    context = make_context()
    context.authorizer = Authorizer(context)
    running(context, play)
    may(context, N1, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&watch=1")
    assert refused(context, N1, "/api/v1/pods").endswith("can only list/watch pods with spec.nodeName field selector")
    may(context, N1, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1", "PUT")
    refused(context, N1, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2", "PUT")
    refused(context, N1, "/apis/apps/v1/deployments")


def test_node_restriction(context):
    def admit(path, method, obj=None, old=None):
        context.authorizer.admit_node(request(context, path, method, N1), obj, old)

    bound = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}}
    foreign = {"metadata": {"name": "p"}, "spec": {"nodeName": "n2"}}
    admit("/api/v1/namespaces/ns/pods/p", "DELETE", None, bound)
    admit("/api/v1/namespaces/ns/pods/p/status", "PATCH", bound, bound)
    with pytest.raises(Forbidden, match=r'node "n1" can only delete pods with spec\.nodeName set to itself'):
        admit("/api/v1/namespaces/ns/pods/p", "DELETE", None, foreign)
    with pytest.raises(Forbidden, match="can only create mirror pods"):
        admit("/api/v1/namespaces/ns/pods", "POST", bound)
    node = {"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}, "spec": {}}
    admit("/api/v1/nodes/n1", "PATCH", node, node)
    tainted = {**node, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}
    with pytest.raises(Forbidden, match="not allowed to modify taints"):
        admit("/api/v1/nodes/n1", "PATCH", node, tainted)
    with pytest.raises(Forbidden, match='not allowed to modify node "n2"'):
        admit("/api/v1/nodes/n2/status", "PATCH", node, node)
    master = {"metadata": {"name": "n1", "labels": {"node-role.kubernetes.io/master": ""}}}
    with pytest.raises(Forbidden, match=r"is not allowed to modify labels: node-role\.kubernetes\.io/master"):
        admit("/api/v1/nodes/n1", "PATCH", master, node)
    csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
    for name, signer, works in (("system:node:n1", "kubelet-serving", True), ("jane", "kubelet-serving", True),
                                ("system:node:n2", "kubelet-serving", False),
                                ("system:node:n2", "kube-apiserver-client-kubelet", False),
                                ("system:node:n2", "kube-apiserver-client", True)):
        spec = {"signerName": f"kubernetes.io/{signer}", "request": base64.b64encode(pem(name)).decode()}
        if works:
            admit(csrs, "POST", {"metadata": {}, "spec": spec})
        else:
            with pytest.raises(Forbidden, match="can only create a node CSR with CN=system:node:n1"):
                admit(csrs, "POST", {"metadata": {}, "spec": spec})
    assert may_label("example.com/x") and may_label("plain") and not may_label("node-restriction.kubernetes.io/x")


def test_every_place_a_pod_names_a_secret_counts():
    pod = {"spec": {"imagePullSecrets": [{"name": "a"}],
                    "initContainers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "b"}}}]}],
                    "containers": [{"envFrom": [{"secretRef": {"name": "c"}}]}],
                    "volumes": [{"secret": {"secretName": "d"}},
                                {"projected": {"sources": [{"secret": {"name": "e"}}, {"configMap": {"name": "f"}}]}}]}}
    assert refers_to(pod, "secrets") == {"a", "b", "c", "d", "e"}
    assert refers_to(pod, "configmaps") == {"f"}
    assert refers_to(pod, "serviceaccounts") == {"default"}
    pod["spec"]["resourceClaims"] = [{"name": "a", "resourceClaimName": "own"}, {"name": "b"}]
    pod["status"] = {"resourceClaimStatuses": [{"name": "b", "resourceClaimName": "made"}],
                     "extendedResourceClaimStatus": {"resourceClaimName": "extended"}}
    assert refers_to(pod, "resourceclaims") - {""} == {"own", "made", "extended"}


def test_credentials(context, tmp_path):
    file = tmp_path / "tokens.csv"
    file.write_text('# comment\nsecret1,ann,uid-1,"dev,ops"\nsecret2,bob,uid-2\n')
    context = make_context(token_auth_file=file)
    authenticator = Authenticator(context)
    ann = authenticator.authenticate(request(context, "/api", Authorization="Bearer secret1"))
    assert (ann.name, ann.uid, ann.groups) == ("ann", "uid-1", ("dev", "ops", "system:authenticated"))
    with pytest.raises(Unauthorized):
        authenticator.authenticate(request(context, "/api", Authorization="Bearer secret"))
    assert authenticator.authenticate(request(context, "/api")) == ANYBODY
    file.write_text("only-a-token\n")
    with pytest.raises(Finding, match=r"tokens\.csv:1"):
        Authenticator(make_context(token_auth_file=file))
    with pytest.raises(Unauthorized):
        Authenticator(make_context(anonymous_auth=False)).authenticate(request(context, "/api"))
    peer = {"subject": ((("organizationName", "g1"),), (("organizationName", "g2"),), (("commonName", "eve"),)),
            "notAfter": "Jan  1 00:00:00 2030 GMT"}
    eve = from_certificate(peer, b"der", 1_700_000_000)
    assert (eve.name, eve.groups) == ("eve", ("g1", "g2"))
    with pytest.raises(Unauthorized):
        from_certificate(peer, b"der", 2_000_000_000)


def test_impersonation_needs_permission_and_replaces_the_user(tmp_path):
    file = tmp_path / "tokens.csv"
    file.write_text('root,root,1,"system:masters"\njane,jane,2\n')
    context = make_context(token_auth_file=file)
    context.authorizer = Authorizer(context)
    authenticator = Authenticator(context)

    def become(token, **headers):
        return authenticator.authenticate(request(context, "/api", Authorization=f"Bearer {token}", **headers))

    seen = become("root", Impersonate_User="joe", Impersonate_Group="g", Impersonate_Extra_Scope="a")
    assert seen == User("joe", "", ("g", "system:authenticated"), {"scope": ["a"]})
    robot = become("root", Impersonate_User="system:serviceaccount:ns:app")
    assert robot.groups == ("system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated")
    with pytest.raises(Forbidden, match='users "joe" is forbidden: User "jane" cannot impersonate resource "users"'):
        become("jane", Impersonate_User="joe")
    with pytest.raises(BadRequest):
        become("root", Impersonate_Group="g")


def test_access_reviews_agree_with_the_authorizer(context):
    reviews = Reviews(context)

    def ask(kind, asker, **spec):
        path = f"/apis/authorization.k8s.io/v1/{kind.lower()}s"
        return reviews.handle(request(context, path, "POST", asker), {"spec": spec})["status"]

    pods = {"resource": "pods", "verb": "list", "namespace": "ns"}
    assert ask("SelfSubjectAccessReview", JANE, resourceAttributes=pods) == {"allowed": False}
    assert ask("SelfSubjectAccessReview", ADMIN, resourceAttributes=pods)["allowed"]
    scheduler = ask("SubjectAccessReview", ADMIN, user="system:kube-scheduler", resourceAttributes=pods)
    assert scheduler["allowed"] and "RBAC: allowed by ClusterRoleBinding" in scheduler["reason"]
    assert ask("SelfSubjectAccessReview", JANE, nonResourceAttributes={"path": "/api", "verb": "get"})["allowed"]
    listed = ask("SelfSubjectRulesReview", JANE, namespace="ns")
    assert {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"],
            "resources": ["selfsubjectreviews"]} in listed["resourceRules"] and not listed["incomplete"]
    whoami = request(context, "/apis/authentication.k8s.io/v1/selfsubjectreviews", "POST", JANE)
    old = request(context, "/apis/authentication.k8s.io/v1beta1/selfsubjectreviews", "POST", JANE)
    assert reviews.handle(old, {})["apiVersion"] == "authentication.k8s.io/v1beta1"
    assert reviews.handle(whoami, {})["status"]["userInfo"] == {"username": "jane", "groups": ["system:authenticated"]}


def test_impersonation_is_seen_in_any_case_and_never_sticks_to_the_connection():
    context = make_context(authorization_mode=("AlwaysAllow",))

    class Fixed:  # a certificate's user, and whatever the headers make of it
        headers: frozenset = frozenset()

        def authenticate(self, asked):
            return impersonated(asked) if "Impersonate-User" in asked.headers else ADMIN

    pipeline = Pipeline(context, Fixed(), Authorizer(context), None)
    connection: dict = {}
    for headers, name in (({}, "kubernetes-admin"), ({"impersonate-user": "joe"}, "joe"), ({}, "kubernetes-admin")):
        asked = request(context, "/healthz", **headers)
        asked.connection = connection
        pipeline.admit_sender(asked)
        assert asked.user.name == name

"""The credentials every Pod finds mounted, and the tokens behind them."""

import asyncio

import pytest

from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.authorization.authz import Authorizer
from controlplane.apiserver.plugins.accounts import MOUNT_PATH, automounts, mount, unlisted
from controlplane.machinery.errors import Forbidden
from tests.unit.apiserver.edge import make_context, put, request, running
from tests.unit.apiserver.harness import pod, serving


@pytest.mark.parametrize(("own", "general", "expected"), [
    (None, None, True), (None, False, False), (True, False, True), (False, True, False), (None, True, True)])
def test_the_pod_has_the_last_word_on_mounting(own, general, expected):
    assert automounts({"automountServiceAccountToken": own}, {"automountServiceAccountToken": general}) is expected


def test_only_containers_without_a_mount_of_their_own_get_one():
    own = {"name": "mine", "mountPath": MOUNT_PATH}
    spec = {"initContainers": [{"name": "i"}], "containers": [{"name": "a", "volumeMounts": [own]}, {"name": "b"}],
            "volumes": [{"name": "mine", "emptyDir": {}}]}
    mount(spec, "abcde")
    added = {"name": "kube-api-access-abcde", "readOnly": True, "mountPath": MOUNT_PATH}
    assert [c.get("volumeMounts") for c in (*spec["initContainers"], *spec["containers"])] == [[added], [own], [added]]
    assert [v["name"] for v in spec["volumes"]] == ["mine", "kube-api-access-abcde"]
    before = [dict(v) for v in spec["volumes"]]
    mount(spec, "fghij")
    assert spec["volumes"] == before and spec["containers"][1]["volumeMounts"] == [added]


def test_a_mounted_token_is_the_accounts_and_dies_with_its_pod(tmp_path):
    (tmp_path / "tokens.csv").write_text('root,root,1,"system:masters"\n')

    async def play():
        async with serving(tls=tmp_path, client="", authorization_mode=("Node", "RBAC"),
                           token_auth_file=tmp_path / "tokens.csv") as api:
            api.session.headers["Authorization"] = "Bearer root"
            place = "/api/v1/namespaces/default"
            account = await api.made(f"{place}/serviceaccounts", {"metadata": {"name": "app"}})
            made = await api.made(f"{place}/pods", pod("p", serviceAccountName="app"))
            token = made["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]
            ask = {"spec": {"expirationSeconds": token["expirationSeconds"], "boundObjectRef": {
                "kind": "Pod", "name": "p", "uid": made["metadata"]["uid"]}}}
            issued = await api.made(f"{place}/serviceaccounts/app/token", ask)
            await api.made("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", {
                "metadata": {"name": "b"}, "subjects": [{"kind": "ServiceAccount", "name": "app"}],
                "roleRef": {"kind": "ClusterRole", "name": "system:aggregate-to-view"}})
            credential = {"Authorization": f"Bearer {issued['status']['token']}"}
            _, me = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {}, headers=credential)
            info = me["status"]["userInfo"]
            assert info["username"] == "system:serviceaccount:default:app"
            assert info["uid"] == account["metadata"]["uid"]
            assert info["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
            assert (await api.call("GET", f"{place}/pods", headers=credential))[0] == 200
            assert (await api.call("GET", f"{place}/secrets", headers=credential))[0] == 403
            assert (await api.call("GET", "/api/v1/namespaces/kube-system/pods", headers=credential))[0] == 403
            assert (await api.call("DELETE", f"{place}/pods/p?gracePeriodSeconds=0"))[0] == 200
            assert (await api.call("GET", f"{place}/pods", headers=credential))[0] == 401
    asyncio.run(play())


def test_an_account_may_insist_on_its_own_secrets():
    account = {"metadata": {"name": "app", "annotations": {"kubernetes.io/enforce-mountable-secrets": "true"}},
               "secrets": [{"name": "mine"}], "imagePullSecrets": [{"name": "pull"}]}
    fine = pod("p", volumes=[{"name": "v", "secret": {"secretName": "mine"}}], imagePullSecrets=[{"name": "pull"}])
    assert unlisted(fine, account) == ""
    odd = pod("p", initContainers=[{"name": "i", "envFrom": [{"secretRef": {"name": "other"}}]}])
    assert unlisted(odd, account).startswith('secret "other" is not allowed because service account app')
    assert unlisted(pod("p", imagePullSecrets=[{"name": "x"}]), account).startswith('imagePullSecrets[0].name="x"')
    assert unlisted(odd, {"metadata": {"name": "app"}}) == ""


def test_a_node_gets_tokens_for_its_own_pods_and_what_they_mount():
    def mounts(node, *audiences):
        sources = [{"serviceAccountToken": {"path": "t", **({"audience": a} if a else {})}} for a in audiences]
        volumes = [{"name": "v", "projected": {"sources": sources}}]
        return {"metadata": {"name": node, "namespace": "ns", "uid": node}, "spec": {
            "nodeName": node, "serviceAccountName": "app", "containers": [], "volumes": volumes}}

    context = make_context()
    context.authorizer = Authorizer(context)
    n1 = User("system:node:n1", groups=("system:nodes",))

    def why(pod_name, *audiences):
        spec = {"audiences": list(audiences), "boundObjectRef": {"kind": "Pod", "name": pod_name, "uid": pod_name}}
        asked = request(context, "/api/v1/namespaces/ns/serviceaccounts/app/token", "POST", n1)
        try:
            context.authorizer.admit_node(asked, {"spec": spec}, {})
        except Forbidden as error:
            return error.message
        return ""

    async def play():
        await put(context, "pods", mounts("n1", "", "vault"))
        await put(context, "pods", mounts("n2", ""))
        assert why("n1") == why("n1", "vault") == why("gone") == ""
        assert 'audience "other" not found in pod spec volume' in why("n1", "other")
        driven = mounts("n1") | {"metadata": {"name": "driven", "namespace": "ns", "uid": "driven"}}
        driven["spec"]["volumes"] = [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}},
                                     {"name": "w", "csi": {"driver": "inline.example"}}]
        await put(context, "pods", driven)
        await put(context, "persistentvolumeclaims", {"metadata": {"name": "data", "namespace": "ns"},
                                                      "spec": {"volumeName": "pv"}})
        await put(context, "persistentvolumes", {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "d.example"}}})
        for driver, audience in (("d.example", "keys"), ("inline.example", "more")):
            await put(context, "csidrivers.storage.k8s.io", {"metadata": {"name": driver}, "spec": {
                "tokenRequests": [{"audience": audience}]}})
        assert why("driven", "keys") == why("driven", "more") == "" and "not found" in why("driven", "others")
        assert "not found" in why("n1", "keys")
        assert "may only request 0 or 1" in why("n1", "vault", "other")
        assert "scheduled on a different node" in why("n2")

    running(context, play)

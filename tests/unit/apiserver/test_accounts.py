"""The credentials every Pod finds mounted, and the tokens behind them."""

import asyncio

import pytest

from controlplane.apiserver.plugins.accounts import MOUNT_PATH, automounts, mount
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

"""Roles over the wire: they hold from the moment they are written, nobody grants what they lack, the defaults exist."""

import asyncio

import pytest

from tests.unit.apiserver.harness import config_map, serving

RBAC = "/apis/rbac.authorization.k8s.io/v1"
GROUP = "rbac.authorization.k8s.io"


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "tokens.csv"
    file.write_text('root,root,1,"system:masters"\njane,jane,2,dev\n')
    return {"token_auth_file": file, "authorization_mode": ("Node", "RBAC")}


def role(name, *rules, kind="Role", **more):
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name}, "rules": list(rules), **more}


def rule(verbs, *resources, groups=("",), **more):
    return {"verbs": verbs.split(), "apiGroups": list(groups), "resources": list(resources), **more}


def binding(name, role_kind, role_name, *subjects, kind="RoleBinding"):
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": {"name": name},
            "roleRef": {"kind": role_kind, "name": role_name, "apiGroup": GROUP},
            "subjects": [{"kind": k, "name": n} for k, n in subjects]}


def as_(token):
    return {"Authorization": f"Bearer {token}"}


def play(settings, story):
    async def run():
        async with serving(**settings) as api:
            async def call(who, method, path, body=None, **more):
                return await api.call(method, path, body, headers=as_(who), **more)
            await story(call)
    asyncio.run(run())


def test_a_binding_holds_at_once_and_only_for_what_it_says(settings):
    async def story(call):
        maps = "/api/v1/namespaces/default/configmaps"
        assert (await call("root", "POST", maps, config_map("a")))[0] == 201
        assert (await call("root", "POST", maps, config_map("b")))[0] == 201
        assert (await call("jane", "GET", maps))[0] == 403
        status, _ = await call("root", "POST", f"{RBAC}/namespaces/default/roles",
                               role("reader", rule("get list", "configmaps", resourceNames=["a"])))
        assert status == 201
        status, made = await call("root", "POST", f"{RBAC}/namespaces/default/rolebindings",
                                  binding("b", "Role", "reader", ("Group", "dev"), ("ServiceAccount", "app")))
        assert status == 201 and made["subjects"][0]["apiGroup"] == GROUP and "apiGroup" not in made["subjects"][1]
        assert (await call("jane", "GET", f"{maps}/a"))[0] == 200
        assert (await call("jane", "GET", f"{maps}?fieldSelector=metadata.name%3Da"))[0] == 200
        assert (await call("jane", "GET", f"{maps}/b"))[0] == 403
        assert (await call("jane", "GET", maps))[0] == 403
        assert (await call("jane", "GET", "/api/v1/namespaces/kube-system/configmaps/a"))[0] == 403
        _, seen = await call("root", "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": {
            "user": "system:serviceaccount:default:app", "resourceAttributes": {
                "verb": "get", "resource": "configmaps", "name": "a", "namespace": "default"}}})
        assert seen["status"] == {"allowed": True, "reason": (
            'RBAC: allowed by RoleBinding "b/default" of Role "reader" to ServiceAccount "app/default"')}
        assert (await call("root", "DELETE", f"{RBAC}/namespaces/default/roles/reader"))[0] == 200
        status, refused = await call("jane", "GET", f"{maps}/a")
        assert status == 403 and refused["message"].endswith(
            'RBAC: role.rbac.authorization.k8s.io "reader" not found')
        assert (await call("root", "DELETE", f"{RBAC}/namespaces/default/rolebindings/b"))[0] == 200
        status, refused = await call("jane", "GET", f"{maps}/a")
        assert status == 403 and refused["message"].endswith('in the namespace "default"')
    play(settings, story)


def test_nobody_grants_what_they_do_not_hold(settings):
    async def story(call):
        roles, bindings = f"{RBAC}/namespaces/default/roles", f"{RBAC}/namespaces/default/rolebindings"
        await call("root", "POST", bindings, binding("admin", "ClusterRole", "system:aggregate-to-admin",
                                                     ("User", "jane")))
        status, refused = await call("jane", "POST", roles, role("r", rule("get list", "pods")))
        assert status == 403 and refused["message"] == (
            'roles.rbac.authorization.k8s.io "r" is forbidden: user "jane" (groups=["dev" "system:authenticated"]) is '
            "attempting to grant RBAC permissions not currently held:\n"
            '{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}')
        own = role("r", rule("create", "localsubjectaccessreviews", groups=["authorization.k8s.io"]))
        assert (await call("jane", "POST", roles, own))[0] == 201
        grown = {"rules": [*own["rules"], rule("get", "secrets")]}
        status, refused = await call("jane", "PATCH", f"{roles}/r", grown, content_type="application/merge-patch+json")
        assert status == 403 and 'Resources:["secrets"]' in refused["message"]
        noted = {"metadata": {"labels": {"a": "b"}}}
        assert (await call("jane", "PATCH", f"{roles}/r", noted, content_type="application/merge-patch+json"))[0] == 200
        more = binding("b", "ClusterRole", "cluster-admin", ("User", "jane"))
        status, refused = await call("jane", "POST", bindings, more)
        assert status == 403 and '{APIGroups:["*"], Resources:["*"], Verbs:["*"]}' in refused["message"]
        assert (await call("jane", "POST", bindings, binding("b", "Role", "none", ("User", "jane"))))[0] == 404
        await call("root", "POST", roles, role("binder", rule("bind", "clusterroles", groups=[GROUP],
                                                              resourceNames=["cluster-admin"]),
                                               rule("escalate", "roles", groups=[GROUP])))
        await call("root", "POST", bindings, binding("binder", "Role", "binder", ("User", "jane")))
        assert (await call("jane", "POST", bindings, more))[0] == 201
        assert (await call("jane", "POST", roles, role("s", rule("get list", "pods"))))[0] == 201
    play(settings, story)


def test_what_is_no_role_is_told_in_upstreams_words(settings):
    async def story(call):
        async def faults(path, body, method="POST"):
            status, told = await call("root", method, path, body)
            assert status == 422, told
            return [f"{c['field']}: {c['message']}" for c in told["details"]["causes"]]

        assert await faults(f"{RBAC}/namespaces/default/roles", role("r", {"nonResourceURLs": ["/x"]})) == [
            "rules[0].verbs: Required value: verbs must contain at least one value",
            'rules[0].nonResourceURLs: Invalid value: ["/x"]: namespaced rules cannot apply to non-resource URLs']
        assert await faults(f"{RBAC}/clusterroles", role("r", kind="ClusterRole", aggregationRule={})) == [
            "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if "
            "aggregationRule is non-nil"]
        made = binding("b", "Role", "r", ("ServiceAccount", "app"), ("Robot", "x"), kind="ClusterRoleBinding")
        assert await faults(f"{RBAC}/clusterrolebindings", made) == [
            'roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole"',
            "subjects[0].namespace: Required value",
            'subjects[1].kind: Unsupported value: "Robot": supported values: "Group", "ServiceAccount", "User"']
        path = f"{RBAC}/clusterrolebindings/b"
        right = binding("b", "ClusterRole", "view", ("User", "u"), kind="ClusterRoleBinding")
        assert (await call("root", "PUT", path, right))[0] == 201  # a PUT makes roles and bindings
        right["roleRef"]["name"] = "edit"
        assert (await faults(path, right, "PUT"))[0].endswith(": cannot change roleRef")
    play(settings, story)


def test_the_defaults_are_there_and_rules_can_be_listed(settings):
    async def story(call):
        _, roles = await call("root", "GET", f"{RBAC}/clusterroles?labelSelector=kubernetes.io/bootstrapping")
        named = {r["metadata"]["name"] for r in roles["items"]}
        assert {"cluster-admin", "admin", "edit", "view", "system:node", "system:controller:job-controller"} <= named
        review = {"spec": {"namespace": "default"}}
        _, seen = await call("jane", "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
        assert {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"],
                "resources": ["selfsubjectreviews"]} in seen["status"]["resourceRules"]
        assert seen["status"]["incomplete"] is False
        assert (await call("jane", "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {}))[0] == 400
    play(settings, story)

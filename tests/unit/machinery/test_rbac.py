"""Rules: what they allow, what covers what, and that the defaults are whole and heal without taking away."""

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.machinery import rbac, rbacdefaults
from controlplane.machinery.rbac import Rule, parse

WORDS = {"verbs": ("get", "list", "*"), "groups": ("", "apps", "*"), "resources": ("pods", "pods/log", "*/log", "*"),
         "names": ("a", "b")}


def rules():
    some = {k: st.lists(st.sampled_from(v), min_size=1 if k != "names" else 0, max_size=2, unique=True).map(tuple)
            for k, v in WORDS.items()}
    return st.builds(Rule, **some)


def test_what_a_rule_allows():
    rule = parse("get,list [core,apps] pods */scale names=a,b")
    assert rule.allows("get", "", "pods", "", "a") and rule.allows("list", "apps", "deployments", "scale", "b")
    assert not rule.allows("get", "", "pods", "", "c") and not rule.allows("get", "", "pods", "", "")
    assert not rule.allows("get", "", "pods", "log", "a") and not rule.allows("get", "batch", "pods", "", "a")
    paths = parse("get URL /healthz/* /api")
    assert paths.allows_path("get", "/healthz/etcd") and paths.allows_path("get", "/api")
    assert not paths.allows_path("get", "/api/v1") and not paths.allows_path("post", "/api")
    assert not paths.allows("get", "", "pods", "", "")
    assert str(rule) == ('{APIGroups:["" "apps"], Resources:["pods" "*/scale"], ResourceNames:["a" "b"], '
                         'Verbs:["get" "list"]}')


@settings(max_examples=150)
@given(rules(), rules(), st.sampled_from(("get", "list", "watch")), st.sampled_from(("", "apps", "batch")),
       st.sampled_from(("", "log")), st.sampled_from(("a", "b", "c")))
def test_who_covers_a_rule_may_do_all_it_allows(own, wanted, verb, group, subresource, name):
    lacking = rbac.missing([own], [wanted])
    assert rbac.missing([wanted], [wanted]) == [] and rbac.missing([own, *lacking], [wanted]) == []
    assert rbac.missing(rbac.compact(lacking), lacking) == [] and rbac.missing(lacking, rbac.compact(lacking)) == []
    if not lacking and wanted.allows(verb, group, "pods", subresource, name):
        assert own.allows(verb, group, "pods", subresource, name)


def test_the_defaults_heal_and_take_nothing_away():
    assert all(part for o in rbacdefaults.objects() for rule in rbac.of_role(o)
               for part in (*rule.verbs, *rule.resources, *rule.names, *rule.urls))
    right = {(o["kind"], o["metadata"]["name"]): o for o in rbacdefaults.objects()}
    role, binding = right["ClusterRole", "system:basic-user"], right["ClusterRoleBinding", "system:discovery"]
    own = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
    changed = {**role, "rules": [own]}
    healed = rbacdefaults.reconciled(changed, role)
    assert healed["rules"][0] == own and not rbac.missing(rbac.of_role(healed), rbac.of_role(role))
    assert rbacdefaults.reconciled(healed, role) == healed
    kept = {**changed, "metadata": {**role["metadata"], "annotations": {rbacdefaults.AUTOUPDATE: "false"}}}
    assert rbacdefaults.reconciled(kept, role) is kept
    jane = {"kind": "User", "name": "jane", "apiGroup": rbacdefaults.GROUP}
    assert rbacdefaults.reconciled({**binding, "subjects": [jane]}, binding)["subjects"] == [jane, *binding["subjects"]]
    assert rbacdefaults.reconciled({**binding, "roleRef": {**binding["roleRef"], "name": "x"}}, binding) is None
    for kind, name in right:
        assert name in ("pelamis:controllers",) or kind != "ClusterRoleBinding" or ("ClusterRole", name) in right

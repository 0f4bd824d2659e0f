"""The controllers around access: roles that gather others' rules."""

import asyncio

from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import cluster

ROLES = named("clusterroles.rbac.authorization.k8s.io")


def role(name, *resources, labels=None, **more):
    rules = [{"verbs": ["get"], "apiGroups": [""], "resources": [r]} for r in resources]
    return {"metadata": {"name": name, "labels": labels or {}}, "rules": rules, **more}


def test_a_role_gathers_the_rules_of_those_it_selects():
    async def play():
        async with cluster(kubelet=False) as made:
            roles = made.of("clusterroles.rbac.authorization.k8s.io")
            gathers = {"clusterRoleSelectors": [{"matchLabels": {"to": "all"}}]}

            def gathered():
                found = roles.get("", "all")
                return [rule["resources"][0] for rule in (found or {}).get("rules") or ()]
            await made.client.create(ROLES, role("all", aggregationRule=gathers))
            await made.client.create(ROLES, role("b", "pods", "secrets", labels={"to": "all"}))
            await made.client.create(ROLES, role("a", "services", "pods", labels={"to": "all"}))
            await made.client.create(ROLES, role("c", "nodes"))
            await made.until(lambda: gathered() == ["services", "pods", "secrets"])
            await made.client.patch(ROLES, "all", {"rules": []}, kind="merge")
            await made.until(lambda: gathered() == [])
            await made.until(lambda: gathered() == ["services", "pods", "secrets"])
            await made.client.delete(ROLES, "a")
            await made.until(lambda: gathered() == ["pods", "secrets"])
    asyncio.run(play())

"""Secrets with tokens nobody uses: marked after a year, gone after another, and only those the cluster made."""

import asyncio
from datetime import date

import pytest

from controlplane.controllers.access.legacytokens import INVALID_SINCE, LAST_USED, TRACKING, named_in, verdict
from controlplane.machinery.resources import named
from tests.unit.controllers.cluster import cluster
from tests.unit.controllers.test_customkinds import gone

TODAY = date(2026, 6, 1)
SECRETS, ACCOUNTS, CONFIG_MAPS = named("secrets"), named("serviceaccounts"), named("configmaps")


@pytest.mark.parametrize(("labels", "created", "since", "step"), [
    ({}, "2024-01-01", "2025-05-01", "invalidate"), ({}, "2025-06-01", "2025-05-01", ""),
    ({}, "2024-01-01", "2025-06-02", ""), ({}, "2024-01-01", "", ""),
    ({LAST_USED: "2025-05-31"}, "2024-01-01", "2025-05-01", "invalidate"),
    ({LAST_USED: "2025-06-01"}, "2024-01-01", "2025-05-01", ""), ({LAST_USED: "?"}, "2024-01-01", "2025-05-01", ""),
    ({INVALID_SINCE: "2025-06-01"}, "2024-01-01", "2025-05-01", ""),
    ({INVALID_SINCE: "2025-05-31"}, "2024-01-01", "2025-05-01", "delete"),
    ({INVALID_SINCE: "?"}, "2024-01-01", "2025-05-01", "invalidate"),
])
def test_what_becomes_of_a_secret(labels, created, since, step):
    secret = {"metadata": {"name": "s", "labels": labels, "creationTimestamp": f"{created}T12:00:00Z"}}
    assert verdict(secret, TODAY, date.fromisoformat(since) if since else None) == step


def test_a_name_is_found_wherever_a_pod_has_it():
    pod = {"volumes": [{"secret": {"secretName": "a"}}], "containers": [{"env": [{"valueFrom": {"secretKeyRef": {
        "name": "b", "key": "k"}}}]}], "imagePullSecrets": [{"name": "c"}]}
    assert all(named_in(pod, name) for name in "abc") and not named_in(pod, "d")


def test_an_unused_secret_of_the_clusters_own_is_deleted():
    async def main():
        async with cluster(kubelet=False) as c:
            client = c.client
            account = await client.create(ACCOUNTS, {"metadata": {"name": "app", "namespace": "default"},
                                                     "secrets": [{"name": "old"}]})
            await c.until(lambda: c.of("configmaps").get(*TRACKING))
            await client.patch(CONFIG_MAPS, TRACKING[1], {"data": {"since": "2021-01-01"}}, TRACKING[0], "merge")
            for name in ("mine", "old"):  # below validation, for they are from another time
                metadata = {"name": name, "namespace": "default", "uid": f"u-{name}",
                            "creationTimestamp": "2020-01-01T00:00:00Z", "labels": {INVALID_SINCE: "2021-01-01"},
                            "annotations": {"kubernetes.io/service-account.name": "app",
                                            "kubernetes.io/service-account.uid": account["metadata"]["uid"]}}
                await c.api.server.cache.write(f"secrets/default/{name}", {
                    "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
                    "metadata": metadata, "data": dict.fromkeys(("token", "namespace", "ca.crt"), "eA==")}, 0)
            await gone(client, SECRETS, "old", "default")
            await client.get(SECRETS, "mine", "default")
    asyncio.run(main())

"""Quotas counted by the real controller beside the real admission."""

import asyncio

import pytest

from controlplane.machinery.errors import Forbidden
from controlplane.machinery.resources import named
from tests.unit.apiserver.definitions import definition
from tests.unit.controllers.cluster import cluster
from tests.unit.controllers.test_customkinds import DEFINITIONS, FOOS, foo, served

PODS, QUOTAS, CONFIGS = named("pods"), named("resourcequotas"), named("configmaps")


def test_a_quota_is_counted_reserved_and_given_back():
    async def play():
        async with cluster() as made:
            client = made.client
            await made.until(lambda: made.of("serviceaccounts").get("default", "default"))
            await client.create(CONFIGS, {"metadata": {"name": "before", "namespace": "default"}})
            hard = {"pods": "1", "requests.cpu": "1", "count/configmaps": "5", "services": "2"}
            await client.create(QUOTAS, {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}})

            def used():
                return ((made.of("resourcequotas").get("default", "q") or {}).get("status") or {}).get("used")
            # the namespace's own kube-root-ca.crt counts too, and so does the service kubernetes
            await made.until(lambda: used() == {"pods": "0", "requests.cpu": "0", "count/configmaps": "2",
                                                "services": "1"})
            pod = {"metadata": {"name": "a", "namespace": "default"}, "spec": {"containers": [
                {"name": "c", "image": "i", "resources": {"requests": {"cpu": "600m"}}}]}}
            await client.create(PODS, pod)
            await made.until(lambda: used() is not None and (used()["pods"], used()["requests.cpu"]) == ("1", "600m"))
            with pytest.raises(Forbidden) as refused:
                await client.create(PODS, {**pod, "metadata": {"name": "b", "namespace": "default"}})
            assert refused.value.message.endswith(
                "exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=1,requests.cpu=600m, "
                "limited: pods=1,requests.cpu=1")
            await client.delete(PODS, "a", "default")
            await made.until(lambda: used()["pods"] == "0")
            await client.create(PODS, {**pod, "metadata": {"name": "b", "namespace": "default"}})
            await client.delete(CONFIGS, "before", "default")
            await made.until(lambda: used()["count/configmaps"] == "1")
    asyncio.run(play())


def test_custom_kinds_are_counted_once_they_are_served():
    async def play():
        async with cluster(kubelet=False) as made:
            client = made.client
            hard = {"count/foos.ex.io": "1"}
            await client.create(QUOTAS, {"metadata": {"name": "q", "namespace": "default"}, "spec": {"hard": hard}})

            def status():
                return (made.of("resourcequotas").get("default", "q") or {}).get("status") or {}

            def used():
                return status().get("used")
            await made.until(lambda: status().get("hard") == hard)
            await client.create(DEFINITIONS, definition())
            await served(made)
            await client.create(FOOS, foo("a"))
            await made.until(lambda: used() == {"count/foos.ex.io": "1"})
            with pytest.raises(Forbidden):
                await client.create(FOOS, foo("b"))
            await client.delete(FOOS, "a", "default")
            await made.until(lambda: used() == {"count/foos.ex.io": "0"})
            await client.create(FOOS, foo("b"))
    asyncio.run(play())

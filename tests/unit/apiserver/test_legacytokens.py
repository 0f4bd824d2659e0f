"""Tokens in Secrets: their use is recorded by the day, a marked Secret gives no access, and users are warned."""

import asyncio

import pytest

from controlplane.apiserver.authentication.authn import Authenticator
from controlplane.apiserver.authentication.legacytokens import ADVICE, INVALID_SINCE, LAST_USED, NAME, NAMESPACE, TYPE
from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.authorization.reviews import Reviews
from controlplane.machinery.errors import Unauthorized
from controlplane.store.cache import key_of
from tests.unit.apiserver.edge import make_context, put, request, running, signing_key
from tests.unit.apiserver.harness import DEADLINE
from tests.unit.apiserver.test_tokens import ACCOUNT, asked

SECRET = {"apiVersion": "v1", "kind": "Secret", "type": TYPE, "metadata": {
    "name": "s", "namespace": "ns", "uid": "u-s", "annotations": {"kubernetes.io/service-account.name": "app"}}}


async def holds(cache, key, test):
    """The object once it passes the test."""
    async with asyncio.timeout(DEADLINE):
        with cache.watch(key, None) as watch:
            while (item := cache.get(key)) is None or not test(item.obj):
                await watch.take()
            return item.obj


def test_a_use_is_told_by_its_day_and_a_mark_ends_it(tmp_path):
    context = make_context(service_account_signing_key_file=signing_key(tmp_path))
    authenticator = Authenticator(context)
    key, today = key_of("secrets", "ns", "s"), context.clock.timestamp()[:10]

    async def play():
        await put(context, "serviceaccounts", {**ACCOUNT, "secrets": [{"name": "s"}]})
        await put(context, "secrets", SECRET)
        task = asyncio.ensure_future(authenticator.legacy.run())
        ask = request(context, "/api/v1/namespaces/ns/serviceaccounts/app/token", "POST", User("admin"))
        token = Reviews(context, authenticator).token(ask, ACCOUNT, asked(boundObjectRef={
            "kind": "Secret", "apiVersion": "v1", "name": "s", "uid": "u-s"}))["status"]["token"]
        use = request(context, "/api", Authorization=f"Bearer {token}")
        assert authenticator.authenticate(use).name == "system:serviceaccount:ns:app"
        assert ADVICE in use.warnings
        labelled = await holds(context.cache, key, lambda obj: "labels" in obj["metadata"])
        assert labelled["metadata"]["labels"] == {LAST_USED: today}
        since = await holds(context.cache, key_of("configmaps", NAMESPACE, NAME), bool)
        assert since["data"] == {"since": today}
        revision = context.cache.get(key).revision
        authenticator.authenticate(use)  # again on the same day: nothing is written
        assert not authenticator.legacy._due and context.cache.get(key).revision == revision
        labelled["metadata"]["labels"] |= {INVALID_SINCE: today}
        await context.cache.write(key, labelled, revision)
        with pytest.raises(Unauthorized):
            authenticator.authenticate(use)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    running(context, play)


def test_the_day_of_the_first_record_is_kept(tmp_path):
    context = make_context(service_account_signing_key_file=signing_key(tmp_path))
    legacy, key = Authenticator(context).legacy, key_of("configmaps", NAMESPACE, NAME)
    made = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE, "uid": "u"},
            "data": {"since": "2020-01-01"}}

    async def play():
        await put(context, "configmaps", made)
        task = asyncio.ensure_future(legacy.run())
        await asyncio.sleep(0)
        assert context.cache.get(key).obj["data"] == {"since": "2020-01-01"}
        await context.cache.write(key, {**made, "data": {"since": "soon"}}, context.cache.get(key).revision)
        today = context.clock.timestamp()[:10]
        await holds(context.cache, key, lambda obj: obj["data"] == {"since": today})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    running(context, play)

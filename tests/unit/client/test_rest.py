"""Requests: errors come back as the tree's classes, patience is bounded, lines may be cut anywhere."""

import asyncio
import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.client import config, rest
from controlplane.client.config import ClientConfig
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import AlreadyExists, Conflict, Finding, NotFound, TooManyRequests
from controlplane.machinery.resources import named
from tests.unit.client.fakeserver import serving, status

PODS = named("pods")


def pod(name, **more):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a"}, **more}


def test_verbs_and_errors():
    async def main():
        async with serving() as (_, client):
            made = await client.create(PODS, pod("x"))
            with pytest.raises(AlreadyExists):
                await client.create(PODS, pod("x"))
            changed = await client.update(PODS, {**made, "spec": {"nodeName": "n"}})
            with pytest.raises(Conflict):
                await client.update(PODS, made)
            patched = await client.patch(PODS, "x", {"status": {"phase": "Running"}}, "a")
            assert patched["spec"] == changed["spec"] and patched["status"]["phase"] == "Running"
            for number in range(7):
                await client.create(PODS, pod(f"y{number}"))
            items, revision = await client.list(PODS, "a", limit=3)
            assert len(items) == 8 and items[0]["kind"] == "Pod" and int(revision) >= 10
            await client.delete(PODS, "x", "a", grace=0, uid="u")
            with pytest.raises(NotFound):
                await client.get(PODS, "x", "a")
    asyncio.run(main())


def test_patience_is_obeyed_and_bounded():
    async def main():
        clock = FakeClock()
        async with serving(clock) as (server, client):
            server.failures = [status(429, "TooManyRequests", "later", Retry_After="3600")
                               for _ in range(rest.RETRY_LIMIT)]
            task = asyncio.create_task(client.list(PODS))
            while not task.done():
                await asyncio.sleep(0.01)
                await clock.advance(rest.RETRY_AFTER_LIMIT * 1.2)
            with pytest.raises(TooManyRequests):
                await task
            assert len(server.requests) == rest.RETRY_LIMIT
            server.failures = [status(429, "TooManyRequests", "Cannot evict pod")]  # no Retry-After: final
            with pytest.raises(TooManyRequests):
                await client.create(PODS, pod("e"))
    asyncio.run(main())


def test_no_answer_is_unreachable():
    async def main():
        async with rest.Client(ClientConfig(server="https://127.0.0.1:1", insecure=True)) as client:
            with pytest.raises(rest.Unreachable):
                await client.list(PODS)
            with pytest.raises(rest.Unreachable):
                async for _ in client.watch(PODS, revision="1"):
                    pass
    asyncio.run(main())


@given(st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: b"\n" not in b and b.strip()), max_size=6),
       st.integers(1, 7))
def test_lines_survive_any_cut(lines, size):
    text = b"".join(line + b"\n" for line in lines)

    async def chunks():
        for start in range(0, len(text), size):
            yield text[start:start + size]

    async def main():
        return [line async for line in rest.split_lines(chunks())]
    assert asyncio.run(main()) == lines


def test_kubeconfig(tmp_path):
    (tmp_path / "ca.crt").write_bytes(b"CA")
    path = tmp_path / "config"
    path.write_text(f"""
current-context: main
contexts: [{{name: main, context: {{cluster: c, user: u, namespace: team}}}}]
clusters: [{{name: c, cluster: {{server: "https://h:1/", certificate-authority: ca.crt}}}}]
users: [{{name: u, user: {{client-certificate-data: {base64.b64encode(b"CERT").decode()}, tokenFile: t}}}}]
""")
    loaded = config.load(path)
    assert (loaded.server, loaded.ca, loaded.certificate, loaded.namespace) == ("https://h:1", b"CA", b"CERT", "team")
    assert loaded.token_file == str(tmp_path / "t") and "CERT" not in repr(loaded)
    with pytest.raises(Finding, match='no context named "other"'):
        config.load(path, "other")


def test_a_renewed_identity_cuts_no_watch_however_often():
    async def main():
        async with serving() as (_, client):
            await client.create(PODS, pod("x"))
            _, revision = await client.list(PODS)
            watch = client.watch(PODS, "a", revision=revision)
            first = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            former = []
            for number in range(3):
                former.append(client._session)
                await client.create(PODS, pod(f"y{number}"))
                await client.renew(client.config)
            seen = [await first, await anext(watch), await anext(watch)]
            assert [obj["metadata"]["name"] for _, obj in seen] == ["y0", "y1", "y2"]
            assert [session.closed for session in former] == [False, True, True], "only what is read from stays"
            await watch.aclose()
            assert former[0].closed and not client._session.closed
    asyncio.run(main())

"""Objects owned by kinds of another API server: collected when it says that the owner is gone, never on a guess."""

import asyncio
import json

from aiohttp import web

from controlplane.client import aggregated
from controlplane.client.aggregated import API_SERVICES
from controlplane.client.config import ClientConfig
from controlplane.machinery.resources import Resource, named
from tests.unit.apiserver.test_aggregation import GROUP, ROOT, api_service, backed, extension, with_proxy
from tests.unit.controllers.cluster import SECONDS, cluster
from tests.unit.controllers.test_customkinds import gone, owned

CONFIGMAPS, SERVICES = named("configmaps"), named("services")
FLUNDERS = {"name": "flunders", "namespaced": True, "kind": "Flunder", "verbs": ["get", "list", "watch", "delete"]}


def flunder(name):
    return {"apiVersion": f"{GROUP}/v1alpha1", "kind": "Flunder", "metadata": {
        "name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": "7"}}


def keeping(held, events, kinds):
    """An extension's handler that keeps Flunders: `held` by name, `events` a queue of what its watch sends."""
    def handler(server):
        async def handle(raw):
            if raw.path == ROOT:
                return web.json_response({"kind": "APIResourceList", "groupVersion": f"{GROUP}/v1alpha1",
                                          "resources": kinds})
            if not raw.path.startswith(ROOT):
                return await server.handle(raw)
            if raw.query.get("watch"):
                answer = web.StreamResponse(headers={"Content-Type": "application/json"})
                await answer.prepare(raw)
                while True:
                    await answer.write(json.dumps(await events.get()).encode() + b"\n")
            name = raw.path.rpartition("/flunders")[2].removeprefix("/")
            if not name:
                return web.json_response({"metadata": {"resourceVersion": "7"}, "items": list(held.values())})
            if name in held:
                return web.json_response(held[name])
            return web.json_response({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
                                      "details": {"name": name}, "message": f'flunders "{name}" not found'}, status=404)
        return handle
    return handler


def test_owners_of_another_server(tmp_path):
    held, events, kinds = {name: flunder(name) for name in ("a", "b", "c")}, asyncio.Queue(), []
    settings = with_proxy(tmp_path)

    def admin(server):
        pki = tmp_path / "etc/pelamis/pki"
        return ClientConfig(server=server, ca=(pki / "ca.crt").read_bytes(),
                            certificate=(pki / "admin.crt").read_bytes(), key=(pki / "admin.key").read_bytes())

    async def main():
        async with cluster(kubelet=False, served=settings, config=admin) as c, extension(
                tmp_path, c.api.server.options.requestheader_client_ca_file, keeping(held, events, kinds)) as server:
            client = c.client
            for name in ("a", "b", "lost"):
                await client.create(CONFIGMAPS, owned(name, flunder(name)))
            await backed(c.api, server.port)
            kinds.append(FLUNDERS)
            await client.create(API_SERVICES, api_service(server.bundle))
            await gone(client, CONFIGMAPS, "lost", "default")  # the kind came later than what it owns
            await events.put({"type": "DELETED", "object": held.pop("a")})
            await gone(client, CONFIGMAPS, "a", "default")
            await client.delete(SERVICES, "api", "default")  # from now on nobody can tell what exists
            held.clear()
            await events.put({"type": "DELETED", "object": flunder("b")})
            await client.create(CONFIGMAPS, owned("unsure", flunder("never")))
            owner = await client.create(CONFIGMAPS, {"metadata": {"name": "owner", "namespace": "default"}})
            await client.create(CONFIGMAPS, owned("other", {**owner, "apiVersion": "v1", "kind": "ConfigMap"}))
            await client.delete(CONFIGMAPS, "owner", "default")
            await gone(client, CONFIGMAPS, "other", "default")  # all else goes on
            await client.get(CONFIGMAPS, "b", "default")
            await client.get(CONFIGMAPS, "unsure", "default")
            collector = next(one for one in c.manager.controllers if one.name == "garbage-collector-controller")
            drop, dropped = c.manager.informers.drop, asyncio.Event()
            c.manager.informers.drop = lambda informer: (drop(informer), dropped.set())
            await client.delete(API_SERVICES, f"v1alpha1.{GROUP}")
            async with asyncio.timeout(SECONDS):
                await dropped.wait()
            for name in ("b", "unsure"):  # a kind nobody knows says nothing of its objects
                await collector.reconcile((CONFIGMAPS, "default", name))
                await client.get(CONFIGMAPS, name, "default")
    asyncio.run(main())


def test_each_kind_is_followed_in_the_version_its_group_prefers():
    def service(group, version, priority, **where):
        return {"spec": {"group": group, "version": version, "versionPriority": priority, **where}}
    far = {"service": {"name": "s", "namespace": "n"}}
    order = aggregated.in_order([service("b.io", "v1", 1, **far), service("a.io", "v1", 10, **far),
                                 service("a.io", "v2", 20, **far), service("local.io", "v1", 1)])
    assert order == [("a.io", "v2"), ("a.io", "v1"), ("b.io", "v1")]
    old, new, other = (Resource("a.io", version, plural, plural) for version, plural in (
        ("v1", "foos"), ("v2", "foos"), ("v1", "bars")))
    assert aggregated.preferred({("a.io", "v1"): [old, other], ("a.io", "v2"): [new]}, order) == [new, other]

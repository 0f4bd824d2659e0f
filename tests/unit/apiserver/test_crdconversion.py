"""Versions converted by a webhook: a real TLS server in this process, reached by URL."""

import asyncio
import base64
import contextlib
import ssl

import orjson
from aiohttp import web

from controlplane.pki.authority import Authority
from tests.unit.apiserver.definitions import CRDS, definition, foo, install, schema, session, version

V1, V2 = "/apis/ex.io/v1/namespaces/default/foos", "/apis/ex.io/v2/namespaces/default/foos"
MERGE = "application/merge-patch+json"
ONE = schema({"type": "object", "properties": {"address": {"type": "string"}}})
TWO = schema({"type": "object", "properties": {"host": {"type": "string"}, "port": {"type": "string"},
                                               "proto": {"type": "string", "default": "tcp"}}})


def convert(obj, wanted):
    """`address: a:1` in v1 is `host: a, port: 1` in v2."""
    new = {**obj, "apiVersion": wanted}
    spec = dict(obj["spec"])
    if wanted.endswith("v2"):
        spec["host"], _, spec["port"] = spec.pop("address").partition(":")
    else:
        spec = {"address": f"{spec['host']}:{spec['port']}"}
    return {**new, "spec": spec}


class Hook:
    """The webhook; `asked` counts the objects of each review, `fails` makes it refuse."""

    def __init__(self):
        self.asked, self.fails = [], ""

    async def handle(self, raw):
        request = orjson.loads(await raw.read())["request"]
        self.asked.append(len(request["objects"]))
        made = [convert(o, request["desiredAPIVersion"]) for o in request["objects"]]
        if self.fails == "rename":
            made = [{**o, "metadata": {**o["metadata"], "name": "other"}} for o in made]
        result = {"status": "Failure", "message": "no"} if self.fails == "refuse" else {"status": "Success"}
        return web.json_response({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": {
            "uid": request["uid"], "convertedObjects": made, "result": result}})


@contextlib.asynccontextmanager
async def serving_hook(folder):
    authority = Authority.create(folder / "ca")
    pair = authority.issue("hook", [], ["server"], ["127.0.0.1"], 1)
    (folder / "crt").write_bytes(pair.certificate)
    (folder / "key").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    hook = Hook()
    runner = web.ServerRunner(web.Server(hook.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    try:
        yield hook, {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {
            "url": f"https://127.0.0.1:{port}/convert",
            "caBundle": base64.b64encode((folder / "ca" / "ca.crt").read_bytes()).decode()}}}
    finally:
        await runner.cleanup()


def test_objects_are_converted_on_every_way(tmp_path):
    async def steps(api):
        async with serving_hook(tmp_path) as (hook, conversion):
            made = await install(api, definition(conversion=conversion, versions=[
                version(schema=ONE), version("v2", storage=False, schema=TWO)]))
            await api.made(V1, foo("a", address="h:1"))
            code, obj = await api.call("GET", V2 + "/a")
            assert code == 200 and obj["apiVersion"] == "ex.io/v2"
            assert obj["spec"] == {"host": "h", "port": "1", "proto": "tcp"}
            async with api.watching(V1 + "?watch=1") as events:
                await events.next()
                await api.made(V2, foo("b", host="i", port="2") | {"apiVersion": "ex.io/v2"})
                _, seen = await events.next()
                assert seen["apiVersion"] == "ex.io/v1" and seen["spec"] == {"address": "i:2"}
            code, obj = await api.call("PATCH", V2 + "/a", {"spec": {"port": "9"}}, MERGE)
            assert code == 200 and obj["spec"]["port"] == "9"
            _, obj = await api.call("GET", V1 + "/a")
            assert obj["spec"] == {"address": "h:9"} and obj["metadata"]["generation"] == 2
            hook.asked.clear()
            answers = await asyncio.gather(*(api.call("GET", V2) for _ in range(5)))
            assert all(a == answers[0] and a[0] == 200 for a in answers) and hook.asked in ([], [1], [2]), hook.asked
            # a list of mixed versions is one call
            for one in made["spec"]["versions"]:
                one["storage"] = one["name"] == "v2"
            code, changed = await api.call("PUT", f"{CRDS}/foos.ex.io", made)
            assert code == 200 and changed["status"]["storedVersions"] == ["v1", "v2"]
            await api.made(V1, foo("c", address="j:3"))
            hook.asked.clear()
            _, listed = await api.call("GET", V2)
            assert [i["spec"]["host"] for i in listed["items"]] == ["h", "i", "j"]
            assert {i["apiVersion"] for i in listed["items"]} == {"ex.io/v2"} and hook.asked == [2]
            for fault, said in (("refuse", "no"), ("rename", "name must not change")):
                hook.fails = fault
                code, error = await api.call("POST", V1, foo("d", address="k:4"))
                assert code == 500 and error["message"].startswith(
                    "conversion webhook for ex.io/v1, Kind=Foo failed: ") and said in error["message"]
    session(steps)

"""A webhook server in the test's process: real TLS with an authority of its own, answers by path."""

import asyncio
import base64
import contextlib
import ssl

import orjson
from aiohttp import web

from controlplane.pki.authority import Authority


class Hooks:
    """A webhook server: `answer` by path, every request kept in `asked`."""

    def __init__(self, url, bundle):
        self.url, self.bundle, self.asked, self.answers = url, bundle, [], {}

    def client(self, path):
        return {"url": self.url + path, "caBundle": self.bundle}

    async def handle(self, raw):
        review = orjson.loads(await raw.read())
        self.asked.append((raw.path, review["request"]))
        said = self.answers.get(raw.path, lambda r: {"allowed": True})(review["request"])
        if asyncio.iscoroutine(said):
            said = await said
        if isinstance(said, int):
            return web.Response(status=said, text="no")
        return web.json_response({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                                  "response": {"uid": review["request"]["uid"], **said}})


@contextlib.asynccontextmanager
async def hooks(folder, name="localhost"):
    authority = Authority.create(folder / "ca")
    pair = authority.issue("hook", [], ["server"], [name, "127.0.0.1", "hook.default.svc"], 1)
    (folder / "crt").write_bytes(pair.certificate)
    (folder / "key").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    bundle = base64.b64encode((folder / "ca" / "ca.crt").read_bytes()).decode()
    made = Hooks("", bundle)
    runner = web.ServerRunner(web.Server(made.handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.port = site._server.sockets[0].getsockname()[1]
    made.url = f"https://127.0.0.1:{made.port}"
    try:
        yield made
    finally:
        await runner.cleanup()


def patch(*operations):
    return {"allowed": True, "patchType": "JSONPatch", "patch": base64.b64encode(orjson.dumps(operations)).decode()}


def config(name, client, operations=("CREATE",), resources=("configmaps",), groups=("",), **more):
    return {"metadata": {"name": name}, "webhooks": [{
        "name": f"{name}.example.com", "clientConfig": client, "sideEffects": "None", "failurePolicy": "Fail",
        "admissionReviewVersions": ["v1"], "timeoutSeconds": 5, "rules": [{
            "operations": list(operations), "apiGroups": list(groups), "apiVersions": ["*"],
            "resources": list(resources)}], **more}]}

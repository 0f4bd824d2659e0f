"""Aggregated API servers: a real one behind a Service, found, proxied, merged into the documents, and lost."""

import asyncio
import base64
import contextlib
import ssl

import orjson
from aiohttp import web

from controlplane.apiserver.aggregation import documents
from controlplane.apiserver.aggregation.availability import resources_of
from controlplane.machinery import apiservices
from controlplane.pki.authority import Authority
from tests.unit.apiserver.harness import DEADLINE, serving

SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
GROUP, ROOT = "wardle.example.com", "/apis/wardle.example.com/v1alpha1"
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
RESOURCES = [{"name": "flunders", "singularName": "flunder", "namespaced": True, "kind": "Flunder",
              "verbs": ["get", "list", "watch", "create"], "shortNames": ["fl"]},
             {"name": "flunders/status", "singularName": "", "namespaced": True, "kind": "Flunder", "verbs": ["get"]}]


class Extension:
    """A small API server; `asked` keeps every request's path and headers."""

    def __init__(self):
        self.asked, self.more, self.port, self.v3 = [], asyncio.Event(), 0, True

    async def handle(self, raw):
        self.asked.append((raw.path, raw.headers.copy()))
        if raw.transport.get_extra_info("ssl_object").getpeercert()["subject"][0][0][1] != "front-proxy-client":
            return web.Response(status=401)
        if raw.path == ROOT:
            return web.json_response({"kind": "APIResourceList", "groupVersion": f"{GROUP}/v1alpha1",
                                      "resources": RESOURCES})
        if raw.path.startswith("/openapi/v3") and not self.v3:
            return web.Response(status=404)
        if raw.path == "/openapi/v3":
            return web.json_response({"paths": {ROOT[1:]: {"serverRelativeURL": f"/openapi/v3{ROOT}?hash=AB"}}})
        if raw.path == f"/openapi/v3{ROOT}":
            return web.json_response({"openapi": "3.0.0", "paths": {ROOT + "/flunders": {}}})
        if raw.path == "/openapi/v2":
            return web.json_response({"swagger": "2.0", "paths": {ROOT + "/flunders": {}, "/apis/apps/v1/": {}},
                                      "definitions": {"com.example.wardle.v1alpha1.Flunder": {"type": "object"}}})
        if raw.headers.get("Upgrade") == "websocket":
            socket = web.WebSocketResponse()
            await socket.prepare(raw)
            async for message in socket:
                await socket.send_str(message.data.upper())
            return socket
        if raw.query.get("watch"):
            answer = web.StreamResponse(headers={"Content-Type": "application/json"})
            await answer.prepare(raw)
            await answer.write(b'{"type":"ADDED","object":{"n":1}}\n')
            await self.more.wait()
            await answer.write(b'{"type":"ADDED","object":{"n":2}}\n')
            return answer
        return web.json_response({"method": raw.method, "query": raw.query_string,
                                  "body": (await raw.read()).decode()}, status=201)


@contextlib.asynccontextmanager
async def extension(folder, proxies, handler=lambda made: made.handle):
    """It shows a certificate of its own authority and wants the front proxy's; `handler` may put another before its
    own."""
    authority, made = Authority.create(folder / "ext"), Extension()
    pair = authority.issue("ext", [], ["server"], ["api.default.svc"], 1)
    (folder / "crt").write_bytes(pair.certificate)
    (folder / "key").write_bytes(pair.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(proxies))
    context.load_cert_chain(folder / "crt", folder / "key")
    context.verify_mode = ssl.CERT_REQUIRED
    runner = web.ServerRunner(web.Server(handler(made)), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    made.port = site._server.sockets[0].getsockname()[1]
    made.bundle = base64.b64encode((folder / "ext/ca.crt").read_bytes()).decode()
    try:
        yield made
    finally:
        await runner.cleanup()


def api_service(bundle, **spec):
    return {"metadata": {"name": f"v1alpha1.{GROUP}"}, "spec": {
        "group": GROUP, "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
        "caBundle": bundle, "service": {"name": "api", "namespace": "default", "port": 7443}, **spec}}


async def backed(api, port):
    """The Service and its slice; the latter below validation, which rightly refuses loopback endpoints."""
    await api.made("/api/v1/namespaces/default/services", {"metadata": {"name": "api"}, "spec": {
        "ports": [{"port": 7443, "targetPort": port}]}})
    piece = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": {
        "name": "api-1", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"kubernetes.io/service-name": "api"}}, "ports": [{"name": "", "port": port}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}]}
    await api.server.cache.write("endpointslices.discovery.k8s.io/default/api-1", piece, 0)


async def condition(api, name, reason):
    """Wait until an APIService's condition has this reason; the condition."""
    _, listed = await api.call("GET", SERVICES)
    selector = f"?watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={listed['metadata']['resourceVersion']}"
    found = next((i for i in listed["items"] if i["metadata"]["name"] == name), {})
    async with api.watching(SERVICES + selector) as events:
        while True:
            for one in (found.get("status") or {}).get("conditions") or ():
                if one["type"] == "Available" and one["reason"] == reason:
                    return one
            found = (await events.next())[1]


def with_proxy(tmp_path):
    pki = tmp_path / "etc/pelamis/pki"
    return {"tls": tmp_path, "requestheader_client_ca_file": pki / "front-proxy/ca.crt",
            "proxy_client_cert_file": pki / "front-proxy-client.crt",
            "proxy_client_key_file": pki / "front-proxy-client.key"}


def test_another_server_is_found_asked_as_the_user_listed_and_lost(tmp_path):
    async def main():
        async with serving(**with_proxy(tmp_path)) as api, extension(
                tmp_path, api.server.options.requestheader_client_ca_file) as server:
            await api.made(SERVICES, api_service(server.bundle))
            name = f"v1alpha1.{GROUP}"
            assert (await condition(api, name, "ServiceNotFound"))["message"] == \
                'service/api in "default" is not present'
            assert await api.call("GET", ROOT) == (503, "service unavailable\n")
            await backed(api, server.port)
            assert (await condition(api, name, "Passed"))["message"] == "all checks passed"
            await proxied(api, server)
            await documented(api, server)
            await api.call("DELETE", "/api/v1/namespaces/default/services/api")
            assert (await condition(api, name, "ServiceNotFound"))["status"] == "False"
            assert (await api.call("GET", ROOT + "/flunders"))[0] == 503
            _, listed = await api.call("GET", "/apis", headers={"Accept": V2})
            assert next(g for g in listed["items"] if g["metadata"]["name"] == GROUP)["versions"][0][
                "freshness"] == "Stale"
            assert (await api.call("DELETE", f"{SERVICES}/{name}"))[0] == 200
            assert await api.call("GET", ROOT) == (404, "404 page not found\n")
    asyncio.run(main())


async def proxied(api, server):
    """Bodies, queries, watches and upgrades go through; who asks is told, and only by the apiserver."""
    status, said = await api.call("POST", ROOT + "/namespaces/ns/flunders?a=b%2Fc", {"x": 1}, headers={
        "X-Remote-User": "mallory", "X-Remote-Group": "system:masters", "Authorization": "Basic no"})
    assert (status, said) == (201, {"method": "POST", "query": "a=b/c", "body": '{"x":1}'})
    headers = server.asked[-1][1]
    assert headers.getall("X-Remote-User") == ["kubernetes-admin"] and "Authorization" not in headers
    assert headers.getall("X-Remote-Group") == ["system:masters", "system:authenticated"]
    await api.call("GET", ROOT + "/flunders", headers={"Impersonate-User": "ann", "Impersonate-Group": "g"})
    headers = server.asked[-1][1]
    assert headers["X-Remote-User"] == "ann" and "Impersonate-User" not in headers
    assert headers.getall("X-Remote-Group") == ["g", "system:authenticated"]
    async with api.watching(ROOT + "/flunders?watch=1") as events:
        assert await events.next() == ("ADDED", {"n": 1})
        server.more.set()
        assert await events.next() == ("ADDED", {"n": 2})
    async with asyncio.timeout(DEADLINE), api.session.ws_connect(api.url + ROOT + "/flunders/x/talk") as socket:
        await socket.send_str("hello")
        assert (await socket.receive()).data == "HELLO"
        assert server.asked[-1][1].getall("X-Remote-User") == ["kubernetes-admin"]


async def document_url(api):
    """Where the v3 document of the other server's kinds is, once that is known."""
    async with asyncio.timeout(DEADLINE):
        while True:  # learned right after the condition was written
            _, root = await api.call("GET", "/openapi/v3")
            if ROOT[1:] in root["paths"]:
                return root["paths"][ROOT[1:]]["serverRelativeURL"]


async def documented(api, server):
    """The other server's kinds stand in discovery, by its priority, and in OpenAPI."""
    _, groups = await api.call("GET", "/apis")
    names = [g["name"] for g in groups["groups"]]
    assert names[0] == "apiregistration.k8s.io" and names[-2:] == [GROUP, "metrics.k8s.io"]
    _, group = await api.call("GET", f"/apis/{GROUP}")
    assert group["preferredVersion"] == {"groupVersion": f"{GROUP}/v1alpha1", "version": "v1alpha1"}
    _, listed = await api.call("GET", "/apis", headers={"Accept": V2})
    version = next(g for g in listed["items"] if g["metadata"]["name"] == GROUP)["versions"][0]
    assert version["freshness"] == "Current"
    assert version["resources"] == [{
        "resource": "flunders", "scope": "Namespaced", "singularResource": "flunder", "shortNames": ["fl"],
        "responseKind": {"group": "", "version": "", "kind": "Flunder"}, "verbs": ["get", "list", "watch", "create"],
        "subresources": [{"subresource": "status", "verbs": ["get"],
                          "responseKind": {"group": "", "version": "", "kind": "Flunder"}}]}]
    assert (await api.call("GET", await document_url(api)))[1]["paths"] == {ROOT + "/flunders": {}}
    _, swagger = await api.call("GET", "/openapi/v2")
    assert ROOT + "/flunders" in swagger["paths"] and "/apis/apps/v1/" not in swagger["paths"]
    assert "com.example.wardle.v1alpha1.Flunder" in swagger["definitions"]
    assert "io.k8s.api.core.v1.Pod" in swagger["definitions"]


def test_a_server_that_does_not_answer_properly_is_not_available(tmp_path):
    async def main():
        async with serving(**with_proxy(tmp_path)) as api, extension(
                tmp_path, api.server.options.requestheader_client_ca_file) as server:
            await backed(api, server.port)
            wrong = base64.b64encode((tmp_path / "etc/pelamis/pki/ca.crt").read_bytes()).decode()
            made = await api.made(SERVICES, api_service(wrong))
            said = await condition(api, made["metadata"]["name"], "FailedDiscoveryCheck")
            assert said["message"].startswith(f"failing or missing response from https://api.default.svc:7443{ROOT}: ")
            assert "failed to verify certificate" in said["message"]
            path = f"{SERVICES}/{made['metadata']['name']}"
            merge = "application/merge-patch+json"
            await api.call("PATCH", path, {"spec": {"caBundle": None, "insecureSkipTLSVerify": True}}, merge)
            await condition(api, made["metadata"]["name"], "Passed")
            await api.call("PATCH", path, {"spec": {"service": {"port": 1}}}, merge)
            said = await condition(api, made["metadata"]["name"], "ServicePortError")
            assert said["message"] == 'service/api in "default" is not listening on port 1'
            status = {"status": {"conditions": [{"type": "StatusUpdated", "status": "True", "reason": "E2E",
                                                 "message": "Set from e2e test"}]}}
            _, patched = await api.call("PATCH", path + "/status", status, "application/strategic-merge-patch+json")
            assert {c["type"] for c in patched["status"]["conditions"]} == {"Available", "StatusUpdated"}
    asyncio.run(main())


def test_every_group_version_of_its_own_is_local_and_comes_back():
    async def main():
        async with serving() as api:
            _, listed = await api.call("GET", SERVICES)
            own = {i["metadata"]["name"]: i for i in listed["items"]}
            assert {"v1.", "v1.apps", "v2.autoscaling", "v1.apiregistration.k8s.io"} <= set(own)
            apps = own["v1.apps"]
            assert apps["metadata"]["labels"] == {apiservices.MANAGED: "onstart"} and apps["spec"] == {
                "group": "apps", "version": "v1", "groupPriorityMinimum": 17800, "versionPriority": 15}
            [said] = apps["status"]["conditions"]
            assert (said["type"], said["status"], said["reason"], said["message"]) == (
                "Available", "True", "Local", "Local APIServices are always available")
            where = f"{SERVICES}?watch=1&resourceVersion={listed['metadata']['resourceVersion']}"
            async with api.watching(where) as events:
                await api.call("DELETE", f"{SERVICES}/v1.apps")
                assert [(kind, obj["metadata"]["name"]) for kind, obj in await events.take(2)] == [
                    ("DELETED", "v1.apps"), ("ADDED", "v1.apps")]
                await api.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", {
                    "metadata": {"name": "foos.ex.io"}, "spec": {
                        "group": "ex.io", "scope": "Namespaced", "names": {"plural": "foos", "kind": "Foo"},
                        "versions": [{"name": "v1", "served": True, "storage": True, "schema": {
                            "openAPIV3Schema": {"type": "object"}}}]}})
                kind, made = await events.next()
                assert (kind, made["metadata"]["name"], made["metadata"]["labels"]) == (
                    "ADDED", "v1.ex.io", {apiservices.MANAGED: "true"})
                await api.call("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/foos.ex.io")
                assert (await events.next())[0] == "DELETED"
    asyncio.run(main())


def test_what_an_apiservice_may_not_say():
    async def main():
        async with serving() as api:
            bad = api_service("", version="V1", groupPriorityMinimum=0, service=None, insecureSkipTLSVerify=True)
            status, said = await api.call("POST", SERVICES, bad)
            assert status == 422
            assert [c["field"] for c in said["details"]["causes"]] == [
                "metadata.name", "spec.version", "spec.groupPriorityMinimum", "spec.insecureSkipTLSVerify"]
    asyncio.run(main())


def test_what_a_server_lists_wrongly_is_left_out():
    right = {"name": "a", "kind": "A", "verbs": ["get"]}
    for wrong in ({"name": "b"}, {"name": 1, "kind": "B"}, {"name": "b", "kind": {}}, [], "b",
                  {"name": "b", "kind": "B", "verbs": "get"}, {"name": "b", "kind": "B", "shortNames": [1]}):
        assert resources_of(orjson.dumps({"resources": [right, wrong]})) == [right], wrong
    for answer in (b"no", b"[]", b"{}", b'{"resources": 1}'):
        assert resources_of(answer) is None


def test_a_server_with_a_v2_document_only_has_one_of_v3_too(tmp_path):
    async def main():
        async with serving(**with_proxy(tmp_path)) as api, extension(
                tmp_path, api.server.options.requestheader_client_ca_file) as server:
            server.v3 = False
            await api.made(SERVICES, api_service(server.bundle))
            await backed(api, server.port)
            await condition(api, f"v1alpha1.{GROUP}", "Passed")
            status, made = await api.call("GET", await document_url(api))
            assert (status, made["openapi"], list(made["paths"])) == (200, "3.0.0", [ROOT + "/flunders"])
            assert made["components"]["schemas"] == {"com.example.wardle.v1alpha1.Flunder": {"type": "object"}}
    asyncio.run(main())


def test_a_v2_document_is_told_in_the_form_of_v3():
    ref = {"$ref": "#/definitions/Flunder"}
    made = documents.upgraded(ROOT, {
        "swagger": "2.0", "info": {"title": "t"}, "definitions": {"Flunder": {"properties": {"a": ref}}},
        "paths": {"/apis/apps/v1/": {}, ROOT + "/flunders": {
            "parameters": [{"name": "limit", "in": "query", "type": "integer"}],
            "post": {"consumes": ["a/b"], "produces": ["c/d"], "parameters": [
                {"name": "body", "in": "body", "required": True, "schema": ref}],
                "responses": {"200": {"description": "OK", "schema": ref}, "401": {"description": "no"}}}}}})
    there = {"schema": {"$ref": "#/components/schemas/Flunder"}}
    assert made["components"] == {"schemas": {"Flunder": {"properties": {"a": there["schema"]}}}}
    assert made["paths"] == {ROOT + "/flunders": {
        "parameters": [{"name": "limit", "in": "query", "schema": {"type": "integer"}}],
        "post": {"parameters": [], "requestBody": {"required": True, "content": {"a/b": there}}, "responses": {
            "200": {"description": "OK", "content": {"c/d": there}}, "401": {"description": "no"}}}}}

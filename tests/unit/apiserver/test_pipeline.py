import asyncio

import pytest

from controlplane.apiserver.flow import flowcontrol
from controlplane.apiserver.reading import lists
from controlplane.apiserver.request import MAX_BODY
from tests.unit.apiserver.harness import config_map, pod, serving

CMS = "/api/v1/namespaces/default/configmaps"


def test_what_is_not_served_is_told_as_upstream_tells_it():
    async def main():
        async with serving() as api:
            assert await api.call("GET", "/nothing") == (404, "404 page not found\n")
            assert await api.call("GET", "/apis/no.group/v1/things") == (404, "404 page not found\n")
            status, error = await api.call("GET", "/api/v1/things")
            assert status == 404 and error["message"] == "the server could not find the requested resource"
            for method, path in (("PUT", CMS), ("POST", CMS + "/a"), ("OPTIONS", CMS), ("PATCH", CMS)):
                status, error = await api.call(method, path, {})
                assert (status, error["reason"]) == (405, "MethodNotAllowed"), (method, path)
            async with api.session.head(api.url + CMS) as answer:
                assert answer.status == 405
    asyncio.run(main())


def test_a_body_beyond_the_limit_is_refused_and_the_server_lives_on():
    async def main():
        async with serving() as api:
            status, error = await api.call("POST", CMS, b"x" * (MAX_BODY + 1))
            assert (status, error["reason"]) == (413, "RequestEntityTooLarge")
            await api.made(CMS, config_map("a"))
    asyncio.run(main())


def test_an_overloaded_server_asks_to_come_back(monkeypatch):
    async def main():
        async with serving(max_requests_inflight=1, max_mutating_requests_inflight=0) as api:
            monkeypatch.setattr(lists, "FUTURE_WAIT", 0.5)
            monkeypatch.setattr(flowcontrol, "QUEUE_SECONDS", 0.1)
            ahead = await api.held(CMS + "?resourceVersion=999999")
            async with api.session.get(api.url + CMS) as answer:
                assert answer.status == 429 and answer.headers["Retry-After"] == "1"
            status, error = await ahead
            assert status == 504 and error["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"
    asyncio.run(main())


def test_an_unexpected_error_tells_the_client_nothing_and_the_log_everything(monkeypatch, caplog):
    async def main():
        async with serving() as api:
            def broken(*_):
                raise RuntimeError("the secret detail")
            monkeypatch.setattr(api.server.handlers.reads, "list_objects", broken)
            status, error = await api.call("GET", CMS)
            assert (status, error["reason"]) == (500, "InternalError") and "secret" not in str(error)
            assert "the secret detail" in caplog.text
    asyncio.run(main())


def test_tls_proves_who_a_client_is(tmp_path):
    async def main():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            await api.made(CMS, config_map("a"))
            status, who = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
            assert status == 201 and who["status"]["userInfo"]["username"] == "kubernetes-admin"
            status, _ = await api.call("GET", CMS, headers={"Authorization": "Bearer wrong"})
            assert status == 200  # the certificate has spoken
            for header in ("Impersonate-User", "impersonate-user"):
                status, error = await api.call("GET", CMS, headers={header: "jane"})
                assert status == 403 and 'User "jane" cannot list resource "configmaps"' in error["message"]
        async with serving(tls=tmp_path, client="", authorization_mode=("Node", "RBAC")) as api:
            status, error = await api.call("GET", CMS)
            assert status == 403 and "system:anonymous" in error["message"]
            assert (await api.call("GET", "/healthz"))[0] == 200
            assert (await api.call("GET", CMS, headers={"Authorization": "Bearer wrong"}))[0] == 401
    asyncio.run(main())


def test_pipelined_requests_are_answered_in_order():
    async def main():
        async with serving() as api:
            for name in ("a", "b"):
                await api.made(CMS, config_map(name))
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            writer.write(b"".join(b"GET %s/%s HTTP/1.1\r\nHost: x\r\n\r\n" % (CMS.encode(), n) for n in (b"a", b"b")))
            async with asyncio.timeout(5):
                for name in (b"a", b"b"):
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
                    assert b'"name":"%s"' % name in await reader.readexactly(length)
                writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
                assert (await reader.read()).endswith(b"ok")
            writer.close()
    asyncio.run(main())


@pytest.mark.parametrize("account", [True, False])
def test_admission_completes_pods(account):
    async def main():
        async with serving() as api:
            path = "/api/v1/namespaces/default/pods"
            if not account:
                status, error = await api.call("POST", path, pod("p"))
                assert status == 403
                assert error["message"] == ('pods "p" is forbidden: error looking up service account default/default: '
                                            'serviceaccount "default" not found')
                return
            await api.made("/api/v1/namespaces/default/serviceaccounts", {
                "metadata": {"name": "default"}, "imagePullSecrets": [{"name": "pull"}]})
            spec = (await api.made(path, pod("p")))["spec"]
            assert (spec["serviceAccountName"], spec["priority"]) == ("default", 0)
            assert spec["imagePullSecrets"] == [{"name": "pull"}]
            assert {t["key"]: t["tolerationSeconds"] for t in spec["tolerations"]} == {
                "node.kubernetes.io/not-ready": 300, "node.kubernetes.io/unreachable": 300}
            critical = await api.made(path, pod("q", priorityClassName="system-node-critical"))
            assert critical["spec"]["priority"] == 2000001000
            status, error = await api.call("POST", path, pod("r", priorityClassName="none"))
            assert status == 403 and "no PriorityClass with name none was found" in error["message"]
            node = await api.made("/api/v1/nodes", {"metadata": {"name": "n"}})
            assert node["spec"]["taints"] == [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]
    asyncio.run(main())

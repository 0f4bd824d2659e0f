import asyncio

import pytest

from controlplane.apiserver import protocol
from controlplane.apiserver.config import Options, parse
from controlplane.apiserver.reading import lists
from controlplane.apiserver.server import Server
from controlplane.machinery.errors import Finding
from controlplane.machinery.paths import Paths
from controlplane.store.memory import MemoryLog
from controlplane.store.sqlite import SqliteLog
from tests.unit.apiserver.harness import DEADLINE, config_map, serving

LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CMS = "/api/v1/namespaces/default/configmaps"


def test_what_the_cluster_stands_on_is_made_right_at_each_start(tmp_path):
    async def main():
        async with serving(SqliteLog(tmp_path / "db")) as api:
            _, spaces = await api.call("GET", "/api/v1/namespaces")
            assert [n["metadata"]["name"] for n in spaces["items"]] == [
                "default", "kube-node-lease", "kube-public", "kube-system"]
            _, service = await api.call("GET", "/api/v1/namespaces/default/services/kubernetes")
            assert service["spec"]["clusterIP"] == "10.96.0.1"
            await api.made(CMS, config_map("a"))
            await api.made("/api/v1/namespaces/default/services", {
                "metadata": {"name": "s"}, "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 1}]}})
            await api.call("DELETE", "/api/v1/namespaces/default/endpoints/kubernetes")
            revision = api.server.cache.revision
        async with serving(SqliteLog(tmp_path / "db"), advertise_address="10.0.0.2") as api:
            assert (await api.call("GET", CMS + "/a"))[0] == 200
            assert api.server.cache.revision > revision
            _, ends = await api.call("GET", "/api/v1/namespaces/default/endpoints/kubernetes")
            assert ends["subsets"][0]["addresses"] == [{"ip": "10.0.0.2"}]
            status, error = await api.call("POST", "/api/v1/namespaces/default/services", {
                "metadata": {"name": "t"}, "spec": {"clusterIP": "10.96.0.77", "ports": [{"port": 1}]}})
            assert status == 422 and "provided IP is already allocated" in error["message"]
            settled = api.server.cache.revision
        async with serving(SqliteLog(tmp_path / "db"), advertise_address="10.0.0.2") as api:
            assert api.server.cache.revision == settled  # what is right is not written again
    asyncio.run(main())


def test_an_occupied_port_is_one_sentence():
    async def main():
        async with serving() as api:
            other = Server(Options(secure_port=api.server.port, bind_address="127.0.0.1"), MemoryLog())
            with pytest.raises(Finding, match=f"cannot listen on 127.0.0.1:{api.server.port}: Address already in use"):
                await other.start()
    asyncio.run(main())


def test_a_stop_finishes_what_runs_and_accepts_nothing_more(monkeypatch):
    async def main():
        async with serving() as api:
            monkeypatch.setattr(lists, "FUTURE_WAIT", 0.5)
            slow = await api.held(CMS + "?resourceVersion=100")
            await api.server.stop()
            status, _ = await slow
            assert status == 504  # its own answer, not a cut connection
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", api.server.port)
    asyncio.run(main())


def test_the_absolute_form_is_answered_on_the_wire():
    async def play():
        async with serving() as api:
            answer, ask = await asyncio.open_connection("127.0.0.1", api.server.port)
            ask.write(LIVEZ.replace(b" /", b" https://127.0.0.1:6443/"))
            async with asyncio.timeout(DEADLINE):
                assert (await answer.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            ask.close()
    asyncio.run(play())


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX: y"])
def test_a_connection_without_a_request_ends(monkeypatch, begun):
    monkeypatch.setattr(protocol, "FIRST_SECONDS", 0.1)

    async def play():
        async with serving() as api:
            kept, asks = await asyncio.open_connection("127.0.0.1", api.server.port)
            asks.write(LIVEZ)
            async with asyncio.timeout(DEADLINE):
                assert (await kept.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
                idle, says = await asyncio.open_connection("127.0.0.1", api.server.port)
                says.write(begun)
                assert await idle.read() == b""
                asks.write(LIVEZ)  # older, but it asked in time
                assert (await kept.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            says.close()
            asks.close()
    asyncio.run(play())


def test_flags_and_their_faults(tmp_path):
    tls = ["--tls-cert-file", "c", "--tls-private-key-file", "k"]
    options = parse([*tls, "--service-node-port-range", "30000-30100"], Paths(tmp_path))
    assert options.storage_path == Paths(tmp_path).store
    assert options.service_node_port_range == (30000, 30100) and options.kubernetes_service_ip == "10.96.0.1"
    assert options.authorization_mode == ("Node", "RBAC")
    for wrong in (["--service-cluster-ip-range", "10.96.0.1/16"], ["--service-node-port-range", "9-1"],
                  ["--authorization-mode", "Magic"], ["--service-cluster-ip-range", "10.0.0.0/30"]):
        with pytest.raises(Finding):
            parse([*tls, *wrong], Paths(tmp_path))
    with pytest.raises(Finding, match="--tls-cert-file is missing"):
        parse([], Paths(tmp_path))

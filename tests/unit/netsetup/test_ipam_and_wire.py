"""Addresses survive a kill and are not reused at once; CNI calls are parsed and answered as the specification says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsetup import links, routes
from netsetup.cni import hostports, install, wire
from netsetup.ipam import SETTLING, ExhaustedError, Holding, Ipam


def test_addresses_survive_and_rest_before_reuse(tmp_path: Path) -> None:
    ipam = Ipam(tmp_path, "10.1.2.0/29")
    taken = [ipam.take(f"c{n}", "eth0", 0.0).address for n in range(3)]
    assert taken == ["10.1.2.2", "10.1.2.3", "10.1.2.4"]
    ipam.release("c0", "eth0")
    again = Ipam(tmp_path, "10.1.2.0/29")  # after a kill -9
    assert again.take("c1", "eth0", 9.0).address == "10.1.2.3"
    assert [again.take(f"d{n}", "eth0", 9.0).address for n in range(3)] == ["10.1.2.5", "10.1.2.6", "10.1.2.2"]
    with pytest.raises(ExhaustedError, match=r"no IP addresses available in range set: 10\.1\.2\.2-10\.1\.2\.6"):
        again.take("e", "eth0", 9.0)
    assert [h.container for h in again.stale({"c1", "d0"}, SETTLING)] == ["c2"]  # d1, d2 may still be starting
    (tmp_path / "10.1.2.0_29/10.1.2.6").write_text("torn")
    assert Ipam(tmp_path, "10.1.2.0/29").take("f", "eth0", 9.0).address == "10.1.2.6"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=40))
def test_no_two_containers_share_an_address(steps: list[tuple[bool, int]]) -> None:
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        ipam, held = Ipam(Path(folder), "10.1.2.0/28"), {}
        for take, number in steps:
            name = f"c{number}"
            if take:
                address = ipam.take(name, "eth0", 0.0).address
                assert held.setdefault(name, address) == address
            else:
                ipam.release(name, "eth0")
                held.pop(name, None)
            assert len(set(held.values())) == len(held)
        assert {h.container: h.address for h in Ipam(Path(folder), "10.1.2.0/28").holdings()} == held


def test_calls_and_answers() -> None:
    env = b"CNI_COMMAND=ADD\0CNI_CONTAINERID=abc\0CNI_NETNS=/run/netns/x\0CNI_ARGS=\0CNI_IFNAME=eth0\0\0"
    ports = [{"hostPort": 0, "containerPort": 1}, {"HostPort": 80, "ContainerPort": 8}]  # containerd's spelling
    body = {"cniVersion": "0.4.0", "type": "pelamis", "runtimeConfig": {"portMappings": ports}}
    call = wire.parse(env + json.dumps(body).encode())
    assert (call.command, call.container, call.netns, call.interface) == ("ADD", "abc", "/run/netns/x", "eth0")
    assert call.port_mappings == [{"hostPort": 80, "containerPort": 8}]
    assert [ip["version"] for ip in wire.added(call, [("10.0.0.2/32", "169.254.1.1", "0.0.0.0/0"),
            ("fd00::2/128", "fe80::1", "::/0")], "pel0", "m", "h")["ips"]] == ["4", "6"]
    for data, code in ((env.replace(b"ADD", b"SUB"), 4), (env + b"{", 6), (env + b'{"cniVersion":"9.0.0"}', 1),
                       (b"CNI_COMMAND=ADD\0\0{}", 4), (b"\0", 4)):
        with pytest.raises(wire.CniError) as caught:
            wire.parse(data)
        assert caught.value.code == code
    assert wire.failure(wire.CniError(11, "no"))[0] == 1
    assert wire.parse(b"CNI_COMMAND=VERSION\0\0").command == "VERSION"


def test_the_socket_is_patched_into_the_program() -> None:
    code = install.program("/run/pelamis/cni.sock", "x86_64")
    assert code[:4] == b"\x7fELF" and b"/run/pelamis/cni.sock\0" in code and install.PLACEHOLDER not in code
    assert len(code) == len((install.HERE / "shim.amd64").read_bytes())
    script = install.program("/run/pelamis/cni.sock", "aarch64")
    assert script.startswith(b"#!/") and b'"/run/pelamis/cni.sock"' in script


def test_host_port_rules_are_whole_and_drop_what_is_gone() -> None:
    mapping = {"hostPort": 80, "containerPort": 8080, "hostIP": "192.0.2.7"}
    held = Holding("10.0.0.2", "c", "eth0", 0.0, [mapping])
    name = hostports.chain_name("c", mapping)
    text = hostports.rules([held], [name, "KUBE-HP-OLD"])
    assert f"-A KUBE-HOSTPORTS -d 192.0.2.7/32 -p tcp -m tcp --dport 80 -j {name}" in text
    assert "--to-destination 10.0.0.2:8080" in text and "-X KUBE-HP-OLD" in text and f"-X {name}" not in text


def test_names_fit_and_routes_follow_nodes() -> None:
    name = links.host_name("c" * 64, "eth0")
    assert len(name) == 15 and links.is_ours(name) and not links.is_ours("pelican0")
    node = {"metadata": {"name": "b"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": "b"},
                                     {"type": "InternalIP", "address": "192.0.2.2"}]}}
    own = {"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.0.0/24"}}
    assert routes.plan([own, node, {"metadata": {"name": "new"}}], "a") == {routes.Route("10.244.1.0/24", "192.0.2.2")}

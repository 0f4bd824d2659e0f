"""What goes into the nf_tables maps: the right elements, and only those that changed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.proxy.maps import MapChange, MapSet, data, place
from agent.proxy.model import Endpoint, ServicePort
from netsetup.rtnetlink import packed

A, B, C = (Endpoint(f"10.244.1.{n}", 8080, n < 3) for n in (1, 2, 3))


def port(name="s", ip="10.96.0.1", cluster=(A, B), **more):
    local = tuple(e for e in cluster if e.local)
    return ServicePort("t", name, "", "tcp", ip, 80, cluster=tuple(cluster), local=local, **more)


def test_one_endpoint_changes_one_element():
    maps = MapSet("10.244.0.0/16")
    maps.update({("t", str(n)): (port(str(n), f"10.96.0.{n}"),) for n in range(1, 20)})
    maps.everything()
    maps.update({("t", "5"): (port("5", "10.96.0.5", (A, C)),)})
    change = maps.change()
    key = packed("10.96.0.5") + place("tcp", 80) + b"\1\0\0\0"
    assert change.add == {"endpoints": {key: data(C)}} and change.remove == {"endpoints": [key]}
    assert not change.chains and not change.dead
    maps.update({("t", "5"): (port("5", "10.96.0.5", (A, C)),)})
    assert not maps.change()


def test_what_two_services_put_in_stays_while_one_of_them_does():
    maps = MapSet("10.244.0.0/16")
    one, two = port("one", "10.96.0.1"), port("two", "10.96.0.2")
    maps.update({("t", "one"): (one,), ("t", "two"): (two,)})
    maps.change()
    maps.update({("t", "one"): ()})
    assert "hairpin" not in maps.change().remove
    maps.update({("t", "two"): ()})
    assert "hairpin" in maps.change().remove
    assert not maps.everything().add


def test_of_two_services_at_one_address_the_first_answers_until_it_goes():
    maps, shared = MapSet("10.244.0.0/16"), {"external_ips": ("203.0.113.5",)}
    first, second = port("one", "10.96.0.1", (A, B), **shared), port("two", "10.96.0.2", (C,), **shared)
    maps.update({("t", "one"): (first,), ("t", "two"): (second,)})
    key = packed("203.0.113.5") + place("tcp", 80)
    ends = {key + bytes([number, 0, 0, 0]): data(end) for number, end in enumerate((A, B))}
    assert ends.items() <= maps.everything().add["endpoints"].items()
    maps.update({("t", "one"): (), ("t", "two"): (second._replace(cluster=(B, C)),)})
    change = maps.change()
    assert key not in change.remove["services"]  # it leads to one of two endpoints as before
    assert [change.add["endpoints"][one] for one in ends] == [data(B), data(C)]
    maps.update({("t", "two"): ()})
    assert key in maps.change().remove["services"] and not maps.everything().add


PORTS = st.builds(lambda n, cluster, affinity, external, node, ranges: port(
    f"s{n}", f"10.96.0.{n + 1}", cluster, affinity=affinity, external_local=external, node_port=node and 30000 + n,
    load_balancer_ips=(f"203.0.113.{n}",) if ranges else (), source_ranges=("192.0.2.0/24",) if ranges else ()),
    st.integers(0, 3), st.lists(st.sampled_from([A, B, C]), unique=True, max_size=3), st.sampled_from([0, 0, 60, 90]),
    st.booleans(), st.booleans(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(PORTS, st.booleans()), max_size=3), max_size=8))
def test_differences_lead_where_a_full_load_would(rounds):
    maps, kernel = MapSet("10.244.0.0/16"), MapChange()
    known = {}
    for changes in rounds:
        batch = {("t", p.service): (p,) if there else () for p, there in changes}
        known.update(batch)
        maps.update(batch)
        apply(kernel, maps.change())
    fresh = MapSet("10.244.0.0/16")
    fresh.update({key: ports for key, ports in known.items() if ports})
    whole, now = fresh.everything(), maps.everything()
    assert {n: held for n, held in kernel.add.items() if held} == now.add and kernel.remembered == now.remembered
    assert now.add == whole.add
    assert whole.chains.keys() <= kernel.chains.keys()
    assert all(kernel.chains[name] == rules for name, rules in whole.chains.items())


def apply(kernel, change):
    """As the kernel would, refusing what it refuses."""
    for name, keys in change.remove.items():
        for key in keys:
            del kernel.add[name][key]
    for name, elements in change.add.items():
        assert kernel.add.setdefault(name, {}).keys().isdisjoint(elements)
        kernel.add[name].update(elements)
    for name in change.dead:
        del kernel.chains[name]
    kernel.chains.update(change.chains)
    for name in change.forgotten:
        del kernel.remembered[name]
    kernel.remembered.update(change.remembered)

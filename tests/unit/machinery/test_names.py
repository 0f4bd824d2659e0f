import pytest

from controlplane.machinery import names


@pytest.mark.parametrize(("check", "good", "bad"), [
    (names.dns_label, ["a", "a-1", "1a", "a" * 63], ["", "A", "-a", "a-", "a.b", "a" * 64, "a\n"]),
    (names.dns_subdomain, ["a.b", "1.2.3.4", "a" * 253], ["a..b", ".a", "a_b", "a" * 254]),
    (names.dns_1035_label, ["a1"], ["1a"]),
    (names.label_key, ["a", "A_b.C", "example.com/a"], ["", "/a", "Example.com/a", "a/", "a/b/c", "a" * 64, "-a"]),
    (names.annotation_key, ["Example.com/A"], ["a b"]),
    (names.label_value, ["", "a", "A_b.c"], ["-", "a b", "a" * 64]),
    (names.path_segment, ["system:a", "A b"], [".", "..", "a/b", "a%b"]),
    (names.config_key, ["a", ".b", "A_-.c"], ["", ".", "..", "..a", "a/b", "a" * 254]),
    (names.env_name, ["A", "a b", "1.x-"], ["", "a=b", "é"]),
    (names.port_name, ["http", "p-1"], ["", "1", "a--b", "-a", "abcdefghijklmnop", "A"]),
    (names.ip_address, ["10.0.0.1", "::1"], ["10.0.0.01", "10.0.0", "fe80::1%eth0", ""]),
    (names.cidr, ["10.0.0.0/8", "fd00::/64"], ["10.0.0.0", "10.0.0.0/33"]),
])
def test_what_may_be_a_name(check, good, bad):
    assert [t for t in good if check(t)] == []
    assert [t for t in bad if not check(t)] == []


def test_wording_is_upstreams():
    assert names.dns_label("A") == [
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
        "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
        "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
    assert names.label_key("a/" + "b" * 64) == ["name part must be no more than 63 bytes"]
    assert names.dns_label("a.b") == ["must not contain dots"]
    assert names.dns_label("a" * 64) == ["must be no more than 63 characters"]
    assert names.label_key("a" * 254 + "/b") == ["prefix part must be no more than 253 bytes"]


def test_a_generated_name_stays_a_label():
    assert names.dns_label(names.generated("a" * 80, "bcdfg")) == []

"""What leaves the host in a support file: nothing secret, wherever a kind or a log keeps it."""

import json
import tarfile

import pytest

from controlplane.hosts import bundle, support
from controlplane.machinery.errors import Finding

SECRET = "c2VjcmV0LXZhbHVl"


def test_objects_lose_their_secrets_by_schema():
    noted = {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": SECRET, "kept": "yes"},
             "managedFields": [{}]}
    objects = [
        {"kind": "Secret", "metadata": noted, "data": {"password": SECRET}, "stringData": {"a": SECRET}},
        {"kind": "ConfigMap", "data": {"config": SECRET}},
        {"kind": "Pod", "spec": {"containers": [{"env": [{"name": "PASSWORD", "value": SECRET}, {"name": "X",
         "valueFrom": {"secretKeyRef": {"name": "s"}}}], "args": ["--port=80"]}]}},
        {"kind": "Deployment", "spec": {"template": {"spec": {"initContainers": [{"env": [
            {"name": "A", "value": SECRET}]}]}}}},
        {"kind": "CertificateSigningRequest", "spec": {"request": SECRET}, "status": {"certificate": SECRET}},
        {"kind": "ValidatingWebhookConfiguration", "webhooks": [{"clientConfig": {"caBundle": SECRET}}]}]
    before = json.dumps(objects)
    made = [support.redact(obj) for obj in objects]
    assert SECRET not in json.dumps(made)
    assert json.dumps(objects) == before, "the argument is not changed"
    assert made[0]["metadata"] == {"annotations": {"kept": "yes"}}
    assert made[2]["spec"]["containers"][0]["args"] == ["--port=80"]
    assert made[2]["spec"]["containers"][0]["env"][1]["valueFrom"]["secretKeyRef"]["name"] == "s"


@pytest.mark.parametrize("line", [
    "Authorization: Bearer abc.def-ghi", "join --token abcdef.0123456789abcdef", "url?token=supersecret&x=1",
    "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl",
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----"])
def test_logs_lose_what_looks_like_a_credential(line):
    made = support.scrub(f"before {line} after")
    assert support.GONE in made and made.startswith("before") and made.endswith("after")
    for secret in ("abc.def-ghi", "0123456789abcdef", "supersecret", "eyJpc3Mi", "MHcCAQ"):
        assert secret not in made


def test_no_part_is_larger_than_it_may_be():
    assert support.within("short", 10) == "short"
    cut = support.within("x" * 50 + "the end", 10)
    assert cut.endswith("xxxthe end") and "47 characters are left out" in cut


def test_ordinary_lines_stay():
    line = "2026-11-21 06:43:36 I agent ready: node lab-1.example.org, 192.168.79.11 registry.k8s.io/pause:3.10"
    assert support.scrub(line) == line


def test_the_file_is_for_its_owner_alone(tmp_path):
    output = tmp_path / "s.tar.gz"
    support.write(output, {"a/b.txt": b"text"})
    assert output.stat().st_mode & 0o077 == 0
    with tarfile.open(output) as tar:
        assert tar.getnames() == ["s/a/b.txt"]


def test_a_bundle_is_what_was_packed(tmp_path):
    (tmp_path / "debs").mkdir()
    (tmp_path / "debs/a_1_all.deb").write_bytes(b"package")
    with pytest.raises(Finding, match="holds no bundle"):
        bundle.check(tmp_path)
    (tmp_path / bundle.MANIFEST).write_text(json.dumps(bundle.manifest(tmp_path)))
    bundle.check(tmp_path)
    for change in (lambda: (tmp_path / "debs/a_1_all.deb").write_bytes(b"another"),
                   lambda: (tmp_path / "debs/b_1_all.deb").write_bytes(b"more")):
        change()
        with pytest.raises(Finding, match="damaged"):
            bundle.check(tmp_path)

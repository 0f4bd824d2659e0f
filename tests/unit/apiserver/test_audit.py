"""What is recorded: audit events by policy, sentences by change, and no secret in either."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from controlplane.apiserver.recording import audit, changelog
from controlplane.apiserver.recording.logfile import LogFile
from controlplane.machinery.errors import Finding
from tests.unit.apiserver.harness import config_map, serving

POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, resources: [{group: "", resources: [events]}]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps, secrets]}], omitManagedFields: true}
- {level: Metadata}
"""
SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"p": "hunter2"}}
NS = "/api/v1/namespaces/default"


def test_audit_and_change_log_of_a_session(tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    log, changes = tmp_path / "audit.log", tmp_path / "changes.log"

    async def main():
        async with serving(audit_policy_file=tmp_path / "policy.yaml", audit_log_path=str(log),
                           change_log_path=str(changes)) as api:
            await api.made(NS + "/configmaps", config_map("a", x="1"))
            await api.made(NS + "/secrets", SECRET)
            await api.call("PATCH", NS + "/secrets/s", {"stringData": {"p": "hunter3"}}, "application/merge-patch+json")
            async with api.watching(NS + "/configmaps?watch=1&timeoutSeconds=1"):
                pass
            await api.call("DELETE", NS + "/configmaps/a")
            assert (await api.call("GET", NS + "/configmaps/a"))[0] == 404
    asyncio.run(main())
    events = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    made = next(e for e in events if e["verb"] == "create" and e["objectRef"]["resource"] == "configmaps")
    assert made["level"] == "RequestResponse" and made["stage"] == "ResponseComplete"
    assert made["requestObject"]["data"] == {"x": "1"} and made["responseStatus"]["code"] == 201
    assert "managedFields" not in made["responseObject"]["metadata"] and made["user"]["username"] == "system:anonymous"
    watch = [e["stage"] for e in events if e["verb"] == "watch"]
    assert watch == ["ResponseStarted", "ResponseComplete"]
    assert len({e["auditID"] for e in events}) == len(events) - 1
    said = changes.read_text()
    for sentence in ("created configmap default/a", "created secret default/s", "changed secret default/s",
                     "deleted configmap default/a"):
        assert f"Z system:anonymous {sentence}\n" in said
    for text in (said, log.read_text()):
        assert "hunter" not in text and "aHVudGVy" not in text
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("policy", [None, {}, {"kind": "Policy", "apiVersion": "audit.k8s.io/v1"},
                                    {"kind": "Policy", "apiVersion": "audit.k8s.io/v1", "rules": [{"level": "All"}]}])
def test_a_wrong_policy_is_told(policy):
    with pytest.raises(Finding):
        audit.checked(policy, "p.yaml")


def deployment(**changed):
    spec = {"replicas": 2, "template": {"spec": {"containers": [
        {"name": "c", "image": "web:1", "env": [{"name": "P", "value": "hunter2"}]}]}}}
    return {"kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": {**spec, **changed}}


def test_sentences():
    old = deployment()
    containers = [{"name": "c", "image": "web:2", "env": [{"name": "P", "value": "hunter3"}]}]
    new = deployment(replicas=3, template={"spec": {"containers": containers}})
    assert list(changelog.sentences(old, new)) == [
        "scaled deployment default/web from 2 to 3",
        "changed the image of container c in deployment default/web from web:1 to web:2",
        "changed spec.template.spec.containers[c].env[P].value of deployment default/web"]
    node = {"kind": "Node", "metadata": {"name": "n1"}, "spec": {}}
    assert list(changelog.sentences(node, {**node, "spec": {"unschedulable": True}})) == ["cordoned node n1"]
    assert list(changelog.sentences(old, {**old, "status": {"replicas": 2}})) == []
    ending = {**old, "metadata": {**old["metadata"], "deletionTimestamp": "x", "deletionGracePeriodSeconds": 30}}
    assert list(changelog.sentences(old, ending)) == ["deleted deployment default/web, giving it 30 seconds"]


def test_a_log_is_turned_over_and_bounded(tmp_path):
    async def main():
        log = LogFile(str(tmp_path / "a.log"), backups=2)
        log._limit = 100
        for number in range(12):
            log.write(b"%03d " % number + b"x" * 55 + b"\n")
            while log._flushing is not None:
                await log._flushing
        await log.close()
    asyncio.run(main())
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and (tmp_path / "a.log").read_bytes().startswith(b"011 ")
    assert all(f.stat().st_size <= 100 for f in files)


def test_options_need_each_other():
    from controlplane.apiserver import config
    base = ["--tls-cert-file=a", "--tls-private-key-file=b", "--storage=memory"]
    with pytest.raises(Finding, match="audit-policy-file"):
        config.parse([*base, "--audit-log-path=-"])
    assert replace(config.parse(base)).max_requests_inflight == 400

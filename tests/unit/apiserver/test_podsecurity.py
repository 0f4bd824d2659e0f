"""Pod Security Standards at the API: refusals, warnings, and what raising a namespace's level tells."""

import asyncio

import orjson

from controlplane.machinery import podsecurity
from controlplane.machinery.podsecurity import Level
from tests.unit.apiserver.harness import pod, serving

GOOD = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"}}


async def space(api, name, **labels):
    await api.made("/api/v1/namespaces", {"metadata": {
        "name": name, "labels": {f"pod-security.kubernetes.io/{k.replace('_', '-')}": v for k, v in labels.items()}}})
    await api.made(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})


def secure(name, **context):
    made = pod(name)
    made["spec"]["containers"][0]["securityContext"] = {**GOOD, **context}
    return made


def test_enforced_in_upstreams_words():
    async def main():
        async with serving() as api:
            await space(api, "tight", enforce="restricted")
            status, error = await api.call("POST", "/api/v1/namespaces/tight/pods", pod("a"))
            assert (status, error["message"]) == (403, (
                'pods "a" is forbidden: violates PodSecurity "restricted:latest": '
                'allowPrivilegeEscalation != false (container "c" must set '
                "securityContext.allowPrivilegeEscalation=false), "
                'unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), '
                'runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), '
                'seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to '
                '"RuntimeDefault" or "Localhost")'))
            await api.made("/api/v1/namespaces/tight/pods", secure("b"))
            await space(api, "base", enforce="baseline", enforce_version="v1.30")
            status, error = await api.call("POST", "/api/v1/namespaces/base/pods", secure(
                "a", privileged=True, allowPrivilegeEscalation=True))
            assert error["message"].endswith('"baseline:v1.30": privileged (container "c" must not set '
                                             "securityContext.privileged=true)")
    asyncio.run(main())


def test_warns_of_templates_and_of_pods_already_there():
    async def main():
        async with serving() as api:
            await space(api, "soft", warn="baseline")
            body = {"metadata": {"name": "d"}, "spec": {
                "selector": {"matchLabels": {"a": "b"}}, "template": {
                    "metadata": {"labels": {"a": "b"}}, "spec": pod("x", hostPID=True)["spec"]}}}
            async with api.session.post(api.url + "/apis/apps/v1/namespaces/soft/deployments", json=body) as answer:
                assert answer.status == 201
                assert 'would violate PodSecurity \\"baseline:latest\\": host namespaces (hostPID=true)' in \
                    answer.headers["Warning"]
            for name in ("p", "q"):
                await api.made("/api/v1/namespaces/soft/pods", pod(name, hostPID=True))
            patch = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
            async with api.session.patch(api.url + "/api/v1/namespaces/soft", json=patch,
                                         headers={"Content-Type": "application/merge-patch+json"}) as answer:
                told = answer.headers.getall("Warning")
                assert any("p (and 1 other pod): host namespaces" in text for text in told), told
            patch["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = "tight"
            status, error = await api.call("PATCH", "/api/v1/namespaces/soft", patch, "application/merge-patch+json")
            assert status == 422 and "must be one of privileged, baseline, restricted" in error["message"]
    asyncio.run(main())


def test_the_audit_log_tells_what_would_have_been_refused(tmp_path):
    async def main():
        policy = tmp_path / "policy.yaml"
        policy.write_text("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n")
        async with serving(audit_policy_file=policy, audit_log_path=str(tmp_path / "log")) as api:
            await space(api, "watched", audit="baseline")
            await api.made("/api/v1/namespaces/watched/pods", pod("p", hostIPC=True))
        events = [orjson.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
        told = [e["annotations"] for e in events if e.get("objectRef", {}).get("resource") == "pods"
                and e["stage"] == "ResponseComplete"]
        assert [t["pod-security.kubernetes.io/audit-violations"] for t in told] == [
            'would violate PodSecurity "baseline:latest": host namespaces (hostIPC=true)']
    asyncio.run(main())


def test_checks_by_version():
    ports = {"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}]}]}
    assert podsecurity.told(podsecurity.offences(Level("baseline"), {}, ports)) == \
        'hostPort (container "a" uses hostPorts 443, 80)'
    tuned = {"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_keepalive_time"}]}}
    assert not podsecurity.offences(Level("baseline", 29), {}, tuned)
    assert podsecurity.offences(Level("baseline", 28), {}, tuned) == [
        ("forbidden sysctls", "net.ipv4.tcp_keepalive_time")]
    volumes = {"volumes": [{"name": "v", "hostPath": {"path": "/"}}, {"name": "w", "emptyDir": {}}]}
    assert podsecurity.reasons(podsecurity.offences(Level("restricted"), {}, volumes)) == \
        "restricted volume types"
    probe = {"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "1.1.1.1"}}}]}
    assert podsecurity.told(podsecurity.offences(Level("baseline", 34), {}, probe)) == (
        'probe or lifecycle host (container "a" uses probe or lifecycle host "1.1.1.1")')

"""What kubectl's users see of admission: limits, quotas, pod security, policies and webhooks, over TLS."""

import asyncio
import shutil

import orjson
import pytest

from tests.client.test_kubectl_crd import Kubectl
from tests.unit.apiserver.harness import serving
from tests.unit.apiserver.hookserver import config, hooks, patch

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]

LIMITS = """
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec:
  limits:
  - {type: Container, max: {cpu: "1"}, default: {cpu: 500m}}
"""
POLICY = """
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: few}
spec:
  matchConstraints:
    resourceRules:
    - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments, deployments/scale]}
  validations:
  - {expression: "object.spec.replicas <= 3", messageExpression: "'at most 3, not ' + string(object.spec.replicas)"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: few}
spec: {policyName: few, validationActions: [Deny]}
"""


async def space(k, name):
    await k(f"create namespace {name}")
    await k(f"-n {name} create serviceaccount default")


async def limits(k):
    await space(k, "small")
    await k("-n small create -f -", LIMITS)
    await k("-n small run p --image=i")
    assert await k("-n small get pod p -o jsonpath={.spec.containers[0].resources}") == \
        '{"limits":{"cpu":"500m"},"requests":{"cpu":"500m"}}'
    assert "500m" in await k("describe limitrange small -n small")
    await k("-n small create quota q --hard=configmaps=1")
    await k(["-n", "small", "patch", "quota", "q", "--subresource=status", "--type=merge", "-p",
             '{"status":{"hard":{"configmaps":"1"},"used":{"configmaps":"0"}}}'])
    await k("-n small create configmap a")
    refused = await k("-n small create configmap b", fails=True)
    assert ('configmaps "b" is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=1, '
            "limited: configmaps=1") in refused
    assert "configmaps: 1/1" in await k("-n small get quota q")


async def security(k):
    await space(k, "tight")
    await k("-n tight create deployment old --image=i")
    await k("label namespace tight pod-security.kubernetes.io/enforce=restricted")
    refused = await k("-n tight run p --image=i", fails=True)
    assert ('pods "p" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false '
            '(container "p" must set securityContext.allowPrivilegeEscalation=false)') in refused
    warned = await k("-n tight create deployment d --image=i", both=True)
    assert 'Warning: would violate PodSecurity "restricted:latest"' in warned


async def policies(k):
    await k("create -f -", POLICY)
    await k("create deployment d --image=i --replicas=3")
    refused = await k("create deployment e --image=i --replicas=4", fails=True)
    assert "ValidatingAdmissionPolicy 'few' with binding 'few' denied request: at most 3, not 4" in refused
    assert "at most 3, not 5" in await k("scale deployment d --replicas=5", fails=True)


async def webhooks(k, server):
    server.answers["/add"] = lambda r: patch({"op": "add", "path": "/data", "value": {"by": "hook"}})
    server.answers["/no"] = lambda r: {"allowed": False, "status": {"message": "no plain maps"},
                                       "warnings": ["maps are watched"]}
    for kind, path, rules in (("Mutating", "/add", {}), ("Validating", "/no", {
            "objectSelector": {"matchLabels": {"plain": "yes"}}})):
        made = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": f"{kind}WebhookConfiguration",
                **config(kind.lower(), server.client(path), operations=["*"], **rules)}
        await k("create -f -", orjson.dumps(made).decode())
    await k("create configmap m")
    assert await k("get configmap m -o jsonpath={.data}") == '{"by":"hook"}'
    told = await k("label configmap m plain=yes", fails=True)
    assert 'admission webhook "validating.example.com" denied the request: no plain maps' in told
    assert "Warning: maps are watched" in told
    await k("delete mutatingwebhookconfigurations,validatingwebhookconfigurations --all")
    await k("label configmap m plain=yes")


def test_admission_as_kubectl_shows_it(tmp_path):
    async def main():
        async with hooks(tmp_path) as server, serving(tls=tmp_path) as api:
            k = Kubectl(shutil.which("kubectl"), api, tmp_path)
            await limits(k)
            await security(k)
            await policies(k)
            await webhooks(k, server)
    asyncio.run(main())

"""The real kubectl with every built-in kind: created, applied, listed, described, explained and deleted."""

from __future__ import annotations

import json
import shutil

import pytest

from controlplane.machinery.resources import BUILTIN
from tests.client.test_kubectl_api import session
from tests.unit.machinery.test_kinds import BODIES

pytestmark = [pytest.mark.client,
              pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH: these tests drive it")]
# whose describers in kubectl before 1.34 ask for beta versions, which no 1.36 server has
BETA = ("servicecidrs.", "ipaddresses.", "volumeattributesclasses.")
EXPLAINED = {"jobs.spec.podFailurePolicy.rules.onExitCodes": "OnExitCodes", "cronjobs.spec.schedule": "Cron format",
             "statefulsets.spec.volumeClaimTemplates": "PersistentVolumeClaim",
             "pdb.spec.maxUnavailable": "IntOrString",
             "ingress.spec.rules.http.paths.pathType": "ImplementationSpecific",
             "netpol.spec.podSelector": "matchLabels",
             "hpa.spec.behavior.scaleDown": "stabilizationWindowSeconds", "pv.spec.csi.driver": "driver",
             "priorityclasses.value": "integer", "resourceclaims.spec.devices.requests": "firstAvailable",
             "validatingwebhookconfigurations.webhooks.clientConfig": "caBundle", "flowschemas.spec.rules": "subjects"}


def documents():
    made = []
    for name, body in BODIES.items():
        resource = BUILTIN.named(name)
        meta = {"name": "x", **(body.get("metadata") or {})}
        if resource.namespaced:
            meta["namespace"] = "default"
        made.append({"apiVersion": resource.api_version, "kind": resource.kind, **body, "metadata": meta})
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": made}), [
        f"{name}/{doc['metadata']['name']}" for name, doc in zip(BODIES, made)]


async def revisions(k, names):
    quiet = [n for n in names if not n.startswith("servicecidrs.")]  # the server itself says Ready there, a bit later
    return (await k(["get", *quiet, "-o", "jsonpath={range .items[*]}{.kind} {.metadata.resourceVersion}{'\\n'}{end}"])
            ).splitlines()


def test_every_kind_lives_a_life_by_kubectl(tmp_path):
    text, names = documents()

    async def steps(k):
        out = await k("create --dry-run=server -f -", text)
        assert out.count(" created (server dry run)") == len(names)
        out = await k("apply -f -", text)
        assert out.count(" created") == len(names), out
        before = await revisions(k, names)
        out = await k("apply -f -", text)  # kubectl sends lists it cannot merge again: the server must see no change
        assert out.count(" unchanged") + out.count(" configured") == len(names)
        assert await revisions(k, names) == before
        for server_side in ("apply --server-side --field-manager=other -f -", "apply --server-side -f -"):
            out = await k(f"{server_side} --force-conflicts", text)
            assert out.count("serverside-applied") == len(names), out
        shown = await k(["get", *names])
        assert shown.count("NAME") >= len(names)
        wide = await k(["get", *names, "-o", "wide"])
        assert wide.count("NAME") >= len(names)
        described = await k(["describe", *(n for n in names if not n.startswith(BETA))])
        assert described.count("Name:") >= len(names) - len(BETA)
        out = await k(["delete", *names, "--wait=false"])
        assert out.count(" deleted") == len(names)
    session(tmp_path, steps)


def test_kinds_are_explained(tmp_path):
    async def steps(k):
        for path, word in EXPLAINED.items():
            assert word in await k(f"explain {path}"), path
    session(tmp_path, steps)


def test_the_usual_generators(tmp_path):
    async def steps(k):
        assert "created" in await k("create job j --image=busybox -- true")
        assert "created" in await k(["create", "cronjob", "c", "--image=busybox", "--schedule=*/5 * * * *", "--",
                                     "true"])
        assert "created" in await k("create job from --from=cronjob/c")
        assert "created" in await k(["create", "ingress", "i", "--rule=a.b/*=svc:80,tls=s"])
        assert "created" in await k("create poddisruptionbudget p --selector=a=b --min-available=50%")
        assert "created" in await k("create quota q --hard=pods=3,services=1")
        assert "created" in await k("create priorityclass high --value=1000")
        assert "created" in await k("create deployment web --image=busybox")
        assert "autoscaled" in await k("autoscale deployment web --max=5 --cpu-percent=50")
        old = await k.json("get horizontalpodautoscalers.v1.autoscaling web")
        assert old["spec"]["targetCPUUtilizationPercentage"] == 50
        assert "batch.kubernetes.io/controller-uid=" in await k("describe job j")
        assert "0/1" in await k("get jobs") and 'pods: "3"' in await k("get quota q -o yaml")
        assert "patched" in await k(["patch", "cronjob", "c", "-p", '{"spec":{"suspend":true}}'])
        assert (await k.json("get cronjob c"))["metadata"]["generation"] == 2
    session(tmp_path, steps)

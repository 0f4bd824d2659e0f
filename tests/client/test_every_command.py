"""Every command of kubectl that needs no node, by every kubectl at hand, against a real apiserver in this process.

One long session per version: what a command leaves behind is what the next one works on.
"""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from tests.client.cluster import kubectls
from tests.client.test_kubectl_api import Kubectl
from tests.unit.apiserver.harness import serving
from tests.unit.apiserver.test_signing import pem

AVAILABLE = kubectls()
pytestmark = [pytest.mark.client, pytest.mark.skipif(not AVAILABLE, reason="no kubectl on PATH: these tests drive it")]
VERSIONS = sorted({0, len(AVAILABLE) // 2, len(AVAILABLE) - 1, 1} & set(range(len(AVAILABLE))))

ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: rec, namespace: default}
rules: [{apiGroups: [""], resources: [pods], verbs: [%s]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: rec, namespace: default}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: rec}
subjects: [{kind: User, name: bob, apiGroup: rbac.authorization.k8s.io}]
"""
MAP = '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m","namespace":"default"},"data":{"a":"%s"}}'
NODE = '{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}'
CSR = json.dumps({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
                  "metadata": {"name": "csr"}, "spec": {
                      "request": base64.b64encode(pem("jane")).decode(), "usages": ["client auth"],
                      "signerName": "kubernetes.io/kube-apiserver-client"}})

EVENT = json.dumps({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "one.1", "namespace": "default"},
                    "involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "one", "namespace": "default"},
                    "type": "Warning", "reason": "Told", "message": "so it was",
                    "lastTimestamp": "2026-01-01T00:00:00Z"})
AWAY = json.dumps({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1.far.io"},
                   "spec": {"group": "far.io", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1,
                            "service": {"name": "away", "namespace": "default"}}})
SET = ('{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s","namespace":"default","labels":{"set":"a"}}}')

# command | what it prints | what it reads. A command that begins with ! fails.
SESSION = [
    ("cluster-info", "is running at"), ("version", "Server Version"), ("api-versions", "apps/v1"),
    ("api-resources --verbs=list --namespaced -o name", "deployments.apps"), ("config view", "current-context"),
    ("create serviceaccount default", "created"), ("create namespace n", "created"),
    ("create deployment web --image=i --replicas=2 --port=80", "created"),
    ("create configmap c --from-literal=a=1", "created"), ("create secret generic s --from-literal=p=w", "created"),
    ("create secret docker-registry r --docker-username=u --docker-password=p --docker-server=x", "created"),
    ("create job j --image=i -- true", "created"),
    (["create", "cronjob", "cj", "--image=i", "--schedule=*/5 * * * *", "--", "true"], "created"),
    ("create job j2 --from=cronjob/cj", "created"), ("create ingress ing --rule=a.b/x=web:80", "created"),
    ("create poddisruptionbudget p --selector=app=web --max-unavailable=1", "created"),
    ("create quota q --hard=replicationcontrollers=20", "created"),
    ("create role r --verb=get,list --resource=pods --resource=pods/log", "created"),
    ("create rolebinding rb --role=r --serviceaccount=default:default --user=jane --group=dev", "created"),
    ("create clusterrole cr --verb=get --non-resource-url=/metrics", "created"),
    ("create clusterrole agg --aggregation-rule=x=y", "created"),
    ("create clusterrolebinding crb --clusterrole=cr --user=jane", "created"),
    ("create priorityclass pc --value=10", "created"), ("create service clusterip s1 --tcp=80:8080", "created"),
    ("create service nodeport s2 --tcp=80:8080", "created"),
    ("create service loadbalancer s3 --tcp=80:8080", "created"),
    ("create service externalname s4 --external-name=a.b", "created"), ("create token default", "."),
    ("create token default --audience=x --bound-object-kind=Secret --bound-object-name=s", "."),
    ("run one --image=i --restart=Never --labels=a=b", "created"), ("expose deployment web --port=80", "exposed"),
    ("expose service web --name=again --port=81", "exposed"),
    ("autoscale deployment web --max=5 --cpu-percent=50", "auto"),
    ("set env deployment/web A=1", "env updated"), ("set env deployment/web --list", "A=1"),
    ("set resources deployment/web --limits=cpu=200m", "requirements updated"),
    ("set image deployment/web *=j", "image updated"), ("set serviceaccount deployment/web default", "updated"),
    ("set selector service web app=web", "selector updated"), ("set subject rolebinding rb --user=ann", "updated"),
    ("rollout pause deployment/web", "paused"), ("rollout resume deployment/web", "resumed"),
    ("rollout restart deployment/web", "restarted"), ("rollout history deployment/web", "deployment.apps/web"),
    ("!rollout undo deployment/web --to-revision=7", "unable to find"),
    ("set env deployment/web --from=configmap/c", "env updated"), ("label deployment web --list", "app=web"),
    ("scale deployment/web --current-replicas=2 --replicas=1", "scaled"),
    ("!scale deployment/web --current-replicas=7 --replicas=1", "Expected replicas to be 7"),
    ("label deployment web tier=x", "labeled"), ("!label deployment web tier=y", "already has a value"),
    ("label deployment web tier=y --overwrite", "labeled"), ("label deployment web tier-", "label"),
    ("annotate deployment web note=x", "annotate"), ("annotate deployment web note-", "annotate"),
    ("auth can-i create pods", "yes"), ("!auth can-i create pods --as=jane", "no"),
    ("auth can-i list pods --as=jane", "yes"), ("auth can-i --list --as=jane", "pods/log"),
    ("auth whoami", "kubernetes-admin"), ("auth reconcile -f -", "reconciled", ROLES % "get"),
    ("auth reconcile -f - --remove-extra-permissions --remove-extra-subjects", "reconciled", ROLES % "list"),
    ("get role rec -o jsonpath={.rules[0].verbs[0]}", "list"), ("create -f - --save-config", "created", MAP % 1),
    ("apply -f -", "unchanged", MAP % 1), ("apply view-last-applied configmap m", 'a: "1"'),
    ("apply set-last-applied -f -", "configured", MAP % 1), ("!diff -f -", '+  a: "2"', MAP % 2),
    ("apply -f -", "configured", MAP % 2), ("apply --server-side -f -", "serverside-applied", MAP % 2),
    ("replace -f -", "replaced", MAP % 3), ("replace --force -f -", "replaced", MAP % 3),
    (["patch", "configmap", "m", "-p", '{"data":{"b":"1"}}'], "patched"),
    (["patch", "configmap", "m", "--type=merge", "-p", '{"data":{"b":null}}'], "patched"),
    (["patch", "configmap", "m", "--type=json", "-p", '[{"op":"add","path":"/data/c","value":"x"}]'], "patched"),
    (["patch", "deployment", "web", "--subresource=scale", "--type=merge", "-p", '{"spec":{"replicas":3}}'], "patched"),
    ("get deployment web --subresource=scale -o yaml", "replicas: 3"), ("edit configmap m", "edited"),
    ("get configmap m -o jsonpath={.data.a}", "edited"), ("explain pod.spec.containers.livenessProbe", "FIELDS"),
    ("explain configmap --recursive", "<string>"),
    ("explain deployment.spec --output plaintext-openapiv2", "minReadySeconds"),
    ("explain cronjob --recursive --api-version=batch/v1", "jobTemplate"),
    ("get --raw /readyz", "ok"), ("get all", "deployment.apps/web"),
    ("get deployments,services -o wide --show-labels", "web"), ("get pods -o custom-columns=N:.metadata.name", "one"),
    ("get pods -o name --sort-by=.metadata.creationTimestamp", "pod/one"), ("get componentstatuses", "NAME"),
    ("events", "No events found"), ("create -f -", "created", EVENT),
    ("events --for pod/one --types=Warning", "so it was"),
    ("!events --for nothing/at-all", "the server doesn't have a resource type"),
    ("cluster-info dump --namespaces=default", '"name": "one"'),
    ("create configmap never --dry-run=server -o name", "configmap/never"),
    ("create -f -", "created", AWAY),
    ("wait --for=condition=Available=false apiservice/v1.far.io --timeout=20s", "condition met"),
    ("api-resources", "deployments"), ("get deployments", "web"), ("delete apiservice v1.far.io", "deleted"),
    ("wait --for=jsonpath={.status.phase}=Pending pod/one --timeout=20s", "condition met"),
    ("apply -l set=a --prune -f -", "created", SET % "kept"),
    ("apply -l set=a --prune --prune-allowlist=core/v1/ConfigMap -f -", "configmap/kept pruned", SET % "other"),
    ("apply --prune --applyset=configmaps/mine -n default -f -", "configmap/first created", SET % "first"),
    ("apply --prune --applyset=configmaps/mine -n default -f -", "configmap/first pruned", SET % "second"),
    ("get configmap mine -o jsonpath={.metadata.labels}", "applyset.kubernetes.io/id"),
    ("delete configmap second --wait=false", "deleted"), ("wait --for=delete configmap/second --timeout=20s", ""),
    ("wait --for=create configmap/m --timeout=20s", "m"), ("describe deployment web", "RollingUpdateStrategy"),
    ("describe service web", "Session Affinity"), ("describe namespace default", "Resource Quotas"),
    ("describe pod one", "QoS Class"), ("describe ingress ing", "a.b"), ("describe quota q", "Resource"),
    ("debug one --image=i --container=dbg -- true", ""),
    ("get pod one -o jsonpath={.spec.ephemeralContainers[*].name}", "dbg"),
    ("debug one --copy-to=two --image=i -- true", ""), ("get pod two -o name", "pod/two"),
    ("debug one --copy-to=three --set-image=*=x --same-node", ""), ("get pod three -o jsonpath={..image}", "x"),
    ("create -f -", "created", NODE),
    ("taint nodes n1 x=y:NoSchedule", "tainted"), ("taint nodes n1 x-", "untainted"), ("cordon n1", "cordoned"),
    ("drain n1 --force", "drained"), ("uncordon n1", "uncordoned"), ("describe node n1", "Taints"),
    ("debug node/n1 --image=i --profile=general -- true", "Creating debugging pod node-debugger-n1-"),
    ("get pods -o jsonpath={.items[*].spec.nodeName}", "n1"),
    ("create -f -", "created", CSR), ("get csr csr", "Pending"), ("certificate approve csr", "approved"),
    ("wait --for=condition=Approved csr/csr --timeout=20s", "condition met"), ("describe csr csr", "jane"),
    ("delete csr csr", "deleted"), ("create -f -", "created", CSR), ("certificate deny csr", "denied"),
    ("create -k .", "created"), ("kustomize .", "from-kustomize"), ("delete -k .", "deleted"),
    ("delete deployment web --cascade=orphan --wait=false", "deleted"), ("delete pods --all --force", "deleted"),
    ("delete configmap,secret,service --all --ignore-not-found", "deleted")]
# in which version a command or flag came
SINCE = {"wait --for=create": 31}


def minor(binary):
    _, _, text = Path(binary).name.rpartition("kubectl.1.")
    return int(text) if text.isdigit() else 99


@pytest.mark.parametrize("which", VERSIONS, ids=[Path(AVAILABLE[i]).name for i in VERSIONS])
def test_every_command_does_its_work(which, tmp_path):
    binary = AVAILABLE[which]
    (tmp_path / "kustomization.yaml").write_text("configMapGenerator: [{name: from-kustomize, literals: [a=b]}]\n")
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nsed -i "s/a: .*/a: edited/" "$1"\n')
    editor.chmod(0o755)

    async def play():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            k = Kubectl(api, tmp_path, binary, {"KUBE_EDITOR": str(editor), "KUBECTL_APPLYSET": "true"})
            failures = []
            for command, prints, *reads in SESSION:
                words = command.split() if isinstance(command, str) else list(command)
                if any(" ".join(words).startswith(c) and minor(binary) < v for c, v in SINCE.items()):
                    continue
                fails = words[0].startswith("!")
                words[0] = words[0].removeprefix("!")
                try:
                    said = await k.said(words, reads[0] if reads else "", fails)
                    assert prints in said, f"{words}\n{said}"
                except AssertionError as error:
                    failures.append(str(error))
            assert failures == [], "\n".join(failures)
    asyncio.run(play())

"""ServiceAccount: every Pod runs as an account that exists, and finds that account's credentials mounted.

Owns the account a Pod gets when it names none, the account's pull secrets, and the volume `kube-api-access-…` (token,
CA, namespace) in each container that mounts nothing there itself. Honours automountServiceAccountToken, the Pod's word
before the account's, and accounts whose Pods may use no Secrets but those the account lists. A server that has no key
to sign tokens with mounts none: the Pod would wait for it for ever. The mirror of a file on a node may refer to no
account and no secret. Called by the admission chain.

Upstream: plugin/pkg/admission/serviceaccount.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, Attributes, Plugin
from controlplane.apiserver.authorization.nodeauth import refers_to
from controlplane.apiserver.reading.lists import object_key
from controlplane.machinery.resources import named

MIRROR = "kubernetes.io/config.mirror"
VOLUME = "kube-api-access-"
MOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
TOKEN_SECONDS = 3607  # an hour; the odd seven seconds tell these tokens from those somebody asked for
MODE = 0o644
ENFORCED = "kubernetes.io/enforce-mountable-secrets"
Object = dict[str, Any]


class ServiceAccounts(Plugin):
    async def mutate(self, attributes: Attributes) -> None:
        pod = attributes.obj
        if pod is None or not attributes.concerns("pods", CREATE) or _mirrors(pod):
            return
        spec: Object = pod.setdefault("spec", {})
        name = spec.get("serviceAccountName") or spec.get("serviceAccount") or "default"
        spec["serviceAccountName"] = spec["serviceAccount"] = name
        account = self._account(attributes.namespace, name)
        if account is None:
            raise attributes.forbidden(f"error looking up service account {attributes.namespace}/{name}: "
                                       f'serviceaccount "{name}" not found')
        if not spec.get("imagePullSecrets") and account.get("imagePullSecrets"):
            spec["imagePullSecrets"] = [dict(secret) for secret in account["imagePullSecrets"]]
        if self.context.options.service_account_signing_key_file is not None and automounts(spec, account):
            mount(spec, self.context.clock.suffix())

    def _account(self, namespace: str, name: str) -> Object | None:
        item = self.context.cache.get(object_key(named("serviceaccounts"), namespace, name))
        return item.obj if item is not None else None

    async def validate(self, attributes: Attributes) -> None:
        pod = attributes.obj
        if pod is None or attributes.resource.name != "pods" or not (
                attributes.concerns("pods", CREATE) or attributes.subresource == "ephemeralcontainers"):
            return
        spec = pod.get("spec") or {}
        if not _mirrors(pod):
            account = self._account(attributes.namespace, spec.get("serviceAccountName") or "default") or {}
            if why := unlisted(pod, account):
                raise attributes.forbidden(why)
            return
        if spec.get("serviceAccountName"):
            raise attributes.forbidden("a mirror pod may not reference service accounts")
        if refers_to(pod, "secrets"):
            raise attributes.forbidden("a mirror pod may not reference secrets")
        sources = [s for v in spec.get("volumes") or () for s in (v.get("projected") or {}).get("sources") or ()]
        if any(s.get("serviceAccountToken") for s in sources):
            raise attributes.forbidden("a mirror pod may not use ServiceAccountToken volume projections")


def _mirrors(pod: Object) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


def unlisted(pod: Object, account: Object) -> str:
    """Which Secret a Pod uses though its account, which enforces its list, lists none such; "" when all is well.
    Pure."""
    metadata = account.get("metadata") or {}
    if (metadata.get("annotations") or {}).get(ENFORCED, "").lower() not in ("true", "1", "t"):
        return ""
    name = metadata["name"]
    pulls = {p.get("name") for p in account.get("imagePullSecrets") or ()}
    for index, pull in enumerate((pod.get("spec") or {}).get("imagePullSecrets") or ()):
        if pull.get("name") not in pulls:
            return (f'imagePullSecrets[{index}].name="{pull.get("name")}" is not allowed because service account '
                    f"{name} does not reference that imagePullSecret")
    without = {**pod, "spec": {k: v for k, v in (pod.get("spec") or {}).items() if k != "imagePullSecrets"}}
    for secret in sorted(refers_to(without, "secrets") - {s.get("name") for s in account.get("secrets") or ()}):
        return f'secret "{secret}" is not allowed because service account {name} does not reference that secret'
    return ""


def automounts(spec: Object, account: Object) -> bool:
    """Whether a Pod gets its account's credentials: as it says itself, else as the account says, else yes. Pure."""
    own, general = (holder.get("automountServiceAccountToken") for holder in (spec, account))
    return bool(own if own is not None else True if general is None else general)


def mount(spec: Object, suffix: str) -> None:
    """Mount the credentials in every container that mounts nothing in their place. Pure, in place."""
    volumes = spec.get("volumes") or []
    present = next((v["name"] for v in volumes if v.get("name", "").startswith(VOLUME)), "")
    needed = False
    for container in [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]:
        mounts = container.get("volumeMounts") or []
        if any(m.get("mountPath") == MOUNT_PATH for m in mounts):
            continue
        needed = True
        container["volumeMounts"] = [*mounts, {"name": present or VOLUME + suffix, "readOnly": True,
                                               "mountPath": MOUNT_PATH}]
    if needed and not present:
        spec["volumes"] = [*volumes, {"name": VOLUME + suffix, "projected": {"defaultMode": MODE, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {
                "apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}}]}}]

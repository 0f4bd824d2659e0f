"""What is wrong with a pod is told where its owner looks, with upstream's reason and in words that name the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from controlplane.machinery.resources import named
from tests.node.nodekubelet import STAY, Rig, eventually, holds, ready, run, sh, state
from tests.node.rig import Host

pytestmark = pytest.mark.node
Wrong = tuple[dict[str, Any], dict[str, Any], str, str]  # container, spec, reason, message


def env(**source: Any) -> dict[str, Any]:
    return sh(STAY, env=[{"name": "A", "valueFrom": source}])


def mounting(**source: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return sh(STAY, volumeMounts=[{"name": "v", "mountPath": "/v"}]), {"volumes": [{"name": "v", **source}]}


CONFIG, CREATE, PULL = "CreateContainerConfigError", "CreateContainerError", "ErrImagePull"
WAITING: dict[str, Wrong] = {
    "no-configmap": (env(configMapKeyRef={"name": "absent", "key": "k"}), {}, CONFIG, 'configmap "absent" not found'),
    "no-key": (env(configMapKeyRef={"name": "here", "key": "absent"}), {}, CONFIG,
               "couldn't find key absent in ConfigMap default/here"),
    "no-secret-key": (env(secretKeyRef={"name": "here", "key": "absent"}), {}, CONFIG,
                      "couldn't find key absent in Secret default/here"),
    "no-secret": (sh(STAY, envFrom=[{"secretRef": {"name": "absent"}}]), {}, CONFIG, 'secret "absent" not found'),
    "root": (sh(STAY), {"securityContext": {"runAsNonRoot": True}}, CONFIG,
             "container has runAsNonRoot and image will run as root"),
    "odd-user": (sh(STAY, securityContext={"runAsNonRoot": True, "runAsUser": 0}), {}, CONFIG,
                 "container's runAsUser breaks non-root policy"),
    "no-profile": (sh(STAY, securityContext={"seccompProfile": {"type": "Localhost", "localhostProfile": "absent"}}),
                   {}, CREATE, "absent"),
    "name": (sh(STAY, image="Not:A:Name"), {}, "InvalidImageName", 'couldn\'t parse image name "Not:A:Name"'),
    "registry": (sh(STAY, image="127.0.0.1:1/team/image:1"), {}, PULL, "connection refused"),
    "never": (sh(STAY, image="absent:1", imagePullPolicy="Never"), {}, "ErrImageNeverPull",
              'Container image "absent:1" is not present with pull policy of Never')}
EVENTS: dict[str, Wrong] = {
    "command": ({"command": ["/no/such"]}, {}, "Failed", "o such file or directory"),  # runc's or crun's words
    "volume": (*mounting(configMap={"name": "absent"}), "FailedMount", 'configmap "absent" not found'),
    "item": (*mounting(secret={"secretName": "here", "items": [{"key": "absent", "path": "p"}]}), "FailedMount",
             "references non-existent secret key: absent"),
    "host": (*mounting(hostPath={"path": "/no/such", "type": "Directory"}), "FailedMount",
             "hostPath type check failed: /no/such is not a directory"),
    "claim": (*mounting(persistentVolumeClaim={"claimName": "absent"}), "FailedMount",
              'persistentvolumeclaims "absent" not found'),
    "class": (sh(STAY), {"runtimeClassName": "absent"}, "FailedCreatePodSandBox",
              'runtimeclass.node.k8s.io "absent" not found'),
    "pull-secret": (sh(STAY), {"imagePullSecrets": [{"name": n} for n in ("absent", "here", "", "gone")]},
                    "FailedToRetrieveImagePullSecret",  # although the image is here
                    "Unable to retrieve some image pull secrets (absent, gone); attempting to pull the image may not")}


def waits(reason: str, message: str) -> Callable[[Any], bool]:
    def fits(pod: Any) -> bool:
        now = (state(pod).get("state") or {}).get("waiting") or {}
        text = now.get("message", "")
        return message in text and (now["reason"] == reason or f": {reason}: " in text)  # a back-off says for what
    return fits


def test_what_is_wrong_with_a_pod_is_told(host: Host) -> None:
    async def body(rig: Rig) -> None:
        await rig.api.create(named("configmaps"), {"metadata": {"name": "here"}, "data": {"k": "v"}}, "default")
        await rig.api.create(named("secrets"), {"metadata": {"name": "here"}, "data": {"k": "dg=="}}, "default")
        async with rig.kubelet():
            for name, (container, spec, _, _) in (WAITING | EVENTS).items():
                await rig.create(name, container, terminationGracePeriodSeconds=1, **spec)
            await rig.create("well", sh(STAY))
            for name, (_, _, reason, message) in WAITING.items():
                await rig.pod(name, waits(reason, message))
            for name, (_, _, reason, message) in EVENTS.items():
                def told(name: str = name) -> list[tuple[str, str]]:
                    return [(o["reason"], o["message"]) for (plural, _, _), o in rig.api.objects.items()
                            if plural == "events" and o["involvedObject"]["name"] == name]
                try:
                    await eventually(lambda told=told, reason=reason, message=message: holds(any(
                        said == reason and message in text for said, text in told())))
                except TimeoutError:
                    raise AssertionError(f"{name}: {told()}") from None
            await rig.pod("well", ready)  # none of them holds up another
            await rig.remove(*WAITING, *EVENTS, "well")
    run(host, body)

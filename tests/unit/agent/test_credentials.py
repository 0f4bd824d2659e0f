"""Which credentials fit which image, and what a provider's answer is worth."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from agent.kubelet.images import credentials, pullsecrets
from agent.kubelet.images.images import auth_message
from agent.kubelet.images.images import credentials as chosen
from controlplane.machinery.errors import Finding, Forbidden


def test_patterns_fit_hosts_label_by_label_and_the_longest_wins():
    image = "eu.registry.example:5000/team/app:1"
    fitting = ("*.registry.example:5000", "eu.registry.example:5000/team", "https://eu.*.example:5000")
    assert all(credentials.fits(p, image) for p in fitting)
    assert not any(credentials.fits(p, image) for p in (
        "registry.example:5000", "*:5000", "*.registry.example", "eu.registry.example:5000/other"))
    auths = [{"https://index.docker.io/v1/": {"username": "hub"}, "eu.registry.example:5000": {"username": "wide"}},
             {"eu.registry.example:5000/team": {"auth": "bmFycm93OnB3"}}]
    assert [auth_message(a).username for a in chosen(image, auths)] == ["narrow", "wide"]
    assert [a["username"] for a in chosen("docker.io/library/busybox:1", auths)] == ["hub"]


def test_a_providers_answer_is_taken_only_as_the_protocol_says(tmp_path: Path):
    config = tmp_path / "config.yaml"
    entry = {"name": "p", "apiVersion": credentials.VERSIONS[0], "matchImages": ["*.example"],
             "defaultCacheDuration": "1h30m"}
    config.write_text(json.dumps({"providers": [entry]}))
    (provider,) = credentials.read(config)
    assert provider.seconds == 5400.0
    answer = {"kind": "CredentialProviderResponse", "apiVersion": credentials.VERSIONS[0], "cacheKeyType": "Registry",
              "auth": {"*.example": {"username": "u", "password": "p"}, "elsewhere.org": {"username": "x"}}}
    key, seconds, auths = credentials.parse(json.dumps(answer).encode(), provider, "a.example/app:1")
    assert (key, seconds, list(auths)) == ("a.example", 5400.0, ["*.example"])
    for wrong in ({"kind": "Else"}, {"apiVersion": "v2"}, {"cacheKeyType": "Moon"}, {"cacheDuration": "soon"}):
        with pytest.raises(ValueError):
            credentials.parse(json.dumps(answer | wrong).encode(), provider, "a.example/app:1")
    for bad in ({"name": "../p"}, {"apiVersion": "v9"}, {"defaultCacheDuration": ""}):
        config.write_text(json.dumps({"providers": [entry | bad]}))
        with pytest.raises(Finding):
            credentials.read(config)


def test_pull_secrets_of_both_forms_are_read_and_those_that_are_not_there_told_together():
    entry = {"quay.io": {"username": "u", "password": "p"}}

    def secret(key: str, said: Any) -> dict[str, Any]:
        return {"data": {key: base64.b64encode(json.dumps(said).encode()).decode()}}

    known = {"new": secret(".dockerconfigjson", {"auths": entry}), "old": secret(".dockercfg", entry),
             "list": secret(".dockerconfigjson", ["auths"]), "word": secret(".dockercfg", {"quay.io": "p"}),
             "number": secret(".dockercfg", {"quay.io": {"username": 7}}), "other": secret("key", {})}

    class Objects:
        async def get(self, kind: str, namespace: str, name: str, uid: str) -> Any:
            if name == "secret":
                raise Forbidden("no")
            return known.get(name)
    names, told = ("new", "absent", "list", "", "old", "word", "number", "other", "secret"), list[tuple[str, str]]()
    pod = {"metadata": {"namespace": "n", "uid": "u"}, "spec": {"imagePullSecrets": [{"name": n} for n in names]}}
    found = asyncio.run(pullsecrets.of(pod, Objects(), lambda *why: told.append(why)))  # type: ignore[arg-type]
    assert [auths for auths in found if auths] == [entry, entry]
    assert told == [("FailedToRetrieveImagePullSecret", "Unable to retrieve some image pull secrets (absent, secret); "
                                                        "attempting to pull the image may not succeed.")]

"""Which credentials fit which image, and what a provider's answer is worth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.kubelet import credentials
from agent.kubelet.images import auth_message
from agent.kubelet.images import credentials as chosen
from controlplane.machinery.errors import Finding


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

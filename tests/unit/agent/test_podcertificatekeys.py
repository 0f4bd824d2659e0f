"""A pod's certificate on its node: asked for once, renewed in time, and the old one serves until then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from agent.kubelet.env import ConfigError
from agent.kubelet.volumes import podcertificates
from agent.kubelet.volumes.podcertificates import PodCertificates, bare, new_key
from controlplane.machinery.clock import FakeClock, rfc3339
from tests import signer
from tests.unit.agent.pods import pod

SOURCE = {"signerName": "example.com/lab", "keyType": "ECDSAP256", "credentialBundlePath": "bundle", "keyPath": "key"}


class Api:
    """The requests, and a signer that answers each while it is told to: by `Issued` or a refusal."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.made, self.answers = clock, [], "Issued"
        self.watched = asyncio.Event()

    async def get(self, resource: Any, name: str, namespace: str) -> dict[str, Any]:
        if resource.plural == "serviceaccounts":
            return {"metadata": {"uid": "account"}}
        return next(r for r in self.made if r["metadata"]["name"] == name)

    async def create(self, resource: Any, obj: dict[str, Any], namespace: str) -> dict[str, Any]:
        obj["metadata"]["resourceVersion"] = "1"
        self.made.append(obj)
        if self.answers:
            self.answer(obj)
        return obj

    def answer(self, obj: dict[str, Any]) -> None:
        now = self.clock.now()
        obj["status"] = signer.answer(obj, now) if self.answers == "Issued" else {
            "conditions": [signer.condition(self.answers, rfc3339(now))]}

    async def watch(self, resource: Any, namespace: str, fields: str, revision: str) -> AsyncIterator[Any]:
        assert fields == f"metadata.name={self.made[-1]['metadata']['name']},spec.nodeName=n1"
        self.watched.set()
        await asyncio.Event().wait()
        yield None


def leaf(bundle: str) -> x509.Certificate:
    """The certificate of a bundle, whose first part is its key."""
    key = serialization.load_pem_private_key(bundle.encode(), None)
    found = x509.load_pem_x509_certificates(bundle.encode())[0]
    assert key.public_key() == found.public_key()
    return found


def test_a_certificate_is_renewed_when_its_signer_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podcertificates, "RENEW_SECONDS", 0.05)

    async def body() -> None:
        clock = FakeClock()
        api: Any = Api(clock)
        held = PodCertificates(api, clock, "n1", lambda: {"uid": "node"})
        files, when = await held.get(pod(), "v", SOURCE | {"userAnnotations": {"a.b/c": "d"}})
        first, begun = leaf(files["bundle"]), clock.now()
        assert files["bundle"].startswith(files["key"]) and set(files) == {"bundle", "key"}
        assert when == begun + 12 * 3600 and api.made[0]["spec"]["unverifiedUserAnnotations"] == {"a.b/c": "d"}
        assert api.made[0]["metadata"]["ownerReferences"][0]["name"] == "p"
        assert leaf((await held.get(pod(), "v", SOURCE))[0]["bundle"]) == first and len(api.made) == 1
        await clock.advance(12 * 3600)
        api.answers = ""  # the signer sleeps: what there is serves on
        files, when = await held.get(pod(), "v", SOURCE)
        assert leaf(files["bundle"]) == first and when > clock.now() and len(api.made) == 2
        await clock.advance(when - clock.now())
        api.answers = "Issued"
        api.answer(api.made[1])
        files, when = await held.get(pod(), "v", SOURCE)
        assert leaf(files["bundle"]) != first and when == int(clock.now()) + 12 * 3600 and len(api.made) == 2
        held.release("u")
        api.answers = "Denied"
        with pytest.raises(ConfigError, match="was denied: ByTest"):
            await held.get(pod(), "v", SOURCE)
    asyncio.run(body())


def test_a_start_and_a_refresh_at_once_ask_once() -> None:
    async def body() -> None:
        clock = FakeClock()
        api: Any = Api(clock)
        held = PodCertificates(api, clock, "n1", lambda: {"uid": "node"})
        (one, _), (other, _) = await asyncio.gather(*(held.get(pod(), "v", SOURCE) for _ in range(2)))
        assert leaf(one["bundle"]) == leaf(other["bundle"]) and len(api.made) == 1
    asyncio.run(body())


@pytest.mark.parametrize("kind", ["ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519", "RSA3072"])
def test_keys_are_of_the_kind_asked_for(kind: str) -> None:
    public = new_key(kind).public_key()
    assert kind == "ED25519" or str(public.key_size) in kind
    with pytest.raises(ConfigError, match="unknown key type"):
        new_key("DSA")


def test_a_chain_is_stripped_of_all_but_its_certificates() -> None:
    request = {"spec": {"podName": "p", "stubPKCS10Request": ""}}
    import base64

    from cryptography.hazmat.primitives import hashes
    stub = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(new_key("ECDSAP256"),
                                                                                   hashes.SHA256())
    request["spec"]["stubPKCS10Request"] = base64.b64encode(stub.public_bytes(serialization.Encoding.DER)).decode()
    chain = signer.answer(request, 1_700_000_000)["certificateChain"]
    assert bare(f"prose\n{chain}\nmore\n{chain}") == chain * 2
    with pytest.raises(ConfigError):
        bare("prose")

"""The official Python client's typed models with every built-in kind: made, read, listed, watched, changed, deleted.

The client decodes each answer into its models, so a field of the wrong type or a missing required one fails here.
"""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.unit.apiserver.everykind import body_of, kinds
from tests.unit.apiserver.harness import serving

kubernetes = pytest.importorskip("kubernetes", reason="needs the kubernetes package: pip install .[test]")
pytestmark = pytest.mark.client


def snake(text):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text).lower()


class Typed:
    """The methods and the model of one kind in the client."""

    def __init__(self, api_client, resource):
        first, *rest = (resource.group.removesuffix(".k8s.io") or "core").split(".")
        group = "".join(part.capitalize() for part in (first, *rest))
        version = resource.version.capitalize()
        self.api = getattr(kubernetes.client, f"{group}{version}Api")(api_client)
        self._noun = ("namespaced_" if resource.namespaced else "") + snake(resource.kind)
        self._where = ("default",) if resource.namespaced else ()
        names = (f"{version}{resource.kind}", f"{group}{version}{resource.kind}")  # the longer where two groups differ
        self.model = next(name for name in names if hasattr(kubernetes.client.models, name))

    def __call__(self, verb, *arguments, **more):
        place = {"list": self._where, "create": self._where, "delete_collection": self._where}.get(verb)
        call = getattr(self.api, f"{verb}_{self._noun}")
        if place is not None:
            return call(*place, *arguments, **more)
        name, *rest = arguments
        return call(name, *self._where, *rest, **more)

    def lister(self):
        return getattr(self.api, f"list_{self._noun}"), self._where


def live(api_client, resource):
    typed, body = Typed(api_client, resource), body_of(resource)
    name = body["metadata"]["name"]
    model = api_client._ApiClient__deserialize(body, typed.model)
    made = typed("create", model)
    assert type(made).__name__ == typed.model and made.metadata.uid, resource.name
    assert typed("read", name).metadata.uid == made.metadata.uid
    listed = typed("list", label_selector="made=typed")
    assert [item.metadata.name for item in listed.items] == [name]
    change = {"metadata": {"annotations": {"changed": "1"}}}
    for content_type in ("application/strategic-merge-patch+json", "application/merge-patch+json"):
        patched = typed("patch", name, change, _content_type=content_type)
        assert patched.metadata.annotations["changed"] == "1"
    replaced = typed("read", name)
    replaced.metadata.labels["again"] = "yes"
    for _ in range(3):  # some have a status the server itself writes meanwhile
        try:
            assert typed("replace", name, replaced).metadata.labels["again"] == "yes"
            break
        except kubernetes.client.ApiException as error:
            assert error.status == 409
            replaced.metadata.resource_version = typed("read", name).metadata.resource_version
    if hasattr(kubernetes.client.models, f"{typed.model}List"):  # its watch takes the model's name from the list's
        watched(typed, listed.metadata.resource_version)
    typed("delete", name)
    if "deletecollection" in resource.verbs:
        typed("delete_collection", label_selector="made=typed")


def watched(typed, revision):
    """The first event after `revision`: the first patch."""
    listing, where = typed.lister()
    seen = kubernetes.watch.Watch().stream(listing, *where, label_selector="made=typed", timeout_seconds=5,
                                           resource_version=revision)
    event = next(iter(seen))
    assert (event["type"], type(event["object"]).__name__) == ("MODIFIED", typed.model)


def test_every_kind_lives_a_life_in_typed_models(tmp_path):
    async def play():
        async with serving(tls=tmp_path, authorization_mode=("Node", "RBAC")) as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            configuration = kubernetes.client.Configuration(host=api.url)
            pki = tmp_path / "etc/pelamis/pki"
            configuration.ssl_ca_cert, configuration.cert_file = str(pki / "ca.crt"), str(pki / "admin.crt")
            configuration.key_file = str(pki / "admin.key")
            with kubernetes.client.ApiClient(configuration) as client:
                failed = {}
                for resource in kinds():
                    try:
                        await asyncio.to_thread(live, client, resource)
                    except Exception as error:
                        failed[f"{resource.api_version} {resource.kind}"] = f"{type(error).__name__}: {error}"
                assert failed == {}, "\n".join(f"{k}: {v}" for k, v in failed.items())
    asyncio.run(play())

"""What a Go program reads and writes back unchanged is no change, in every kind, though it writes protobuf."""

import asyncio

from controlplane.machinery import protobuf
from controlplane.machinery.resources import BUILTIN
from tests.unit.apiserver import gowriter
from tests.unit.apiserver.everykind import body_of, kinds
from tests.unit.apiserver.harness import serving

PROTOBUF = "application/vnd.kubernetes.protobuf"
ACCEPT = {"Accept": "application/vnd.kubernetes.protobuf,application/json"}


def path_of(resource):
    where = "namespaces/default/" if resource.namespaced else ""
    return f"/{'apis' if resource.group else 'api'}/{resource.api_version}/{where}{resource.plural}"


async def lived(api, resource):
    """Made, read, written back, its status written back, deleted; what went wrong, "" when nothing did."""
    path, body = path_of(resource), body_of(resource)
    place = f"{path}/{body['metadata']['name']}"
    status, made = await api.call("POST", path, gowriter.body(body), PROTOBUF, ACCEPT)
    if status != 201:
        return f"create: {status} {made}"
    plain = {**body, "metadata": {**body["metadata"], "name": "plain"}}
    if resource.plural not in ("ipaddresses", "customresourcedefinitions", "apiservices"):  # whose names mean something
        _, other = await api.call("POST", path, plain)
        for field in made.keys() - {"metadata", "status"}:
            if made[field] != other[field] and not ("clusterIP" in made[field] or resource.kind == "Job"):
                return f"{field} differs: {made[field]} {other[field]}"
        await api.call("DELETE", f"{path}/plain?gracePeriodSeconds=0")
    for sub in ("", *(f"/{s.name}" for s in resource.subresources if s.name in ("status", "approval"))):
        _, read = await api.call("GET", place)
        status, written = await api.call("PUT", place + sub, gowriter.body(read), PROTOBUF, ACCEPT)
        if status == 409:  # the server itself writes some a moment after they are made
            _, read = await api.call("GET", place)
            status, written = await api.call("PUT", place + sub, gowriter.body(read), PROTOBUF, ACCEPT)
        if (status, written) != (200, read):
            return f"PUT {sub}: {status}\n   {read}\n-> {written}"
    options = gowriter.body({"apiVersion": resource.api_version, "kind": "DeleteOptions",
                             "gracePeriodSeconds": 0, "preconditions": {"uid": read["metadata"]["uid"]}})
    status, said = await api.call("DELETE", place, options, PROTOBUF, ACCEPT)
    return "" if status in (200, 202) else f"delete: {status} {said}"


def test_reading_and_writing_back_changes_nothing():
    async def play():
        async with serving() as api:
            await api.made("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})
            known = [r for r in kinds() if protobuf.message_of(r.api_version, r.kind) in protobuf._lines()]
            assert len(known) == len(kinds()) > 50
            failed = {f"{r.api_version} {r.kind}": why for r in known if (why := await lived(api, r))}
            assert failed == {}, "\n".join(f"{k}: {v}" for k, v in failed.items())
    asyncio.run(play())


def test_the_table_of_bodies_is_whole():
    assert {r.name for r in kinds()} >= {r.name for r in BUILTIN if {"create", "get", "delete"} <= set(r.verbs)}

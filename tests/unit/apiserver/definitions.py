"""CustomResourceDefinitions for tests, and waiting until one is served."""

import asyncio

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
SPEC = {"type": "object", "properties": {
    "replicas": {"type": "integer", "minimum": 0, "maximum": 10}, "color": {"type": "string", "default": "red"},
    "port": {"x-kubernetes-int-or-string": True}, "note": {"type": "string", "nullable": True},
    "free": ANYTHING,
    "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
              "items": {"type": "object", "required": ["name"], "properties": {
                  "name": {"type": "string"}, "value": {"type": "string"}}}},
    "template": {"type": "object", "x-kubernetes-embedded-resource": True,
                 "x-kubernetes-preserve-unknown-fields": True}}}


def schema(spec=SPEC):
    return {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": ANYTHING}}}


def version(name="v1", storage=True, **more):
    return {"name": name, "served": True, "storage": storage, "schema": schema(), **more}


def definition(plural="foos", group="ex.io", kind="Foo", versions=None, scope="Namespaced", names=None, **spec):
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {"group": group, "scope": scope, "names": {"plural": plural, "kind": kind, **(names or {})},
                     "versions": versions or [version()], **spec}}


async def condition(api, name, kind="Established", status="True"):
    """The definition once a condition has the wanted status; followed by a watch, so nothing is polled."""
    code, listed = await api.call("GET", f"{CRDS}?fieldSelector=metadata.name={name}")
    assert code == 200, listed
    found = listed["items"]
    if found and _has(found[0], kind, status):
        return found[0]
    at = listed["metadata"]["resourceVersion"]
    async with api.watching(f"{CRDS}?watch=1&resourceVersion={at}&fieldSelector=metadata.name={name}") as events:
        while True:
            _, obj = await events.next()
            if _has(obj, kind, status):
                return obj


def _has(obj, kind, status):
    return any((c["type"], c["status"]) == (kind, status) for c in obj.get("status", {}).get("conditions", ()))


async def gone(api, name):
    """Wait until a definition is deleted."""
    _, listed = await api.call("GET", CRDS)
    if name not in [i["metadata"]["name"] for i in listed["items"]]:
        return
    at = listed["metadata"]["resourceVersion"]
    async with api.watching(f"{CRDS}?watch=1&resourceVersion={at}") as events:
        while True:
            kind, obj = await events.next()
            if kind == "DELETED" and obj["metadata"]["name"] == name:
                return


async def install(api, made):
    await api.made(CRDS, made)
    return await condition(api, made["metadata"]["name"])


def foo(name, **spec):
    return {"apiVersion": "ex.io/v1", "kind": "Foo", "metadata": {"name": name}, "spec": spec}


def session(steps, **settings):
    from tests.unit.apiserver.harness import serving

    async def main():
        async with serving(**settings) as api:
            await steps(api)
    asyncio.run(main())

"""Kinds as clients meet them: every one is written, read, listed, changed and removed; two forms show one object."""

import asyncio

import pytest

from controlplane.machinery.resources import BUILTIN
from tests.unit.apiserver.harness import serving
from tests.unit.machinery.test_kinds import BODIES

SPACE = "default"
EVENT = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal",
         "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "Done", "action": "Do", "note": "it is done",
         "reportingController": "a.b/c", "reportingInstance": "i", "regarding": {"kind": "Pod", "name": "p",
                                                                                 "namespace": SPACE}}


def body_of(name):
    resource = BUILTIN.named(name)
    body = BODIES[name]
    return resource, {"apiVersion": resource.api_version, "kind": resource.kind, **body,
                      "metadata": {"name": "x", **(body.get("metadata") or {})}}


def test_every_kind_is_written_read_and_removed():
    async def main():
        async with serving() as api:
            for name in BODIES:
                if name.startswith(("servicecidrs", "validatingadmissionpolicies.", "flowschemas.")):
                    continue  # the server writes their status meanwhile: other tests look at them
                resource, body = body_of(name)
                collection = resource.path(SPACE if resource.namespaced else "")
                made = await api.made(collection, body)
                one = f"{collection}/{made['metadata']['name']}"
                status, got = await api.call("GET", one)
                assert (status, got) == (200, made), name
                status, listed = await api.call("GET", collection)
                assert any(i["metadata"]["uid"] == made["metadata"]["uid"] for i in listed["items"]), name
                status, same = await api.call("PUT", one, got)
                assert (status, same) == (200, got), (name, same)
                status, labelled = await api.call("PATCH", one, {"metadata": {"labels": {"l": "m"}}},
                                                  "application/merge-patch+json")
                assert status == 200 and labelled["metadata"]["labels"]["l"] == "m", (name, labelled)
                status, shown = await api.call("GET", one, headers={
                    "Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
                assert shown["rows"][0]["cells"][0] == made["metadata"]["name"], name
                status, gone = await api.call("DELETE", one)
                assert status == 200, (name, gone)
    asyncio.run(main())


def test_events_are_one_storage_with_two_faces():
    async def main():
        async with serving() as api:
            old, new = f"/api/v1/namespaces/{SPACE}/events", f"/apis/events.k8s.io/v1/namespaces/{SPACE}/events"
            async with api.watching(f"{old}?watch=1") as core, api.watching(f"{new}?watch=1") as own:
                made = await api.made(new, EVENT)
                assert (made["apiVersion"], made["note"]) == ("events.k8s.io/v1", "it is done")
                assert [(await w.next())[1].get(f) for w, f in ((core, "message"), (own, "note"))] == ["it is done"] * 2
            status, seen = await api.call("GET", f"{old}/e")
            assert (seen["message"], seen["involvedObject"]["name"], seen["reportingComponent"]) == (
                "it is done", "p", "a.b/c")
            assert "note" not in seen and seen["metadata"]["uid"] == made["metadata"]["uid"]
            for path, field in ((old, "involvedObject.name"), (new, "regarding.name")):
                status, found = await api.call("GET", f"{path}?fieldSelector={field}%3Dp")
                assert status == 200 and len(found["items"]) == 1
                status, found = await api.call("GET", f"{path}?fieldSelector={field}%3Dq")
                assert found["items"] == []
            series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
            status, patched = await api.call("PATCH", f"{new}/e", series, "application/merge-patch+json")
            assert status == 200 and patched["series"]["count"] == 2, patched
            status, refused = await api.call("PATCH", f"{new}/e", {"note": "other"}, "application/merge-patch+json")
            assert status == 422 and "message: Invalid value" in refused["message"]
            status, refused = await api.call("POST", new, {**EVENT, "metadata": {"name": "f"}, "action": ""})
            assert status == 422 and "action: Required value" in refused["message"]
            status, _ = await api.call("DELETE", f"{new}/e")
            assert status == 200 and (await api.call("GET", f"{old}/e"))[0] == 404
    asyncio.run(main())


def test_an_old_autoscaler_is_the_new_one():
    async def main():
        async with serving() as api:
            old, new = (f"/apis/autoscaling/{v}/namespaces/{SPACE}/horizontalpodautoscalers" for v in ("v1", "v2"))
            reference = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}
            made = await api.made(old, {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                                        "metadata": {"name": "h"}, "spec": {
                                            "maxReplicas": 3, "scaleTargetRef": reference}})
            assert made["spec"]["targetCPUUtilizationPercentage"] == 80
            status, seen = await api.call("GET", f"{new}/h")
            assert seen["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 80
            status, changed = await api.call("PATCH", f"{old}/h", {"spec": {"targetCPUUtilizationPercentage": 50}},
                                             "application/strategic-merge-patch+json")
            assert status == 200, changed
            status, listed = await api.call("GET", new)
            assert listed["items"][0]["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] == 50
            status, refused = await api.call("PATCH", f"{old}/h", {"spec": {"maxReplicas": 0}},
                                             "application/merge-patch+json")
            assert status == 422 and "spec.maxReplicas: Invalid value: 0: must be greater than 0" in refused["message"]
            status, reported = await api.call("PATCH", f"{new}/h/status", {"status": {"conditions": [{
                "type": "AbleToScale", "status": "True"}]}}, "application/merge-patch+json")
            assert status == 200, reported
            status, seen = await api.call("GET", f"{old}/h")
            assert "AbleToScale" in seen["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/conditions"]
    asyncio.run(main())


@pytest.mark.parametrize("name", ["daemonsets.apps", "jobs.batch", "persistentvolumes", "resourcequotas"])
def test_status_has_its_own_door(name):
    async def main():
        async with serving() as api:
            resource, body = body_of(name)
            collection = resource.path(SPACE if resource.namespaced else "")
            made = await api.made(collection, {**body, "status": {"hard": {"pods": "7"}} if name == "resourcequotas"
                                               else {"message": "m", "numberReady": 7, "active": 7}})
            assert "7" not in str(made.get("status")), made
            one = f"{collection}/{made['metadata']['name']}"
            change = {"daemonsets.apps": {"numberReady": 1}, "jobs.batch": {"active": 1}, "persistentvolumes": {
                "phase": "Bound"}, "resourcequotas": {"used": {"pods": "1"}}}[name]
            status, seen = await api.call("PATCH", f"{one}/status", {"status": change, "metadata": {"generation": 9}},
                                          "application/merge-patch+json")
            assert status == 200 and change.items() <= seen["status"].items(), seen
            assert seen["metadata"].get("generation") == made["metadata"].get("generation")
            status, kept = await api.call("PATCH", one, {"status": None}, "application/merge-patch+json")
            assert kept["status"] == seen["status"]
    asyncio.run(main())

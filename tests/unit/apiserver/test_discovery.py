"""What the server says of itself: discovery in both forms, OpenAPI, health, version and metrics."""

import asyncio
import gzip
import json
import re
from pathlib import Path

import orjson
import pytest

from controlplane.apiserver.describing import openapi, openapiproto
from controlplane.apiserver.describing.discovery import Discovery, aggregated_version
from controlplane.apiserver.health import Health
from controlplane.apiserver.metrics import MAX_SERIES, Metrics
from controlplane.machinery import protobuf
from controlplane.machinery.errors import MethodNotAllowed, NotAcceptable
from controlplane.machinery.resources import Resource
from tests.unit.apiserver.edge import make_context, request

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/discovery/entries.json").read_text())
V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
NEW_KUBECTL = f"{V2},{V2.replace('v2', 'v2beta1')},application/json"
WIDGET = Resource("io.ex", "v1", "widgets", "Widget", custom=True)


@pytest.fixture
def context():
    return make_context()


def ask(handler, context, path, **headers):
    return asyncio.run(handler.handle(request(context, path, **headers)))


def test_legacy_discovery_holds_the_golden_entries(context):
    discovery = Discovery(context)
    for group_version, entries in GOLDEN["legacy"].items():
        path = f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}"
        listed = orjson.loads(ask(discovery, context, path).body)
        assert listed["groupVersion"] == group_version
        by_name = {r["name"]: r for r in listed["resources"]}
        for entry in entries:
            assert by_name[entry["name"]] == entry


def test_aggregated_discovery_holds_the_golden_entries_and_all_the_legacy_form_has(context):
    discovery = Discovery(context)
    answer = ask(discovery, context, "/apis", Accept=NEW_KUBECTL)
    assert answer.content_type == V2
    document = orjson.loads(answer.body)
    for item in document["items"]:
        group, version = item["metadata"]["name"], item["versions"][0]
        if (golden := GOLDEN["aggregated"].get(group)) is not None:
            assert golden in version["resources"]
        legacy = orjson.loads(ask(discovery, context, f"/apis/{group}/{version['version']}").body)["resources"]
        found = {r["resource"] for r in version["resources"]} | {
            f"{r['resource']}/{s['subresource']}" for r in version["resources"] for s in r.get("subresources", ())}
        assert found == {r["name"] for r in legacy}
    core = orjson.loads(ask(discovery, context, "/api", Accept=NEW_KUBECTL).body)
    assert [i["versions"][0]["version"] for i in core["items"]] == ["v1"]


def test_the_form_follows_the_first_clause_that_can_be_served():
    assert aggregated_version(NEW_KUBECTL) == "v2"
    assert aggregated_version(V2.replace("v2", "v2beta1") + ",application/json") == "v2beta1"
    assert aggregated_version(V2.replace("v2", "v3") + ",application/json") == ""
    assert aggregated_version("") == aggregated_version("application/json," + V2) == ""


def test_a_known_document_is_not_sent_again_until_it_changes(context):
    discovery = Discovery(context)
    tag = dict(ask(discovery, context, "/apis", Accept=V2).headers)["ETag"]
    assert ask(discovery, context, "/apis", Accept=V2, If_None_Match=tag).status == 304
    context.registry.add(WIDGET)
    assert ask(discovery, context, "/apis", Accept=V2, If_None_Match=tag).status == 200
    assert b"/apis/io.ex/v1" in ask(discovery, context, "/").body
    assert orjson.loads(ask(discovery, context, "/apis/io.ex").body)["preferredVersion"]["version"] == "v1"
    assert ask(discovery, context, "/apis/nowhere") is None and ask(discovery, context, "/version") is None
    with pytest.raises(MethodNotAllowed):
        asyncio.run(discovery.handle(request(context, "/api", "POST")))


def test_openapi_v3_has_what_kubectl_reads(context):
    service = openapi.OpenAPI(context)
    root = orjson.loads(ask(service, context, "/openapi/v3").body)["paths"]
    url = root["apis/apps/v1"]["serverRelativeURL"]
    answer = ask(service, context, url, Accept="application/json")
    assert ("Cache-Control", "public, immutable") in answer.headers
    document = orjson.loads(answer.body)
    patch = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert patch["x-kubernetes-group-version-kind"] == {"group": "apps", "version": "v1", "kind": "Deployment"}
    assert "fieldValidation" in {p["name"] for p in patch["parameters"]}
    assert "application/strategic-merge-patch+json" in patch["requestBody"]["content"]
    schemas = document["components"]["schemas"]
    ports = schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"]
    assert ports["x-kubernetes-patch-merge-key"] == "containerPort" and "ports" in ports["description"]
    assert {r.rpartition("/")[2] for r in re.findall(r'"#/components/schemas/[^"]+', answer.body.decode())} <= set(
        schemas)
    packed = ask(service, context, url, Accept_Encoding="gzip")
    assert gzip.decompress(packed.body) == answer.body
    stale = ask(service, context, "/openapi/v3/apis/apps/v1?hash=OLD")
    assert stale.status == 301 and dict(stale.headers)["Location"] == url
    assert ask(service, context, "/openapi/v3/apis/none/v1") is None


def test_openapi_hashes_move_with_the_kinds(context):
    service = openapi.OpenAPI(context)
    before = orjson.loads(ask(service, context, "/openapi/v3").body)["paths"]
    context.registry.add(WIDGET)
    after = orjson.loads(ask(service, context, "/openapi/v3").body)["paths"]
    assert set(after) - set(before) == {"apis/io.ex/v1"}
    assert all(after[k] == before[k] for k in before)
    widget = orjson.loads(ask(service, context, "/openapi/v3/apis/io.ex/v1").body)["paths"]
    content = widget["/apis/io.ex/v1/namespaces/{namespace}/widgets/{name}"]["patch"]["requestBody"]["content"]
    assert "application/strategic-merge-patch+json" not in content


def all_of(message, *way):
    """The values at a way of field numbers through a message."""
    if not way:
        return [message]
    below = [value for number, value in protobuf.fields(message) if number == way[0]]
    return [found for value in below for found in all_of(value, *way[1:])]


def pairs(message, *way):
    """What a message holds by name, at a way that ends at its pairs."""
    return {bytes(all_of(pair, 1)[0]).decode(): all_of(pair, 2)[0] for pair in all_of(message, *way)}


def test_openapi_v2_says_the_same_in_both_forms(context):
    service = openapi.OpenAPI(context)
    told = orjson.loads(ask(service, context, "/openapi/v2").body)
    answer = ask(service, context, "/openapi/v2", Accept="application/com.github.proto-openapi.spec.v2@v1.0+protobuf")
    assert answer.content_type == "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
    paths, definitions = pairs(answer.body, 8, 2), pairs(answer.body, 9, 1)
    assert paths.keys() == told["paths"].keys() and definitions.keys() == told["definitions"].keys()
    pod = told["definitions"]["io.k8s.api.core.v1.Pod"]
    properties = pairs(definitions["io.k8s.api.core.v1.Pod"], 25, 1)
    assert properties.keys() == pod["properties"].keys()
    assert all_of(properties["kind"], 22, 1) == [b"string"]
    assert pod["properties"]["spec"].keys() == {"description", "$ref"}  # readers of v2 follow no other form
    assert all_of(properties["spec"], 1) == [b"#/definitions/io.k8s.api.core.v1.PodSpec"]
    extensions = pairs(definitions["io.k8s.api.core.v1.Pod"], 31)
    [kinds] = all_of(extensions["x-kubernetes-group-version-kind"], 2)
    assert orjson.loads(kinds) == pod["x-kubernetes-group-version-kind"]


def test_openapi_v3_says_the_same_in_both_forms(context):
    service = openapi.OpenAPI(context)
    told = orjson.loads(ask(service, context, "/openapi/v3/apis/apps/v1").body)
    form = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"
    answer = ask(service, context, "/openapi/v3/apis/apps/v1", Accept=form + ", application/json")
    assert answer.content_type == "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
    paths, schemas = pairs(answer.body, 4, 1), pairs(answer.body, 5, 1, 1)
    assert paths.keys() == told["paths"].keys() and schemas.keys() == told["components"]["schemas"].keys()
    one = paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]
    assert [number for number, _ in protobuf.fields(one)] == [4, 5, 10, 7, 13, 13]  # its methods and parameters
    metadata = pairs(all_of(schemas["io.k8s.api.apps.v1.Deployment"], 1)[0], 31, 1)["metadata"]
    [reference] = all_of(metadata, 1, 26, 2, 1)
    assert reference == b"#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
    assert ask(service, context, "/openapi/v3/apis/apps/v1", Accept="application/json, " + form).content_type == \
        "application/json"
    with pytest.raises(NotAcceptable):
        ask(service, context, "/openapi/v3/apis/apps/v1", Accept="text/html")


def test_what_protobuf_cannot_say_is_left_out():
    schema = {"default": {"a": 1}, "additionalProperties": True, "maximum": 2.5, "maxItems": 3, "enum": ["x", None],
              "items": {"$ref": "#/r"}, "x-more": [1]}
    document = {"openapi": "3.0.0", "components": {"schemas": {"S": schema}}}
    [made] = all_of(pairs(openapiproto.encode(document), 5, 1, 1)["S"], 1)
    found = dict(protobuf.fields(made))
    assert sorted(found) == [11, 18, 24, 30, 32, 36]
    assert (found[18], all_of(made, 24, 2), all_of(made, 30, 1, 2, 1)) == (3, [b'"x"\n', b"null\n"], [b"#/r"])
    assert all_of(made, 32, 2) == [1]


def test_health_endpoints_word_their_checks(context):
    health = Health(context)
    assert ask(health, context, "/livez").body == b"ok"
    assert ask(health, context, "/readyz?verbose").body == b"[+]ping ok\n[+]shutdown ok\nreadyz check passed\n"
    health.add("store", lambda: "no space left")
    failed = ask(health, context, "/healthz")
    assert failed.status == 500 and b"[-]store failed: reason withheld\nhealthz check failed" in failed.body
    excluded = ask(health, context, "/healthz?exclude=store&exclude=x&verbose").body.decode()
    assert "[+]store excluded: ok" in excluded
    assert 'warn: some health checks cannot be excluded: no matches for "x"' in excluded
    levels = ask(health, context, "/metrics/slis").body.decode()
    assert 'kubernetes_healthcheck{name="ping",type="livez"} 1' in levels
    assert 'kubernetes_healthcheck{name="store",type="healthz"} 0' in levels
    assert 'kubernetes_healthchecks_total{name="store",status="error",type="healthz"} 2' in levels
    assert ask(health, context, "/livez/ping").body == b"ok" and ask(health, context, "/livez/none") is None
    context.draining = True
    assert ask(health, context, "/readyz?exclude=store").status == 500
    assert ask(health, context, "/livez?exclude=store").status == 200


def test_the_version_is_one_clients_can_parse(context):
    found = orjson.loads(ask(Health(context), context, "/version").body)
    assert re.fullmatch(r"v1\.36\.\d+\+[0-9A-Za-z.-]+", found["gitVersion"])
    assert (found["major"], found["minor"]) == ("1", "36")


def test_metrics_count_and_stay_bounded():
    metrics = Metrics()
    for seconds in (0.001, 0.3, 100.0):
        metrics.observe(("list", "apps", "v1", "deployments", ""), 200, seconds)
    for index in range(MAX_SERIES + 10):
        metrics.observe(("get", "", "v1", "pods", ""), index, 0.1)
    metrics.observe(("get", "", "v1", "pods", 'x"} evil'), 200, 0.1)
    text = asyncio.run(metrics.render())
    labels = 'verb="LIST",group="apps",version="v1",resource="deployments",subresource=""'
    assert f'apiserver_request_total{{{labels},code="200"}} 3' in text
    assert f'apiserver_request_duration_seconds_bucket{{{labels},le="0.4"}} 2' in text
    assert f'apiserver_request_duration_seconds_bucket{{{labels},le="+Inf"}} 3' in text
    assert "evil" not in text and 'verb="OTHER"' in text
    assert 0 < int(re.search(r"process_resident_memory_bytes (\d+)", text)[1]) < 1 << 40

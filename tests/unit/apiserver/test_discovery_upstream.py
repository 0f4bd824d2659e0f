"""What is served against what upstream serves, entry by entry; every difference stands here with its reason."""

import asyncio
from pathlib import Path

import orjson

from controlplane.apiserver.describing.discovery import Discovery
from controlplane.apiserver.server import Server
from controlplane.store.memory import MemoryLog
from tests.unit.apiserver.edge import make_context, request

UPSTREAM = Path(__file__).parents[2] / "golden/discovery/upstream-1.36.txt"
ALL = "create,delete,deletecollection,get,list,patch,update,watch"
# (group-version, resource) -> why it is served although upstream's own server does not, or not served although it does
MORE = {
    ("authentication.k8s.io/v1beta1", "selfsubjectreviews"): "`kubectl auth whoami` of 1.27 asks for nothing newer",
    **dict.fromkeys([("certificates.k8s.io/v1beta1", f"podcertificaterequests{part}") for part in ("", "/status")],
                    "podCertificate volumes work without asking for a beta API first"),
    ("certificates.k8s.io/v1beta1", "clustertrustbundles"): "clusterTrustBundle volumes work likewise",
    ("metrics.k8s.io/v1beta1", "nodes"): "upstream leaves it to an add-on, metrics-server; here `kubectl top` works",
    ("metrics.k8s.io/v1beta1", "pods"): "upstream leaves it to an add-on, metrics-server; here `kubectl top` works",
}
LESS: dict[tuple[str, str], str] = {}


def expected():
    """(group-version, name) -> (kind, its group-version, namespaced, verbs, short names, categories), in order."""
    found, group_version = {}, ""
    for line in UPSTREAM.read_text().splitlines():
        if line.startswith("#"):
            continue
        if not line.startswith(" "):
            group_version = line
            continue
        name, kind, scope, verbs, shorts, categories = line.split()
        kind, _, of = kind.partition("@")
        verbs = {"*": ALL, "rwu": "get,patch,update"}.get(verbs, verbs)
        found[group_version, name] = (kind, of or "", scope == "N", verbs,
                                      *("" if t == "-" else t for t in (shorts, categories)))
    return found


def served():
    context = make_context()
    context.registry = Server(context.options, MemoryLog()).context.registry  # as a whole server has it
    discovery = Discovery(context)

    def ask(path):
        return orjson.loads(asyncio.run(discovery.handle(request(context, path))).body)

    versions = ["v1", *(v["groupVersion"] for g in ask("/apis")["groups"] for v in g["versions"])]
    found = {}
    for group_version in versions:
        for entry in ask(f"/apis/{group_version}" if "/" in group_version else f"/api/{group_version}")["resources"]:
            of = "/".join(filter(None, (entry.get("group"), entry.get("version"))))
            found[group_version, entry["name"]] = (
                entry["kind"], of, entry["namespaced"], ",".join(entry["verbs"]),
                ",".join(entry.get("shortNames", ())), ",".join(entry.get("categories", ())))
    return found


def test_discovery_is_upstreams_but_for_what_is_explained():
    theirs, ours = expected(), served()
    assert {k for k in ours if k not in theirs} == set(MORE)
    assert {k for k in theirs if k not in ours} <= set(LESS)  # what comes to be served needs no excuse any more
    common = [k for k in theirs if k in ours]
    assert {k: ours[k] for k in common} == {k: theirs[k] for k in common}


def test_groups_come_in_upstreams_order():
    theirs, ours = expected(), served()
    common = set(theirs) & set(ours)
    groups = [list(dict.fromkeys(g for g, _ in found if any(g == c for c, _ in common))) for found in (theirs, ours)]
    assert groups[0] == groups[1]

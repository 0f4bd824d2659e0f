from controlplane.apiserver.request import build, target
from controlplane.machinery.resources import BUILTIN


def seen(method, path):
    r = build(method, path, {}, BUILTIN)
    return r.verb, r.resource.name if r.resource else None, r.namespace, r.name, r.subresource


def test_the_url_grammar():
    assert seen("GET", "/api/v1/pods?limit=5") == ("list", "pods", "", "", "")
    assert seen("GET", "/api/v1/namespaces/a/pods/b") == ("get", "pods", "a", "b", "")
    assert seen("PATCH", "/api/v1/namespaces/a/pods/b/status") == ("patch", "pods", "a", "b", "status")
    assert seen("GET", "/api/v1/namespaces/a") == ("get", "namespaces", "a", "a", "")
    assert seen("PUT", "/api/v1/namespaces/a/finalize") == ("update", "namespaces", "a", "a", "finalize")
    assert seen("DELETE", "/apis/apps/v1/namespaces/a/deployments") == (
        "deletecollection", "deployments.apps", "a", "", "")
    assert seen("GET", "/apis/apps/v1/deployments?watch=1") == ("watch", "deployments.apps", "", "", "")
    assert seen("GET", "/api/v1/watch/namespaces/a/pods") == ("watch", "pods", "a", "", "")
    assert seen("GET", "/apis/apps/v1/nothing") == ("list", None, "", "", "")
    assert seen("GET", "/apis/apps/v1") == ("get", None, "", "", "")
    assert seen("HEAD", "/api/v1/pods") == ("", "pods", "", "", "")


def test_the_absolute_form_of_a_request_target_names_the_same_thing():
    assert seen("GET", "https://any.host:6443/api/v1/namespaces/a/pods/b?x=/") == ("get", "pods", "a", "b", "")
    assert seen("GET", "HTTP://any.host/api/v1/pods?watch=1") == ("watch", "pods", "", "", "")
    assert [build("GET", f"https://h{rest}", {}, BUILTIN).path for rest in ("", "?a=/b", "/", "/version")] == [
        "/", "/", "/", "/version"]
    assert build("GET", "/proxy/http://else/where", {}, BUILTIN).path == "/proxy/http://else/where"
    assert build("OPTIONS", "*", {}, BUILTIN).path == "*"


def test_a_proxied_path_keeps_its_rest():
    where = target("/api/v1/namespaces/a/services/https:web:443/proxy/x/y")
    assert (where.name, where.subresource, where.rest) == ("https:web:443", "proxy", "x/y")


def test_escapes_are_decoded_and_repeated_parameters_kept():
    request = build("GET", "/api/v1/namespaces/a/pods/b%2Dc?dryRun=All&dryRun=&labelSelector=a%20in%20(b)", {}, BUILTIN)
    assert request.name == "b-c"
    assert request.query.all("dryRun") == ["All", ""]
    assert request.query.get("labelSelector") == "a in (b)"

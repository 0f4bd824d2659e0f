"""Links of proxied pages stay within the proxy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.apiserver.streaming.links import moved, rewritten

ROOT = "/api/v1/namespaces/ns/pods/http:p:80/proxy"
HOSTS = ("10.0.0.7:80", "cluster.example")


@pytest.mark.parametrize(("address", "shown"), [
    ("/rewriteme", ROOT + "/rewriteme"),
    ("/", ROOT + "/"),
    ("/a/?q=1#top", ROOT + "/a/?q=1#top"),
    ("http://10.0.0.7:80/x", ROOT + "/x"),
    ("https://elsewhere.example/x", "https://elsewhere.example/x"),
    ("relative.html", "relative.html"),
    ("#here", "#here"),
    ("mailto:somebody@example.org", "mailto:somebody@example.org"),
    (ROOT + "/seen", ROOT + "/seen"),
])
def test_what_becomes_of_an_address(address, shown):
    assert moved(address, ROOT, HOSTS) == shown


def test_only_links_change():
    page = (b'<!DOCTYPE html>\n<html><head><LINK rel=stylesheet href=/s.css></head>\n<body>\xff <!-- <a href="/no"> -->'
            b'<script>if (1<2) { x = "<a href=\'/no\'>" }</script>'
            b"<a title='/no' href='/yes?a=1&amp;b=2'>/no</a><img src=\"/i.png\"/></body></html>")
    assert rewritten(page, ROOT, HOSTS) == (
        page.replace(b"href=/s.css", b'href="%b/s.css"' % ROOT.encode())
        .replace(b"'/yes?a=1&amp;b=2'", b"'%b/yes?a=1&amp;b=2'" % ROOT.encode())
        .replace(b'"/i.png"', b'"%b/i.png"' % ROOT.encode()))


def test_upstreams_example():
    assert rewritten(b'<a href="/rewriteme">test</a>', ROOT, HOSTS) == f'<a href="{ROOT}/rewriteme">test</a>'.encode()


@given(st.binary(max_size=200))
def test_whatever_comes_passes(page):
    assert rewritten(page, ROOT, HOSTS) == page or b"=" in page

"""All combinations of the options of lists and watches: what is forbidden, in upstream's words, and what is not."""

import asyncio
import base64
from itertools import product

import orjson
import pytest

from controlplane.apiserver.reading import listoptions
from controlplane.apiserver.reading.listoptions import Token
from controlplane.apiserver.request import Query
from controlplane.machinery.errors import BadRequest, Invalid
from controlplane.machinery.resources import named
from tests.unit.apiserver.harness import config_map, serving

CMS = "/api/v1/namespaces/default/configmaps"
UNLESS = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
WHEN = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided"
ZERO = 'resourceVersionMatch: Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
OTHER = 'resourceVersionMatch: Unsupported value: "X": supported values: "Exact", "NotOlderThan", ""'
LIST = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"
NEEDS = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
WATCH = ("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is "
         "provided")


def only(match):
    return f'resourceVersionMatch: Unsupported value: "{match}": supported values: "NotOlderThan"'


def said(query, watch):
    """What is told of a query: nothing, or the causes."""
    try:
        listoptions.check(Query(query), watch)
    except Invalid as error:
        assert error.message.startswith('ListOptions.meta.k8s.io "" is invalid: ')
        text = error.message.split(" is invalid: ", 1)[1]
        return text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    return ""


ALL = list(product(("", "Exact", "NotOlderThan", "X"), ("", "0", "5"), ("", "t"), ("", "true", "false")))


@pytest.mark.parametrize(("match", "revision", "token", "initial"), ALL)
def test_every_combination(match, revision, token, initial):
    given = {"resourceVersionMatch": match, "resourceVersion": revision, "continue": token,
             "sendInitialEvents": initial}
    query = "&".join(f"{name}={value}" for name, value in given.items() if value)
    listed = [text for text, holds in (
        (UNLESS, match and not revision), (WHEN, match and token), (OTHER, match == "X"),
        (ZERO, match == "Exact" and revision == "0"), (LIST, initial)) if holds]
    watched = [text for text, holds in (
        (NEEDS, initial and match != "NotOlderThan"), (WATCH, match and not initial),
        (only(match), match not in ("", "NotOlderThan")), (WHEN, match and token)) if holds]
    assert said(query, False) == ", ".join(listed)
    assert said(query, True) == ", ".join(watched)


def test_what_is_no_revision():
    for text, why in (("x", "invalid syntax"), ("-1", "invalid syntax"), ("1.5", "invalid syntax"),
                      (str(1 << 64), "value out of range")):
        cause = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": {why}'
        with pytest.raises(BadRequest) as read:
            listoptions.revision_to_read(text)
        assert read.value.message == f"invalid resource version: {cause}"
        with pytest.raises(Invalid) as watched:
            listoptions.revision_to_watch(text, named("pods"))
        assert watched.value.message == f'pods "" is invalid: {cause}'
    assert listoptions.revision_to_read("") == listoptions.revision_to_read("0") == 0


@pytest.mark.parametrize(("raw", "why"), [
    ({"v": "v2", "rv": 1, "start": "a/"}, "server does not recognize this encoded version v2"),
    ({"v": "meta.k8s.io/v1", "start": "a/"}, "incorrect encoded start resourceVersion (version meta.k8s.io/v1)"),
    ({"v": "meta.k8s.io/v1", "rv": 1}, "encoded start key empty (version meta.k8s.io/v1)"),
    ({"v": "meta.k8s.io/v1", "rv": 1, "start": "b/../a"}, "b/../a"), ([], ""),
])
def test_what_is_no_continue_token(raw, why):
    text = base64.urlsafe_b64encode(orjson.dumps(raw)).decode().rstrip("=")
    with pytest.raises(BadRequest) as refused:
        Token.decode(text, "a/")
    assert refused.value.message.startswith(f"invalid continue token: continue key is not valid: {why}")


def test_they_mean_what_they_say():
    async def main():
        async with serving() as api:
            first = await api.made(CMS, config_map("a"))
            at = first["metadata"]["resourceVersion"]
            last = (await api.made(CMS, config_map("b")))["metadata"]["resourceVersion"]

            async def names(query):
                status, got = await api.call("GET", f"{CMS}?{query}")
                assert status == 200, got
                return [item["metadata"]["name"] for item in got["items"]]
            assert await names(f"resourceVersion={at}&resourceVersionMatch=Exact") == ["a"]
            assert await names(f"resourceVersion={at}&resourceVersionMatch=NotOlderThan") == ["a", "b"]
            assert await names(f"resourceVersion={at}") == await names("resourceVersion=0") == ["a", "b"]
            assert await names(f"resourceVersion={at}&limit=1") == ["a"]  # exact, as clients of old expect
            status, error = await api.call("DELETE", f"{CMS}?resourceVersionMatch=Exact")
            assert status == 422 and UNLESS in error["message"]
            status, error = await api.call("GET", f"{CMS}?watch=1&resourceVersionMatch=NotOlderThan&resourceVersion=0")
            assert status == 422 and WATCH in error["message"]
            pairs = [("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", ["ADDED", "ADDED", "BOOKMARK"]),
                     ("resourceVersion=0", ["ADDED", "ADDED", "BOOKMARK"]), (f"resourceVersion={at}", ["ADDED"])]
            for query, kinds in pairs:
                async with api.watching(f"{CMS}?watch=1&allowWatchBookmarks=true&{query}") as events:
                    assert [kind for kind, _ in await events.take(len(kinds))] == kinds, query
            query = f"sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion={last}"
            async with api.watching(f"{CMS}?watch=1&{query}") as events:
                await api.made(CMS, config_map("c"))
                kind, obj = await events.next()
                assert (kind, obj["metadata"]["name"]) == ("ADDED", "c")
    asyncio.run(main())

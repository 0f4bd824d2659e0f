"""Who may call the kubelet's API, and which of the node's files it shows."""

import asyncio

import pytest

from agent.kubelet.serving import hostlogs
from agent.kubelet.serving.access import ALLOWED_SECONDS, DENIED_SECONDS, MAX_REMEMBERED, Access, Caller, subresources
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import NotFound, ServiceUnavailable


class Api:
    """An API server that knows one token and lets its holder read metrics."""

    def __init__(self):
        self.asked, self.away = [], False

    async def create(self, resource, obj):
        if self.away:
            raise ServiceUnavailable("away")
        self.asked.append((resource.kind, obj["spec"]))
        if resource.kind == "TokenReview":
            user = {"username": "prometheus", "groups": ["g"], "uid": "u", "extra": {"k": ["v"]}}
            known = obj["spec"]["token"] == "good"
            return {"status": {"authenticated": True, "user": user} if known else {"user": {}}}
        attributes = obj["spec"]["resourceAttributes"]
        return {"status": {"allowed": attributes["subresource"] == "metrics" and attributes["name"] == "n1"}}


def test_tokens_are_reviewed_and_rights_asked_once_for_a_while():
    async def play():
        api, clock = Api(), FakeClock()
        access = Access(api, "n1", clock)
        for header in ("", "Basic good", "Bearer", "Bearer bad"):
            assert await access.bearer(header) is None
        caller = await access.bearer("Bearer good")
        assert caller == await access.bearer("bearer  good") == Caller("prometheus", ("g",), "u", {"k": ["v"]})
        assert [kind for kind, _ in api.asked] == ["TokenReview"] * 2
        assert await access.allowed(caller, "get", subresources("/metrics/cadvisor"))
        assert not await access.allowed(caller, "get", subresources("/exec/a/b/c"))
        assert not await access.allowed(caller, "get", subresources("/exec/a/b/c"))
        questions = [spec for kind, spec in api.asked if kind == "SubjectAccessReview"]
        assert [q["resourceAttributes"]["subresource"] for q in questions] == ["metrics", "proxy"]
        assert questions[0]["extra"] == {"k": ["v"]} and questions[0]["uid"] == "u"
        await clock.advance(DENIED_SECONDS + 1)
        api.away = True
        assert await access.allowed(caller, "get", ["metrics"])
        assert not await access.allowed(caller, "get", ["proxy"])
        await clock.advance(ALLOWED_SECONDS)
        assert not await access.allowed(caller, "get", ["metrics"])
        assert await access.bearer("Bearer good") is None
        assert await access.allowed(Caller("admin", ("system:masters",)), "get", ["proxy"])
        assert len(access._answers._kept) <= MAX_REMEMBERED
    asyncio.run(play())


def test_log_files_are_shown_and_nothing_beyond_them(tmp_path):
    top = tmp_path / "log"
    (top / "pods").mkdir(parents=True)
    (top / "a <b>.log").write_text("line\n")
    (tmp_path / "secret").write_text("x")
    (top / "out").symlink_to(tmp_path / "secret")
    (top / "in").symlink_to("a <b>.log")
    listing = hostlogs.answer(top, [""], "/logs/").text
    assert '<a href="pods/">pods/</a>' in listing and '<a href="a%20%3Cb%3E.log">a &lt;b&gt;.log</a>' in listing
    assert hostlogs.answer(top, ["pods"], "/logs/pods").headers["Location"] == "pods/"
    assert hostlogs.answer(top, ["in"], "/logs/in").status == 200
    for parts in (["out"], ["..", "secret"], ["../secret"], ["none"], ["in\0"], [str(tmp_path / "secret")]):
        with pytest.raises(NotFound):
            hostlogs.answer(top, parts, "/logs/x")

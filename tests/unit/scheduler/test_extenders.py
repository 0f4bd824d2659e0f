"""Extenders, as a real web service: they refuse, rate, spare and bind."""

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from controlplane.machinery.errors import ApiError
from controlplane.scheduler.configuration import Extender
from controlplane.scheduler.extenders import Extenders
from controlplane.scheduler.preemption import Plan
from controlplane.scheduler.snapshot import Snapshot
from tests.unit.scheduler.test_decisions import pod


async def answers(request):
    asked = await request.json()
    match request.path.rpartition("/")[2]:
        case "filter":
            return web.json_response({"nodenames": [n for n in asked["NodeNames"] if n != "x"],
                                      "failedNodes": {"x": "no licence there"}})
        case "prioritize":
            return web.json_response([{"Host": n, "Score": 10 if n == "z" else 1} for n in asked["NodeNames"]])
        case "bind":
            return web.json_response({"Error": "" if asked["Node"] == "z" else "not mine"})
        case "preempt":
            return web.json_response({"NodeNameToMetaVictims": {"z": asked["NodeNameToMetaVictims"]["z"]}})
    return web.Response(status=500)


def test_they_have_their_say():
    async def run():
        app = web.Application()
        app.router.add_post("/{verb}", answers)
        async with TestServer(app) as server:
            url = str(server.make_url("")).rstrip("/")
            extenders = Extenders([Extender(url, "filter", "prioritize", "bind", "preempt", names_only=True)])
            assert await extenders.rank(pod("p"), ["x", "y", "z"], {}) == (["z", "y"], {"x": "no licence there"})
            assert await extenders.bind(pod("p"), "z")
            with pytest.raises(ApiError, match="not mine"):
                await extenders.bind(pod("p"), "y")
            snapshot = Snapshot()
            snapshot.place(pod("v"), "z")
            victim = snapshot.placed("uid-v")
            plans = [Plan("y", (victim,)), Plan("z", (victim,))]
            assert [p.node for p in await extenders.spare(pod("p"), plans)] == ["z"]
            with pytest.raises(ApiError, match="code 500"):
                await Extenders([Extender(url, "broken")]).rank(pod("p"), ["x"], {})
            ignored = Extenders([Extender(url, "broken", ignorable=True)])
            assert (await ignored.rank(pod("p"), ["x"], {}))[0] == ["x"]
    asyncio.run(run())


def test_only_pods_of_their_resources_concern_them():
    extenders = Extenders([Extender("http://nowhere", "filter", resources=frozenset({"example.com/gpu"}))])
    assert not extenders.concerned(pod("p", cpu="1"))

"""Stopping and removing by a runtime that is busy with the same thing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.kubelet.cri.runtime import CallError, Runtime
from controlplane.machinery.clock import FakeClock


def refusal(text: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=text)


class Clock(FakeClock):
    async def sleep(self, seconds: float) -> None:
        await self.advance(seconds)


@pytest.mark.parametrize(("texts", "calls"), [
    (['failed to set removing state for container "a": container is already in removing state'] * 3, 4),
    (["ttrpc: closed"], 2), (["disk full"], 1)])
def test_a_refusal_that_passes_is_waited_for(texts: list[str], calls: int) -> None:
    answers, seen = [refusal(t) for t in texts], []

    async def remove(request: Any, timeout: float) -> None:
        seen.append(request.pod_sandbox_id)
        if answers:
            raise answers.pop()

    connection: Any = SimpleNamespace(runtime=SimpleNamespace(RemovePodSandbox=remove), tally=None)
    work = Runtime(connection, Clock()).remove_sandbox("box")
    if texts == ["disk full"]:
        with pytest.raises(CallError, match="disk full"):
            asyncio.run(work)
    else:
        asyncio.run(work)
    assert seen == ["box"] * calls

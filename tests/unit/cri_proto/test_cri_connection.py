"""The connection to a container runtime, against one that is slow to say hello."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio

from cri_proto.client import RECONNECT_MAX_MS, Connection
from cri_proto.messages import cri

SLOW_SECONDS = 2 * RECONNECT_MAX_MS / 1000


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


def test_a_runtime_that_is_slow_to_say_hello_is_waited_for(tmp_path: Path):
    async def version(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return cri.VersionResponse(runtime_name="slow").SerializeToString()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(SLOW_SECONDS)  # what is tested: the peer's slowness
        far_reader, far_writer = await asyncio.open_unix_connection(str(tmp_path / "real"))
        await asyncio.gather(_relay(reader, far_writer), _relay(far_reader, writer))

    async def scenario() -> str:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
            "runtime.v1.RuntimeService", {"Version": grpc.unary_unary_rpc_method_handler(version)}),))
        server.add_insecure_port(f"unix://{tmp_path}/real")
        await server.start()
        try:
            async with await asyncio.start_unix_server(slowly, str(tmp_path / "slow")), \
                    Connection(tmp_path / "slow") as connection:
                answer = await connection.runtime.Version(cri.VersionRequest(), timeout=60)
            return str(answer.runtime_name)
        finally:
            await server.stop(None)

    assert asyncio.run(scenario()) == "slow"

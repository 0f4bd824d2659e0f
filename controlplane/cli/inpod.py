"""Runs one command in a container through the apiserver, as `kubectl exec` does: WebSocket, `v4.channel.k8s.io`."""

from __future__ import annotations

import json
from urllib.parse import quote

from controlplane.client.rest import Client
from controlplane.machinery import resources
from controlplane.machinery.errors import Finding

SECONDS = 20.0  # for one short command
STDOUT, STDERR, STATUS = 1, 2, 3  # the channels of the protocol


async def run(client: Client, pod: str, namespace: str, container: str, command: list[str]) -> str:
    """The command's standard output. Raises Finding with its standard error when it fails."""
    import aiohttp
    path = resources.named("pods").path(namespace, pod, "exec")
    query = "&".join([f"container={container}", "stdout=true", "stderr=true",
                      *(f"command={quote(c)}" for c in command)])
    output = {STDOUT: b"", STDERR: b""}
    verdict: dict[str, object] = {}
    config = client.config
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=config.ssl_context() or False)) as session:
        try:
            async with session.ws_connect(f"{config.server}{path}?{query}", protocols=["v4.channel.k8s.io"],
                                          timeout=aiohttp.ClientWSTimeout(ws_receive=SECONDS)) as socket:
                async for message in socket:
                    if message.type != aiohttp.WSMsgType.BINARY or not message.data:
                        continue
                    channel, data = message.data[0], message.data[1:]
                    if channel == STATUS:
                        verdict = json.loads(data)
                        break
                    output[channel] = output.get(channel, b"") + data
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Finding(f"could not run a command in pod {pod}", str(error), f"kubectl describe pod {pod}") from None
    if verdict.get("status") != "Success":
        said = output[STDERR].decode(errors="replace").strip() or str(verdict.get("message", "no status came back"))
        raise Finding(f"{command[0]} failed in pod {pod}", said)
    return output[STDOUT].decode(errors="replace").strip()

"""Both plugins, the machine code and the Python one, carry a call there and its answer back; no root needed."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from netsetup.cni import install, wire

MACHINES = ["other", *(["x86_64"] if platform.machine() == "x86_64" else [])]


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_and_its_answer(tmp_path: Path, machine: str) -> None:
    path, plugin = tmp_path / "cni.sock", tmp_path / "plugin"
    plugin.write_bytes(install.program(str(path), machine))
    plugin.chmod(0o755)
    config = json.dumps({"cniVersion": "1.0.0", "type": "pelamis", "padding": "x" * 200_000}).encode()
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "abc", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_ARGS": "",
           "SECRET": "not for others"}

    def call() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([plugin], input=config, env=env, capture_output=True, timeout=20)

    away = call()
    assert away.returncode == 1 and json.loads(away.stdout)["code"] == wire.TRY_LATER

    heard: list[bytes] = []
    answers = [wire.answer({"ips": "y" * 100_000}), wire.failure(wire.CniError(7, "no")), b""]
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            for answer in answers:
                link, _ = server.accept()
                with link:
                    data = b""
                    while part := link.recv(65536):
                        data += part
                    heard.append(data)
                    link.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        good, bad, silent = call(), call(), call()
        thread.join()
    assert good.returncode == 0 and json.loads(good.stdout)["ips"] == "y" * 100_000
    assert bad.returncode == 1 and json.loads(bad.stdout)["code"] == 7
    assert silent.returncode == 1 and json.loads(silent.stdout)["code"] == wire.TRY_LATER  # it died over our call
    assert b"SECRET" not in heard[0]
    parsed = wire.parse(heard[0])
    assert (parsed.command, parsed.container, parsed.plugin) == ("ADD", "abc", "pelamis")
    assert len(parsed.config["padding"]) == 200_000

"""Bytes between a terminal and a container: exec, attach, port-forward, cp, logs, proxies and debug, with every kubectl
on the machine. Each protocol version and fallback is some kubectl's."""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from contextlib import contextmanager

import pytest

from tests.client.cluster import eventually, kubectls

pytestmark = pytest.mark.client

IMAGE = "pelamis.local/demo:1"
BINARIES = kubectls()
COPIED = 64 << 20
STEP = 20.0  # seconds one step may take


@pytest.fixture(scope="module")
def pod(cluster):
    """A pod that serves HTTP, with a shell."""
    cluster.kubectl("run", "streams", f"--image={IMAGE}", "--port=80", "--labels=app=streams")
    cluster.kubectl("expose", "pod", "streams", "--port=80", "--name=streams")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/streams", "--timeout=60s")
    yield "streams"
    cluster.kubectl("delete", "service,pod", "streams", "--now")


@contextmanager
def running(cluster, *command, terminal=None, **more):
    """A process on the host of the cluster, ended at the end."""
    process = subprocess.Popen(cluster.host.enter(*command), env=cluster.env, **more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def line_with(stream, pattern):
    """The match in the lines of a pipe, read until it comes."""
    deadline, seen = time.monotonic() + STEP, b""
    while not (found := re.search(pattern, seen)):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{pattern!r} never came: {seen[-2000:]!r}"
        piece = os.read(stream if isinstance(stream, int) else stream.fileno(), 65536)
        assert piece, f"ended before {pattern!r}: {seen[-2000:]!r}"
        seen += piece
    return found


@pytest.mark.parametrize("binary", BINARIES)
def test_exec_gives_both_outputs_the_exit_code_and_an_end_of_input(cluster, pod, binary):
    done = cluster.run(binary, "exec", "-i", pod, "--", "sh", "-c", "cat; echo wrong >&2; exit 7", input="a\nb\n",
                       check=False, seconds=STEP)
    assert (done.returncode, done.stdout) == (7, "a\nb\n")
    assert done.stderr.startswith("wrong\n") and "exit code 7" in done.stderr


@pytest.mark.parametrize("binary", BINARIES)
def test_a_kubectl_that_prefers_websockets_needs_no_fallback(cluster, pod, binary):
    version = json.loads(cluster.run(binary, "version", "--client", "-o", "json").stdout)["clientVersion"]
    if int(version["minor"].rstrip("+")) < 31:
        pytest.skip("speaks SPDY unless told otherwise")
    done = cluster.run(binary, "exec", "-i", "-v=7", pod, "--", "cat", input="a\n", seconds=STEP)
    assert done.stdout == "a\n" and "fallback" not in done.stderr.lower(), done.stderr
    assert re.search(r"(?i)subprotocol.*v5\.channel\.k8s\.io", done.stderr), done.stderr
    with running(cluster, binary, "port-forward", "-v=7", f"pod/{pod}", ":80", stdout=subprocess.PIPE,
                 stderr=subprocess.PIPE) as process:
        line_with(process.stdout, rb"127\.0\.0\.1:(\d+) ->")
        line_with(process.stderr, rb"(?i)tunneling_dialer\S* .*negotiated protocol")


@pytest.mark.parametrize("binary", BINARIES)
def test_port_forward_serves_several_connections(cluster, pod, binary):
    with running(cluster, binary, "port-forward", f"pod/{pod}", ":80", stdout=subprocess.PIPE) as process:
        port = line_with(process.stdout, rb"127\.0\.0\.1:(\d+) ->").group(1).decode()
        for _ in range(3):
            assert pod in cluster.run("curl", "-sS", "-m", "5", f"http://127.0.0.1:{port}/").stdout


@pytest.mark.parametrize("binary", [*dict.fromkeys((*BINARIES[:2], BINARIES[-1]))])  # WebSocket, SPDY, the newest
def test_a_terminal_follows_the_windows_size(cluster, pod, binary):
    master, slave = pty.openpty()

    def size(rows, columns):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    size(33, 100)
    with running(cluster, binary, "exec", "-it", pod, "--", "sh", stdin=slave, stdout=slave, stderr=slave,
                 start_new_session=True) as process:
        try:
            # the size and the input come on channels of their own: the input may be there first
            os.write(master, b"until stty size 2>&1 | grep '^[1-9]'; do sleep 0.1; done\n")
            line_with(master, rb"33 100\r\n")
            size(40, 120)
            kubectl = [p for p in descendants(process.pid) if "exec" in command_line(p)][-1]
            os.kill(kubectl, signal.SIGWINCH)

            def seen():
                os.write(master, b"stty size\n")
                return line_with(master, rb"(\d+ \d+)\r\n").group(1) == b"40 120"
            eventually(seen, STEP)
            os.write(master, b"exit 5\n")
            assert process.wait(STEP) == 5
        finally:
            os.close(master)
            os.close(slave)


def descendants(pid):
    found = [pid]
    for one in found:
        with open(f"/proc/{one}/task/{one}/children") as children:
            found += map(int, children.read().split())
    return found


def command_line(pid):
    with open(f"/proc/{pid}/cmdline") as file:
        return file.read().split("\0")


def test_attach_hands_stdin_over_once(cluster):
    spec = {"restartPolicy": "Never", "containers": [{
        "name": "c", "image": IMAGE, "stdin": True, "stdinOnce": True,
        "command": ["sh", "-c", "while read line; do echo got $line; done; echo end of input"]}]}
    cluster.kubectl("create", "-f", "-", input=json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "attached"}, "spec": spec}))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/attached", "--timeout=30s")
    done = cluster.run("kubectl", "attach", "-i", "attached", input="one\ntwo\n", seconds=STEP)
    assert "got one\ngot two\n" in done.stdout
    eventually(lambda: cluster.get("pod", "attached")["status"]["phase"] == "Succeeded", STEP)
    assert "end of input" in cluster.kubectl("logs", "attached")
    cluster.kubectl("delete", "pod", "attached", "--now")


def test_run_interactively_and_remove(cluster):
    done = cluster.run("kubectl", "run", "once", "-i", "--rm", "--restart=Never", f"--image={IMAGE}", "--command",
                       "--", "sh", "-c", "cat; exit 4", input="hello\n", check=False, seconds=STEP * 2)
    assert "hello" in done.stdout and done.returncode == 4
    assert "NotFound" in cluster.fails("get", "pod", "once")


@pytest.mark.parametrize("binary", [*dict.fromkeys((BINARIES[0], BINARIES[-1]))])
def test_cp_of_64_megabytes_both_ways(cluster, pod, binary, tmp_path):
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(1 << 20) * (COPIED >> 20))
    cluster.run(binary, "cp", str(source), f"{pod}:/tmp/copied", seconds=60)
    cluster.run(binary, "cp", f"{pod}:/tmp/copied", str(back), seconds=60)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, back)}
    assert digests == {cluster.kubectl("exec", pod, "--", "sha256sum", "/tmp/copied").split()[0]}
    cluster.kubectl("exec", pod, "--", "rm", "/tmp/copied")


def test_cp_of_a_folder_both_ways(cluster, pod, tmp_path):
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    for name, content in (("top", b"1"), ("a/empty", b""), ("a/b/with space", os.urandom(70_000))):
        (tree / name).write_bytes(content)
    cluster.kubectl("cp", str(tree), f"{pod}:/tmp/tree")
    cluster.kubectl("cp", f"{pod}:/tmp/tree", str(tmp_path / "back"))
    there, back = ({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                   for root in (tree, tmp_path / "back"))
    assert there == back and len(back) == 3
    cluster.kubectl("exec", pod, "--", "rm", "-r", "/tmp/tree")


def test_top_tells_what_pods_and_nodes_use(cluster, pod):
    eventually(lambda: cluster.run("kubectl", "top", "pod", pod, "--containers", check=False).returncode == 0)
    heads, row = (line.split() for line in cluster.kubectl("top", "pod", pod, "--containers").splitlines())
    assert heads == ["POD", "NAME", "CPU(cores)", "MEMORY(bytes)"] and row[0] == pod and row[2].endswith("m")
    name = cluster.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}")
    assert name in cluster.kubectl("top", "node")


def test_logs_follow_across_rotation(cluster):
    lines = 200_000  # of 130 bytes with the runtime's prefix, 26 MB: turned over twice
    script = ("while [ ! -e /tmp/go ]; do sleep 0.1; done; "
              f"awk 'BEGIN {{ for (i = 1; i <= {lines}; i++) printf \"%090d\\n\", i }}'; sleep 600")
    spec = {"containers": [{"name": "c", "image": IMAGE, "command": ["sh", "-c", script]}]}
    cluster.kubectl("create", "-f", "-", input=json.dumps(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "noisy"}, "spec": spec}))
    cluster.kubectl("wait", "--for=condition=Ready", "pod/noisy", "--timeout=30s")
    with running(cluster, "kubectl", "logs", "-f", "noisy", stdout=subprocess.PIPE) as follower:
        cluster.kubectl("exec", "noisy", "--", "touch", "/tmp/go")
        numbers = []
        deadline = time.monotonic() + 60
        for line in follower.stdout:
            numbers.append(int(line))
            if numbers[-1] == lines:
                break
            assert time.monotonic() < deadline, len(numbers)
    assert numbers == list(range(1, lines + 1))
    cluster.kubectl("delete", "pod", "noisy", "--now")


def test_proxies(cluster, pod):
    with running(cluster, "kubectl", "proxy", "--port=0", stdout=subprocess.PIPE) as process:
        base = "http://127.0.0.1:" + line_with(process.stdout, rb":(\d+)\s").group(1).decode()
        api = f"{base}/api/v1"
        assert "v1.36" in cluster.run("curl", "-sS", f"{base}/version").stdout
        for path in (f"namespaces/default/pods/{pod}/proxy/", f"namespaces/default/services/{pod}:80/proxy/"):
            assert pod in cluster.run("curl", "-sS", f"{api}/{path}").stdout
            missing = cluster.run("curl", "-sSI", f"{api}/{path}nowhere").stdout  # HEAD: the demo's own answer
            assert missing.startswith("HTTP/1.1 404") and "application/json" not in missing, missing
        assert cluster.run("curl", "-sS", f"{api}/nodes/lab-1/proxy/healthz").stdout == "ok"
        assert "200" in cluster.run("curl", "-sSI", f"{api}/nodes/lab-1/proxy/healthz").stdout.splitlines()[0]
        assert "301" in cluster.run("curl", "-sSI", f"{api}/nodes/lab-1/proxy").stdout.splitlines()[0]


def test_debug_sees_the_processes_of_its_target(cluster, pod):
    name = cluster.get("pod", pod)["spec"]["containers"][0]["name"]
    with running(cluster, "kubectl", "debug", pod, "-i", f"--image={IMAGE}", f"--target={name}", "-c", "debugger",
                 "--", "sh", "-c", "read line; tr '\\0' ' ' < /proc/1/cmdline; echo; ls /proc/1/root/; sleep 1",
                 stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"go\n")
        process.stdin.flush()
        line_with(process.stdout, rb"\betc\b")
    first = cluster.kubectl("exec", pod, "-c", name, "--", "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline").strip()
    assert first in cluster.kubectl("logs", pod, "-c", "debugger")

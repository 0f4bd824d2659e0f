"""Building images: deterministic layers, the archive both ways, and the pause program as a real process."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.image import archive, oci, pause
from agent.image.layer import Layer
from controlplane.machinery.errors import Finding

PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=8), max_size=6).map(lambda d: list(d.items())), st.randoms())
def test_a_layer_does_not_depend_on_the_order_of_its_making(entries: list[tuple[str, bytes]], random) -> None:  # type: ignore[no-untyped-def]
    entries = [(path + ".f", data) for path, data in entries]  # no file is also a folder
    first, second = Layer(), Layer()
    for path, data in entries:
        first.file(path, data)
    random.shuffle(entries)
    for path, data in entries:
        second.file("/" + path, data)
    assert first.packed() == second.packed()
    with tarfile.open(fileobj=io.BytesIO(first.packed())) as tar:
        names = tar.getnames()
        assert names == sorted(names)
        for member in tar.getmembers():  # every parent comes before its children
            assert member.mtime == 0 and (os.path.dirname(member.name) or names[0]) in names


def test_debians_merged_usr_is_kept() -> None:
    layer = Layer(merged_usr=True)
    layer.file("lib/x86_64-linux-gnu/libc.so.6", b"c")
    layer.file("/usr/lib/other", b"o")
    layer.file("bin/sh", b"s", 0o755)
    with tarfile.open(fileobj=io.BytesIO(layer.packed())) as tar:
        assert tar.getmember("lib").linkname == "usr/lib" and tar.getmember("bin").issym()
        assert {"usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/other", "usr/bin/sh"} <= set(tar.getnames())
    assert "lib/other" in layer


def test_an_archive_gives_back_what_was_written(tmp_path: Path) -> None:
    layer = Layer()
    layer.file("a", b"content")
    image = oci.build(["example.org/a:1"], [layer.packed()], {"Cmd": ["a"]})
    for file in ("1.tar", "2.tar"):
        archive.write(tmp_path / file, [image, pause.image()])
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    with archive.Archive(tmp_path / "1.tar") as opened:
        first, second = opened.images()
        assert (first, second.names) == (image, (pause.NAME,))
        assert first.layers[0].open().read() == image.layers[0].open().read()
    (tmp_path / "no.tar").write_bytes(b"not a tar")
    with pytest.raises(Finding, match="is no image archive"):
        archive.Archive(tmp_path / "no.tar")


@pytest.mark.skipif(oci.architecture() != "amd64", reason="the machine code is for amd64")
def test_pause_reaps_orphans_and_leaves_on_sigterm(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(pause.program())
    program.chmod(0o755)
    assert len(pause.program()) == 262
    # The shell starts a child that ends and becomes pause itself: the child is then pause's to reap.
    script = f"(exit 0) & child=$!; echo $child; exec {program}"
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        deadline = time.monotonic() + 20
        here = False
        while Path(f"/proc/{child}").exists() or not here:  # the shell may reap it before it becomes pause
            assert process.poll() is None and time.monotonic() < deadline
            here = Path(f"/proc/{process.pid}/exe").resolve() == program.resolve()
            if here:
                process.send_signal(signal.SIGCHLD)  # in case the child ended before pause listened
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]

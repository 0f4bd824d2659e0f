"""Reading logs: kubectl's options over rotated files, and a follower that loses nothing and ends."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.kubelet.serving import logrotate, logs
from controlplane.machinery.clock import FakeClock
from controlplane.machinery.errors import BadRequest


def line(number: int, text: str, stream: str = "stdout", tag: str = "F") -> bytes:
    return f"2026-01-01T00:00:{number:02d}.5Z {stream} {tag} {text}\n".encode()


def collect(path: Path, wanted: logs.Options) -> bytes:
    async def body() -> bytes:
        return b"".join([piece async for piece in logs.read(path, wanted, logs.never)])
    return asyncio.run(body())


def test_options_choose_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(line(1, "one") + line(2, "err", "stderr") + line(3, "par", tag="P") + line(3, "tial")
                     + line(4, ""))
    assert collect(path, logs.Options()) == b"one\nerr\npartial\n\n"
    assert collect(path, logs.Options(stream="stderr", timestamps=True)) == b"2026-01-01T00:00:02.500000000Z err\n"
    assert collect(path, logs.Options(tail=1)) == b"\n"
    assert collect(path, logs.Options(tail=0)) == b""
    assert collect(path, logs.Options(limit=5)) == b"one\ne"
    assert collect(path, logs.Options(since=logs.parse_rfc3339("2026-01-01T00:00:03Z"))) == b"partial\n\n"
    assert collect(path, logs.Options(timestamps=True, limit=400)).count(b"00:03.5") == 1  # a split line has one time
    assert collect(tmp_path / "absent.log", logs.Options()) == b""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(0, 30), st.integers(0, 12))
def test_a_tail_is_the_end_of_the_whole(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], width: int,
                                        tail: int) -> None:
    folder = tmp_path_factory.mktemp("logs")
    files = [*(folder / f"0.log.2026010{n}" for n in range(len(sizes) - 1)), folder / "0.log"]
    for index, (file, count) in enumerate(zip(files, sizes)):
        file.write_bytes(b"".join(line(n, f"{index}-{n}-" + "x" * width) for n in range(count)))
    whole = collect(folder / "0.log", logs.Options()).splitlines()
    assert len(whole) == sum(sizes)
    assert collect(folder / "0.log", logs.Options(tail=tail)).splitlines() == (whole[-tail:] if tail else [])


def test_a_follower_ends_with_its_container_and_sees_the_last_line(tmp_path: Path) -> None:
    async def body() -> list[bytes]:
        path, ended, got = tmp_path / "0.log", False, []
        path.write_bytes(line(1, "one"))
        file = open(path, "ab", buffering=0)  # noqa: ASYNC230, SIM115

        async def running() -> bool:
            return not ended

        async with asyncio.timeout(10):
            async for piece in logs.read(path, logs.Options(follow=True), running):
                got.append(piece)
                if piece == b"one\n":
                    file.write(line(2, "two")[:20])  # half a line is not shown
                    file.write(line(2, "two")[20:])
                elif piece == b"two\n":  # rotation: the last words go to the renamed file
                    path.rename(tmp_path / "0.log.20260101")
                    file.write(line(3, "three"))
                    file.close()
                    path.write_bytes(line(4, "four"))
                elif b"four\n" in piece:
                    ended = True
                    with open(path, "ab") as last:  # noqa: ASYNC230
                        last.write(line(5, "five"))
        return got
    assert b"".join(asyncio.run(body())) == b"one\ntwo\nthree\nfour\nfive\n"


def test_rotation_keeps_a_few_files_and_undoes_itself_when_the_runtime_refuses(tmp_path: Path) -> None:
    path, clock, reopened = tmp_path / "0.log", FakeClock(), []

    async def reopen(container: str) -> None:
        if container == "gone":
            raise RuntimeError("container is not running")
        reopened.append(container)
        path.write_bytes(b"")

    async def body() -> None:
        rotator = logrotate.Rotator(reopen, lambda: None, clock)  # type: ignore[arg-type, return-value]
        for number in range(8):
            path.write_bytes(b"x" * 100 + str(number).encode())
            await clock.advance(1)
            assert await rotator.rotate("c", path, limit=50)
        assert not await rotator.rotate("c", path, limit=50)
        assert len(logrotate.rotated(path)) == logrotate.ROTATE_FILES - 1
        path.write_bytes(b"y" * 100)
        assert not await rotator.rotate("gone", path, limit=50)
        assert path.read_bytes() == b"y" * 100
    asyncio.run(body())
    assert len(reopened) == 8


def test_bad_options_are_refused() -> None:
    for query in ({"tailLines": "-1"}, {"tailLines": "x"}, {"sinceSeconds": "5", "sinceTime": "2026-01-01T00:00:00Z"},
                  {"sinceTime": "soon"}, {"limitBytes": "0"}, {"stream": "both"}):
        with pytest.raises(BadRequest):
            logs.options(query, 0.0)
    assert logs.options({"sinceSeconds": "10", "follow": "true", "tailLines": "3"}, 100.0) == logs.Options(
        follow=True, tail=3, since=90.0)

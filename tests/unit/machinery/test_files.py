"""A file of state is replaced whole, is there for whom it is meant, and survives what an earlier writer left."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.machinery import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "kept" / "state"
    assert files.read(place) is None
    files.write(place, b"one")
    assert files.read(place) == b"one" and place.stat().st_mode & 0o777 == 0o600
    left = place.with_name(".state.new")
    left.write_bytes(b"of a writer that was killed")
    left.chmod(0o666)

    def full(descriptor: int) -> None:
        assert left.stat().st_mode & 0o777 == 0o600  # closed to others before it has anything to tell
        raise OSError("No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            files.write(place, b"two")
    assert files.read(place) == b"one"
    files.write(place, b"three", files.PUBLIC)
    assert files.read(place) == b"three" and place.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in place.parent.iterdir()] == ["state"]

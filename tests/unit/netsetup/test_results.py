"""What a power cut leaves of a runtime's memory of networks."""

import os

from netsetup.cni.install import forget_cut_off


def test_answers_that_were_cut_off_are_forgotten_and_no_others(tmp_path):
    def file(name, content, written):
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, (written, written))
    for name, content in (("empty", b""), ("half", b'{"kind": "cniCac'), ("zeros", bytes(4096)), ("odd", b"\xff\xfe")):
        file(name, content, 1000)
    file("whole", b'{"kind": "cniCacheV1"}', 1000)
    file("young", b"", 3000)  # somebody may be writing it
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (1000, 1000))
    forget_cut_off(2000, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "whole", "young"]
    forget_cut_off(2000, tmp_path / "none")

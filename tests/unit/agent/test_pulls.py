"""An image that one pod's credentials brought is not another's, whatever happens in between."""

from __future__ import annotations

from pathlib import Path

from agent.kubelet.images.pulls import Pulls, repository
from controlplane.machinery.clock import SYSTEM

NAME = "r.example:5000/team/app:1"


def test_repositories_are_names_without_tag_and_digest() -> None:
    names = (NAME, "r:5000/a@sha256:1", "r:5000/a:2@sha256:1", "docker.io/library/b:1")
    assert [repository(name) for name in names] == [
        "r.example:5000/team/app", "r:5000/a", "r:5000/a", "docker.io/library/b"]


def test_who_may_use_an_image(tmp_path: Path) -> None:
    file = tmp_path / "pulls.json"
    pulls = Pulls(file, SYSTEM)
    assert pulls.open("id", NAME)  # it was here before
    with pulls.pulling(NAME, b"wrong"):
        assert not pulls.open("id", NAME)
    assert pulls.open("id", NAME)  # that pull brought nothing
    with pulls.pulling(NAME, b"secret") as came:
        assert not Pulls(file, SYSTEM).open("id", NAME)  # as if the agent died in the middle
        came("id")
    for each in (pulls, Pulls(file, SYSTEM)):
        assert not each.open("id", NAME) and each.allows("id", NAME, [b"other", b"secret"])
        assert not each.allows("id", NAME, [b"other"]) and not each.allows("id", "r.example:5000/fork:1", [b"secret"])
    assert b"secret" not in file.read_bytes() and file.stat().st_mode & 0o777 == 0o600
    with pulls.pulling(NAME, b"other") as came:
        came("id")
    assert pulls.allows("id", NAME, [b"other"]) and pulls.allows("id", NAME, [b"secret"])
    with pulls.pulling(NAME, None) as came:  # it turns out that the registry gives it to everybody
        came("id")
    assert Pulls(file, SYSTEM).open("id", NAME)
    pulls.removed("id")
    assert Pulls(file, SYSTEM).open("id", "r.example:5000/fork:1")
    file.write_text("{")
    assert Pulls(file, SYSTEM).open("id", NAME)

"""Lines of a log: with the time for a person, with their priority for the journal, and never with colours."""

import logging
import os
import sys

from controlplane.machinery import logs


def record(level, message, error=None):
    return logging.LogRecord("part", level, "file", 1, message, (), error)


def test_every_line_has_its_priority():
    form = logs.ForJournal().format
    assert form(record(logging.INFO, "ready")) == "<6>part: ready"
    assert form(record(logging.WARNING, "late")) == "<4>part: late"
    assert form(record(logging.DEBUG, "a\nb")) == "<7>part: a\n<7>b"
    try:
        raise ValueError("why")
    except ValueError:
        lines = form(record(logging.ERROR, "failed", sys.exc_info())).splitlines()
    assert len(lines) > 3 and all(line.startswith("<3>") for line in lines)
    assert form(record(logging.CRITICAL, "end")).startswith("<2>")


def test_the_journal_is_known_by_its_stream(tmp_path):
    with open(tmp_path / "stream", "w") as file:
        found = os.fstat(file.fileno())
        named = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert logs.journaled(named, file.fileno())
        assert not logs.journaled({"JOURNAL_STREAM": "1:2"}, file.fileno()), "redirected since"
        assert not logs.journaled({}, file.fileno())

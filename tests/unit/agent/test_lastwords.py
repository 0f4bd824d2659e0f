"""Termination messages: the file, else the log's tail, also when the log is written late."""

from agent.kubelet.model import ObservedContainer, ObservedPod
from agent.kubelet.reporting.lastwords import LastWords


class Node:
    def __init__(self, folder):
        self.folder = folder

    def termination_file(self, uid, name, attempt):
        return str(self.folder / f"{name}-{attempt}")


def pod(policy="FallbackToLogsOnError"):
    return {"metadata": {"uid": "u"}, "spec": {"containers": [{"name": "c", "terminationMessagePolicy": policy}]}}


def ended(log, exit_code=1):
    container = ObservedContainer("1", "c", 0, "exited", "s", exit_code=exit_code, log_path=str(log))
    return ObservedPod("u", "n", "p", containers=(container,))


def test_a_log_that_is_written_late_is_told(tmp_path):
    words, log = LastWords(Node(tmp_path)), tmp_path / "0.log"
    log.write_bytes(b"")
    assert words.of(pod(), ended(log)) == {"1": ""}
    log.write_bytes(b"2026-01-01T00:00:00Z stderr F no such file\n")
    assert words.of(pod(), ended(log)) == {"1": "no such file\n"}
    log.unlink()
    assert words.of(pod(), ended(log)) == {"1": "no such file\n"}  # known now


def test_the_file_goes_before_the_log_and_success_has_no_words_of_a_log(tmp_path):
    log = tmp_path / "0.log"
    log.write_bytes(b"2026-01-01T00:00:00Z stderr F logged\n")
    assert LastWords(Node(tmp_path)).of(pod(), ended(log, exit_code=0)) == {"1": ""}
    assert LastWords(Node(tmp_path)).of(pod("File"), ended(log)) == {"1": ""}
    (tmp_path / "c-0").write_text("written")
    assert LastWords(Node(tmp_path)).of(pod(), ended(log)) == {"1": "written"}
    many, long = pod(), "ä" * 2048
    many["spec"]["containers"] *= 12
    (tmp_path / "c-0").write_text(long)
    assert [LastWords(Node(tmp_path)).of(p, ended(log))["1"] for p in (pod(), many)] == [long, long[:512]]

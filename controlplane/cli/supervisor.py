"""A small supervisor: keeps the processes of a node running where no systemd does.

Owns the processes named in its components file: starts them in order, restarts what dies (0.2 s, doubling to 10 s,
reset after a minute of health), answers `status`, `reload` and `stop` on a socket, trims their logs, and once a day has
certificates renewed that are in the last third of their life. It holds no state that
matters: each process is known by a pid file with its start time, so a supervisor that was killed is replaced by another
that adopts the survivors instead of restarting them. It never touches containers. One loop over `select`, standard
library only and no asyncio, because it runs for ever beside everything else and should cost next to nothing.

Run as `python -m controlplane.cli.supervisor COMPONENTS_FILE RUN_DIR LOG_DIR`; `up` starts it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from controlplane.cli.components import Component, read

BACKOFF_FIRST, BACKOFF_MOST = 0.2, 10.0  # seconds: quick for a crash, gentle for a crash loop
HEALTHY_AFTER = 60.0  # seconds up after which the next crash starts from BACKOFF_FIRST again
LOG_LIMIT = 10 << 20  # bytes a log may reach before its older half is dropped
LOG_CHECK = 300.0  # seconds between looks at the sizes of logs
RENEWAL_CHECK = 86400.0  # seconds between looks at certificates: they are renewed months before they end
RENEWAL = (sys.executable, "-m", "controlplane.cli", "certs", "renew", "--due")
KILL_AFTER = 5.0  # seconds beyond a component's own stop time before SIGKILL


def start_time(pid: int) -> str:
    """Field 22 of /proc/PID/stat: with the pid it names a process for ever. "" when there is none (or a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


class Process:
    """One component and its process, if any."""

    def __init__(self, component: Component, run: Path, logs: Path) -> None:
        self.component = component
        self.pid_file = run / "pids" / component.name
        self.notify_path = run / "notify" / component.name
        self.log = logs / f"{component.name}.log"
        self.pid = 0
        self.pidfd = -1
        self.ready = False
        self.restarts = 0
        self.reason = ""
        self.since = time.monotonic()
        self.backoff = BACKOFF_FIRST
        self.due: float | None = None  # monotonic time of the next start or kill
        self.stopping = False
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self.notify_path.parent.mkdir(parents=True, exist_ok=True)
        self.notify_path.unlink(missing_ok=True)
        self.notify.bind(str(self.notify_path))

    def adopt(self) -> bool:
        """Take over the process a former supervisor left, if it still runs."""
        try:
            pid, began = self.pid_file.read_text().split()
        except (OSError, ValueError):
            return False
        if start_time(int(pid)) != began:
            return False
        self.pid, self.pidfd, self.ready = int(pid), os.pidfd_open(int(pid)), True
        self.reason = "adopted from an earlier supervisor"
        return True

    def start(self) -> None:
        component = self.component
        env = {**os.environ, **component.env}
        if component.notify:
            env["NOTIFY_SOCKET"] = str(self.notify_path)
        self.pid_file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out:
            child = subprocess.Popen(component.argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                     start_new_session=True, cwd="/", preexec_fn=self._leave_pid)
        self.pid, self.pidfd, self.ready = child.pid, os.pidfd_open(child.pid), not component.notify
        child.returncode = 0  # we reap by pidfd; keeps Popen from warning about a running child
        self.since, self.due = time.monotonic(), None

    def _leave_pid(self) -> None:
        """In the child, before it becomes the component: there is no moment at which this supervisor can be killed and
        the next one would not know of it."""
        with contextlib.suppress(OSError):  # a full disk keeps nothing from running
            self.pid_file.write_text(f"{os.getpid()} {start_time(os.getpid())}")

    def reap(self) -> None:
        """The process is gone: note why, and when to start it again."""
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
            how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        except ChildProcessError:
            how = "ended"  # adopted: its exit code went to its parent
        os.close(self.pidfd)
        self.pid, self.pidfd, self.ready = 0, -1, False
        self.pid_file.unlink(missing_ok=True)
        if time.monotonic() - self.since > HEALTHY_AFTER:
            self.backoff = BACKOFF_FIRST
        self.since = time.monotonic()
        self.due = None if self.stopping else self.since + self.backoff
        self.backoff = min(self.backoff * 2, BACKOFF_MOST)
        self.restarts += not self.stopping
        self.reason = how + (f": {line}" if (line := last_line(self.log)) and not self.stopping else "")

    def stop(self) -> None:
        self.stopping = True
        if self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)
            self.due = time.monotonic() + self.component.stop_seconds + KILL_AFTER

    def reload(self) -> None:
        if self.ready and self.pid and self.component.reloads:
            signal.pidfd_send_signal(self.pidfd, signal.SIGHUP)

    def describe(self) -> dict[str, object]:
        state = "running" if self.ready else "starting" if self.pid else "stopped" if self.stopping else "waiting"
        return {"name": self.component.name, "state": state, "pid": self.pid, "restarts": self.restarts,
                "seconds": round(time.monotonic() - self.since, 1), "reason": self.reason, "log": str(self.log)}


def last_line(log: Path) -> str:
    """The last line with text of a log, for a person who asks why."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def trim(log: Path) -> None:
    """Drop the older half of a log that grew past its limit; writers append, so they need not know."""
    try:
        if log.stat().st_size <= LOG_LIMIT:
            return
        with open(log, "rb+") as file:
            file.seek(-(LOG_LIMIT // 2), os.SEEK_END)
            tail = file.read()
            file.seek(0)
            file.write(tail[tail.find(b"\n") + 1:])
            file.truncate()
    except OSError:
        return


class Supervisor:
    """The loop. `stopping` counts down: components stop one by one, the last started first."""

    def __init__(self, components: list[Component], run: Path, logs: Path) -> None:
        run.mkdir(parents=True, exist_ok=True)
        logs.mkdir(parents=True, exist_ok=True)
        self.lock = open(run / "supervisor.lock", "w")  # noqa: SIM115 - held for the life of the process
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.lock.write(str(os.getpid()))
        self.lock.flush()
        self.processes = {c.name: Process(c, run, logs) for c in components}
        self.selector = selectors.DefaultSelector()
        self.stop_requested = False
        self.waiters: list[socket.socket] = []
        self.logs, self.next_trim = logs, time.monotonic() + LOG_CHECK
        self.next_renewal = time.monotonic() + RENEWAL_CHECK
        self.control = self._listen(run / "supervisor.sock")
        self.wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "stop_requested", True))
        self.selector.register(self.wake, selectors.EVENT_READ, lambda: os.read(self.wake, 64))
        self.selector.register(self.control, selectors.EVENT_READ, self._serve)
        for process in self.processes.values():
            self.selector.register(process.notify, selectors.EVENT_READ, lambda p=process: self._notified(p))
            if process.adopt():
                self._watch(process)

    @staticmethod
    def _listen(path: Path) -> socket.socket:
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(8)
        return listener

    def _watch(self, process: Process) -> None:
        fd = process.pidfd

        def gone() -> None:
            self.selector.unregister(fd)
            process.reap()
        self.selector.register(fd, selectors.EVENT_READ, gone)

    def _notified(self, process: Process) -> None:
        if b"READY=1" in process.notify.recv(4096):
            process.ready, process.reason = True, ""

    def _serve(self) -> None:
        connection, _ = self.control.accept()
        connection.settimeout(1.0)  # a client that says nothing must not hold the loop
        try:
            request = connection.recv(64).decode().strip()
            if request == "status":
                connection.sendall(json.dumps([p.describe() for p in self.processes.values()]).encode())
                connection.close()
            elif request == "stop":
                self.stop_requested = True
                self.waiters.append(connection)  # kept open: its end tells the client that all has stopped
            elif request == "reload" or request.startswith("stop "):
                for process in self.processes.values():
                    if request == "reload":
                        process.reload()
                    elif request[5:] == process.component.name:
                        process.stop()
                connection.sendall(b"[]")
                connection.close()
            else:
                connection.close()
        except OSError:
            connection.close()

    def _advance(self) -> None:
        """Start what may start; in a shutdown stop what may stop."""
        now = time.monotonic()
        if self.stop_requested:
            for process in reversed(self.processes.values()):
                if not process.stopping:
                    process.stop()
                if process.pid:
                    break  # those started before it must outlive it
        for process in self.processes.values():
            if process.stopping:
                if process.pid and process.due is not None and now >= process.due:
                    signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
                    process.due = None
            elif not process.pid and (process.due is None or now >= process.due) and self._may_start(process):
                process.start()
                self._watch(process)
        if now >= self.next_trim:
            self.next_trim = now + LOG_CHECK
            for process in self.processes.values():
                trim(process.log)
        if now >= self.next_renewal:
            self.next_renewal = now + RENEWAL_CHECK
            self._renew()

    def _renew(self) -> None:
        """Have a look at the certificates; what is renewed comes back as a request to reload."""
        with open(self.logs / "certificates.log", "ab") as out:
            child = subprocess.Popen(RENEWAL, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/")
        fd = os.pidfd_open(child.pid)

        def gone() -> None:
            self.selector.unregister(fd)
            os.close(fd)
            child.wait()
        self.selector.register(fd, selectors.EVENT_READ, gone)

    def _may_start(self, process: Process) -> bool:
        return all(self.processes[name].ready for name in process.component.after)

    def _timeout(self) -> float:
        due = [p.due for p in self.processes.values() if p.due is not None] + [self.next_trim, self.next_renewal]
        return max(0.0, min(due) - time.monotonic())

    def run(self) -> None:
        while True:
            self._advance()
            if self.stop_requested and not any(p.pid for p in self.processes.values()):
                break
            for key, _ in self.selector.select(self._timeout()):
                key.data()
        for waiter in self.waiters:
            waiter.close()


def main() -> int:
    file, run, logs = (Path(a) for a in sys.argv[1:4])
    try:
        supervisor = Supervisor(read(file), run, logs)
    except BlockingIOError:
        print("a supervisor is already running", file=sys.stderr)
        return 1
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())

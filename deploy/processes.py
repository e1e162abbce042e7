"""One server process that outlives whoever started it: start, find again, signal, wait.

Whether it runs is said by a lock, not by a number: the pid file is held with flock by the server itself (it inherits the descriptor),
so a killed server leaves nothing stale, and a process id that was given to somebody else is never signalled. Nothing here
sleeps: readiness comes through a pipe, an exit through a pidfd.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..proto.errors import Status, error
from ..proto.settings import time_scale

READY_SECONDS_MAX = 30.0  # from start to serving; recovery of a large target after a crash is part of it
STOP_SECONDS_MAX = 15.0  # a clean stop; a server that takes longer is killed
LOG_BYTES_MAX = 32 << 20  # at the start of a server a longer log becomes LOG.1
REPORT_BYTES_MAX = 64 << 10
TAIL_LINES = 5  # of the log, shown when a server fails without saying why

# The shell writes its own process id, which exec keeps: whoever holds the lock has written the number.
_LAUNCH = 'echo $$ > "$0" && exec "$@"'


@dataclass
class ServerProcess:
    """A server of a local cluster. The object holds no state of the process: any number of programs may look at the same one."""

    name: str  # "meta", "storage-1"
    module: str  # run with `python -m`
    pid_file: Path
    log_file: Path
    bound: bool = False  # it ends with the program that starts it, however that ends
    _child: subprocess.Popen[bytes] | None = field(default=None, repr=False)  # to be reaped, when we are its parent
    _report: int = field(default=-1, repr=False)  # the pipe that a launched one reports on
    _bond: int = field(default=-1, repr=False)  # the pipe that a bound one watches; the kernel closes it when we end

    def pid(self) -> int | None:
        """The process id if it runs."""
        try:
            fd = os.open(self.pid_file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(os.pread(fd, 32, 0) or b"0") or None
        finally:
            os.close(fd)
        return None

    def start(self, arguments: Sequence[str]) -> dict[str, Any]:
        """`launch`, then `wait`."""
        self.launch(arguments)
        return self.wait()

    def launch(self, arguments: Sequence[str]) -> None:
        """Start it in a session of its own. The caller makes sure that nobody else does, and calls `wait` next."""
        lock = os.open(self.pid_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        read_end, write_end = os.pipe()
        theirs = [lock, write_end]
        arguments = [*arguments, "--ready-fd", str(write_end)]
        if self.bound:
            self._let_go()
            watched, self._bond = os.pipe()
            theirs.append(watched)
            arguments += ["--bound-fd", str(watched)]
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.ftruncate(lock, 0)  # the number in it is that of an older process, until the new one has written its own
            self._spawn(arguments, theirs)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self._report = read_end

    def wait(self) -> dict[str, Any]:
        """Until what was launched serves; its report (node, addresses, pid, cluster). Raises the status that it names, or UNAVAILABLE, with
        its own reason or the end of its log; it does not run then."""
        pipe, self._report = self._report, -1
        try:
            report = self._ready(pipe)
        finally:
            os.close(pipe)
        if "error" in report:
            self.stop(kill=True)
            status = Status[report.get("status", Status.UNAVAILABLE.name)]
            raise error(status, f"{self.name} cannot start: {report['error']} (log: {self.log_file})")
        return report

    def _let_go(self) -> None:
        if self._bond >= 0:
            os.close(self._bond)
            self._bond = -1

    def _spawn(self, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES_MAX:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        # -P: the current directory is not searched for modules. Some folder there may be called emberfs.
        command = ["/bin/sh", "-c", _LAUNCH, str(self.pid_file), sys.executable, "-P", "-m", self.module, *arguments]
        with open(self.log_file, "ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                start_new_session=True,
            )

    def _ready(self, pipe: int) -> dict[str, Any]:
        """The line that the server writes when it serves. The pipe's end without one means that it died."""
        seconds = _patient(READY_SECONDS_MAX)
        end = time.monotonic() + seconds
        line = b""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                return {"error": f"not ready after {seconds:g} s; {self._tail()}"}
            piece = os.read(pipe, REPORT_BYTES_MAX)
            if not piece:
                return {"error": f"it ended before it served; {self._tail()}"}
            line += piece
        try:
            report: dict[str, Any] = json.loads(line)
        except ValueError:
            return {"error": f"it reported {line[:200]!r}, which is no JSON"}
        return report

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log_file.read_bytes()[-8192:].decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
            return "its log ends with:\n  " + "\n  ".join(lines) + "\n "
        return "it left no log"

    def terminate(self) -> None:
        """Ask it to end, without waiting; `stop` waits."""
        pid = self.pid()
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if self.pid() == pid:  # otherwise it ended meanwhile, and the number may be another's
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            finally:
                os.close(pidfd)

    def stop(self, *, kill: bool = False) -> bool:
        """End it, cleanly or with SIGKILL, and wait until it is gone. False if a clean stop took too long and it was killed."""
        if self._report >= 0:  # launched, and given up before anybody waited for it
            os.close(self._report)
            self._report = -1
        pid = self.pid() or self._child_pid()
        if pid is None:
            self._reap()
            return True
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            if pid not in (self.pid(), self._child_pid()):  # it ended meanwhile: the number may be another's
                return True
            signal.pidfd_send_signal(pidfd, signal.SIGKILL if kill else signal.SIGTERM)
            clean = _exited(pidfd, _patient(STOP_SECONDS_MAX))
            if not clean:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                _exited(pidfd, _patient(STOP_SECONDS_MAX))
            return clean
        finally:
            os.close(pidfd)
            self._reap()

    def _child_pid(self) -> int | None:
        """Of the process that this object started and that has not ended: it may not have written its number yet."""
        return self._child.pid if self._child is not None and self._child.poll() is None else None

    def _reap(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None
            self._let_go()

    def usage(self) -> dict[str, Any]:
        """Of the running process: pid, resident bytes, seconds since its start, processor seconds."""
        pid = self.pid()
        if pid is None:
            return {"pid": None}
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return {"pid": None}
        tick = os.sysconf("SC_CLK_TCK")
        return {
            "pid": pid,
            "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
            "uptime_s": round(time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / tick, 1),
            "processor_s": (int(fields[11]) + int(fields[12])) / tick,
        }


def _patient(seconds: float) -> float:
    """Scaled, but never less: where the cluster's clocks run faster, a process takes its time all the same to load and to end."""
    return seconds * max(1.0, time_scale())


def _exited(pidfd: int, seconds: float) -> bool:
    """Wait for the process to end (a pidfd is readable then, also for a zombie)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))

"""The process that keeps a mount alive: `python -m emberfs.fuse.supervisor URL PATH [-o OPTIONS]`.

    supervisor ── mount(2) or fusermount3 ──> descriptor of the connection
        │  socket: configuration, descriptor, "serve"          ▲
        └──────────────────────> daemon ── "connected", "serving", why it ends

The supervisor holds the descriptor and does no file system's work, so that a daemon that dies leaves the connection open: the kernel keeps
what programs asked, a new daemon over the same descriptor has it sent again, and programs see a pause. It touches the mount itself
only to mount and unmount it.

    daemon is silent for long  → it is killed
    daemon dies                → a new one; DEATHS_MAX of them in DEATHS_SECONDS: unmount and fail with the end of its log
    no metadata server answers → new ones, as long as that takes: programs wait, as on any mount of a network
    SIGTERM, SIGINT            → unmount; busy: flush everything, detach the mount (loudly), end
    SIGHUP                     → another daemon, after this one flushed: a new version of the software without unmounting
    unmounted by somebody else → end
    supervisor dies            → the daemon goes on, without a successor
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..proto.errors import Status, StatusError, error
from ..proto.settings import time_scale
from . import mounting
from .journal import BEAT_SECONDS, new_memory
from .options import MountOptions, parse
from .protocol import Init

DEATHS_MAX = 5  # of daemons,
DEATHS_SECONDS = 60.0  # within: then the mount is given up
CONNECT_SECONDS_MAX = 60.0  # from the daemon's start until it knows the cluster
SERVE_SECONDS_MAX = 30.0  # from the mount until the kernel's first request was answered
UNMOUNT_SECONDS_MAX = 10.0  # a clean unmount, which writes back what is mapped
FLUSH_SECONDS_MAX = 60.0  # of a daemon that was asked to end
SILENT_SECONDS_MAX = 12 * BEAT_SECONDS  # from a daemon that has hung
PAUSE_SECONDS = 0.2  # before the next start of a daemon that died at once; doubles
MESSAGE_BYTES_MAX = 64 << 10
FILES_MAX = 1 << 20  # descriptors a daemon may have, if the system allows it
OOM_SCORE = -900  # the kernel kills nearly everything else first: all programs on the mount depend on it

logger = logging.getLogger("emberfs.mount")


@dataclass
class Connection:
    """What outlives a daemon."""

    url: str
    path: str  # the mount point, as mountinfo shows it
    option_texts: list[str]
    root: int = 0  # inode that is shown as the root; 0: not looked up yet
    device: int = -1
    agreement: dict[str, Any] = field(default_factory=dict)  # as the daemon made it with the kernel
    generation: int = 0  # of daemons, from 1
    client: str = ""  # the daemons' identity at the cluster
    memory: int = -1  # descriptor of their journal

    def configuration(self) -> dict[str, Any]:
        """For a daemon."""
        kept = {name: value for name, value in asdict(self).items() if name not in ("device", "memory")}
        return {**kept, "owner": os.geteuid()}


class Daemon:
    """One daemon process, as its supervisor sees it."""

    def __init__(self, log_level: str) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [
                sys.executable,
                "-P",
                "-m",
                "emberfs.fuse.daemon",
                str(theirs.fileno()),
                "--log-level",
                log_level,
            ]
            # A session of its own: Ctrl-C in a terminal reaches the supervisor, which ends things in order.
            self.process = subprocess.Popen(
                command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
            )
        self.exited = os.pidfd_open(self.process.pid)

    def tell(self, message: dict[str, Any], descriptor: int = -1) -> None:
        """If it is gone, its exit will be noticed."""
        descriptors = [descriptor] if descriptor >= 0 else []
        with contextlib.suppress(OSError):
            socket.send_fds(self.socket, [json.dumps(message).encode()], descriptors)

    def hear(self) -> dict[str, Any] | None:
        """The next message; None at the end."""
        try:
            data = self.socket.recv(MESSAGE_BYTES_MAX)
        except OSError:
            data = b""
        return json.loads(data) if data else None

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.exited, number)

    def close(self) -> None:
        """Reap it; it has ended or is killed now."""
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.socket.close()
        os.close(self.exited)


class Signalled(Exception):
    """A signal came while something was waited for."""


class Supervisor:
    """One mount from its beginning to its end. `report` is called once with {"pid", "path", "source"} when the mount answers."""

    def __init__(
        self, connection: Connection, options: MountOptions, report: Any, log_level: str, bond: int = -1
    ) -> None:
        self._connection = connection
        self._options = options
        self._report = report
        self._log_level = log_level
        self._daemon: Daemon | None = None
        self._mounted = False
        self._deaths: collections.deque[float] = collections.deque(maxlen=DEATHS_MAX)
        self._asked = ""  # why we should end
        self._renew = False
        self._selector = selectors.DefaultSelector()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ, "signal")
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wake_end = wake
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        if bond >= 0:
            self._selector.register(bond, selectors.EVENT_READ, "bond")

    # --- waiting ------------------------------------------------------------------------------------------------------------------

    def _signalled(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._renew = True
        else:
            self._asked = self._asked or signal.Signals(number).name

    def _wait(self, seconds: float | None) -> set[str]:
        """What is there: "signal", "message", "exit"; empty when the time is over."""
        found = {str(key.data) for key, _ in self._selector.select(seconds)}
        if "signal" in found:
            with contextlib.suppress(BlockingIOError):
                while self._wake.recv(4096):
                    pass
        if "bond" in found:
            self._asked = self._asked or "whoever started this mount has ended"
            found.add("signal")
        return found

    def _expect(self, state: str, seconds: float) -> dict[str, Any]:
        """The daemon's next message, which has this state. Raises UNAVAILABLE when it dies or takes too long, which counts as a death; its
        own error, which does not; Signalled."""
        daemon = self._daemon
        assert daemon is not None
        end = time.monotonic() + seconds * time_scale()
        while not self._asked:
            found = self._wait(max(0.0, end - time.monotonic()))
            if "message" in found:
                message = daemon.hear()
                if message is None:
                    self._selector.unregister(daemon.socket)
                elif "error" in message:
                    raise error(Status[message.get("status", "UNAVAILABLE")], message["error"])
                elif message.get("state") == state:
                    return message
            elif "exit" in found:
                self._deaths.append(time.monotonic())
                raise error(Status.UNAVAILABLE, "the mount's daemon ended before it served; see the log")
            elif not found:
                self._deaths.append(time.monotonic())
                raise error(
                    Status.UNAVAILABLE, f"the mount's daemon was not {state} within {seconds * time_scale():g} s"
                )
        raise Signalled

    # --- daemons ------------------------------------------------------------------------------------------------------------------

    def _launch(self) -> None:
        """A new daemon that knows the cluster. Raises as `_expect`."""
        self._connection.generation += 1
        self._daemon = daemon = Daemon(self._log_level)
        self._selector.register(daemon.socket, selectors.EVENT_READ, "message")
        self._selector.register(daemon.exited, selectors.EVENT_READ, "exit")
        daemon.tell(self._connection.configuration(), self._connection.memory)
        connected = self._expect("connected", CONNECT_SECONDS_MAX)
        self._connection.root = connected["root"]
        self._connection.client = connected["client"]

    def _serve(self) -> None:
        """Hand the descriptor over. Raises as `_expect`."""
        assert self._daemon is not None
        self._daemon.tell({"state": "serve"}, self._connection.device)
        serving = self._expect("serving", SERVE_SECONDS_MAX)
        self._connection.agreement = serving["agreement"]

    def _drop_daemon(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            for registered in (daemon.socket, daemon.exited):
                with contextlib.suppress(KeyError):
                    self._selector.unregister(registered)
            daemon.close()

    # --- the life of a mount ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Mount, keep it served, unmount. Raises StatusError when it could not be mounted, or was given up."""
        try:
            mounting.check_mountpoint(self._connection.path)
            self._launch()
            self._mount()
            self._serve()
            self._started()
            self._supervise()
        except Signalled:
            logger.info("ending: %s", self._asked)
        finally:
            self._end()

    def _mount(self) -> None:
        connection = self._connection
        connection.device = mounting.mount(connection.path, self._options.fsname or connection.url, self._options)
        self._mounted = True

    def _started(self) -> None:
        connection = self._connection
        mounting.raise_readahead(connection.path, self._options.readahead)
        logger.info("mounted %s on %s", connection.url, connection.path)
        self._report({"pid": os.getpid(), "path": connection.path, "source": self._options.fsname or connection.url})
        notify_systemd("READY=1")

    def _supervise(self) -> None:
        """Until the mount is gone, or we are asked to end."""
        while not self._asked:
            if self._renew:
                self._renew = False
                self._replace()
            found = self._wait(SILENT_SECONDS_MAX * time_scale())
            if not found and self._daemon is not None:
                logger.error("the daemon has been silent for %g s, and is killed", SILENT_SECONDS_MAX * time_scale())
                self._daemon.signal(signal.SIGKILL)
            if "message" in found and self._daemon is not None:
                message = self._daemon.hear()
                if message is None:
                    self._selector.unregister(self._daemon.socket)
                elif message.get("state") == "unmounted":
                    self._mounted = False
                    self._await_exit(FLUSH_SECONDS_MAX)
                    logger.info("unmounted %s", self._connection.path)
                    return
            elif "exit" in found:
                self._replace_dead()
        raise Signalled

    def _await_exit(self, seconds: float) -> bool:
        assert self._daemon is not None
        try:
            self._daemon.process.wait(seconds * time_scale())
        except subprocess.TimeoutExpired:
            return False
        return True

    def _replace(self) -> None:
        """A fresh daemon in place of one that works."""
        assert self._daemon is not None
        logger.info("the daemon is replaced")
        self._daemon.signal(signal.SIGUSR1)
        self._await_exit(FLUSH_SECONDS_MAX)
        self._restart()

    def _replace_dead(self) -> None:
        assert self._daemon is not None
        code = self._daemon.process.wait()
        logger.error("the daemon died (%s); programs wait until another one is there", _exit_text(code))
        if self._too_many_deaths():
            raise self._given_up(_exit_text(code))
        self._deaths.append(time.monotonic())
        self._restart()

    def _too_many_deaths(self) -> bool:
        """Whether another one within the time would be one more than may be."""
        deaths = self._deaths
        return len(deaths) == DEATHS_MAX and time.monotonic() - deaths[0] < DEATHS_SECONDS * time_scale()

    def _restart(self) -> None:
        """Try until a daemon serves. Raises UNAVAILABLE after too many deaths; what is wrong with the cluster is none."""
        pause = PAUSE_SECONDS
        while True:
            self._drop_daemon()
            try:
                self._launch()
                self._take_over()
                return
            except StatusError as failed:
                logger.error("no new daemon: %s", failed.strerror)
                if failed.status is not Status.UNAVAILABLE:  # waiting does not mend it
                    self._deaths.append(time.monotonic())
                if self._too_many_deaths():
                    raise self._given_up(failed.strerror or "") from failed
            end = time.monotonic() + pause * time_scale()
            while not self._asked and (left := end - time.monotonic()) > 0:
                self._wait(left)
            if self._asked:
                raise Signalled
            pause = min(2 * pause, DEATHS_SECONDS / DEATHS_MAX)

    def _take_over(self) -> None:
        connection = self._connection
        if not Init(connection.agreement.get("flags", 0)) & Init.HAS_RESEND:
            # Before Linux 6.9: what the dead daemon had read nobody will answer. A new mount in its place works, open files do not.
            logger.error("this kernel cannot send requests again: mounting anew, open files are lost")
            os.close(connection.device)
            connection.device, connection.agreement = -1, {}
            with contextlib.suppress(StatusError):
                mounting.unmount(connection.path, lazy=True)
            self._mount()
        self._serve()
        logger.info("daemon %d serves", connection.generation)

    def _given_up(self, last: str) -> StatusError:
        return error(
            Status.UNAVAILABLE,
            f"the daemon of {self._connection.path} died {DEATHS_MAX} times in {DEATHS_SECONDS:g} s "
            f"(last: {last}): the mount is given up",
        )

    # --- the end ------------------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Unmount, with everything flushed, whatever state we are in."""
        notify_systemd("STOPPING=1")
        if self._mounted:
            self._unmount()
        if self._daemon is not None:
            self._daemon.signal(signal.SIGTERM)
            if not self._await_exit(FLUSH_SECONDS_MAX):
                logger.error("the daemon did not flush everything within %g s, and is killed", FLUSH_SECONDS_MAX)
        self._drop_daemon()
        if self._connection.device >= 0:
            os.close(self._connection.device)
            self._connection.device = -1

    def _unmount(self) -> None:
        """Cleanly if nobody uses it; otherwise what is open is flushed by the daemon's end, and lost to who has it open."""
        path = self._connection.path
        done = threading.Thread(target=self._try_unmount, name="unmount", daemon=True)
        done.start()
        done.join(UNMOUNT_SECONDS_MAX * time_scale())
        if self._mounted:
            self._mounted = False
            with contextlib.suppress(StatusError, OSError, subprocess.SubprocessError):
                mounting.unmount(path, lazy=True)

    def _try_unmount(self) -> None:
        try:
            mounting.unmount(self._connection.path)
            self._mounted = False
        except StatusError as busy:
            if busy.status is Status.NOT_FOUND:
                self._mounted = False
            else:
                logger.warning("%s; detaching it: open files are flushed, and lost to who has them open", busy.strerror)
        except (OSError, subprocess.SubprocessError) as failed:
            logger.warning("cannot unmount: %s", failed)


def _exit_text(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def notify_systemd(text: str) -> None:
    """Tell systemd, if it started us (Type=notify)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            there.connect("\0" + address[1:] if address.startswith("@") else address)
            there.send(text.encode())


def protect() -> None:
    """The kernel's out-of-memory killer takes others first, and descriptors are as many as the system allows."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class JsonLines(logging.Formatter):
    """As the daemon and the servers log, without what they load for it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {"event": record.getMessage(), "level": record.levelname.lower(), "timestamp": moment.isoformat()}
        return json.dumps({**line, "server": "mount supervisor", "pid": record.process})


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="emberfs.fuse.supervisor", description="Mounts a cluster, and keeps it mounted."
    )
    options.add_argument("url", help="ember://…: what to mount")
    options.add_argument("path", help="the directory to mount it on")
    options.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    options.add_argument("--ready-fd", metavar="N", type=int, help="where to report readiness, as one line of JSON")
    options.add_argument(
        "--bound-fd", metavar="N", type=int, default=-1, help="unmount when nobody holds its other end"
    )
    options.add_argument("--log-level", default="info")
    return options


def main() -> int:
    """Entry point; the exit code."""
    given = parser().parse_args()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=given.log_level.upper(), handlers=[handler])
    return supervise(given.url, given.path, given.options, given.log_level, given.ready_fd, given.bound_fd)


def supervise(
    url: str, path: str, texts: list[str], log_level: str, ready_fd: int | None = None, bound_fd: int = -1
) -> int:
    """Mount and stay until it is unmounted. What goes wrong before the mount answers is reported to `ready_fd`, or logged."""

    def report(found: dict[str, Any]) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            with contextlib.suppress(OSError):  # whoever started us may be gone
                os.write(ready_fd, json.dumps(found).encode() + b"\n")
            os.close(ready_fd)
            ready_fd = None

    try:
        protect()
        options = parse(texts).for_user(os.geteuid())
        connection = Connection(url, mounting.place_of(path), texts, memory=new_memory())
        Supervisor(connection, options, report, log_level, bound_fd).run()
    except StatusError as failed:
        logger.error("%s", failed.strerror)
        report({"error": str(failed.strerror), "status": failed.status.name})
        return 1
    report({"error": "it was asked to end before it was mounted"})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Server processes: found again by anybody, started once, never confused with another process, gone when they are said to be gone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from emberfs.deploy import processes
from emberfs.deploy.processes import ServerProcess
from emberfs.proto.errors import Status, StatusError

Make = Callable[[], ServerProcess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def one() -> ServerProcess:
        made.append(
            ServerProcess("stub", "emberfs.tests.deploy.stub_server", tmp_path / "stub.pid", tmp_path / "stub.log")
        )
        return made[-1]

    yield one
    for process in made:
        process.stop(kill=True)


def test_it_serves_and_anybody_finds_it(make: Make) -> None:
    report = make().start(["serves"])
    other = make()  # knows nothing but the paths
    assert other.pid() == report["pid"] and report["node"] == 7
    assert os.getsid(report["pid"]) == report["pid"], "it must survive the terminal that it was started from"
    assert other.usage()["resident_bytes"] > 1 << 20
    assert other.stop() is True
    assert other.pid() is None and make().pid() is None
    assert other.usage() == {"pid": None}


def test_a_killed_one_leaves_nothing_stale(make: Make) -> None:
    process = make()
    pid = process.start(["serves"])["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert process.pid_file.read_text() == f"{pid}\n", "the file stays ..."
    assert process.pid() is None, "... but nobody holds it"
    assert process.start(["serves"])["pid"] != pid


def test_a_number_in_the_file_is_not_believed(make: Make) -> None:
    """The process id of somebody else stands in the pid file: it must not be signalled."""
    process = make()
    process.pid_file.write_text(f"{os.getpid()}\n")
    assert process.pid() is None
    assert process.stop(kill=True) is True


def test_its_own_reason_is_told(make: Make) -> None:
    with pytest.raises(StatusError, match="the disk is made of cheese") as raised:
        make().start(["refuses"])
    assert raised.value.status is Status.UNAVAILABLE
    assert str(make().log_file) in raised.value.strerror


def test_the_end_of_its_log_is_told_when_it_dies(make: Make) -> None:
    with pytest.raises(StatusError, match=r"(?s)ended before it served.*no good reason"):
        make().start(["dies"])
    assert make().pid() is None


def test_one_that_never_serves_is_given_up_and_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "READY_SECONDS_MAX", 1.0)
    monkeypatch.setattr(processes, "STOP_SECONDS_MAX", 5.0)
    with pytest.raises(StatusError, match="not ready after"):
        make().start(["silent"])
    assert make().pid() is None


def test_a_stubborn_one_is_killed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS_MAX", 0.2)
    process = make()
    process.start(["stubborn"])
    assert process.stop() is False
    assert process.pid() is None


def ended(pid: int) -> bool:
    """Wait for a process that is no child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 60)[0])
    finally:
        os.close(pidfd)


@pytest.mark.parametrize("bound", [True, False])
def test_a_bound_one_ends_with_who_started_it_however_that_ends(tmp_path: Path, bound: bool) -> None:
    program = f"""
import sys
from pathlib import Path
from emberfs.deploy.processes import ServerProcess
here = Path({str(tmp_path)!r})
server = ServerProcess("meta", "emberfs.meta.server", here / "meta.pid", here / "meta.log", bound={bound})
print(server.start(["--data", str(here / "meta"), "--listen", f"unix:{{here}}/s"])["pid"], flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-P", "-c", program]
    starter = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert starter.stdin is not None and starter.stdout is not None
    with starter, contextlib.ExitStack() as stack:
        pid = int(starter.stdout.readline())
        server = ServerProcess("meta", "emberfs.meta.server", tmp_path / "meta.pid", tmp_path / "meta.log")
        stack.callback(server.stop, kill=True)
        assert server.pid() == pid
        starter.kill()
        starter.wait()
        if bound:
            assert ended(pid) and server.pid() is None
            assert "whoever started this server has ended" in server.log_file.read_text()
        else:
            assert server.pid() == pid

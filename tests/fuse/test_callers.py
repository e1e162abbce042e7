"""For whom a request is: user, group and the groups of the process, believed for a second."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.fuse import callers
from emberfs.fuse.callers import Callers, groups_of
from emberfs.fuse.session import Request
from emberfs.proto.drivers.blocking import BlockingEnvironment


@pytest.fixture
def core() -> Iterator[Core]:
    env = BlockingEnvironment()
    yield Core(env, (), Options(), 0)
    env.close()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that lives for the test, in two groups beside its own."""
    groups = {"extra_groups": [2001, 2002]} if os.geteuid() == 0 else {}
    code = "import sys; sys.stdin.read()"
    started = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, **groups)  # type: ignore[call-overload]
    yield started
    started.communicate()


def of(uid: int, gid: int, pid: int) -> Request:
    return Request(1, 2, 1, uid, gid, pid, b"")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root and /dev/fuse")
def test_the_groups_of_a_process(process: subprocess.Popen[bytes]) -> None:
    assert groups_of(process.pid) == (2001, 2002)


def test_who_is_gone_or_nobody_has_no_groups() -> None:
    assert groups_of(0) == ()
    assert groups_of(2**22 - 1) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root and /dev/fuse")
def test_a_view_names_the_caller(core: Core, process: subprocess.Popen[bytes]) -> None:
    view = Callers(core, acts_for_others=True).view(of(1000, 1001, process.pid), umask=0o27)
    assert view.caller is not None
    assert (view.caller.uid, view.caller.gid, list(view.caller.groups)) == (1000, 1001, [2001, 2002])
    assert view.umask == 0o27


def test_roots_groups_are_not_looked_up(core: Core) -> None:
    view = Callers(core, acts_for_others=True).view(of(0, 0, os.getpid()))
    assert view.caller is not None
    assert (view.caller.uid, list(view.caller.groups)) == (0, [])


def test_who_may_not_act_for_others_names_nobody(core: Core) -> None:
    view = Callers(core, acts_for_others=False).view(of(1000, 1000, os.getpid()), umask=0o77)
    assert view.caller is None
    assert view.umask == 0o77


def test_a_view_is_made_once_a_second(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "GROUPS_SECONDS", 3600.0)
    known = Callers(core, acts_for_others=True)
    first = known.view(of(1000, 1000, os.getpid()))
    assert known.view(of(1000, 1000, os.getpid())) is first
    assert known.view(of(1000, 1000, os.getpid()), umask=0o22) is not first
    assert known.view(of(1001, 1000, os.getpid())) is not first
    monkeypatch.setattr(callers, "GROUPS_SECONDS", -1.0)
    later = Callers(core, acts_for_others=True)
    assert later.view(of(1000, 1000, os.getpid())) is not later.view(of(1000, 1000, os.getpid()))


def test_views_are_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "VIEWS_MAX", 8)
    known = Callers(core, acts_for_others=True)
    for uid in range(100):
        known.view(of(uid, uid, 0))
    assert len(known._views) <= 8

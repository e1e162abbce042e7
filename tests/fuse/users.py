"""Other users for tests of a mount, and system calls that Python has not."""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable
from typing import NamedTuple, TypeVar

_Result = TypeVar("_Result")

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
_libc = ctypes.CDLL(None, use_errno=True)


class User(NamedTuple):
    """Whom a test acts as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = User(2001, 3001, (3100,))  # she shares group 3100 with Bob
BOB = User(2002, 3002, (3100,))
CAROL = User(2003, 3003)


def acting(user: User, work: Callable[[], _Result]) -> _Result:
    """Run something as another user, in a forked process; its result, or its exception."""
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.umask(0)
            try:
                answer = (True, work())
            except Exception as failure:
                answer = (False, OSError(failure.errno, failure.strerror) if isinstance(failure, OSError) else failure)
            with os.fdopen(sender, "wb") as out:
                pickle.dump(answer, out)
        finally:
            os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as come:
        data = come.read()
    os.waitpid(child, 0)
    worked, value = pickle.loads(data)
    if not worked:
        raise value
    return value


def errno_of(work: Callable[[], object]) -> int:
    """The errno of an operation that must fail."""
    try:
        work()
    except OSError as failure:
        assert failure.errno is not None
        return failure.errno
    raise AssertionError("it worked")


def renameat2(source: str | os.PathLike[str], target: str | os.PathLike[str], flags: int) -> None:
    """renameat2(2)."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def link_open(fd: int, target: str | os.PathLike[str]) -> None:
    """linkat(2) of an open file, by its name in /proc: Python's link follows no symlink there."""
    _check(_libc.linkat(AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, os.fsencode(target), AT_SYMLINK_FOLLOW))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

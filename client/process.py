"""What a client shares with the process around it: the umask, a name for people, forks, and the process's end.

A forked child inherits the memory of its parent's clients, and nothing else of them. The environment gives the child a new identity,
no connections and new buffers (proto/drivers); here each core begins a new epoch, in which inherited files reopen when
they are used. No lock is taken before a fork: another thread may hold one for as long as a server does not answer. The child
throws away everything that a lock guards instead, and makes new locks.
"""

from __future__ import annotations

import atexit
import os
import socket
import weakref
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Protocol

from ..proto.env import drive
from ..proto.errors import StatusError
from ..proto.weakly import living


class Tracked(Protocol):
    """The core of a client: of files, or of the KV cache. Hashed, and referred to weakly."""

    def after_fork_in_child(self) -> None: ...

    def close(self) -> Coroutine[Any, Any, None]: ...


_cores: weakref.WeakSet[Tracked] = weakref.WeakSet()


def umask() -> int:
    """The process's file mode creation mask, without changing it even for a moment."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    except (OSError, ValueError):
        pass
    return 0o022


def name() -> str:
    """This process, for people."""
    return f"{socket.gethostname()} pid {os.getpid()}"


def track(core: Tracked) -> None:
    """Look after a core with a blocking environment when this process forks, and when it ends."""
    _cores.add(core)


def forget(core: Tracked) -> None:
    _cores.discard(core)


def _close_all() -> None:
    """At the end of the process: what was written to files that nobody closed is not lost, of any client. Raises the first error."""
    failure: BaseException | None = None
    for core in living(_cores):
        forget(core)
        try:
            drive(core.close())
        except (StatusError, ValueError) as broken:
            failure = failure or broken
    if failure is not None:
        raise failure


def _after_fork_in_child() -> None:
    for core in living(_cores):
        core.after_fork_in_child()


# Registered after the environment's own handlers, which therefore run first: the core finds new locks to make there.
os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)

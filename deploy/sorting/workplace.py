"""A directory beside a file that is being made, which is gone afterwards, whatever ends the program.

A program that is killed cannot remove what it has begun. So each such directory has a file that its program keeps locked, and the next
program that makes the same file removes the directories whose lock is free: at once on one machine, in a cluster when the lease of the
client that was killed is over (a minute).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from ...proto.errors import Status, error
from .places import Closing, Place

LOCK = "lock"
NAME_CHARACTERS_MAX = 50  # of the file's name in the directory's, which may have 255 bytes
ATTEMPTS_MAX = 8  # others may take a directory for a dead one's before it is locked


@contextmanager
def workplace(there: Place, target: str, folder: str = "") -> Iterator[str]:
    """A new directory in `folder` (default: where `target` lies) until the end of the block. What killed programs have left there of the
    same target is removed first. Raises what the place raises."""
    parent, name = posixpath.split(target)
    parent, prefix = folder or parent, f".{name[:NAME_CHARACTERS_MAX]}.sorting-"
    _sweep(there, parent, prefix)
    path, lock = _made(there, f"{parent.rstrip('/')}/{prefix}")
    with closing(lock):
        try:
            yield path
        except BaseException:
            with suppress(OSError):  # what went wrong first is what counts
                there.remove(path)
            raise
        there.remove(path)


def _made(there: Place, prefix: str) -> tuple[str, Closing]:
    """A new directory, and its lock."""
    for _ in range(ATTEMPTS_MAX):
        path = prefix + os.urandom(4).hex()
        there.make_directory(path)
        with suppress(FileNotFoundError):
            lock = there.lock(f"{path}/{LOCK}", make=True)
            if lock is not None and there.is_there(f"{path}/{LOCK}"):
                return path, lock
    raise error(Status.BUSY_RESOURCE, f"{prefix}…: others remove every directory that is made here")


def _sweep(there: Place, parent: str, prefix: str) -> None:
    """Remove the directories that nobody uses any more. What may not be removed stays."""
    try:
        left = [name for name in there.names(parent) if name.startswith(prefix)]
    except PermissionError:  # to list it: files may be made all the same
        left = []
    for name in left:
        path = f"{parent.rstrip('/')}/{name}"
        with suppress(OSError):
            lock = there.lock(f"{path}/{LOCK}")
            if lock is not None:
                with closing(lock):
                    there.remove(path)

"""Who makes the calls: root and two users, each a process of its own that stays. Another user's shell, in effect."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple


class Ids(NamedTuple):
    """A user."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = Ids(0, 0)
ALICE = Ids(2001, 3001, (3100,))  # she shares group 3100 with Bob
BOB = Ids(2002, 3002, (3100,))
SHARED = 3100
USERS = {"root": ROOT, "alice": ALICE, "bob": BOB}


class Person:
    """`person(os.mkdir, "d", 0o755)`: a call as that user, in a directory, with umask 0. Raises what it raises there."""

    def __init__(self, ids: Ids, directory: str, pipes: list[Connection]) -> None:
        self.ids = ids
        self._pipe, theirs = Pipe()
        self._child = os.fork()
        if not self._child:
            for pipe in (self._pipe, *pipes):
                pipe.close()
            _serve(theirs, ids, directory)
        theirs.close()
        pipes.append(self._pipe)

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        self._pipe.send((work, args))
        failure, value = self._pipe.recv()
        if failure:
            raise value
        return value

    def fails(self, work: Callable[..., Any], *args: Any) -> str:
        """The name of the errno that a call fails with, or "ok"."""
        try:
            self(work, *args)
        except OSError as failure:
            return errno.errorcode[failure.errno or 0]
        return "ok"

    def close(self) -> None:
        self._pipe.close()
        os.waitpid(self._child, 0)


class People:
    """All of them, in one directory."""

    def __init__(self, directory: str) -> None:
        pipes: list[Connection] = []
        self.root = Person(ROOT, directory, pipes)
        self.alice = Person(ALICE, directory, pipes)
        self.bob = Person(BOB, directory, pipes)

    def __getitem__(self, name: str) -> Person:
        person: Person = getattr(self, name)
        return person

    def chdir(self, directory: str) -> None:
        for name in USERS:
            self[name](os.chdir, directory)

    def close(self) -> None:
        for name in USERS:
            self[name].close()


def _serve(pipe: Connection, ids: Ids, directory: str) -> None:
    try:
        os.chdir(directory)
        os.umask(0)
        os.setgroups(ids.groups)
        os.setresgid(ids.gid, ids.gid, ids.gid)
        os.setresuid(ids.uid, ids.uid, ids.uid)
        while True:
            work, args = pipe.recv()
            try:
                answer = (False, work(*args))
            except OSError as failure:
                answer = (True, OSError(failure.errno, failure.strerror))
            except Exception as failure:
                answer = (True, failure)
            try:
                pipe.send(answer)
            except (pickle.PicklingError, TypeError) as failure:
                pipe.send((True, TypeError(str(failure))))
    except EOFError:
        os._exit(0)
    finally:
        os._exit(1)

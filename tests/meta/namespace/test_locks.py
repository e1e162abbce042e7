"""The lock table: against a model that keeps one cell per byte, and against the kernel's own fcntl locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emberfs.meta.namespace import locks
from emberfs.meta.namespace.locks import EXCLUSIVE, FLOCK, POSIX, SHARED, Lock, Table
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.ranges import OFFSET_END

BYTES = 24  # what ranges are drawn from; beyond it lies "to the end"
CLIENTS = [bytes([65 + i]) * 16 for i in range(2)]
OWNERS = [(client, number) for client in CLIENTS for number in (7, 8)]
UNLOCK = 0


class Step(NamedTuple):
    kind: int
    owner: int  # place in OWNERS
    type: int  # UNLOCK, SHARED, EXCLUSIVE
    start: int
    length: int  # 0: to the end


steps = st.builds(
    Step,
    st.sampled_from([POSIX, POSIX, FLOCK]),
    st.integers(0, len(OWNERS) - 1),
    st.sampled_from([UNLOCK, SHARED, EXCLUSIVE]),
    st.integers(0, BYTES - 1),
    st.integers(0, BYTES),
)


class Cells:
    """Per kind and byte who holds it: the last cell stands for all that follow."""

    def __init__(self) -> None:
        self.cells: dict[int, list[dict[int, int]]] = {
            kind: [{} for _ in range(2 * BYTES + 1)] for kind in (POSIX, FLOCK)
        }

    def span(self, step: Step) -> list[dict[int, int]]:
        cells = self.cells[step.kind]
        if step.kind == FLOCK or not step.length:
            return cells[0 if step.kind == FLOCK else step.start :]
        return cells[step.start : step.start + step.length]

    def blocked(self, step: Step) -> bool:
        return any(
            owner != step.owner and EXCLUSIVE in (step.type, held)
            for cell in self.span(step)
            for owner, held in cell.items()
        )

    def apply(self, step: Step) -> None:
        for cell in self.span(step):
            cell.pop(step.owner, None)
            if step.type:
                cell[step.owner] = step.type


def lock_of(step: Step) -> Lock:
    start, end = (0, OFFSET_END) if step.kind == FLOCK else locks.span(step.start, step.length)
    return Lock(step.kind, *OWNERS[step.owner], step.type, start, end, 100 + step.owner)


def cells_of(table: Table, kind: int) -> list[dict[int, int]]:
    return [
        {OWNERS.index(held.whose): held.type for held in table if held.kind == kind and held.start <= at < held.end}
        for at in range(2 * BYTES + 1)
    ]


@given(st.lists(steps, max_size=40))
@settings(max_examples=150, deadline=None)
def test_a_table_is_what_a_cell_for_every_byte_would_be(done: list[Step]) -> None:
    table: Table = ()
    model = Cells()
    for step in done:
        wanted = lock_of(step)
        if step.type == UNLOCK:
            table = locks.release(table, wanted)
            model.apply(step)
        else:
            outcome = locks.acquire(table, wanted)
            assert isinstance(outcome, Lock) == model.blocked(step)
            if isinstance(outcome, Lock):
                assert outcome in table
                assert outcome.conflicts(wanted)
            else:
                table = outcome
                model.apply(step)
        for kind in (POSIX, FLOCK):
            assert cells_of(table, kind) == model.cells[kind]
        check_shape(table)
        assert locks.unpack(locks.pack(table)) == table


def check_shape(table: Table) -> None:
    """As keys.py says of LOCK."""
    for held in table:
        assert 0 <= held.start < held.end <= OFFSET_END
        for other in table:
            assert not held.conflicts(other)
            if held is not other and held.kind == other.kind and held.whose == other.whose:
                assert held.end < other.start or other.end < held.start or held.type != other.type
                assert held.end <= other.start or other.end <= held.start


@given(st.lists(steps, max_size=30), st.sets(st.sampled_from(CLIENTS)))
@settings(deadline=None)
def test_the_locks_of_a_client_go_with_it(done: list[Step], gone: set[bytes]) -> None:
    table: Table = ()
    for step in done:
        if step.type != UNLOCK and not isinstance(outcome := locks.acquire(table, lock_of(step)), Lock):
            table = outcome
    left = locks.without_clients(table, gone)
    assert [held for held in table if held.client not in gone] == list(left)


def test_a_table_has_a_limit_and_fits_a_value() -> None:
    table: Table = ()
    for i in range(locks.LOCKS_PER_INODE_MAX):
        made = locks.acquire(table, Lock(POSIX, i.to_bytes(16, "big"), i, SHARED, 2 * i, 2 * i + 1))
        assert not isinstance(made, Lock)
        table = made
    assert len(locks.pack(table)) <= 100_000
    with pytest.raises(StatusError) as full:
        locks.acquire(table, Lock(POSIX, CLIENTS[0], 1, SHARED, 9000, 9001))
    assert full.value.status is Status.NO_LOCKS
    assert full.value.errno == errno.ENOLCK


def test_a_range_beyond_the_largest_offset_is_refused() -> None:
    assert locks.span(5, 0) == (5, OFFSET_END)
    for start, length in ((OFFSET_END, 0), (OFFSET_END - 1, 2)):
        with pytest.raises(StatusError) as refused:
            locks.span(start, length)
        assert refused.value.errno == errno.EINVAL


def test_a_table_of_a_newer_version_is_refused() -> None:
    with pytest.raises(StatusError) as refused:
        locks.unpack(b"\x09" + locks.pack(())[1:])
    assert refused.value.status is Status.BAD_FORMAT


# The kernel as the oracle: each owner is a process, which does what it is told through a pipe.

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_TYPES = {UNLOCK: fcntl.F_UNLCK, SHARED: fcntl.F_RDLCK, EXCLUSIVE: fcntl.F_WRLCK}
_TYPES_BACK = {value: key for key, value in _TYPES.items()}
_COMMAND = struct.Struct("iqqi")  # F_SETLK or F_GETLK, start, length, type of the kernel
_END = -1
_ANSWER = struct.Struct("iiqqi")  # errno, type, start, length, pid


class Process:
    """A child that locks a local file with fcntl."""

    def __init__(self, path: str) -> None:
        down, self._down = os.pipe()
        self._up, up = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._down)
            _serve(path, down, up)
        os.close(down)
        os.close(up)

    def ask(self, command: int, step: Step) -> tuple[int, int, int, int, int]:
        os.write(self._down, _COMMAND.pack(command, step.start, step.length, _TYPES[step.type]))
        return _ANSWER.unpack(os.read(self._up, _ANSWER.size))

    def end(self) -> None:
        # Not by closing the pipe: those who were forked later have copies of its end.
        os.write(self._down, _COMMAND.pack(_END, 0, 0, 0))
        os.close(self._down)
        os.close(self._up)
        os.waitpid(self.pid, 0)


def _serve(path: str, down: int, up: int) -> None:
    file = os.open(path, os.O_RDWR)
    while (command := _COMMAND.unpack(os.read(down, _COMMAND.size)))[0] != _END:
        number, start, length, kind = command
        try:
            answer = fcntl.fcntl(file, number, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
            kind, _, start, length, pid = _FLOCK.unpack(answer)
            os.write(up, _ANSWER.pack(0, kind, start, length, pid))
        except OSError as failed:
            os.write(up, _ANSWER.pack(failed.errno, 0, 0, 0, 0))
    os._exit(0)


@contextlib.contextmanager
def processes(count: int) -> Iterator[list[Process]]:
    with tempfile.NamedTemporaryFile() as file:
        made = [Process(file.name) for _ in range(count)]
        try:
            yield made
        finally:
            for process in made:
                process.end()


@given(st.lists(steps, max_size=60), steps)
@settings(max_examples=30, deadline=None)
def test_a_table_grants_and_answers_what_the_kernel_does(done: list[Step], question: Step) -> None:
    table: Table = ()
    with processes(len(OWNERS)) as owners:
        for drawn in done:
            step = drawn._replace(kind=POSIX)
            wanted = lock_of(step)._replace(pid=owners[step.owner].pid)
            failed = owners[step.owner].ask(fcntl.F_SETLK, step)[0]
            outcome = locks.release(table, wanted) if step.type == UNLOCK else locks.acquire(table, wanted)
            if isinstance(outcome, Lock):
                assert failed in (errno.EAGAIN, errno.EACCES)
            else:
                assert not failed
                table = outcome
        for kind in (SHARED, EXCLUSIVE):
            asked = question._replace(kind=POSIX, type=kind)
            _, held_type, start, length, pid = owners[asked.owner].ask(fcntl.F_GETLK, asked)
            obstacles = list(locks.blockers(table, lock_of(asked)))
            if held_type == fcntl.F_UNLCK:
                assert not obstacles
            else:  # the kernel names any of those in the way
                assert (_TYPES_BACK[held_type], start, length, pid) in [
                    (held.type, held.start, locks.length_of(held), held.pid) for held in obstacles
                ]

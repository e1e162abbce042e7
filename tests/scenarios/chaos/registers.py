"""What the workers know of each other: files full of registers, and a ledger in shared memory of what was written to each.

A register is a piece of a file that lies within one chunk and has one writer. Its content says which register it is and which write made
it, and every byte follows from that: a byte of another write, of another register or of no write at all is seen by whoever reads it. The
ledger holds for each register the number of the newest write that was begun, the newest that was acknowledged, and the newest that each
worker has read. A read that begins now may return nothing older than what was acknowledged or read by then, and nothing that was not begun
when it ended: that is linearizability, for a register with one writer.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 64 << 10
PIECES = (
    64,
    4_096,
    20_000,
    41_376,
)  # bytes of the registers of each chunk: small ones, one with odd edges, most of a chunk
assert sum(PIECES) == CHUNK_BYTES
HEAD = struct.Struct("<QQ")  # number of the register, number of the write


@dataclass(frozen=True)
class Register:
    number: int
    offset: int  # in its file
    length: int

    @property
    def file(self) -> int:
        return self.number // REGISTERS_PER_FILE


CHUNKS_PER_FILE = 6
FILES = 4
REGISTERS_PER_FILE = CHUNKS_PER_FILE * len(PIECES)
FILE_BYTES = CHUNKS_PER_FILE * CHUNK_BYTES


def _registers() -> tuple[Register, ...]:
    found: list[Register] = []
    for _ in range(FILES):
        offset = 0
        for piece in PIECES * CHUNKS_PER_FILE:
            found.append(Register(len(found), offset, piece))
            offset += piece
    return tuple(found)


REGISTERS = _registers()


def content(register: Register, write: int) -> bytes:
    """All bytes of a register after its write of this number."""
    head = HEAD.pack(register.number, write)
    return head + hashlib.shake_128(head).digest(register.length - HEAD.size)


class WrongBytesError(AssertionError):
    """A read returned what no order of the writes explains."""


class Ledger:
    """Shared by processes through a file. Each number has one process that writes it, eight aligned bytes at a time."""

    def __init__(self, path: Path, workers: int) -> None:
        columns = 2 + workers
        size = 8 * (1 + workers * 2 + columns * len(REGISTERS))
        with open(path, "a+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        self._words = memoryview(self._map).cast("Q")
        self._workers = workers
        self._table = 1 + 2 * workers

    def _place(self, column: int, register: Register) -> int:
        return self._table + column * len(REGISTERS) + register.number

    # --- the run ---

    def stop(self) -> None:
        self._words[0] = 1

    @property
    def stopping(self) -> bool:
        return bool(self._words[0])

    def count(self, worker: int, *, reads: int = 0, writes: int = 0) -> None:
        self._words[1 + 2 * worker] += reads
        self._words[2 + 2 * worker] += writes

    def progress(self, worker: int) -> tuple[int, int]:
        """Reads and writes that were answered."""
        return self._words[1 + 2 * worker], self._words[2 + 2 * worker]

    # --- writes: by the register's own worker ---

    def begun(self, register: Register) -> int:
        return self._words[self._place(0, register)]

    def begin(self, register: Register) -> int:
        """The number of a new write, noted before anything of it is sent."""
        self._words[self._place(0, register)] += 1
        return self.begun(register)

    def acknowledged(self, register: Register) -> int:
        return self._words[self._place(1, register)]

    def acknowledge(self, register: Register, write: int) -> None:
        self._words[self._place(1, register)] = write

    # --- reads ---

    def oldest(self, register: Register) -> int:
        """What a read that begins now must return at least."""
        seen = (self._words[self._place(2 + worker, register)] for worker in range(self._workers))
        return max(self.acknowledged(register), *seen)

    def check(self, worker: int, register: Register, data: bytes | memoryview, oldest: int) -> int:
        """Judge a read that began when `oldest` was so, and note it: the write that it returned. Raises WrongBytesError."""
        begun = self.begun(register)
        if len(data) != register.length:
            raise WrongBytesError(f"{register}: {len(data)} bytes")
        number, write = HEAD.unpack_from(data)
        if number != register.number or data != content(register, write):
            raise WrongBytesError(f"{register}: bytes of no write; they begin as write {write} of register {number}")
        if not oldest <= write <= begun:
            raise WrongBytesError(f"{register}: write {write}, where {oldest} to {begun} are possible")
        place = self._place(2 + worker, register)
        self._words[place] = max(self._words[place], write)
        return int(write)

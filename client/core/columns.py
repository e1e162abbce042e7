"""Read operations as columns, and where their bytes go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from ...proto.ids import ChunkId
from .inode import Inode


class Output(Protocol):
    """Where bytes go, in order: `io.BytesIO`, or a caller's buffer."""

    def write(self, data: memoryview | bytes, /) -> int: ...


class Into:
    """An `Output` over a caller's writable buffer."""

    __slots__ = ("position", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.position = 0

    def write(self, data: memoryview | bytes, /) -> int:
        end = self.position + len(data)
        self.view[self.position : end] = data
        self.position = end
        return len(data)


@dataclass(slots=True)
class Columns:
    """Read operations, one per row: bytes [offset, offset + length) of chunk `index` of `files[file]`."""

    files: Sequence[Inode]
    file: Sequence[int]  # position in `files`; empty where there is only one
    index: Sequence[int]
    offset: Sequence[int]
    length: list[int]

    def inode(self, row: int) -> Inode:
        return self.files[self.file[row]] if self.file else self.files[0]

    def chain(self, row: int) -> int:
        chains = self.inode(row).chains
        return chains[self.index[row] % len(chains)]

    def chunk(self, row: int) -> ChunkId:
        return ChunkId(0, self.inode(row).id, self.index[row])


def columns_of(file: Inode, offset: int, length: int) -> Columns:
    """The pieces of one range of a file; `length` is at least 1."""
    size = file.chunk_size
    first, start = divmod(offset, size)
    if start + length <= size:
        return Columns((file,), (), [first], [start], [length])
    last = (offset + length - 1) // size
    lengths = [size] * (last - first + 1)
    lengths[0] = size - start
    lengths[-1] = offset + length - last * size
    return Columns((file,), (), range(first, last + 1), [start] + [0] * (last - first), lengths)


def cut(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """The pieces of these lengths, one after the other."""
    size = lengths[0]
    if lengths.count(size) == len(lengths):
        return [view[at : at + size] for at in range(0, size * len(lengths), size)]
    return [view[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]

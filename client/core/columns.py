"""Read operations as columns, and where their bytes go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from ...proto.copying import copy
from ...proto.ids import ChunkId
from ...proto.region import Slice
from .inode import Inode

if TYPE_CHECKING:
    from .reads import Fetch


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
        copy(self.view[self.position : end], data)
        self.position = end
        return len(data)


# Is called once with the bytes of a read, in pieces; they are somebody else's again when it returns.
Consume = Callable[[Sequence[memoryview | bytes]], object]


class Lender:
    """An `Output` that does not copy: it keeps the views, and lends them to whoever reads. Memory may be given back after `end` only."""

    __slots__ = ("_consume", "_file", "_offset", "_views", "length")

    def __init__(self, file: Inode, offset: int, length: int, consume: Consume) -> None:
        self._file = file
        self._offset = offset
        self._views: list[memoryview | bytes] = []
        self._consume = consume
        self.length = length  # wanted, and in the end: how many bytes there were

    def write(self, data: memoryview | bytes, /) -> int:
        self._views.append(data)
        return len(data)

    def end(self) -> None:
        """That is all: lend it, without what lies behind the end of the file by now (another client may have cut it)."""
        there = min(self.length, max(0, self._file.length - self._offset))
        surplus, views = self.length - there, self._views
        while surplus and views:
            last = views.pop()
            if len(last) > surplus:
                views.append(last[: len(last) - surplus])
            surplus = max(0, surplus - len(last))
        self.length = there
        self._consume(views)

    def all(self, view: memoryview) -> None:
        """All of it in one piece."""
        self.write(view)
        self.end()

    def take(self, fetch: Fetch) -> None:
        """All that a finished fetch brought."""
        fetch.deliver(self)
        self.end()


@dataclass(slots=True)
class Columns:
    """Read operations, one per row: bytes [offset, offset + length) of chunk `index` of `files[file]`."""

    files: Sequence[Inode]
    file: Sequence[int]  # position in `files`; empty where there is only one
    index: Sequence[int]
    offset: Sequence[int]
    length: list[int]
    placed: list[int] | None = None  # the chain of each row, as of the requests that are made now

    def inode(self, row: int) -> Inode:
        return self.files[self.file[row]] if self.file else self.files[0]

    def chain(self, row: int) -> int:
        chains = self.inode(row).chains
        return chains[self.index[row] % len(chains)]

    def chains(self) -> list[int]:
        """The chain of each row."""
        if self.placed is None:
            stripes = [file.chains for file in self.files]
            if max(map(len, stripes)) == 1:
                firsts = [stripe[0] for stripe in stripes]
                self.placed = [firsts[file] for file in self.file] if self.file else firsts * len(self.index)
            elif self.file:
                pairs = zip([stripes[file] for file in self.file], self.index, strict=True)
                self.placed = [stripe[index % len(stripe)] for stripe, index in pairs]
            else:
                stripe, width = stripes[0], len(stripes[0])
                self.placed = [stripe[index % width] for index in self.index]
        return self.placed

    def chunk(self, row: int) -> ChunkId:
        return ChunkId(0, self.inode(row).id, self.index[row])


class Home:
    """Where the rows of a fetch are to lie in the end: places in one piece of the pool, or of shared memory. Servers move them there at
    once; what had to be asked for again comes from elsewhere, and is copied."""

    __slots__ = ("dense", "lengths", "missed", "owned", "slice", "spoiled", "starts")

    def __init__(
        self, slice_: Slice, starts: Sequence[int], lengths: Sequence[int], *, dense: bool, owned: bool = True
    ) -> None:
        self.slice = slice_
        self.starts = starts
        self.lengths = lengths
        self.dense = dense  # each row begins where the one before it ends
        self.owned = owned  # it is the pool's, which keeps it aside if need be: else requests are not given up
        self.missed = False  # some rows came elsewhere
        self.spoiled = False  # a request that was given up may still move bytes here

    def of(self, rows: Sequence[int]) -> list[Slice]:
        """The places of these rows, which rise; in one piece where they follow each other."""
        region, base, starts, lengths = self.slice.region, self.slice.offset, self.starts, self.lengths
        first, last = rows[0], rows[-1]
        if self.dense and last - first == len(rows) - 1:
            return [Slice(region, base + starts[first], starts[last] + lengths[last] - starts[first])]
        return [Slice(region, base + starts[row], lengths[row]) for row in rows]


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

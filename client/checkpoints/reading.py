"""Ranges of files into memory, in parallel: what is wanted is cut into pieces, and a few threads read them to where they belong.

A piece is one batched read over all chains of its file. The bytes are checked by the client when they arrive, and moved once, into the
caller's memory, which may be pinned. Pieces begin where chunks do: a chunk that is read as a whole has one checksum, and a part of one has
hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from .folders import Ranges, Source

THREADS = 4  # one waits for storage while others move and check bytes
PIECE_BYTES = 32 << 20  # read by one thread: a part of it is on its way while the one before is checked and moved
ALIGNED_BYTES = 4 << 20  # of the file: where pieces end
PIECE_RANGES_MAX = 4096  # of one piece: as many operations as a request may have

_Item = TypeVar("_Item")


class Piece(NamedTuple):
    """Ranges of a file that lie one after the other in memory."""

    source: Source
    ranges: Ranges
    into: memoryview


def read_pieces(pieces: Iterable[Piece], threads: int = THREADS) -> None:
    """Read all of them. Raises the first error, when no thread writes into the memory any more."""
    in_parallel(lambda piece: piece.source.read(piece.ranges, piece.into), _cut(pieces), threads)


def in_parallel(work: Callable[[_Item], Any], items: Iterable[_Item], threads: int = THREADS) -> list[Any]:
    """The results of `work` for each item, in order; at the first failure what was not begun is left out, and it is raised."""
    items = list(items)
    if threads <= 1 or len(items) <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix="emberfs-checkpoint") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _cut(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same in pieces that one read takes."""
    for source, ranges, into in pieces:
        taken: list[tuple[int, int]] = []
        begin = end = 0
        for start, length in ranges:
            done = 0
            while done < length:
                room = PIECE_BYTES - (end - begin)
                if not taken and length - done > room:
                    room -= (start + done) % ALIGNED_BYTES  # the next one begins with a chunk
                part = min(length - done, room)
                taken.append((start + done, part))
                done, end, room = done + part, end + part, room - part
                if not room or len(taken) == PIECE_RANGES_MAX:
                    yield Piece(source, taken, into[begin:end])
                    taken, begin = [], end
        if taken:
            yield Piece(source, taken, into[begin:end])


def block_ranges(shape: tuple[int, ...], offsets: tuple[int, ...], lengths: tuple[int, ...], item: int) -> Ranges:
    """Where the block [offset, offset + length) of each dimension lies within an array of this shape in C order: byte ranges, merged
    where they touch. `item`: bytes of an element."""
    inner = len(shape)  # dimensions from here on are whole: their elements lie together
    while inner and lengths[inner - 1] == shape[inner - 1]:
        inner -= 1
    run = item
    for size in shape[inner:]:
        run *= size
    if not inner:
        return [(0, run)] if run else []
    first, count = offsets[inner - 1], lengths[inner - 1]
    starts = [0]
    for size, offset, length in zip(shape[: inner - 1], offsets, lengths, strict=False):
        starts = [(start * size + offset + i) for start in starts for i in range(length)]
    row = shape[inner - 1]
    return [((start * row + first) * run, count * run) for start in starts] if count * run else []

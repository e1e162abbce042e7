"""Work on the records of files by several processes: generating, validating."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np

from ...proto.errors import Status, error
from . import generator, keys, summary
from .generator import RECORD_BYTES
from .places import Place, Range, check_target, open_place
from .summary import Summary
from .workplace import workplace

JOBS_MAX = 64
WAITING_A_JOB = 4  # items that are handed to the processes ahead
PIECE_RECORDS = 160_000  # 16 MB: what one process makes or looks at in one go
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class File:
    """A file of records: its place (see `places.locate`) and its path there."""

    url: str
    path: str


def jobs_default() -> int:
    """One process a core."""
    return min(JOBS_MAX, len(os.sched_getaffinity(0)))


_places: dict[str, Place] = {}  # that this process is connected to


def place(url: str) -> Place:
    """This process's connection to a place. What is written is there when `Place.write` returns, so that processes may just end."""
    if url not in _places:
        _places[url] = open_place(url)
    return _places[url]


class Workers:
    """Some processes, or with one job this process. They are spawned, so that none begins with half of this one's connections and locks."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        spawn = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin) if jobs > 1 else None

    def start(self, urls: Sequence[str]) -> None:
        """Begin all processes, and connect them to these places, where that is not to be timed with their work."""
        ready: set[int] = set()
        while len(ready) < self.jobs:
            ready.update(self.map(_ready, [urls] * self.jobs))

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results in the order of the items, which are looked at as processes get free. Raises what a process raised, when no other
        one is at work any more, and CANCELLED if one was killed."""
        if self._pool is None:
            yield from map(work, items)
            return
        todo = iter(items)
        waiting: deque[Future[_Result]] = deque()
        try:
            while True:
                for item in islice(todo, self.jobs * WAITING_A_JOB - len(waiting)):
                    with _uninterrupted():  # it may begin a process
                        waiting.append(self._pool.submit(work, item))
                if not waiting:
                    return
                yield waiting[0].result()
                waiting.popleft()
        except BrokenProcessPool as broken:
            raise error(Status.CANCELLED, "a process was killed: did the memory run out?") from broken
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)

    def close(self) -> None:
        """Let the processes end."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C is heard at the end of the block, and never by processes that begin in it: the first one tells them what to do."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Begin a process: it ends with the first one, also when that is killed."""
    threading.Thread(target=_end_with_the_first, daemon=True).start()


def _end_with_the_first() -> None:
    first = multiprocessing.parent_process()
    if first is not None:
        first.join()
        os._exit(1)


def _ready(urls: Sequence[str]) -> int:
    """The process that has connected to these places."""
    for url in urls:
        place(url)
    return os.getpid()


@contextmanager
def workers(jobs: int) -> Iterator[Workers]:
    """Workers until the end of the block. Raises INVALID for a number of jobs that cannot be."""
    if not 1 <= jobs <= JOBS_MAX:
        raise error(Status.INVALID, f"{jobs} processes: 1 to {JOBS_MAX} can be had")
    made = Workers(jobs)
    try:
        yield made
    finally:
        made.close()
        while _places:
            _places.popitem()[1].close()


def count_records(file: File) -> int:
    """How many records a file has. Raises INVALID where the last is not whole, and as `stat`."""
    size = place(file.url).size(file.path)
    if size % RECORD_BYTES:
        raise error(Status.INVALID, f"{file.path}: {size} bytes are no whole number of records ({RECORD_BYTES} bytes)")
    return size // RECORD_BYTES


def read_records(ranges: Sequence[Range], url: str) -> generator.Bytes:
    """The records of some ranges of files, in order, in memory of their own."""
    out = np.empty(sum(part.length for part in ranges), np.uint8)
    place(url).read(ranges, out)
    return keys.as_records(out)


def pieces(records: int, size: int = PIECE_RECORDS) -> Iterator[tuple[int, int]]:
    """(first, count) of pieces of `size` records and a rest."""
    return ((first, min(size, records - first)) for first in range(0, records, size))


# --- generating ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """Which records: `begin` is the number of the first."""

    begin: int = 0
    ascii: bool = False
    skewed: bool = False


def generate(pool: Workers, file: File, records: int, kind: Kind, *, checksum: bool = False) -> int:
    """Make a file of records, which appears when it is complete and durable; returns the sum of their checksums if that is wanted, else 0.
    Raises INVALID for numbers of records that cannot be, and what files raise; then the name is what it was."""
    if kind.begin + records > generator.NUMBERS:
        raise error(Status.INVALID, f"records {kind.begin} to {kind.begin + records - 1}: there are 2**128")
    there = place(file.url)
    check_target(there, file.path)
    with workplace(there, file.path) as beside:
        draft = File(file.url, f"{beside}/output")
        there.make(draft.path)
        total = sum(pool.map(partial(_generate, draft, kind, checksum), pieces(records)))
        there.rename(draft.path, file.path)
    return total % summary.NUMBERS


def _generate(file: File, kind: Kind, checksum: bool, piece: tuple[int, int]) -> int:
    first, count = piece
    made = generator.records(kind.begin + first, count, ascii=kind.ascii, skewed=kind.skewed)
    place(file.url).write(file.path, first * RECORD_BYTES, made, durable=True)
    return summary.checksum(made) if checksum else 0


# --- validating ------------------------------------------------------------------------------------------------------------------------


def validate(pool: Workers, files: Sequence[File]) -> Summary:
    """What valsort says of these files, one after the other. Raises INVALID if there is no record in them."""
    counts = [count_records(file) for file in files]
    if not any(counts):
        raise error(Status.INVALID, "there is no record to validate")
    todo = ((file, piece) for file, count in zip(files, counts, strict=True) for piece in pieces(count))
    return summary.combine(pool.map(_validate, todo))


def _validate(item: tuple[File, tuple[int, int]]) -> Summary:
    file, (first, count) = item
    wanted = Range(file.path, first * RECORD_BYTES, count * RECORD_BYTES)
    return summary.summarize(read_records([wanted], file.url))

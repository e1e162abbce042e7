"""A sort in two phases of files that are larger than memory, by several processes, on this machine, on a mount or in a cluster.

    input ──> chunk ──sort──> run        phase 1: as much as fits into memory, sorted, into a file of its own
    runs  ──> partition ──sort──> output phase 2: from every run the records between two keys, sorted, to their place in the output

The keys between partitions come from a sample of the input, so that all partitions are about equally large. What every run has of every
partition is known after phase 1, and with it where each partition lies in the output: the processes write to one file at different places,
and none waits for another. Each byte is read twice and written twice; runs are read in as many slices as there are partitions.

The output appears under its name when it is complete and durable. Records with equal keys come in any order. Until then all is in a
directory beside it (`workplace.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...proto.errors import Status, error
from . import keys, summary
from .generator import RECORD_BYTES
from .parallel import File, Workers, count_records, pieces, place, read_records
from .places import Range, check_target
from .workplace import workplace

if TYPE_CHECKING:
    from .generator import Words

MEMORY_DEFAULT = 1 << 30  # bytes, of all processes together
MEMORY_MIN = 4 << 20  # of one process
FOOTPRINT = (
    3  # what a process needs, in units of the records that it sorts: these, their copy in order, keys and positions
)
SAMPLES_MIN = 16_384  # keys that are looked at
SAMPLES_A_PARTITION = 128  # so that a partition is seldom more than a third larger than it should be
SAMPLES_TOGETHER = 16  # records of one read
SLICE_RECORDS_MIN = 64  # of a run and a partition, on average: smaller reads cost more than their bytes


class Sorted(NamedTuple):
    """How a sort went."""

    records: int
    checksum: int  # of the input, if it was wanted
    runs: int
    partitions: int


@dataclass(frozen=True)
class Plan:
    """A sort in work. `folder` is a directory for the runs, `target` is the output before it is named."""

    source: File
    folder: File
    target: File
    splitters: Words  # the first key of every partition but the first
    checksum: bool

    def run(self, number: int) -> str:
        return f"{self.folder.path}/run-{number:06}"


class Run(NamedTuple):
    """What phase 1 made of a chunk: how many records of each partition, and the sum of their checksums."""

    counts: list[int]
    checksum: int


def sort(
    pool: Workers,
    source: File,
    target: File,
    *,
    scratch: File | None = None,
    memory: int = MEMORY_DEFAULT,
    checksum: bool = False,
    done: Callable[[int], None] = lambda size: None,
) -> Sorted:
    """Sort the records of `source` by their keys into `target`, which may be the same file.

    `scratch` is the directory for the runs (the target's own). `memory` is for all processes together, in bytes; a key that more
    records share than fit takes more. `done` hears of bytes that went through a phase. Raises INVALID for too little memory
    or a broken input, and what files raise; then nothing stays but the input. What a sort left that was killed, the next one into
    `target` removes.
    """
    records = count_records(source)
    chunk = memory // pool.jobs // FOOTPRINT // RECORD_BYTES
    if memory // pool.jobs < MEMORY_MIN:
        raise error(Status.INVALID, f"{pool.jobs} processes need {pool.jobs * MEMORY_MIN >> 20} MiB of memory")
    slices = -(-records // chunk)
    if slices > 1 and records < slices * slices * SLICE_RECORDS_MIN:
        raise error(Status.INVALID, f"{records:,} records are too many for {memory >> 20} MiB of memory in two phases")
    there = place(target.url)
    check_target(there, target.path)
    with ExitStack() as stack:
        beside = stack.enter_context(workplace(there, target.path))
        draft = File(target.url, f"{beside}/output")
        folder = File(target.url, beside)
        if scratch is not None:
            path = stack.enter_context(workplace(place(scratch.url), target.path, scratch.path))
            folder = File(scratch.url, path)
        there.make(draft.path)
        plan = Plan(source, folder, draft, _splitters(source, records, slices), checksum)
        found = _phases(pool, plan, pieces(records, chunk), done)
        there.rename(draft.path, target.path)
    return found


def _splitters(source: File, records: int, partitions: int) -> Words:
    """Keys (their first eight bytes) that cut a sample of the input into equal parts."""
    if partitions <= 1:
        return np.empty(0, np.uint64)
    reads = min(max(SAMPLES_MIN, SAMPLES_A_PARTITION * partitions) // SAMPLES_TOGETHER, records // SAMPLES_TOGETHER)
    firsts = np.linspace(0, records - SAMPLES_TOGETHER, max(1, reads)).astype(np.int64).tolist()
    length = min(records, SAMPLES_TOGETHER) * RECORD_BYTES
    ranges = [Range(source.path, first * RECORD_BYTES, length) for first in firsts]
    sample = np.sort(keys.prefixes(read_records(ranges, source.url)))
    return sample[np.arange(1, partitions) * len(sample) // partitions]


def _phases(pool: Workers, plan: Plan, chunks: Iterable[tuple[int, int]], done: Callable[[int], None]) -> Sorted:
    runs: list[Run] = []
    for made in pool.map(partial(_make_run, plan), enumerate(chunks)):
        runs.append(made)
        done(sum(made.counts) * RECORD_BYTES)
    counts = np.array([made.counts for made in runs], np.int64).reshape(len(runs), len(plan.splitters) + 1)
    # Where in its run each slice begins, and where in the output each partition.
    begins = np.cumsum(counts, axis=1) - counts
    targets = [0, *accumulate(counts.sum(axis=0).tolist())]
    todo = [
        (targets[number], begins[:, number].tolist(), counts[:, number].tolist()) for number in range(counts.shape[1])
    ]
    for size in pool.map(partial(_make_partition, plan), todo):
        done(size)
    total = sum(made.checksum for made in runs) % summary.NUMBERS
    return Sorted(targets[-1], total, len(runs), counts.shape[1])


def _make_run(plan: Plan, item: tuple[int, tuple[int, int]]) -> Run:
    """Phase 1, for one chunk."""
    number, (first, count) = item
    wanted = Range(plan.source.path, first * RECORD_BYTES, count * RECORD_BYTES)
    records = read_records([wanted], plan.source.url)
    found = summary.checksum(records) if plan.checksum else 0
    prefixes = keys.prefixes(records)
    order = np.argsort(prefixes)
    cuts = np.searchsorted(prefixes[order], plan.splitters).tolist()
    path, there = plan.run(number), place(plan.folder.url)
    there.make(path)
    there.write(path, 0, keys.gathered(records, order))
    return Run([end - begin for begin, end in zip([0, *cuts], [*cuts, count], strict=True)], found)


def _make_partition(plan: Plan, item: tuple[int, list[int], list[int]]) -> int:
    """Phase 2, for one partition; its bytes."""
    target, begins, counts = item
    ranges = [
        Range(plan.run(number), begin * RECORD_BYTES, count * RECORD_BYTES)
        for number, (begin, count) in enumerate(zip(begins, counts, strict=True))
        if count
    ]
    if not ranges:
        return 0
    records = read_records(ranges, plan.folder.url)
    made = keys.gathered(records, keys.order(records))
    place(plan.target.url).write(plan.target.path, target * RECORD_BYTES, made, durable=True)
    return len(made) * RECORD_BYTES

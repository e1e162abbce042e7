"""A whole data set, from its first sample to its last: converted, verified, described."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...proto.errors import Status, error
from .batch import Batch
from .ffrecord import write_ffrecord
from .formats import ENDINGS
from .index import CHECKSUMS, Places, open_shard
from .record_writer import SHARD_BYTES, ShardedWriter
from .records import SUFFIX, BadRecords
from .samples import Samples
from .store import Store

NUMBERS_AT_ONCE = 4096
BATCH_BYTES = 16 << 20  # or one sample, if that is more

Progress = Callable[[int], object]  # is told how many bytes more are done


@dataclass(frozen=True)
class Shard:
    """A file of a data set, for people. `problem` is empty where it is as it should be."""

    path: str
    bytes: int
    samples: int
    commits: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Description:
    """A data set, for people. Sizes are those of samples, in bytes."""

    format: str
    shards: list[Shard]
    samples: int
    bytes: int  # of all samples
    size_min: int
    size_max: int
    checksums: bool

    @property
    def size_mean(self) -> float:
        return self.bytes / self.samples if self.samples else 0.0


@dataclass
class Verified:
    """What `verify` found: numbers of damaged samples, and what could not be read."""

    samples: int = 0
    bytes: int = 0
    damaged: list[int] = field(default_factory=list)


def in_order(samples: Samples, first: int = 0) -> Iterator[tuple[Batch, Places]]:
    """All samples from `first` on, some MiB at once."""
    for places, numbers in _pieces(samples, first):
        columns = places.file.tolist(), places.offset.tolist(), places.length.tolist()
        data = samples.store.read(samples.index.paths, *columns).finish()
        yield Batch(numbers, data, places.length), places


def _pieces(samples: Samples, first: int) -> Iterator[tuple[Places, Any]]:
    for begin in range(first, len(samples), NUMBERS_AT_ONCE):
        numbers = np.arange(begin, min(begin + NUMBERS_AT_ONCE, len(samples)), dtype=np.int64)
        places = samples.index.look_up(numbers).finish()
        ends = np.cumsum(places.length)
        start = 0
        while start < numbers.size:
            limit = (ends[start - 1] if start else 0) + BATCH_BYTES
            stop = max(start + 1, int(np.searchsorted(ends, limit, "right")))
            part = slice(start, stop)
            crc = None if places.crc is None else places.crc[part]
            yield Places(places.file[part], places.offset[part], places.length[part], crc), numbers[part]
            start = stop


def verify(samples: Samples, progress: Progress = lambda more: None) -> Verified:
    """Read every sample and compare it with its checksum, where the format has them. Raises OSError for what cannot be read at all."""
    checksum = CHECKSUMS[samples.index.checksum]
    found = Verified()
    for batch, places in in_order(samples):
        if places.crc is not None and list(map(checksum, batch)) != places.crc.tolist():
            pairs = zip(batch, places.crc.tolist(), batch.numbers.tolist(), strict=True)
            found.damaged += [number for sample, crc, number in pairs if checksum(sample) != crc]
        found.samples += len(batch)
        found.bytes += batch.data.nbytes
        progress(batch.data.nbytes)
    return found


def convert(
    samples: Samples,
    store: Store,
    *,
    to: str = "records",
    name: str = "part",
    shard_bytes: int = SHARD_BYTES,
    durable: bool = True,
    progress: Progress = lambda more: None,
) -> list[str]:
    """Write the samples, as bytes and in their order, to shards of packed records (or one FFRecord file, through memory) in `store`; the
    paths. Checksums of the source are verified. A sample of a tar shard becomes a record that `tar.members` takes apart. Raises EXISTS
    where files of these names are: they may be the source, and what is left of longer ones would be read as part of the data set."""
    samples.verify = True
    ours = r"\.ffr" if to == "ffrecord" else rf"-\d{{5,}}{re.escape(SUFFIX)}"
    if left := _in_the_way(store, name, re.compile(re.escape(posixpath.basename(name)) + ours)):
        raise error(
            Status.EXISTS,
            f"{store.url}: {left} is there already: remove the files of that name first, or choose another directory or name",
        )
    if to == "ffrecord":
        path = name + ".ffr"
        write_ffrecord(store, path, (bytes(sample) for batch in _checked(samples, progress) for sample in batch))
        return [path]
    with ShardedWriter(store, name, shard_bytes=shard_bytes, durable=durable) as writer:
        for batch in _checked(samples, progress):
            writer.write_all(batch)
    return writer.paths


def _in_the_way(store: Store, name: str, ours: re.Pattern[str]) -> str:
    """A file that one of these names would replace, or stand beside; "" where there is none."""
    try:
        there = store.names(posixpath.dirname(name))
    except (FileNotFoundError, NotADirectoryError):
        return ""  # not even the directory
    return next((found for found in sorted(there) if ours.fullmatch(found)), "")


def _checked(samples: Samples, progress: Progress) -> Iterator[Batch]:
    for batch, places in in_order(samples):
        samples.check(batch, places)
        yield batch
        progress(batch.data.nbytes)


def describe(samples: Samples) -> Description:
    """What is there, and whether somebody died while writing it."""
    paths = list(samples.index.paths)
    counts = np.zeros(len(paths), np.int64)
    size_min, size_max, total, checksums = 1 << 62, 0, 0, False
    for begin in range(0, len(samples), NUMBERS_AT_ONCE):
        numbers = np.arange(begin, min(begin + NUMBERS_AT_ONCE, len(samples)), dtype=np.int64)
        places = samples.index.look_up(numbers).finish()
        counts += np.bincount(places.file, minlength=len(paths))
        total += int(places.length.sum())
        size_min, size_max = min(size_min, int(places.length.min())), max(size_max, int(places.length.max()))
        checksums = places.crc is not None
    sizes = dict(samples.store.find())
    format_ = next(
        (name for ending, name in ENDINGS.items() if (paths[0] or samples.store.url).endswith(ending)), "files"
    )
    shards = [
        _shard(samples.store, path, sizes.get(path, 0), int(count)) for path, count in zip(paths, counts, strict=True)
    ]
    return Description(format_, shards, len(samples), total, size_min if len(samples) else 0, size_max, checksums)


def _shard(store: Store, path: str, size: int, count: int) -> Shard:
    if not (path or store.url).endswith(SUFFIX):
        return Shard(path, size, count)
    try:
        shard = open_shard(store, path)
    except BadRecords as bad:
        return Shard(path, size, count, problem=str(bad))
    problem = ""
    if not shard.size:
        problem = "empty: a writer has just made it, or has died"
    elif not shard.is_whole:
        problem = f"{shard.size - shard.end} bytes behind the last commit: a writer is at work, or has died"
    return Shard(path, size, count, len(shard.commits), problem)

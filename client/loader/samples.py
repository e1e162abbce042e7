"""A data set: samples by number, many in one read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...proto.errors import Status, StatusError, error
from .batch import Batch
from .index import CHECKSUMS, Index, Lookup, Numbers, Places
from .memory import Bytes
from .store import Pending, Store, open_store

BATCH_BYTES_MAX = 16 << 30

Decode = Callable[[Any], Any]


class Samples:
    """`len(samples)`, `samples[i]`, `samples.read(numbers)`, by any number of threads. It can be pickled and used after a fork; an index
    in memory is then copied from, or shared with, the parent.

    `verify`: check the samples' own checksums. Without being told, only where the store has not checked every byte already. `decode` makes
    of each sample's bytes (a numpy view) what `samples[i]`, a loader and torch's data sets give out; without one, that is the view.
    """

    def __init__(self, store: Store, index: Index, *, verify: bool | None = None, decode: Decode | None = None) -> None:
        self.store = store
        self.index = index
        self.verify = not store.verifies if verify is None else verify
        self.decode = decode

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Any:
        count = len(self)
        if not -count <= number < count:
            raise IndexError(f"sample {number} of {count}")
        return self.decoded(self.read([number % count]))[0]

    def read(self, numbers: Sequence[int] | Numbers) -> Batch:
        """These samples, in this order. Raises IndexError, OSError; CHECKSUM for a damaged one."""
        return self.begin(np.asarray(numbers, np.int64)).finish()

    def begin(self, numbers: Numbers) -> Reading:
        """Ask for these samples and do something else meanwhile."""
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            raise IndexError(f"samples {numbers.min()} to {numbers.max()} of {len(self)}")
        return Reading(self, numbers)

    def decoded(self, batch: Batch) -> Any:
        """The batch as it is, or what `decode` makes of each sample."""
        if self.decode is None:
            return batch
        if (numbered := getattr(self.decode, "numbered", None)) is not None:
            return [numbered(sample, number) for sample, number in zip(batch, batch.numbers.tolist(), strict=True)]
        return [self.decode(sample) for sample in batch]

    def check(self, batch: Batch, places: Places) -> None:
        """Raise CHECKSUM for the first sample that is not what was written."""
        if places.crc is None:
            return
        expected = places.crc.tolist()
        if list(map(CHECKSUMS[self.index.checksum], batch)) == expected:
            return
        checksum = CHECKSUMS[self.index.checksum]
        row = next(i for i, sample in enumerate(batch) if checksum(sample) != expected[i])
        path = self.index.paths[int(places.file[row])]
        raise error(
            Status.CHECKSUM,
            f"sample {batch.numbers[row]}, {places.length[row]} bytes at {places.offset[row]} of {path or self.store.url}, is damaged: "
            "restore it from a copy",
        )

    def close(self) -> None:
        """Close files and connections; they are opened again when needed."""
        self.store.close()


class Reading:
    """A batch on its way: its places first, where they take a read, then its bytes."""

    def __init__(self, samples: Samples, numbers: Numbers) -> None:
        self._samples = samples
        self._numbers = numbers
        self._lookup: Lookup | None = samples.index.look_up(numbers)
        self._places: Places | None = None
        self._pending: Pending | None = None
        if not samples.index.slow:
            self.advance()

    def advance(self) -> None:
        """Ask for the bytes, as soon as it is known where they are."""
        if self._pending is None and self._lookup is not None:
            places, self._lookup = self._lookup.finish(), None
            self._places = places
            if (size := int(places.length.sum())) > BATCH_BYTES_MAX:
                raise error(
                    Status.TOO_LARGE,
                    f"a batch of {size} bytes: at most {BATCH_BYTES_MAX}; ask for fewer samples at once",
                )
            if getattr(self._samples.index, "whole", False):
                self._pending = _WholeFiles(self._samples, places)
                return
            columns = places.file.tolist(), places.offset.tolist(), places.length.tolist()
            self._pending = self._samples.store.read(self._samples.index.paths, *columns)

    def finish(self) -> Batch:
        """The batch, verified."""
        self.advance()
        assert self._pending is not None and self._places is not None
        data = self._pending.finish()
        lengths = self._pending.lengths if isinstance(self._pending, _WholeFiles) else self._places.length
        batch = Batch(self._numbers, data, lengths)
        self._pending = None
        if self._samples.verify:
            self._samples.check(batch, self._places)
        return batch

    def cancel(self) -> None:
        """Nobody wants it any more."""
        for stage in (self._lookup, self._pending):
            if stage is not None:
                stage.cancel()
        self._lookup = self._pending = None


class _WholeFiles:
    """Whole files, as they are when they are read: opened together and read together, and copied once."""

    def __init__(self, samples: Samples, places: Places) -> None:
        self._samples = samples
        self._file = places.file.tolist()
        self.lengths = places.length

    def finish(self) -> Bytes:
        paths = self._samples.index.paths
        contents = self._samples.store.read_files([paths[number] for number in self._file])
        self.lengths = np.array([len(content) for content in contents], np.int64)
        return np.frombuffer(bytearray().join(contents), np.uint8)

    def cancel(self) -> None:
        pass


class Decoded:
    """One decoding after another."""

    def __init__(self, first: Any, then: Decode) -> None:
        self._first = first
        self._then = then
        if hasattr(first, "numbered"):
            self.numbered = self._numbered

    def __call__(self, sample: Any) -> Any:
        return self._then(self._first(sample))

    def _numbered(self, sample: Any, number: int) -> Any:
        return self._then(self._first.numbered(sample, number))


def open_samples(
    where: str | os.PathLike[str] | Store,
    format: str = "",
    *,
    verify: bool | None = None,
    decode: Decode | None = None,
    pin: bool = False,
    options: dict[str, Any] | None = None,
    **how: Any,
) -> Samples:
    """The data set in a directory of a cluster ("ember://…") or of this machine, or in one file.

    `format`: "records" (packed records), "ffrecord", "tar", "parquet" or "files" (each file is a sample); without one, that of the first
    file with a known ending. What else there is, and what a sample is without `decode`, depends on the format (see formats.py); `decode`
    comes after that. `pin`: batches lie in memory that is pinned for CUDA; keep them until an asynchronous copy is over. `options` are
    those of `emberfs.connect`. Raises FileNotFoundError where there is nothing to read, ValueError for what is no such format.
    """
    from .formats import open_index

    store = open_store(where, pin=pin, **(options or {}))
    index, usual = open_index(store, format, how)
    made = Decoded(usual, decode) if usual is not None and decode is not None else decode or usual
    return Samples(store, index, verify=verify, decode=made)


__all__ = ["Reading", "Samples", "StatusError", "open_samples"]

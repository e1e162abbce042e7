"""Tar shards as webdataset writes them: the members `0001.jpg`, `0001.cls` that follow each other are one sample.

The headers are read once, when the data set is opened; kept are 16 bytes a sample. A sample is read in one piece, headers and all, and its
members are cut from that. Compressed archives have no random access.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from typing import Any, cast

from .index import Table
from .memory import Bytes
from .store import Store

BLOCK = 512


def open_tar(store: Store, paths: Sequence[str]) -> Table:
    """The samples of these shards. Raises ValueError for what is no plain tar."""
    file: list[int] = []
    offsets: list[int] = []
    lengths: list[int] = []
    for number, path in enumerate(paths):
        with store.open(path, "rb") as shard:
            for begin, end in _spans(shard, path):
                file.append(number)
                offsets.append(begin)
                lengths.append(end - begin)
    return Table(paths, file, offsets, lengths)


def _spans(shard: Any, path: str) -> list[list[int]]:
    """Where each sample begins and ends."""
    spans: list[list[int]] = []
    last = None
    try:
        with tarfile.open(fileobj=shard, mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                key = key_of(member.name)[0]
                if key != last:
                    spans.append([member.offset, 0])
                    last = key
                spans[-1][1] = member.offset_data + -(-member.size // BLOCK) * BLOCK
                cast(Any, archive).members = []  # or it would keep all of them
    except tarfile.TarError as bad:
        raise ValueError(f"{path} is no plain tar archive: {bad}") from bad
    return spans


def key_of(name: str) -> tuple[str, str]:
    """What a member's name says of its sample, and which part of it the member is."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def members(sample: Bytes) -> dict[str, Any]:
    """A sample's members by extension, as views, and `__key__`."""
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=cast(Any, _Looked(sample.data)), mode="r:") as archive:
        for member in archive:
            if member.isreg():
                found["__key__"], extension = key_of(member.name)
                found[extension] = sample[member.offset_data : member.offset_data + member.size]
    return found


class _Looked(io.RawIOBase):
    """A file over memory, for headers to be read from."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else self._position + size
        data = bytes(self._view[self._position : end])
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, len(self._view))[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

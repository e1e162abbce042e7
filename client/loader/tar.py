"""Tar shards as webdataset writes them: the members `0001.jpg`, `0001.cls` that follow each other are one sample.

The headers are read once, when the data set is opened; kept are 16 bytes a sample. A sample is read in one piece, headers and all, and its
members are cut from that. Compressed archives have no random access.
"""

from __future__ import annotations

import tarfile
from array import array
from collections.abc import Sequence
from typing import Any, cast

from .index import Table
from .memory import Bytes
from .store import Store
from .window import Window

BLOCK = 512


def open_tar(store: Store, paths: Sequence[str]) -> Table:
    """The samples of these shards. Raises ValueError for what is no plain tar."""
    file, offsets, lengths = array("L"), array("q"), array("q")
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
                if member.issparse():
                    raise ValueError(f"{path}: {member.name} is sparse, its bytes do not lie there as they are")
                key = key_of(member.name)[0]
                if key != last:
                    spans.append([member.offset, 0])
                    last = key
                spans[-1][1] = member.offset_data + -(-member.size // BLOCK) * BLOCK
                cast(Any, archive).members = []  # or it would keep all of them
            end = archive.offset
    except tarfile.TarError as bad:
        raise ValueError(f"{path} is no plain tar archive: {bad}") from bad
    shard.seek(end)
    if bytes(shard.read(BLOCK)).strip(b"\0"):  # tarfile takes a damaged header for the end
        raise ValueError(f"{path}: the header at byte {end} is damaged")
    return spans


def key_of(name: str) -> tuple[str, str]:
    """What a member's name says of its sample, and which part of it the member is."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def members(sample: Bytes) -> dict[str, Any]:
    """A sample's members by extension, as views, and `__key__`."""
    found: dict[str, Any] = {}
    with tarfile.open(fileobj=cast(Any, Window(sample.data)), mode="r:") as archive:
        for member in archive:
            if member.isreg():
                found["__key__"], extension = key_of(member.name)
                found[extension] = sample[member.offset_data : member.offset_data + member.size]
    return found

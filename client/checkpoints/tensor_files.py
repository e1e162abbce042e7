"""safetensors files, written and loaded in parallel.

```python
save_file({"w": array}, "ember:///models/m.safetensors")            # numpy arrays or torch tensors; replaces the file in one step
load_file("ember:///models/m.safetensors", framework="torch", pin=True)
save_folder(tensors, "ember:///models/m", shard_bytes=5 << 30)       # shards and an index, as transformers and vLLM read them
load_folder("ember:///models/m", part=lambda t: Part(0, rank, world) if t.name.endswith("up_proj.weight") else None)
```

All tensors of one call lie in one piece of memory, to which their bytes are read directly: whole files in large pieces, and of a tensor
that is cut among ranks only the part of this one. Any other program can read the files; ours carry the CRC32C of each tensor in the
metadata, which `emberfs ckpt verify` compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from ...proto.errors import Status, error
from ..core.verify import crc32c
from . import arrays, tensor_format
from .arrays import Memory
from .folders import PART_SUFFIX, Draft, Folder, Ranges, Source, Where, folder_of, read_all, write_all
from .reading import PIECE_BYTES, THREADS, Piece, block_ranges, in_parallel, read_pieces
from .tensor_format import BITS, LENGTH, Header, Planned, TensorInfo, arranged, header_bytes

INDEX = "model.safetensors.index.json"
SUFFIX = ".safetensors"
ONE_OF_SEVERAL = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")  # only an index says that all are there
OF_A_SAVE = re.compile(r"-\d{5}-of-\d{5}-[0-9a-f]{8}\.safetensors$")  # nothing until an index names them
# Of a set under our names, or transformers' (which reads model.safetensors rather than an index).
OUTDATED = re.compile(r"model(-\d{5}-of-\d{5}(-[0-9a-f]{8})?)?\.safetensors")
SHARD_BYTES = 5 << 30
FIRST_BYTES = 64 << 10  # read before anything is known: most headers lie in it
RUN_BYTES_MIN = (
    16 << 10
)  # shorter runs of a cut tensor are not worth an operation each: whole rows are read, and cut in memory


class Part(NamedTuple):
    """Which part of a tensor a rank wants: the one of `rank`, of `world` equal ones along dimension `dim`."""

    dim: int
    rank: int
    world: int


Choice = Callable[[TensorInfo], Part | None]


# --- writing --------------------------------------------------------------------------------------------------------------------------


def save_file(
    tensors: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write numpy arrays or torch tensors as one file, which replaces what is there in one step and survives power loss when this returns.
    Raises OSError, INVALID for types that the format does not have."""
    folder, name = _folder_and_name(path)
    draft = folder.draft()
    try:
        _write(draft, _planned(tensors), metadata or {})
        folder.publish([draft], [name])
    finally:
        draft.discard()
    folder.sync()


def save_folder(
    tensors: Mapping[str, Any],
    path: Where,
    metadata: Mapping[str, str] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
    threads: int = THREADS,
) -> None:
    """Write a directory of files of at most `shard_bytes` (or one tensor), several at once, and the index that names them. The index is
    replaced in one step when they are durable, so at any moment the old or the new set is there, whole; only then the files of the old set
    go."""
    folder = folder_of(path)
    folder.make()
    before = _outdated(folder)
    shards = _shards(_planned(tensors), shard_bytes)
    save = secrets.token_hex(4)
    names = [f"model-{i + 1:05}-of-{len(shards):05}-{save}{SUFFIX}" for i in range(len(shards))]
    drafts: list[Draft] = []
    try:
        drafts += [folder.draft() for _ in shards]
        work = list(zip(drafts, shards, strict=True))
        in_parallel(lambda each: _write(each[0], each[1], metadata or {}), work, threads)
        folder.publish(drafts, names)
    finally:
        for draft in drafts:
            draft.discard()
    folder.sync()
    index = {
        "metadata": {"total_size": sum(tensor.length for shard in shards for tensor in shard)},
        "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
    }
    write_all(folder, INDEX, json.dumps(index, indent=1).encode(), naming=names)
    folder.remove(sorted(before.difference(names)))


def _outdated(folder: Folder) -> set[str]:
    """What another set takes the place of, and what a save that was broken off has left. Other files are nobody's to remove here: an
    optimizer's may lie beside the model's."""
    entries = folder.entries()
    indexed: set[str] = set()
    if INDEX in entries:
        # One that is damaged, or cannot be read, is no reason not to save: it is replaced.
        with contextlib.suppress(OSError):
            indexed = _indexed(folder)
    named = {name for name in indexed.intersection(entries) if name.endswith(SUFFIX)}
    return named | {name for name in entries if OUTDATED.fullmatch(name) or name.endswith(PART_SUFFIX)}


def _planned(tensors: Mapping[str, Any]) -> list[Planned]:
    made = []
    for name, value in tensors.items():
        if name == tensor_format.METADATA:
            raise error(Status.INVALID, f"no tensor can be called {name}")
        dtype, shape = arrays.describe(name, value)
        made.append(Planned(name, dtype, shape, tensor_format.length_of(dtype, shape), value))
    return made


def _shards(tensors: list[Planned], shard_bytes: int) -> list[list[Planned]]:
    """In the given order, which is usually that of the layers: what is used together lies together."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.length > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.length
    return shards


def _write(draft: Draft, tensors: list[Planned], metadata: Mapping[str, str]) -> None:
    """One pass: the checksums are known when the bytes are written, and the header, whose length does not depend on them, comes last."""
    ordered = arranged(tensors)
    begin = len(header_bytes(ordered, metadata))
    for tensor in ordered:
        data = arrays.payload(tensor.value)
        tensor.crc32c = crc32c(data)
        if len(data):
            draft.write(data, begin + tensor.offset)
    draft.write(header_bytes(ordered, metadata), 0)
    draft.fsync()


# --- looking --------------------------------------------------------------------------------------------------------------------------


class TensorFile:
    """An open file: `tensors` and `metadata` say what is in it. A context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises OSError, BAD_FORMAT."""
        folder, name = _folder_and_name(path)
        self._source = folder.open(name)
        try:
            self._header = read_header(self._source, os.fspath(path))
        except BaseException:
            self._source.close()
            raise

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._header.tensors

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._header.metadata

    def load(self, **how: Any) -> dict[str, Any]:
        """Its tensors; options as of `load_file`."""
        return _load([(self._source, self._header)], **how)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_header(source: Source, path: str) -> Header:
    """What stands at the beginning of a file. Raises BAD_FORMAT."""
    first = bytearray(min(FIRST_BYTES, source.size))
    source.read([(0, len(first))] if first else [], memoryview(first))
    length = tensor_format.header_length(bytes(first[: LENGTH.size]), source.size, path)
    end = LENGTH.size + length
    if end > len(first):
        rest = bytearray(end - len(first))
        source.read([(len(first), len(rest))], memoryview(rest))
        first += rest
    return tensor_format.parse_header(bytes(first[LENGTH.size : end]), source.size, path)


# --- loading --------------------------------------------------------------------------------------------------------------------------


def load_file(path: str | os.PathLike[str], **how: Any) -> dict[str, Any]:
    """The tensors of a file by name. Options: `framework` ("numpy" or "torch"), `names` (only these), `part` (which part of a tensor,
    None: all of it), `pin` (page-locked memory), `into` (a writable buffer to load to, as pinned memory of one's own), `device` (torch:
    where they are moved to), `threads`. Raises OSError; BAD_FORMAT, INVALID, UNSUPPORTED for a type that the framework does not have."""
    with TensorFile(path) as file:
        return file.load(**how)


def load_folder(path: Where, **how: Any) -> dict[str, Any]:
    """The tensors of all files that the index of a directory names, or that are in it if there is none. Options as of `load_file`."""
    folder = folder_of(path)
    names = tensor_file_names(folder)
    while True:
        try:
            with ExitStack() as stack:
                files = _opened(folder, names, stack)
                return _load(files, **how)
        except FileNotFoundError:
            before, names = names, tensor_file_names(folder)
            if names == before:
                raise  # else another set has replaced this one meanwhile


def _opened(folder: Folder, names: Iterable[str], stack: ExitStack) -> list[tuple[Source, Header]]:
    """Open files, which can be read from here on even where they are removed."""
    sources = []
    for name in names:
        sources.append((folder.open(name), f"{folder.url}/{name}"))
        stack.callback(sources[-1][0].close)
    return [(source, read_header(source, path)) for source, path in sources]


def _indexed(folder: Folder) -> set[Any]:
    """What the index names, whatever that is. Raises BAD_FORMAT for a damaged one, OSError."""
    try:
        return set(json.loads(read_all(folder, INDEX))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
        raise error(Status.BAD_FORMAT, f"{folder.url}/{INDEX} is damaged: {bad}") from bad


def tensor_file_names(folder: Folder) -> list[str]:
    """The files of a directory that count: those that the index names, or all where nobody has written one, but for those of a save that
    has not ended. Raises NOT_FOUND if there are none, BAD_FORMAT for a broken index."""
    entries = folder.entries()
    if INDEX in entries:
        names = _indexed(folder)
        if not all(isinstance(name, str) and name == posixpath.basename(name) for name in names):
            raise error(Status.BAD_FORMAT, f"{folder.url}/{INDEX} names files outside its directory")
        return sorted(names)
    found = sorted(name for name in entries if name.endswith(SUFFIX))
    settled = [name for name in found if not OF_A_SAVE.search(name)]
    if any(ONE_OF_SEVERAL.search(name) for name in settled) or (found and not settled):
        raise error(Status.NOT_FOUND, f"{folder.url}: parts of a set, but no {INDEX}: its save has not ended")
    if not found:
        raise error(Status.NOT_FOUND, f"{folder.url}: no {SUFFIX} files")
    return settled


class _Wanted(NamedTuple):
    """A tensor, or a part of one, and where it goes."""

    source: Source
    info: TensorInfo
    shape: tuple[int, ...]
    offsets: tuple[int, ...]  # of the part, in elements
    ranges: Ranges  # of its bytes in the file
    begin: int  # in memory
    end: int

    @property
    def in_bands(self) -> bool:
        return len(self.ranges) > 1 and self.ranges[0][1] < RUN_BYTES_MIN


def _load(
    files: Sequence[tuple[Source, Header]],
    *,
    framework: str = "numpy",
    names: Iterable[str] | None = None,
    part: Choice | None = None,
    pin: bool = False,
    into: Any = None,
    device: Any = None,
    threads: int = THREADS,
) -> dict[str, Any]:
    chosen = None if names is None else set(names)
    wanted, size = _laid_out(files, chosen, part)
    if chosen is not None and (missing := chosen - {each.info.name for each in wanted}):
        raise error(Status.NOT_FOUND, f"no tensor {', '.join(sorted(missing))}")
    memory = Memory(size, framework, pin, into)
    read_pieces(_joined([each for each in wanted if not each.in_bands], memory.view), threads)
    bands = [(each, memory.view[each.begin : each.end]) for each in wanted if each.in_bands]
    in_parallel(lambda band: _read_band(*band), bands, threads)
    made = {
        each.info.name: memory.tensor(each.info.dtype, each.shape, each.begin, each.end - each.begin) for each in wanted
    }
    if device is not None:
        made = {name: tensor.to(device, non_blocking=pin) for name, tensor in made.items()}
    return made


def _laid_out(
    files: Sequence[tuple[Source, Header]], names: set[str] | None, part: Choice | None
) -> tuple[list[_Wanted], int]:
    """Where in memory everything goes, and how much that takes. What lies together in the file does so in memory."""
    wanted: list[_Wanted] = []
    end = 0
    known = Counter(name for _, header in files for name in header.tensors)
    if twice := [name for name, count in known.items() if count > 1]:
        raise error(Status.BAD_FORMAT, f"tensor {min(twice)!r} is in several files: which one counts?")
    for source, header in files:
        for info in sorted(header.tensors.values(), key=lambda info: info.offset):
            if names is not None and info.name not in names:
                continue
            cut = part(info) if part is not None else None
            offsets, shape = _cut_shape(info, cut) if cut is not None else ((0,) * len(info.shape), info.shape)
            ranges = _ranges(info, offsets, shape)
            alike = info.offset - header.data if cut is None else 0
            begin = end + (alike - end) % arrays.ALIGNMENT
            end = begin + tensor_format.length_of(info.dtype, shape)
            wanted.append(_Wanted(source, info, shape, offsets, ranges, begin, end))
    return wanted, end


def _cut_shape(info: TensorInfo, part: Part) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the part begins in each dimension, and its shape."""
    dim, rank, world = part
    if not (0 <= dim < len(info.shape) and 0 <= rank < world and not info.shape[dim] % world):
        raise error(
            Status.INVALID, f"{info.name} {list(info.shape)} cannot be cut into {world} along {dim} (part {rank})"
        )
    count = info.shape[dim] // world
    offsets = tuple(rank * count if i == dim else 0 for i in range(len(info.shape)))
    return offsets, tuple(count if i == dim else size for i, size in enumerate(info.shape))


def _ranges(info: TensorInfo, offsets: tuple[int, ...], shape: tuple[int, ...]) -> Ranges:
    """The bytes of a part in the file."""
    if shape == info.shape:
        return [(info.offset, info.length)] if info.length else []
    if BITS[info.dtype] % 8:
        raise error(Status.UNSUPPORTED, f"{info.name}: parts of {info.dtype} do not begin at bytes")
    found = block_ranges(info.shape, offsets, shape, BITS[info.dtype] // 8)
    return [(info.offset + start, length) for start, length in found]


def _joined(wanted: Iterable[_Wanted], memory: memoryview) -> Iterator[Piece]:
    """Pieces to read; neighbours in the file that are neighbours in memory are one."""
    open_: _Wanted | None = None  # what was joined so far: one range
    for each in wanted:
        if open_ is not None and len(each.ranges) == 1 and open_.source is each.source and open_.end == each.begin:
            (start, length), (follows, more) = open_.ranges[0], each.ranges[0]
            if start + length == follows:
                open_ = open_._replace(ranges=[(start, length + more)], end=each.end)
                continue
        if open_ is not None:
            yield Piece(open_.source, open_.ranges, memory[open_.begin : open_.end])
            open_ = None
        if len(each.ranges) == 1:
            open_ = each
        elif each.ranges:
            yield Piece(each.source, each.ranges, memory[each.begin : each.end])
    if open_ is not None:
        yield Piece(open_.source, open_.ranges, memory[open_.begin : open_.end])


def _read_band(wanted: _Wanted, into: memoryview) -> None:
    """A part with short runs: whole rows are read, some MiB at a time, and cut in memory."""
    import numpy as np

    info = wanted.info
    dim = next(i for i, size in enumerate(info.shape) if size != wanted.shape[i])
    row = info.length // int(np.prod(info.shape[:dim], dtype=np.int64))
    run = row // info.shape[dim]
    first, last = run * wanted.offsets[dim], run * (wanted.offsets[dim] + wanted.shape[dim])
    target = np.frombuffer(into, np.uint8).reshape(-1, last - first)
    rows = max(1, PIECE_BYTES // row)
    scratch = np.empty((min(rows, len(target)), row), np.uint8)
    for begin in range(0, len(target), rows):
        count = min(rows, len(target) - begin)
        wanted.source.read([(info.offset + begin * row, count * row)], arrays.payload(scratch[:count]))
        target[begin : begin + count] = scratch[:count, first:last]


def _folder_and_name(path: str | os.PathLike[str]) -> tuple[Folder, str]:
    text = os.fspath(path)
    parent, _, name = text.rpartition("/")
    if not name:
        raise error(Status.INVALID, f"{text!r} names no file")
    return folder_of(parent or ("/" if text.startswith("/") else ".")), name

"""Which checkpoints a directory holds, whether they are whole, and which may go. Works without torch.

A checkpoint is a directory with a `.metadata` (torch.distributed.checkpoint) or with safetensors files. It is *whole* if every file that it
names is there with its size; `verify` reads all bytes and compares their checksums. What torch's own writer has saved has no manifest,
and its `.metadata` is a pickle that is not opened here: it counts as whole where `.metadata` is there, which is written last.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

from ...proto.errors import Status, error
from ..core.verify import crc32c
from . import manifest as manifests
from . import tensor_files
from .folders import PART_SUFFIX, Entry, Folder, Source
from .manifest import METADATA, SHARD_SUFFIX
from .reading import PIECE_BYTES, THREADS, in_parallel
from .tensor_files import INDEX
from .tensor_format import Header

DISTRIBUTED, SAFETENSORS = "dcp", "safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a checkpoint from names, sizes and headers."""

    name: str  # of its directory
    folder: Folder
    kind: str  # "dcp" or "safetensors"
    saved_ns: int  # when it was complete; of one that is not, when its last file was written
    size: int  # bytes of its files
    tensors: int | None  # and objects; None: only torch could say
    save_id: str
    sums: bool  # there are checksums to verify
    problem: str  # why it is not whole, or ""

    @property
    def whole(self) -> bool:
        return not self.problem


class Damage(NamedTuple):
    """Bytes that are not what was written."""

    file: str
    item: str  # the tensor or object, or ""
    what: str


def checkpoints(folder: Folder) -> list[Checkpoint]:
    """The directory itself if it is a checkpoint, else those directly in it, oldest first. Raises OSError."""
    entries = folder.entries()
    own = look(folder, entries)
    if own is not None:
        return [own]
    below = [folder.child(name) for name, entry in entries.items() if entry.is_folder and not name.startswith(".")]
    found = [made for made in in_parallel(_look_if_there, below) if made is not None]
    return sorted(found, key=lambda made: (made.saved_ns, made.name))


def _look_if_there(folder: Folder) -> Checkpoint | None:
    try:
        return look(folder, folder.entries())
    except FileNotFoundError:
        return None  # removed meanwhile


def look(folder: Folder, entries: dict[str, Entry]) -> Checkpoint | None:
    """The checkpoint in a directory with these entries; None if it holds nothing of the kind."""
    if METADATA in entries or any(name.endswith(SHARD_SUFFIX) for name in entries):
        return _look_at_shards(folder, entries)
    if INDEX in entries or any(name.endswith(tensor_files.SUFFIX) for name in entries):
        return _look_at_tensor_files(folder, entries)
    if any(name.endswith(PART_SUFFIX) for name in entries):
        return _unfinished(folder, entries, DISTRIBUTED, "nothing in it is complete")
    return None


def _unfinished(folder: Folder, entries: dict[str, Entry], kind: str, problem: str) -> Checkpoint:
    files = [entry for entry in entries.values() if not entry.is_folder]
    saved = max((entry.mtime_ns for entry in files), default=0)
    size = sum(entry.size for entry in files)
    return Checkpoint(posixpath.basename(folder.url), folder, kind, saved, size, None, "", False, problem)


def _look_at_shards(folder: Folder, entries: dict[str, Entry]) -> Checkpoint:
    if METADATA not in entries:
        return _unfinished(folder, entries, DISTRIBUTED, f"no {METADATA}: its save has not ended")
    manifest, problem = manifests.find(folder, entries)
    name, saved = posixpath.basename(folder.url), entries[METADATA].mtime_ns
    if manifest is None:
        size = sum(entry.size for entry in entries.values() if not entry.is_folder)
        return Checkpoint(name, folder, DISTRIBUTED, saved, size, None, "", False, problem)
    problem = _wrong_sizes([(shard.name, shard.size) for shard in manifest.shards], entries)
    return Checkpoint(
        name, folder, DISTRIBUTED, saved, manifest.size, manifest.tensors, manifest.save_id, True, problem
    )


def _wrong_sizes(files: Sequence[tuple[str, int]], entries: dict[str, Entry]) -> str:
    for name, size in files:
        if name not in entries:
            return f"{name} is missing"
        if entries[name].size != size:
            return f"{name} has {entries[name].size} bytes instead of {size}"
    return ""


def _look_at_tensor_files(folder: Folder, entries: dict[str, Entry]) -> Checkpoint:
    try:
        files = tensor_files.tensor_file_names(folder)
        headers = [header for _, header in _headers(folder, files)]
    except OSError as bad:
        return _unfinished(folder, entries, SAFETENSORS, bad.strerror or str(bad))
    tensors = [tensor for header in headers for tensor in header.tensors.values()]
    saved = max(entries[name].mtime_ns for name in ([INDEX] if INDEX in entries else files) if name in entries)
    return Checkpoint(
        name=posixpath.basename(folder.url),
        folder=folder,
        kind=SAFETENSORS,
        saved_ns=saved,
        size=sum(header.size for header in headers),
        tensors=len(tensors),
        save_id="",
        sums=all(tensor.crc32c is not None for tensor in tensors),
        problem="",
    )


def _headers(folder: Folder, files: Sequence[str]) -> Iterator[tuple[str, Header]]:
    for name in files:
        source = folder.open(name)
        try:
            yield name, tensor_files.read_header(source, f"{folder.url}/{name}")
        finally:
            source.close()


# --- verifying ------------------------------------------------------------------------------------------------------------------------


class _Stretch(NamedTuple):
    """Bytes with a checksum."""

    file: str
    item: str
    offset: int
    length: int
    crc32c: int | None  # None: they are only read


def verify(
    checkpoint: Checkpoint, threads: int = THREADS, done: Callable[[int], object] = lambda _: None
) -> list[Damage]:
    """Read every byte of a checkpoint and compare the checksums: what is damaged. Where its writer left none (`sums`), the bytes are
    read, which in the cluster proves them to be those that were written. `done` is told how many bytes more were read, from any thread."""
    if checkpoint.problem:
        return [Damage("", "", checkpoint.problem)]
    folder = checkpoint.folder
    if checkpoint.kind == SAFETENSORS:
        files = tensor_files.tensor_file_names(folder)
        stretches = [
            _Stretch(name, tensor.name, tensor.offset, tensor.length, tensor.crc32c)
            for name, header in _headers(folder, files)
            for tensor in header.tensors.values()
        ]
    else:
        stretches = _stretches_of_shards(folder)
    found: list[Damage | None] = []
    sources: dict[str, Source] = {}
    with ExitStack() as stack:
        for name in dict.fromkeys(stretch.file for stretch in stretches):
            try:
                sources[name] = folder.open(name)
                stack.callback(sources[name].close)
            except OSError as bad:
                found.append(Damage(name, "", bad.strerror or str(bad)))
        readable = [stretch for stretch in stretches if stretch.file in sources]
        found += in_parallel(lambda stretch: _check(sources[stretch.file], stretch, done), readable, threads)
    return [damage for damage in found if damage is not None]


def _stretches_of_shards(folder: Folder) -> list[_Stretch]:
    entries = folder.entries()
    manifest, problem = manifests.find(folder, entries)
    if problem:
        raise error(Status.BAD_FORMAT, f"{folder.url}: {problem}")
    if manifest is None:
        files = [(name, entry.size) for name, entry in entries.items() if not entry.is_folder]
        return [_Stretch(name, "", 0, size, None) for name, size in files]
    return [_Stretch(shard.name, *item) for shard in manifest.shards for item in shard.items]


def _check(source: Source, stretch: _Stretch, done: Callable[[int], object]) -> Damage | None:
    try:
        found = 0
        buffer = memoryview(bytearray(min(PIECE_BYTES, stretch.length)))
        for begin in range(0, stretch.length, PIECE_BYTES):
            part = buffer[: min(PIECE_BYTES, stretch.length - begin)]
            source.read([(stretch.offset + begin, len(part))], part)
            found = crc32c(part, found)
            done(len(part))
    except OSError as bad:
        return Damage(stretch.file, stretch.item, bad.strerror or str(bad))
    if stretch.crc32c is not None and found != stretch.crc32c:
        return Damage(stretch.file, stretch.item, f"checksum {found:08x} instead of {stretch.crc32c:08x}")
    return None


# --- pruning --------------------------------------------------------------------------------------------------------------------------


def may_go(found: Sequence[Checkpoint], keep: int) -> list[Checkpoint]:
    """Which of the checkpoints of a directory may go so that the last `keep` stay, oldest first.

    Only whole ones count among those, so there is always a whole one left if there was one. What is not whole goes if it is older than
    all of them: a newer one may be on its way. Raises INVALID for less than one.
    """
    if keep < 1:
        raise error(Status.INVALID, "keep at least one checkpoint")
    ordered = sorted(found, key=lambda each: (each.saved_ns, each.name))
    whole = [each for each in ordered if each.whole]
    kept = whole[-keep:]
    if not kept:
        return []
    return ordered[: ordered.index(kept[0])]

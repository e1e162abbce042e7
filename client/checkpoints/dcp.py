"""A storage writer and reader for torch.distributed.checkpoint, over the cluster or a local directory. Needs torch.

```python
import torch.distributed.checkpoint as dcp
from emberfs.client.checkpoints.dcp import StorageReader, StorageWriter

dcp.save(state, storage_writer=StorageWriter("ember:///runs/7/step-1000"))
future = dcp.async_save(state, storage_writer=StorageWriter("ember:///runs/7/step-2000"))
dcp.load(state, storage_reader=StorageReader("ember:///runs/7/step-1000"))
```

A save, in this order: every rank writes its shards to files without names, several at once, and syncs them; they get names that no
file ever had; when all ranks are done the coordinator writes the manifest, syncs, and replaces `.metadata` in one step: that is the
moment at which the checkpoint changes. Only then the files of the one before go. So a save that is broken off anywhere leaves the old
checkpoint or the new one, whole, and what it has left lying about is removed by the next.

The files are those of torch's own file system writer: its reader reads ours, and ours its. Each tensor is what `torch.save` would have
written; the frame is made by torch without looking at the data, which goes from the tensor's memory to the client's buffers, and comes
back the same way where the target is contiguous memory of the CPU. One save at a time into one directory; who is reading the
checkpoint that a save replaces may find its files gone.
"""

from __future__ import annotations

import io
import os
import pickle
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint import filesystem, metadata, staging, storage
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

from ...proto.errors import Status, error
from ..core.verify import crc32c
from . import arrays, manifest
from .folders import PART_SUFFIX, Draft, folder_of, read_all, write_all
from .manifest import METADATA, SHARD_SUFFIX, Item, Manifest
from .reading import THREADS, Piece, block_ranges, in_parallel, read_pieces

ALIGNMENT = 64  # of a tensor's archive in its file, and so of its data
SCRATCH_BYTES_MAX = 256 << 20  # of tensors that are not read to where they belong, at a time
_OURS = "emberfs"  # attribute of a `_StorageInfo`: a `Stored`, as a plain tuple; torch's own reader does not mind it


class Stored(NamedTuple):
    """What we know of an item beyond torch's own description."""

    crc32c: int
    file_size: int  # of the whole file, bytes
    data: int | None = (
        None  # where the tensor's bytes begin, counted from the item's offset; None: it is not stored as such
    )
    dtype: str = ""  # torch's name
    shape: tuple[int, ...] = ()


class StorageWriter(staging.BlockingAsyncStager, storage.StorageWriter):  # type: ignore[misc]
    """Writes checkpoints to a directory: `ember://…`, or a local path. Can be pickled, so `async_save` may use a process."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int = THREADS,
        stripe: int | None = None,
        chunk_size: int | None = None,
        cache_staged_state_dict: bool = False,
    ) -> None:
        """`threads`: files that each rank writes at once. `stripe` (chains of a file) and `chunk_size` (bytes): for the cluster.
        `cache_staged_state_dict`: as of torch's `FileSystemWriter`."""
        super().__init__(cache_staged_state_dict=cache_staged_state_dict)
        self._threads = threads
        self._layout: dict[str, Any] = {"stripe": stripe, "chunk_size": chunk_size}
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id:
            self.folder = folder_of(checkpoint_id, **self._layout)
        # Sorted by time, and never the same again: no save touches a file of another.
        self.save_id = f"{time.time_ns():016x}{secrets.token_hex(4)}"

    @property
    def checkpoint_id(self) -> str:
        return self.folder.url

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return "://" not in str(checkpoint_id) or str(checkpoint_id).startswith(("ember://", "file://"))

    def storage_meta(self) -> Any:
        return metadata.StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self.save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **kwargs: Any) -> None:
        """Raises UNSUPPORTED for ranks that do not coordinate: nobody could replace their checkpoint as one."""
        if not kwargs.get("use_collectives", True):
            raise error(Status.UNSUPPORTED, "use_collectives=False: no rank would know when the checkpoint is whole")

    def prepare_local_plan(self, plan: Any) -> Any:
        self.folder.make()
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        # Constant: planners that cache plans give out those of an earlier save.
        return [replace(plan, storage_data=f"__{rank}") for rank, plan in enumerate(plans)]

    def write_data(self, plan: Any, planner: Any) -> Any:
        """Write this rank's items; they are durable, under names of their own, when the future is done (which it is at once)."""
        # The name is of this rank's making: a plan may be an old one.
        prefix = f"{plan.storage_data}.{self.save_id}-{secrets.token_hex(4)}"
        buckets = _divided(plan.items, self._threads)
        names = [f"{prefix}.{i}{SHARD_SUFFIX}" for i in range(len(buckets))]
        drafts: list[Draft] = []
        try:
            for _ in buckets:
                drafts.append(self.folder.draft())
            work = list(zip(drafts, names, buckets, strict=True))
            written = in_parallel(lambda each: _write_shard(planner, *each), work, self._threads)
            if drafts:
                self.folder.publish(drafts, names)
        finally:
            for draft in drafts:
                draft.discard()
        self.folder.sync()
        future: Future[list[Any]] = Future()
        future.set_result([result for results in written for result in results])
        return future

    def finish(self, metadata: Any, results: list[list[Any]]) -> None:
        """The coordinator makes the checkpoint the one that is there."""
        written = [result for ranks in results for result in ranks]
        metadata.version = filesystem.CURRENT_DCP_VERSION
        metadata.storage_data = {result.index: result.storage_data for result in written}
        metadata.storage_meta = self.storage_meta()
        encoded = pickle.dumps(metadata)
        made = _manifest(self.save_id, encoded, written)
        own = manifest.name_of(self.save_id)
        write_all(self.folder, own, manifest.encode(made))
        kept = [own, *(shard.name for shard in made.shards)]
        write_all(self.folder, METADATA, encoded, naming=kept)
        self.folder.remove(manifest.leftovers(self.folder.entries(), kept, PART_SUFFIX))


def _manifest(save_id: str, encoded: bytes, written: Iterable[Any]) -> Manifest:
    pieces: list[tuple[str, Item]] = []
    sizes: dict[str, int] = {}
    for result in written:
        info = result.storage_data
        stored = Stored(*getattr(info, _OURS))
        pieces.append((info.relative_path, Item(result.index.fqn, info.offset, info.length, stored.crc32c)))
        sizes[info.relative_path] = stored.file_size
    return Manifest(save_id, len(encoded), crc32c(encoded), manifest.shards_of(pieces, sizes))


def _divided(items: list[Any], files: int) -> list[list[Any]]:
    """Items for several files, of about the same size; none is empty."""
    buckets: list[list[Any]] = [[] for _ in range(max(1, files))]
    sizes = [0] * len(buckets)
    for item in sorted(items, key=_size, reverse=True):
        smallest = sizes.index(min(sizes))
        buckets[smallest].append(item)
        sizes[smallest] += _size(item) + 1
    return [bucket for bucket in buckets if bucket]


def _size(item: Any) -> int:
    """Bytes of a tensor; an object's are not known yet."""
    data = item.tensor_data
    return data.size.numel() * data.properties.dtype.itemsize if data is not None else 0


# --- items as bytes -------------------------------------------------------------------------------------------------------------------


class _Gap:
    """A file that takes what torch writes around a tensor's data, and is told to leave that out."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [b""]
        self.gaps: list[int] = []

    def write(self, data: Any) -> int:
        self.parts[-1] += bytes(data)
        return len(data)

    def seek(self, count: int, whence: int = 0) -> None:
        if whence != os.SEEK_CUR:
            raise io.UnsupportedOperation("only forwards")
        self.gaps.append(count)
        self.parts.append(b"")

    def flush(self) -> None: ...


def framed(tensor: torch.Tensor) -> tuple[list[Any], int | None]:
    """What `torch.save` writes of a tensor, as buffers that follow one another, and where in them its data begins. The data are
    the tensor's own memory; None where torch has another way to write this kind of tensor: then they are a copy."""
    tensor = tensor.detach().cpu()
    if type(tensor) is torch.Tensor and tensor.layout == torch.strided and tensor.numel() and not tensor.is_quantized:
        tensor = tensor.contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.is_conj() or tensor.is_neg():
            tensor = tensor.clone(memory_format=torch.contiguous_format).resolve_conj().resolve_neg()
        gap = _Gap()
        with torch.serialization.skip_data():
            torch.save(tensor, gap)
        if gap.gaps == [tensor.nbytes]:
            head, tail = gap.parts
            return [head, arrays.payload(tensor), tail], len(head)
    whole = io.BytesIO()
    torch.save(tensor, whole)
    return [whole.getbuffer()], None


def _write_shard(planner: Any, draft: Draft, name: str, items: list[Any]) -> list[Any]:
    """Write items to a draft, durably: torch's results."""
    end = 0
    rows: list[tuple[Any, int, int, tuple[Any, ...]]] = []
    for item in items:
        begin = end = end + -end % ALIGNMENT
        value = planner.resolve_data(item)
        if isinstance(value, torch.Tensor):
            parts, data = framed(value)
            extra: tuple[Any, ...] = (data, str(value.dtype), tuple(value.shape))
        else:
            parts, extra = [value.getbuffer()], ()
        checksum = 0
        for part in parts:
            checksum = crc32c(part, checksum)
            draft.write(part, end)
            end += len(part)
        rows.append((item, begin, end - begin, (checksum, *extra)))
    draft.fsync()
    results = []
    for item, begin, length, sums in rows:
        info = filesystem._StorageInfo(name, begin, length)
        setattr(info, _OURS, (sums[0], end, *sums[1:]))
        results.append(storage.WriteResult(item.index, length, info))
    return results


# --- loading --------------------------------------------------------------------------------------------------------------------------


class StorageReader(storage.StorageReader):  # type: ignore[misc]
    """Reads checkpoints from a directory, ours and those of torch's own file system writers."""

    def __init__(self, path: str | os.PathLike[str], *, threads: int = THREADS) -> None:
        """`threads`: reads at once, each a batch over all chains of a file."""
        super().__init__()
        self._threads = threads
        self.reset(path)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id:
            self.folder = folder_of(checkpoint_id)
        self.load_id = secrets.token_hex(8)
        self._stored: dict[Any, Any] = {}

    @property
    def checkpoint_id(self) -> str:
        return self.folder.url

    validate_checkpoint_id = StorageWriter.validate_checkpoint_id

    def read_metadata(self, *_: Any, **kwargs: Any) -> Any:
        """The `.metadata` of the checkpoint, or of one rank of those that were saved without coordination. It is a pickle, as torch has it:
        load only what you trust. Raises FileNotFoundError."""
        rank = kwargs.get("rank")
        found = pickle.loads(read_all(self.folder, METADATA if rank is None else f"__{rank}{METADATA}"))  # noqa: S301 -- torch's format
        if getattr(found, "storage_meta", None) is None:
            found.storage_meta = metadata.StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

    def set_up_storage_reader(self, metadata: Any, is_coordinator: bool, *_: Any, **__: Any) -> None:
        self._stored = metadata.storage_data

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    def read_data(self, plan: Any, planner: Any) -> Any:
        """Read all items to where the planner wants them; the future is done at once. Raises OSError."""
        sources: dict[str, Any] = {}
        try:
            wanted = []
            for item in plan.items:
                info = self._stored[item.storage_index]
                if info.relative_path not in sources:
                    sources[info.relative_path] = self.folder.open(info.relative_path)
                wanted.append(_wanted(item, info, sources[info.relative_path], planner))
            for group in _groups(wanted):
                read_pieces((each.piece for each in group), self._threads)
                for each in group:
                    each.arrived()
        finally:
            for source in sources.values():
                source.close()
        future: Future[None] = Future()
        future.set_result(None)
        return future


class _Wanted(NamedTuple):
    """An item of a load: what is read, how much memory of its own it needs, and what happens with it then."""

    piece: Piece
    scratch: int  # bytes
    arrived: Callable[[], None]


def _groups(wanted: list[_Wanted]) -> Iterable[list[_Wanted]]:
    """So many at a time that what is in scratch memory stays bounded; the memory itself is touched when it is read."""
    group: list[_Wanted] = []
    scratch = 0
    while wanted:
        each = wanted.pop()
        if group and scratch + each.scratch > SCRATCH_BYTES_MAX:
            yield group
            group, scratch = [], 0
        group.append(each)
        scratch += each.scratch
    if group:
        yield group


def _wanted(item: Any, info: Any, source: Any, planner: Any) -> _Wanted:
    if getattr(info, "transform_descriptors", None):
        raise error(
            Status.UNSUPPORTED,
            f"{info.relative_path} was written through stream transforms: {info.transform_descriptors}",
        )
    stored = Stored(*ours) if (ours := getattr(info, _OURS, None)) else None
    if item.type == LoadItemType.BYTE_IO or stored is None or stored.data is None:
        return _wanted_whole(item, info, source, planner)
    target = planner.resolve_tensor(item).detach()
    dtype = getattr(torch, stored.dtype.removeprefix("torch."))
    begin, lengths = tuple(item.storage_offsets), tuple(item.lengths)
    _check_size(target, lengths, item)
    ranges = block_ranges(stored.shape, begin, lengths, dtype.itemsize)
    place = info.offset + stored.data
    ranges = [(place + offset, length) for offset, length in ranges]
    direct = target.device.type == "cpu" and target.is_contiguous() and target.dtype == dtype
    into = target if direct else torch.empty(lengths, dtype=dtype)

    def arrived() -> None:
        if not direct:
            target.copy_(into)
        planner.commit_tensor(item, target)

    return _Wanted(Piece(source, ranges, arrays.payload(into)), 0 if direct else into.nbytes, arrived)


def _wanted_whole(item: Any, info: Any, source: Any, planner: Any) -> _Wanted:
    """An object, or a tensor as torch.save wrote it: read as it is, then taken apart by torch."""
    buffer = bytearray(info.length)

    def arrived() -> None:
        if item.type == LoadItemType.BYTE_IO:
            planner.load_bytes(item, io.BytesIO(buffer))
            return
        loaded = torch.load(io.BytesIO(buffer), map_location="cpu", weights_only=True)
        found = narrow_tensor_by_index(loaded, item.storage_offsets, item.lengths)
        target = planner.resolve_tensor(item).detach()
        _check_size(target, tuple(found.size()), item)
        target.copy_(found)
        planner.commit_tensor(item, target)

    ranges = [(info.offset, info.length)] if info.length else []
    return _Wanted(Piece(source, ranges, memoryview(buffer)), info.length, arrived)


def _check_size(target: Any, found: tuple[int, ...], item: Any) -> None:
    if tuple(target.size()) != found:
        raise error(Status.INVALID, f"{item.storage_index.fqn}: {list(found)} is to be loaded to {list(target.size())}")

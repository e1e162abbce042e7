"""Where a data set lies: in a cluster, or in a directory of this machine. All formats are read and written through these few methods."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...proto.drivers import forks
from ...proto.errors import Status, StatusError, error
from ..blocking import BulkRead, Client, File, connect
from ..places import place_of
from .memory import Bytes, Memories, lent
from .pinned import pin

FILES_OPEN_MAX = 512  # of one store in one process; the one that was used longest ago is closed
LOST_AND_FOUND = "lost+found"  # in the root of a local disk: root's alone, and no data set's


class Pending(Protocol):
    """A batched read on its way."""

    def finish(self) -> Bytes:
        """All ranges, one after the other. The memory is used again when the last view of it is gone. Raises OSError."""

    def cancel(self) -> None:
        """Nobody wants it any more."""


class Store(Protocol):
    """Paths are relative to the data set's root. A store can be pickled, and used after a fork."""

    url: str
    verifies: bool  # whether every byte that is read has been checked already

    def find(self, suffix: str = "") -> list[tuple[str, int]]:
        """Path and size in bytes of all files whose name ends so, in order. Raises PermissionError for a directory that may not be read:
        without what is in it, it would be a smaller data set."""

    def names(self, folder: str = "") -> list[str]:
        """What lies in this one directory. Raises FileNotFoundError, NotADirectoryError, PermissionError."""

    def read(
        self, paths: Sequence[str], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> Pending:
        """Begin to read `lengths[i]` bytes from `offsets[i]` on of `paths[file[i]]`, for all i at once."""

    def read_files(self, paths: Sequence[str]) -> list[bytes]:
        """The contents of whole files."""

    def open(self, path: str, mode: str, chunk_size: int = 0) -> Any:
        """A binary file with `read`, `write`, `seek`, `tell`, `truncate`, `flush`, and `fileno` or `fsync`. `chunk_size`: of a new one,
        where it has chunks."""

    def sync(self, file: Any) -> None:
        """What was written to an open file survives a loss of power from here on."""

    def close(self) -> None: ...


def open_store(where: str | os.PathLike[str] | Store, *, pin: bool = False, **options: Any) -> Store:
    """`where`: an "ember://…" URL, whose path is the root, or a local directory, also as "file://…". `pin`: batches lie in memory that is
    pinned for CUDA. `options` are those of `emberfs.connect`. Raises INVALID for any other URL."""
    if not isinstance(where, (str, os.PathLike)):
        return where
    place = place_of(where)
    return ClusterStore(os.fspath(where), pin=pin, **options) if place.cluster else DirectoryStore(place.path, pin=pin)


class _Identities:
    """Which file each path led to when it was opened by hand, as those who read an index do: what it says holds for that file alone."""

    def __init__(self) -> None:
        self._known: dict[str, object] = {}

    def note(self, path: str, identity: object) -> bool:
        """Whether it is another one now."""
        before = self._known.get(path, identity)
        self._known[path] = identity
        return before != identity

    def check(self, path: str, identity: object) -> None:
        """Raise STALE_HANDLE where the path leads elsewhere by now."""
        if self._known.get(path, identity) != identity:
            raise error(Status.STALE_HANDLE, f"{path} was replaced since the data set was opened: open it again")


class ClusterStore:
    """A directory of a cluster, through a client that each process connects when it first needs it, or one that is open already."""

    verifies = True

    def __init__(self, url: str, *, client: Client | None = None, pin: bool = False, **options: Any) -> None:
        self.url = url
        self._cluster, self.root = place_of(url)
        self._options = options
        self._pin = pin
        self._identities = _Identities()
        self._reset(client)

    def _reset(self, client: Client | None = None) -> None:
        self._client = client
        self._lent = client is not None
        self._files: OrderedDict[str, File] = OrderedDict()
        self._pieces = _Pieces()

    def __getstate__(self) -> dict[str, Any]:
        names = ("url", "root", "_cluster", "_options", "_pin", "_identities")
        return {name: self.__dict__[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = connect(self._cluster, **self._options)
        return self._client

    def path(self, path: str) -> str:
        """Absolute in the cluster."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def find(self, suffix: str = "") -> list[tuple[str, int]]:
        stat = self.client.stat(self.root)
        if not stat.is_dir:
            return [("", stat.size)]
        denied: list[str] = []
        entries = self.client.find(self.root, denied=denied.append)
        found = [(path, entry.size) for path, entry in entries if entry.is_file]
        if denied:
            raise error(Status.PERMISSION_DENIED, f"{self.url}: the directory {denied[0]} may not be read")
        return sorted((path, size) for path, size in found if path.endswith(suffix))

    def names(self, folder: str = "") -> list[str]:
        return self.client.listdir(self.path(folder))

    def read(
        self, paths: Sequence[str], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> Pending:
        self._pieces.give_back()
        chosen = list(dict.fromkeys(file))
        handles = [self._open(paths[number]) for number in chosen]
        # Files that are left out of the cache are closed when no batch refers to them any more.
        while len(self._files) > max(FILES_OPEN_MAX, len(chosen)):
            self._files.popitem(last=False)
        if len(chosen) == 1:
            file = [0] * len(lengths)
        elif chosen != list(range(len(chosen))):
            places = {number: place for place, number in enumerate(chosen)}
            file = [places[number] for number in file]
        size = sum(lengths)
        if self._pieces.bytes + size <= self.client.core.options.memory // 2:
            try:
                bulk = self.client.bulk_read(handles, file, offsets, lengths)
                if self._pin:
                    self._pieces.pin(self.client)
                return self._pieces.lend(bulk, size, handles)
            except StatusError as failure:
                if failure.status not in (Status.BUSY, Status.TOO_LARGE):
                    raise
        rows = [(handles[place], offset, length) for place, offset, length in zip(file, offsets, lengths, strict=True)]
        return _Copied(self.client, rows)

    def read_files(self, paths: Sequence[str]) -> list[bytes]:
        found = self.client.read_ranges([(self.path(path), None, None) for path in paths])
        for one in found:
            if isinstance(one, StatusError):
                raise one
        return found  # type: ignore[return-value]

    def open(self, path: str, mode: str, chunk_size: int = 0) -> Any:
        file = self.client.open(self.path(path), mode, parents="r" not in mode, chunk_size=chunk_size or None)
        if self._identities.note(path, file.handle.file.id):
            self._files.pop(path, None)
        return file

    def sync(self, file: Any) -> None:
        file.fsync()

    def close(self) -> None:
        client, lent = self._client, self._lent
        while self._files:
            self._files.popitem()[1].close()
        self._reset(client if lent else None)
        if client is not None and not lent:
            client.close()

    def _open(self, path: str) -> Any:
        file = self._files.pop(path, None)  # in one step, as other threads do this too
        if file is None:
            file = self.client.open(self.path(path), "rb")
            self._identities.check(path, file.handle.file.id)
        self._files[path] = file
        return file


class _Pieces:
    """The client's own memory, as far as batches lie in it: half of it at most, since all that the client does needs some."""

    def __init__(self) -> None:
        self.bytes = 0
        self.returned: deque[_FromPool] = deque()  # their last view is gone
        self._pinned: object = None  # the memory, as a whole
        self._lock = threading.RLock()
        forks.follow(self)

    def lend(self, bulk: BulkRead, size: int, files: Sequence[File]) -> _FromPool:
        self.count(size)
        return _FromPool(bulk, size, files, self)

    def count(self, more: int) -> None:
        """So many bytes more are lent."""
        with self._lock:
            self.bytes += more

    def pin(self, client: Client) -> None:
        """All of the memory, with the first batch: and another one after a fork."""
        region = client.core.env.pool.region  # type: ignore[attr-defined]
        if region is not self._pinned:
            pin(region.view)
            self._pinned = region

    def give_back(self) -> None:
        with suppress(IndexError):  # other threads do this too
            while True:
                self.returned.popleft().cancel()

    def before_fork(self) -> None:
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = threading.RLock()


class _FromPool:
    """Bytes in the client's own memory, where servers have moved them."""

    def __init__(self, bulk: BulkRead, size: int, files: Sequence[File], pieces: _Pieces) -> None:
        self._bulk = bulk
        self._size = size
        self._files = files  # are not closed meanwhile
        self._pieces = pieces

    def finish(self) -> Bytes:
        view = self._bulk.finish()
        self._files = ()
        return lent(view, self._pieces.returned.append, self)

    def cancel(self) -> None:
        self._bulk.release()
        self._files = ()
        size, self._size = self._size, 0
        self._pieces.count(-size)


class _Copied:
    """Where the client's memory does not suffice, because too many batches are kept or one is too large: bytes in memory of their own."""

    def __init__(self, client: Client, rows: list[tuple[Any, int, int]]) -> None:
        self._client = client
        self._rows = rows

    def finish(self) -> Bytes:
        memory = np.empty(sum(length for _, _, length in self._rows), np.uint8)
        self._client.read_many(self._rows, memory)
        return memory

    def cancel(self) -> None:
        self._rows = []


class DirectoryStore:
    """A local directory, or one file of it."""

    verifies = False

    def __init__(self, root: str | os.PathLike[str], *, pin: bool = False) -> None:
        self.url = self.root = os.path.abspath(root)
        self._pin = pin
        self._identities = _Identities()
        self._reset()

    def _reset(self) -> None:
        self._memories = Memories(pinned=self._pin)
        self._files: OrderedDict[str, _Descriptor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "root": self.root, "_pin": self._pin, "_identities": self._identities}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def path(self, path: str) -> str:
        return os.path.join(self.root, path) if path else self.root

    def find(self, suffix: str = "") -> list[tuple[str, int]]:
        if not os.path.isdir(self.root):
            return [("", os.stat(self.root).st_size)]
        walk = os.walk(self.root, onerror=_raise)
        paths = [os.path.join(folder, name) for folder, _, names in walk for name in names if name.endswith(suffix)]
        return sorted(
            (os.path.relpath(path, self.root), os.stat(path).st_size) for path in paths if os.path.isfile(path)
        )

    def names(self, folder: str = "") -> list[str]:
        return os.listdir(self.path(folder))

    def read(
        self, paths: Sequence[str], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> Pending:
        return _FromDisk(self, paths, file, offsets, lengths)

    def read_now(
        self, paths: Sequence[str], file: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]
    ) -> Bytes:
        """One `preadv` for each range."""
        opened = {number: self._open(paths[number]) for number in set(file)}  # stay open until this is over
        descriptors = {number: descriptor.number for number, descriptor in opened.items()}
        memory = self._memories.take(sum(lengths))
        view, position = memory.data, 0
        for number, offset, length in zip(file, offsets, lengths, strict=True):
            end = position + length
            if length and os.preadv(descriptors[number], [view[position:end]], offset) != length:
                self._fill(paths[number], descriptors[number], view[position:end], offset)
            position = end
        return memory

    def _fill(self, path: str, descriptor: int, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(descriptor, [view], offset)
            if not count:
                raise EOFError(f"{self.path(path)} ends at byte {offset}, where a sample goes on")
            view, offset = view[count:], offset + count

    def read_files(self, paths: Sequence[str]) -> list[bytes]:
        return [Path(self.path(path)).read_bytes() for path in paths]

    def open(self, path: str, mode: str, chunk_size: int = 0) -> Any:
        whole = Path(self.path(path))
        if "r" not in mode:
            whole.parent.mkdir(parents=True, exist_ok=True)
        file = whole.open(mode)
        if self._identities.note(path, _identity(file.fileno())):
            self._files.pop(path, None)
        return file

    def sync(self, file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())

    def close(self) -> None:
        self._files.clear()

    def _open(self, path: str) -> _Descriptor:
        descriptor = self._files.pop(path, None)  # in one step, as other threads do this too
        if descriptor is None:
            descriptor = _Descriptor(self.path(path))
            self._identities.check(path, _identity(descriptor.number))
        self._files[path] = descriptor
        if len(self._files) > FILES_OPEN_MAX:
            self._files.popitem(last=False)
        return descriptor


def _raise(failure: OSError) -> None:
    if os.path.basename(failure.filename) != LOST_AND_FOUND:
        raise failure


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class _Descriptor:
    """Of an open file, which is closed when nobody refers to it any more: its number is not another file's while somebody reads."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number).atexit = False


class _FromDisk:
    """Reads when it is waited for: the kernel has its own readahead, and the page cache its own copy."""

    def __init__(self, store: DirectoryStore, *columns: Any) -> None:
        self._store = store
        self._columns = columns

    def finish(self) -> Bytes:
        return self._store.read_now(*self._columns)

    def cancel(self) -> None:
        self._columns = ()

"""A directory that checkpoints are kept in: of the cluster, or a local one, behind one small interface.

A file is written as a `Draft`, which has no name. `publish` gives names, each in one step, and replaces what had them: there is no
moment without the old or the new file, and none with half of one. In the cluster a draft that nobody published is gone with its writer;
locally it is a hidden file `.….part`, which the next save removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...proto.copying import bytes_of
from ...proto.env import drive
from ...proto.errors import Status, error
from ..places import place_of

if TYPE_CHECKING:
    from ..blocking import Client, File

PART_SUFFIX = ".part"  # of a local draft's hidden name
CHUNK_LARGE = 4 << 20  # bytes, of a large file: a sixth faster to save than 1 MiB
STRIPE_LARGE = 16  # chains of a large file, or as many as there are: each has to be asked when the file is synced
Ranges = Sequence[tuple[int, int]]  # (offset, length) in bytes
_REMOVED = re.compile(
    r"\..+\.[0-9a-f]{16}\.removed", re.DOTALL
)  # hidden name of a local directory that is being removed


class Entry(NamedTuple):
    """What is known of a name."""

    size: int  # bytes
    mtime_ns: int
    is_folder: bool


class Draft(Protocol):
    """A file that is being written and has no name yet."""

    def write(self, data: Any, offset: int) -> None:
        """Write a whole buffer at `offset`. Raises OSError, here or from `fsync`."""

    def fsync(self) -> None:
        """All that was written survives power loss when this returns."""

    def discard(self) -> None:
        """Drop it. Nothing happens to one that was published."""


class Source(Protocol):
    """A file that is read, by any number of threads at once."""

    size: int  # bytes

    def read(self, ranges: Ranges, buffer: memoryview) -> None:
        """Fill `buffer` with the ranges, one after the other. Raises OSError, and BAD_FORMAT if the file ends before."""

    def close(self) -> None: ...


class Folder(Protocol):
    """A directory. Its methods raise the `OSError`s of the standard library. It can be pickled."""

    url: str

    def make(self) -> None:
        """Make it, and those on the way, unless they are there."""

    def child(self, name: str) -> Folder: ...

    def entries(self) -> dict[str, Entry]: ...

    def draft(self, *, large: bool = True) -> Draft:
        """A new file in it. `large`: worth to be spread over many chains."""

    def publish(self, drafts: Sequence[Draft], names: Sequence[str]) -> None:
        """Give drafts their names. They are closed then."""

    def open(self, name: str) -> Source: ...

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; one that is not there is no error."""

    def remove_all(self, *, forever: bool = False) -> None:
        """Remove the directory and all that is in it, in one step; in the cluster to the trash, unless `forever`."""

    def sync(self) -> None:
        """Its names, as they are now, survive power loss when this returns."""


Where = str | os.PathLike[str] | Folder


def folder_of(path: Where, *, stripe: int | None = None, chunk_size: int | None = None) -> Folder:
    """The directory that an `ember://` URL, a `file://` URL or a local path names, or a `Folder` itself. It need not be there yet.

    `stripe` (chains) and `chunk_size` (bytes) are for large files that are written to the cluster; default: 16 and 4 MiB. Raises INVALID
    for any other URL.
    """
    if not isinstance(path, str | os.PathLike):
        return path
    place = place_of(path)
    return ClusterFolder(place.cluster, place.path, stripe, chunk_size) if place.cluster else LocalFolder(place.path)


def read_all(folder: Folder, name: str) -> bytes:
    """The whole of a (small) file."""
    source = folder.open(name)
    try:
        buffer = bytearray(source.size)
        source.read([(0, source.size)] if buffer else [], memoryview(buffer))
        return bytes(buffer)
    finally:
        source.close()


def write_all(folder: Folder, name: str, data: bytes, naming: Sequence[str] = ()) -> None:
    """Make `data` the content of a name, in one step; it survives power loss when this returns. `naming`: files that it tells of. Raises
    BUSY_RESOURCE if another save into the directory has taken them for what an old one left."""
    draft = folder.draft(large=False)
    try:
        draft.write(data, 0)
        draft.fsync()
        if missing := set(naming).difference(folder.entries() if naming else ()):
            raise error(
                Status.BUSY_RESOURCE, f"another save into {folder.url} has removed {min(missing)}: save one at a time"
            )
        folder.publish([draft], [name])
    finally:
        draft.discard()
    folder.sync()


# --- the cluster ----------------------------------------------------------------------------------------------------------------------

_clients: dict[
    str, Client
] = {}  # of this process, by the URL of the root; forked children inherit them and connect anew
_connecting = threading.Lock()


def _after_fork_in_child() -> None:
    """Another thread of the parent may have held the lock. The clients look after themselves."""
    global _connecting  # noqa: PLW0603
    _connecting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _client_of(root: str) -> Client:
    from ..blocking import connect

    with _connecting:
        found = _clients.get(root)
        if found is None or found.closed:
            found = _clients[root] = connect(root)
        return found


class ClusterFolder:
    """A directory of the cluster. All of a process share one client."""

    def __init__(self, cluster: str, path: str, stripe: int | None = None, chunk_size: int | None = None) -> None:
        self.path = path
        self._root = cluster
        self.url = cluster + path[1:]
        self._stripe = stripe
        self._chunk_size = chunk_size

    @property
    def client(self) -> Client:
        return _client_of(self._root)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def make(self) -> None:
        self.client.mkdir(self.path, parents=True, exist_ok=True)

    def child(self, name: str) -> Folder:
        return ClusterFolder(self._root, self._at(name), self._stripe, self._chunk_size)

    def entries(self) -> dict[str, Entry]:
        return {name: Entry(found.size, found.mtime_ns, found.is_dir) for name, found in self.client.scandir(self.path)}

    def draft(self, *, large: bool = True) -> Draft:
        stripe, chunk_size = (self._stripe or STRIPE_LARGE, self._chunk_size or CHUNK_LARGE) if large else (None, None)
        file = self.client.open(self.path, "w+b", unnamed=True, stripe=stripe, chunk_size=chunk_size)
        return ClusterDraft(file)

    def publish(self, drafts: Sequence[Draft], names: Sequence[str]) -> None:
        files = [draft.file for draft in drafts if isinstance(draft, ClusterDraft)]
        self.client.publish(files, [self._at(name) for name in names])

    def open(self, name: str) -> Source:
        client = self.client
        return ClusterSource(client, client.open(self._at(name), buffering=0))

    def remove(self, names: Sequence[str]) -> None:
        for failure in self.client.unlink_many([self._at(name) for name in names]):
            if failure is not None and not isinstance(failure, FileNotFoundError):
                raise failure

    def remove_all(self, *, forever: bool = False) -> None:
        self.client.remove_tree(self.path, forever=forever)

    def sync(self) -> None:
        drive(self.client.core.sync_names())


class ClusterDraft:
    """An unnamed file of the cluster."""

    def __init__(self, file: File) -> None:
        self.file = file

    def write(self, data: Any, offset: int) -> None:
        self.file.pwrite(data, offset)

    def fsync(self) -> None:
        self.file.fsync()

    def discard(self) -> None:
        if not self.file.closed:
            self.file.discard()


class ClusterSource:
    """A file of the cluster: each `read` is some batches over all of its chains, of which the next is on its way while one is copied."""

    def __init__(self, client: Client, file: File) -> None:
        self._client = client
        self._file = file
        self.size = file.size

    def read(self, ranges: Ranges, buffer: memoryview) -> None:
        end = max([offset + length for offset, length in ranges], default=0)
        _check_read(self._file.name, self.size, end)
        self._client.read_many([(self._file, offset, length) for offset, length in ranges], buffer)

    def close(self) -> None:
        self._file.close()


def _check_read(name: str, got: int, wanted: int) -> None:
    if got < wanted:
        raise error(Status.BAD_FORMAT, f"{name} ends {wanted - got} bytes too early")


# --- local ----------------------------------------------------------------------------------------------------------------------------


class LocalFolder:
    """A directory of a local file system, or of a mount."""

    def __init__(self, path: str) -> None:
        self.url = self.path = path

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def make(self) -> None:
        os.makedirs(self.path, exist_ok=True)

    def child(self, name: str) -> Folder:
        return LocalFolder(self._at(name))

    def entries(self) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        with os.scandir(self.path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
                    seen = entry.stat()
                    if entry.is_symlink() and stat.S_ISDIR(seen.st_mode):
                        continue  # as "latest": another name of a directory, and no second one
                    found[entry.name] = Entry(seen.st_size, seen.st_mtime_ns, stat.S_ISDIR(seen.st_mode))
        return found

    def draft(self, *, large: bool = True) -> Draft:
        return LocalDraft(self._at(f".{secrets.token_hex(8)}{PART_SUFFIX}"))

    def publish(self, drafts: Sequence[Draft], names: Sequence[str]) -> None:
        for draft, name in zip(drafts, names, strict=True):
            assert isinstance(draft, LocalDraft)
            draft.rename(self._at(name))

    def open(self, name: str) -> Source:
        return LocalSource(self._at(name))

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._at(name))

    def remove_all(self, *, forever: bool = False) -> None:
        # A step at a time, a part of it could be taken for something.
        parent, name = os.path.split(self.path)
        removed = f".{name}.{secrets.token_hex(8)}.removed"
        os.rename(self.path, os.path.join(parent, removed))
        left = [found for found in os.listdir(parent) if _REMOVED.fullmatch(found)]  # by who was killed here, too
        for found in left:
            shutil.rmtree(os.path.join(parent, found), ignore_errors=found != removed)

    def sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LocalDraft:
    """A hidden file until it gets its name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def write(self, data: Any, offset: int) -> None:
        view = bytes_of(data)
        while len(view):  # the kernel takes at most 2 GiB at once
            count = os.pwrite(self._descriptor, view, offset)
            view, offset = view[count:], offset + count

    def fsync(self) -> None:
        os.fsync(self._descriptor)

    def rename(self, path: str) -> None:
        os.rename(self._path, path)
        self._close()

    def discard(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class LocalSource:
    """A local file that is read by position."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, ranges: Ranges, buffer: memoryview) -> None:
        begin = 0
        for offset, length in ranges:
            done = 0
            while done < length:
                count = os.preadv(self._descriptor, [buffer[begin + done : begin + length]], offset + done)
                if not count:
                    _check_read(self._path, done, length)
                done += count
            begin += length

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

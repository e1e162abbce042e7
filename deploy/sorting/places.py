"""Where the files of a sort lie: on this machine (also on a mount), or in a cluster, without a mount."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ...proto.env import drive
from ...proto.errors import Status, error

if TYPE_CHECKING:
    from ...client.blocking import Client, File

IO_BYTES_MAX = 64 << 20  # of one read or write; Linux takes less than 2 GiB
SCHEME = "ember://"


class Range(NamedTuple):
    """Bytes of a file."""

    path: str
    offset: int
    length: int


class Closing(Protocol):
    """Something to be closed."""

    def close(self) -> None: ...


class Place(Protocol):
    """Files by their paths. Every failure is an OSError."""

    def size(self, path: str) -> int:
        """Bytes of a file. Raises INVALID for what is there and no regular file."""
        ...

    def is_there(self, path: str) -> bool: ...

    def read(self, ranges: Sequence[Range], out: Any) -> None:
        """All ranges one after the other into the writable buffer `out`. Raises INVALID where a file is shorter."""
        ...

    def make(self, path: str) -> None:
        """A new, empty file; an existing one is emptied."""
        ...

    def write(self, path: str, offset: int, data: Any, *, durable: bool = False) -> None:
        """Write a whole buffer into an existing file; it is there for all readers on return, with `durable` after a power loss too."""
        ...

    def make_directory(self, path: str) -> None:
        """A directory that is not there yet."""
        ...

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        ...

    def lock(self, path: str, *, make: bool = False) -> Closing | None:
        """Lock a file (with `make`: one that is not there yet) until the result is closed or this process has ended, in a cluster until its
        client's lease is over then. None where another process has it."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Atomically and durably, over an existing file."""
        ...

    def remove(self, path: str) -> None:
        """A file, or a directory with all that is in it; without a sound where there is none."""
        ...

    def close(self) -> None: ...


def locate(text: str) -> tuple[str, str]:
    """A file as it is typed -> (the cluster's URL, or "" for this machine; the path there)."""
    if not text.startswith(SCHEME):
        return "", os.path.abspath(text)
    host, _, path = text.removeprefix(SCHEME).partition("/")
    return f"{SCHEME}{host}/", "/" + path


def open_place(url: str) -> Place:
    """The place of a URL from `locate`. Raises as `emberfs.connect`."""
    if not url:
        return Local()
    from ...client.blocking import connect

    return Cluster(connect(url))


def check_target(there: Place, path: str) -> None:
    """A file of this name may be made, or replaced. Raises INVALID for a directory, a device, …"""
    with suppress(FileNotFoundError):
        there.size(path)


def read_fully(file: int, out: Any, offset: int) -> int:
    """Fill `out` from `offset` on; how many bytes, fewer only at the end of the file."""
    view = memoryview(out).cast("B")
    done = 0
    while done < len(view):
        got = os.preadv(file, [view[done : done + IO_BYTES_MAX]], offset + done)
        if not got:
            break
        done += got
    return done


def write_fully(file: int, data: Any, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done : done + IO_BYTES_MAX], offset + done)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Failures of system calls that know only a descriptor name the file, too."""
    try:
        yield
    except OSError as failed:
        if failed.filename is None and failed.errno is not None:
            raise OSError(failed.errno, failed.strerror, path) from failed
        raise


class Local:
    """Files of this machine, mounts among them."""

    def size(self, path: str) -> int:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise error(Status.INVALID, f"{path} is no regular file")
        return found.st_size

    def is_there(self, path: str) -> bool:
        return os.path.lexists(path)

    def read(self, ranges: Sequence[Range], out: Any) -> None:
        view, done, files = memoryview(out).cast("B"), 0, dict[str, int]()
        try:
            for path, offset, length in ranges:
                if path not in files:
                    files[path] = os.open(path, os.O_RDONLY)
                with naming(path):
                    have = read_fully(files[path], view[done : done + length], offset)
                if have < length:
                    raise error(Status.INVALID, f"{path} ends before byte {offset + length}")
                done += length
        finally:
            for file in files.values():
                os.close(file)

    def make(self, path: str) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))

    def write(self, path: str, offset: int, data: Any, *, durable: bool = False) -> None:
        file = os.open(path, os.O_WRONLY)
        try:
            with naming(path):
                write_fully(file, data, offset)
                if durable:
                    os.fsync(file)
        finally:
            os.close(file)

    def make_directory(self, path: str) -> None:
        os.mkdir(path)

    def names(self, path: str) -> list[str]:
        return os.listdir(path)

    def lock(self, path: str, *, make: bool = False) -> Closing | None:
        file = open(path, "xb" if make else "r+b")  # noqa: SIM115 (the lock is held while it is open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)
        directory = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)

    def close(self) -> None: ...


class Cluster:
    """Files of a cluster: all ranges of all files are one batched read over all chains."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def size(self, path: str) -> int:
        found = self.client.stat(path)
        if not found.is_file:
            raise error(Status.INVALID, f"{path} is no regular file")
        return found.size

    def is_there(self, path: str) -> bool:
        return self.client.exists(path)

    def read(self, ranges: Sequence[Range], out: Any) -> None:
        with ExitStack() as stack:
            files = {
                path: stack.enter_context(self.client.open(path)) for path in dict.fromkeys(r.path for r in ranges)
            }
            self.client.read_many([(files[part.path], part.offset, part.length) for part in ranges], out)

    def make(self, path: str) -> None:
        self.client.open(path, "wb").close()

    def write(self, path: str, offset: int, data: Any, *, durable: bool = False) -> None:
        with self.client.open(path, "r+b") as file:
            file.pwrite(data, offset)
            if durable:
                file.fsync()

    def make_directory(self, path: str) -> None:
        self.client.mkdir(path)

    def names(self, path: str) -> list[str]:
        return self.client.listdir(path)

    def lock(self, path: str, *, make: bool = False) -> Closing | None:
        file: File = self.client.open(path, "xb" if make else "r+b", buffering=0)
        try:
            file.flock("exclusive", blocking=False)
        except BlockingIOError:
            file.close()
            return None
        return file

    def rename(self, source: str, target: str) -> None:
        self.client.rename(source, target)
        drive(self.client.core.sync_names())

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.client.remove_tree(path, forever=True)

    def close(self) -> None:
        self.client.close()

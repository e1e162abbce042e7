"""The file objects of `EmberFileSystem`: fsspec's interface over the client's own files, and transactions of many files."""

from __future__ import annotations

import io
from threading import get_ident
from typing import TYPE_CHECKING, Any

from fsspec.asyn import AbstractAsyncStreamedFile
from fsspec.spec import AbstractBufferedFile
from fsspec.transaction import Transaction

from ..proto.copying import bytes_of
from . import operations as ops
from .core.options import parse_mode

if TYPE_CHECKING:
    from .blocking import File
    from .core.client import Core
    from .core.file import Handle
    from .filesystem import EmberFileSystem


class EmberFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of the cluster. Buffering is the client's: reads and writes go straight to it, seeking works in every mode.

    It is an `AbstractBufferedFile` because consumers ask for that (`blocksize`, `loc`, `size`, `cache`, `_fetch_range`); a fsspec cache is
    used only where one is named (`cache_type="parts"` of `fsspec.parquet`). `flush` makes writes visible to others, `fsync` durable.
    With `autocommit=False` what mode "wb", "xb" or "ab" makes has no name until `commit`; `discard`, an exception in its `with` block and
    garbage collection drop it. Modes "rb" and "r+b" are no part of that, as everywhere in fsspec.
    """

    def __init__(
        self,
        fs: EmberFileSystem,
        path: str,
        mode: str = "rb",
        block_size: Any = None,
        autocommit: bool = True,
        cache_type: str | None = None,
        cache_options: dict[str, Any] | None = None,
        size: int | None = None,
        **options: Any,
    ) -> None:
        self.closed = True  # until the open below succeeded: __del__ closes
        self.fs, self.path, self.mode = fs, path, mode
        self.blocksize = self.DEFAULT_BLOCK_SIZE if block_size in ("default", None) else block_size
        kind = parse_mode(mode).binary[0]
        self.autocommit = autocommit or kind == "r"
        self.kwargs = options
        self._details: Any = None
        known = {name: options[name] for name in ("chunk_size", "stripe", "parents") if name in options}
        self.file: File
        if self.autocommit:
            self.file = fs.client.open(path, mode, **known)
        else:
            if kind == "x" and fs.lexists(path):
                raise FileExistsError(17, "the name exists", path)
            self.file = fs.client.open(fs._parent(path), "w+b", unnamed=True, **known)
            if kind == "a":
                self._begin_with(path)
        self.closed = False
        self._sought: dict[int, tuple[int, int]] = {}  # thread -> (where its next read begins, `_turns` then)
        self._turns = 0  # reads by a thread that had not sought: they end every thread's own place
        self.cache = None
        if cache_type and mode == "rb":
            from fsspec.core import caches

            self.cache = caches[cache_type](self.blocksize, self._fetch_range, self.size, **(cache_options or {}))
            self._cached_loc = 0

    def _begin_with(self, path: str) -> None:
        """Go on behind what the name has now, if anything: the new file replaces it."""
        try:
            with self.fs.client.open(path) as old:
                self.file.copy_from(old, 0, 0, old.size)
                self.file.seek(0, 2)
        except FileNotFoundError:
            pass
        except BaseException:
            self.file.discard()
            raise

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def details(self) -> Any:
        if self._details is None:
            self._details = ops.entry(self.path, self.file.stat())
        return self._details

    @property
    def loc(self) -> int:
        if self.cache is not None:
            return self._cached_loc
        place = self._own_place()
        return self.file.tell() if place is None else place

    @property
    def name(self) -> str:
        return self.path

    def readable(self) -> bool:
        return not self.closed and self.file.readable()

    def writable(self) -> bool:
        return not self.closed and self.file.writable()

    def seekable(self) -> bool:
        return not self.closed

    def fileno(self) -> int:
        raise io.UnsupportedOperation("a file of the cluster has no descriptor; mount it for that")

    # --- bytes ------------------------------------------------------------------------------------------------------

    def _open_file(self) -> File:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        return self.file

    def tell(self) -> int:
        return self.loc

    # duckdb seeks and reads one file from several threads at once and relies on both together being atomic. Each thread that has sought
    # therefore reads on from its own place; one that has not uses the file's position, as ever, and with that ends the others' places.

    def _own_place(self) -> int | None:
        place, turn = self._sought.get(get_ident(), (0, -1))
        return place if turn == self._turns else None

    def _move(self, position: int) -> int:
        self.file.seek(position)
        if self.mode == "rb":
            self._sought[get_ident()] = position, self._turns
        return position

    def seek(self, loc: int, whence: int = 0) -> int:
        self._open_file()
        position = int(loc) + (0, self.loc if whence == 1 else 0, self.size if whence == 2 else 0)[whence]
        if self.cache is None:
            return self._move(position)
        if position < 0:
            raise ValueError("seek before the start of the file")
        self._cached_loc = position
        return position

    def read(self, length: int | None = -1) -> bytes:
        file = self._open_file()
        length = -1 if length is None else int(length)
        if self.cache is None:
            place = self._own_place()
            if place is None:
                self._turns += 1
                return file.read(length)
            data = file.pread(max(0, self.size - place) if length < 0 else length, place)
            self._move(place + len(data))
            return data
        end = self.size if length < 0 else min(self.size, self._cached_loc + length)
        cached: bytes = self.cache._fetch(self._cached_loc, end) if end > self._cached_loc else b""
        self._cached_loc += len(cached)
        return cached

    def readinto(self, b: Any) -> int:
        file = self._open_file()
        if self.cache is None:
            place = self._own_place()
            if place is None:
                self._turns += 1
                return file.readinto(b)
            count = file.pread_into(b, place)
            self._move(place + count)
            return count
        view = bytes_of(b)
        data = self.read(view.nbytes)
        view[: len(data)] = data
        return len(data)

    readinto1 = readinto

    def read1(self, size: int = -1) -> bytes:
        return self.read(self.blocksize if size < 0 else min(size, self.blocksize))

    def read_buffer(self, nbytes: int = -1) -> Any:
        """pyarrow's short cut: the bytes as a buffer that pyarrow wraps without a copy."""
        return self.read(nbytes)

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.file.pread(end - start, start)

    def write(self, data: Any) -> int:
        return self._open_file().write(data)

    def truncate(self, size: int | None = None) -> int:
        return self._open_file().truncate(size)

    def flush(self, force: bool = False) -> None:
        if self.closed:
            raise ValueError("Flush on closed file")
        if self.file.writable() and self.autocommit:
            self.file.flush()

    def fsync(self) -> None:
        """Make what was written durable on every replica."""
        self._open_file().fsync()

    # --- its end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.autocommit:
            self.file.close()
        # Otherwise it waits for commit or discard, usually by the transaction.

    def commit(self) -> None:
        """Give the file its name, replacing what is there (mode "xb": failing with FileExistsError then)."""
        if not self.autocommit:
            self.closed = True
            self.fs.client.publish([self.file], [self.path], exclusive="x" in self.mode)

    def discard(self) -> None:
        """Drop a file that was never committed."""
        if not self.autocommit:
            self.closed = True
            self.file.discard()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None and not self.autocommit:
            self.discard()
        else:
            self.close()

    def __del__(self) -> None:
        # No work here, as in the client's own `File`, which comes next and has the keeper close it.
        if not self.closed and not self.autocommit:
            self.file.handle.unwanted = True

    def __reduce__(self) -> Any:
        if self.mode != "rb":
            raise TypeError("a file that is open for writing cannot be pickled")
        return _reopen, (self.fs, self.path, self.loc)


def _reopen(fs: EmberFileSystem, path: str, position: int) -> EmberFile:
    file = EmberFile(fs, path)
    file.seek(position)
    return file


class EmberAsyncFile(AbstractAsyncStreamedFile):  # type: ignore[misc]
    """A file for asyncio: `read`, `write`, `seek`, `flush`, `close` over the client's own buffering."""

    def __init__(self, fs: EmberFileSystem, path: str, mode: str, handle: Handle) -> None:
        self.fs, self.path, self.mode, self.handle = fs, path, mode, handle
        self.autocommit = True
        self.closed = False

    @classmethod
    async def opened(cls, fs: EmberFileSystem, core: Core, path: str, mode: str, parents: bool) -> EmberAsyncFile:
        return cls(fs, path, mode, await core.open(path, parse_mode(mode), parents=parents))

    @property
    def size(self) -> int:
        return self.handle.size

    @property
    def loc(self) -> int:
        return self.handle.tell()

    def tell(self) -> int:
        return self.handle.tell()

    def seek(self, loc: int, whence: int = 0) -> int:
        return self.handle.seek(loc, whence)

    async def read(self, length: int | None = -1) -> bytes:
        return await self.handle.read(-1 if length is None else length)

    async def write(self, data: Any) -> int:
        return await self.handle.write(data)

    async def flush(self, force: bool = False) -> None:
        await self.handle.flush()

    async def close(self) -> None:
        if not self.closed:
            self.closed = True
            await self.handle.close()

    def __del__(self) -> None:
        if not self.closed:
            self.handle.core.orphans.append(self.handle)  # the keeper closes it


class EmberTransaction(Transaction):  # type: ignore[misc]
    """Files written inside `with fs.transaction:` appear together, in one transaction of the metadata server, or not at all."""

    def complete(self, commit: bool = True) -> None:
        # Without those that were dropped on their own, as after an exception in their `with` blocks.
        files: list[EmberFile] = [file for file in self.files if not file.file.closed]
        self.files.clear()
        try:
            if commit and files:
                exclusive = any("x" in file.mode for file in files)
                for file in files:
                    file.closed = True
                self.fs.client.publish([f.file for f in files], [f.path for f in files], exclusive=exclusive)
                files = []
        finally:
            # First of all: in a transaction that never ends, nothing that is written later would ever get its name.
            self.fs._intrans = False
            self.fs._transaction = None
            for file in files:
                file.discard()

"""An open file, as far as reading it goes, and the state of a handle.

All handles of one inode share its `Inode`, so a read sees every earlier write of this client: bytes that are still on their way
are waited for before they are read.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from operator import add
from typing import TYPE_CHECKING, Any

from ...proto.copying import bytes_of
from ...proto.errors import Status, StatusError, error
from ...proto.gen.meta_pb2 import OpenRequest, Place
from ...proto.rpc import META
from .attributes import Stat
from .columns import Columns, Consume, Into, Lender, Output, columns_of, cut
from .extents import data_from, hole_from
from .holes import check_holes
from .inode import Inode
from .options import O_APPEND, O_RDONLY, O_RDWR, O_WRONLY
from .piece import read_piece
from .reads import Fetch
from .retry import Patience
from .streams import Stream

if TYPE_CHECKING:
    from .client import Core

DIRECT_BYTES_MAX = 1 << 20  # a read elsewhere of up to so much is one fetch; a longer one is streamed
LENT_DIRECT_BYTES = 256 << 10  # from this on a lent read is a fetch of its own: its reader has several on their way
PEEK_BYTES = 8 << 10
BATCH_BYTES_MAX = 16 << 20  # of one random batch in flight
OFFSET_MAX = (1 << 63) - 1


class Reader:
    """One `open`: its position, lookahead and rights are its own; everything else is the inode's. `Handle` adds what changes the file."""

    def __init__(
        self, core: Core, file: Inode, flags: int, *, session: int, buffered: bool, name: str, unnamed: bool = False
    ) -> None:
        self.core = core
        self.file = file
        self.flags = flags
        self.session = session
        self.buffered = buffered
        self.name = name
        self.unnamed = unnamed
        self.can_read = flags & 3 in (O_RDONLY, O_RDWR)
        self.can_write = flags & 3 != O_RDONLY
        self.append = bool(flags & O_APPEND)
        self.is_reader = not session  # counts among the inode's readers
        self.position = 0
        self.closed = False
        self.ending = False  # the session's end was asked for, and whether that was heard is not known
        self.unwanted = False  # what is not sent yet is to be discarded
        self.epoch = file.epoch  # of the client; a lease may have ended since
        self.failures_told = file.failures  # of the inode's
        self.untold: StatusError | None = None  # what a close had to tell that was interrupted
        self.number = next(core.numbers)  # as the owner of its flock
        self.locked = False  # took a lock under this identity of the client
        self.lock = core.env.lock()
        self.stream = Stream(file, core.options.readahead if buffered else 0)
        self.opened: Stat | None = None  # what the open answered
        self._last: Stat | None = None  # what the close of a writer answered

    @property
    def size(self) -> int:
        """Bytes, as this client sees the file."""
        return self.file.length

    # --- reading --------------------------------------------------------------------------------------------------------------------

    async def read(self, size: int = -1) -> bytes:
        """`size` bytes from the position on (negative: all), fewer at the end."""
        await self._ready(reading=True)
        async with self.lock:
            data = await self._bytes(self.position, self._available(self.position, size))
            self.position += len(data)
            return data

    async def read1(self, size: int = -1) -> bytes:
        """At least one byte unless the file ends, at most `size`, cheaply."""
        return await self.read(DIRECT_BYTES_MAX if size < 0 else min(size, DIRECT_BYTES_MAX))

    async def peek(self, size: int = 0) -> bytes:
        """Some bytes after the position, which stays."""
        await self._ready(reading=True)
        async with self.lock:
            position, following = self.position, self.stream.next
            data = await self._bytes(position, self._available(position, max(size, PEEK_BYTES)))
            if not self.stream.windows:
                self.stream.next = following  # looking is not reading
            else:
                self.stream.next = position
            return data

    async def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the position on; bytes read."""
        await self._ready(reading=True)
        async with self.lock:
            view = bytes_of(buffer)
            count = self._available(self.position, len(view))
            await self._read_to(Into(view), self.position, count)
            count = self._there(self.position, count)
            self.position += count
            return count

    async def pread(self, length: int, offset: int) -> bytes:
        """`length` bytes from `offset`, fewer at the end."""
        await self._ready(reading=True)
        count = self._available(offset, length)
        output = io.BytesIO()
        await self._pread(output, offset, count)
        return self._value(output, offset, count)

    async def pread_into(self, buffer: Any, offset: int) -> int:
        """Fill `buffer` from `offset` on; bytes read."""
        await self._ready(reading=True)
        view = bytes_of(buffer)
        count = self._available(offset, len(view))
        await self._pread(Into(view), offset, count)
        return self._there(offset, count)

    async def pread_lent(self, offset: int, length: int, consume: Consume) -> int:
        """`length` bytes from `offset`, fewer at the end, without a copy: `consume` is called once, with views of them in this client's
        own memory, which are valid until it returns. How many bytes there were. Any number may be under way at once."""
        await self._ready(reading=True)
        lender = Lender(self.file, offset, self._available(offset, length), consume)
        await self._lend(lender, offset, lender.length)
        return lender.length

    async def _lend(self, lender: Lender, offset: int, count: int) -> None:
        if count and await self._lend_written(lender, offset, count):
            return
        if not count or await self._inlined(offset, count, lender):
            lender.end()
        elif count < LENT_DIRECT_BYTES and self.stream.follows(offset):
            async with self.lock:
                await self.stream.lend(offset, count, lender)
        else:
            self.stream.next = offset + count
            patience, together = self.file.cluster.patience(), self.core.together
            short_way = read_piece if together is None else together.read
            fetch = await short_way(self.file, offset, count, lender.all, patience)
            if fetch is not None:
                await self._finish(fetch, patience, lender.take)

    async def _lend_written(self, lender: Lender, offset: int, count: int) -> bool:
        """Bytes that were written here and have not arrived, if they lie in one piece; otherwise they have to arrive first."""
        write_back = self.file.write_back
        if write_back is None or not write_back.overlaps(offset, offset + count):
            self._require_kept(offset, offset + count)
            return False
        async with self.file.lock:
            view = write_back.covering(offset, offset + count) if self.file.error is None else None
            if view is not None:
                lender.all(view)
                return True
        await self._arrived(offset, offset + count)
        return False

    async def _pread(self, output: Output, offset: int, count: int) -> None:
        # Random reads of several threads go on at the same time; only the stream needs the lock.
        if count <= DIRECT_BYTES_MAX and not self.stream.follows(offset):
            await self._direct(output, offset, count)
        else:
            async with self.lock:
                await self._sequential(offset, count, output)

    async def preadv_batch(self, ranges: Sequence[tuple[int, int]], buffer: Any = None) -> list[memoryview]:
        """Per (offset, length) range a view of its bytes, in `buffer` or a new one."""
        await self._ready(reading=True)
        if not ranges:
            return []
        offsets, lengths = map(list, zip(*ranges, strict=True))
        end = max(map(add, offsets, lengths))
        if min(offsets) < 0 or min(lengths) < 0 or end > self.file.length:
            lengths = [self._available(offset, length) for offset, length in ranges]
        total = sum(lengths)
        view = bytes_of(bytearray(total) if buffer is None else buffer)
        if view.readonly or len(view) < total:
            raise error(Status.INVALID, f"the buffer must be writable and hold {total} bytes; it has {len(view)}")
        await self._arrived(min(offsets), end)
        views: list[memoryview] = []
        position = begin = 0
        limit = min(BATCH_BYTES_MAX, self.core.options.memory // 8)
        for end in _cuts(lengths, limit):
            read = self._batch if max(lengths[begin:end]) <= limit else self._long
            position = await read(offsets[begin:end], lengths[begin:end], view, position, views)
            begin = end
        return views

    async def _batch(
        self, offsets: list[int], lengths: list[int], view: memoryview, position: int, views: list[memoryview]
    ) -> int:
        """Read ranges into `view` from `position` on and append their views; where the next one goes."""
        end = position + sum(lengths)
        if end == position:
            views += [view[position:position]] * len(lengths)
            return end
        if self.file.inlined and await self._small_batch(offsets, lengths, view[position:end], views):
            return end
        columns = _columns(self.file, offsets, lengths)
        fetch = await Fetch(self.file.cluster, columns).complete()
        try:
            await check_holes(fetch)
            fetch.deliver(Into(view[position:end]))
        finally:
            fetch.release()
        pieces = cut(view[position:end], lengths)
        if max(map(add, offsets, lengths)) > self.file.length:
            places = zip(pieces, offsets, lengths, strict=True)
            pieces = [piece[: self._there(offset, length)] for piece, offset, length in places]
        views += pieces
        return end

    async def _long(
        self, offsets: list[int], lengths: list[int], view: memoryview, position: int, views: list[memoryview]
    ) -> int:
        """As `_batch`, of ranges that our buffers need not be able to hold: one after the other, a part at a time."""
        for offset, length in zip(offsets, lengths, strict=True):
            piece = view[position : position + length]
            await self._pread(Into(piece), offset, length)
            views.append(piece[: self._there(offset, length)])
            position += length
        return position

    async def _small_batch(
        self, offsets: list[int], lengths: list[int], view: memoryview, views: list[memoryview]
    ) -> bool:
        output = Into(view)
        for offset, length in zip(offsets, lengths, strict=True):
            begin = output.position
            if not await self._inlined(offset, length, output):
                return False
            views.append(view[begin : output.position])
        return True

    async def _bytes(self, offset: int, count: int) -> bytes:
        output = io.BytesIO()
        await self._read_to(output, offset, count)
        return self._value(output, offset, count)

    async def _read_to(self, output: Output, offset: int, count: int) -> None:
        """Under the handle's lock: by the stream if the read follows another one or is long, else by itself."""
        if count <= DIRECT_BYTES_MAX and not self.stream.follows(offset):
            await self._direct(output, offset, count)
        else:
            await self._sequential(offset, count, output)

    async def _direct(self, output: Output, offset: int, count: int) -> None:
        """A read that follows no other."""
        self.stream.next = offset + count
        if not count:
            return
        await self._arrived(offset, offset + count)
        if await self._inlined(offset, count, output):
            return
        patience = self.file.cluster.patience()
        fetch = await read_piece(self.file, offset, count, output.write, patience)
        if fetch is not None:
            await self._finish(fetch, patience, lambda fetch: fetch.deliver(output))

    async def _finish(self, fetch: Fetch, patience: Patience, deliver: Callable[[Fetch], None]) -> None:
        """Bring home what did not go the short way."""
        await fetch.complete(patience)
        try:
            await check_holes(fetch)
            deliver(fetch)
        finally:
            fetch.release()

    async def _sequential(self, offset: int, count: int, output: Output) -> None:
        if count:
            await self._arrived(offset, offset + count)
            if not await self._inlined(offset, count, output):
                await self.stream.read(offset, count, output)

    async def _inlined(self, offset: int, count: int, output: Output) -> bool:
        """Read a small file from beside its inode, if it lies there."""
        if not self.file.inlined:
            return False
        write_back = self.file.write_back
        if write_back is not None and write_back.pending:
            # Written elsewhere in the file, perhaps far behind its bytes at the server: what lies between is zeros.
            async with self.file.lock:
                await write_back.empty()
        content = self.file.content
        if content is None:
            async with self.file.lock:  # what comes with the bytes is taken over
                content = await self.file.small_content()
        if content is not None:
            output.write(memoryview(content)[offset : offset + count])
        return content is not None

    def _available(self, offset: int, size: int) -> int:
        """How many bytes of `size` (negative: all) lie between `offset` and the end of the file."""
        if offset < 0:
            raise error(Status.INVALID, f"{self.name}: offset {offset} is negative")
        left = self.file.length - offset
        return max(0, left if size < 0 else min(size, left))

    def _there(self, offset: int, count: int) -> int:
        """How many of `count` bytes that were read lie below the end of the file: another client may have cut it meanwhile."""
        return count if offset + count <= self.file.length else max(0, self.file.length - offset)

    def _value(self, output: io.BytesIO, offset: int, count: int) -> bytes:
        there = self._there(offset, count)
        if there < count:
            output.truncate(there)
        return output.getvalue()

    async def _arrived(self, offset: int, end: int) -> None:
        """Wait until bytes of the range that are on their way have arrived. Raises why they did not (and keeps it for `flush`)."""
        write_back = self.file.write_back
        if write_back is not None and write_back.overlaps(offset, end):
            async with self.file.lock:
                await write_back.empty()
            if self.file.error is not None:
                raise self.file.error
        self._require_kept(offset, end)

    def _require_kept(self, offset: int, end: int) -> None:
        """Raises why bytes of the range are not what was written here, as long as nobody has been told."""
        if (failure := self.file.lost_in(offset, end)) is not None:
            raise failure

    async def data_from(self, offset: int) -> int:
        """Where data begins at or behind `offset`, as SEEK_DATA of lseek(2); the position stays. Raises NO_DEVICE (ENXIO)."""
        await self._ready()
        await self._arrived(0, self.file.length)
        if self.file.inlined and 0 <= offset < self.file.length:
            return offset  # beside the inode there are no holes
        return await data_from(self.file, offset)

    async def hole_from(self, offset: int) -> int:
        """Where a hole begins at or behind `offset`, at the file's end at the latest, as SEEK_HOLE. Raises NO_DEVICE (ENXIO)."""
        await self._ready()
        await self._arrived(0, self.file.length)
        if self.file.inlined and 0 <= offset < self.file.length:
            return self.file.length
        return await hole_from(self.file, offset)

    # --- position ---------------------------------------------------------------------------------------------------------------------

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move the position; `whence` as in lseek(2): 0 start, 1 position, 2 end."""
        self._check_open()
        if whence not in (0, 1, 2):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        position = offset + (0, self.position, self.file.length)[whence]
        if not 0 <= position <= OFFSET_MAX:
            raise error(Status.INVALID, f"{self.name}: cannot seek to {position}")
        self.position = position
        return position

    def tell(self) -> int:
        self._check_open()
        return self.position

    def adopt(self, file: Inode, session: int) -> None:
        """Go on in the epoch of this inode, with nothing but the position from before."""
        self.file.cluster.forget_lookahead(self.stream)
        self.file = file
        self.session = session
        self.is_reader = not session
        self.lock = self.core.env.lock()
        self.stream = Stream(file, self.core.options.readahead if self.buffered else 0)
        self.epoch = file.epoch
        self.failures_told = file.failures
        self.ending = False

    # --- state ------------------------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _may(self, reading: bool, writing: bool) -> None:
        if (reading and not self.can_read) or (writing and not self.can_write):
            raise io.UnsupportedOperation(f"{self.name}: not open for {'reading' if reading else 'writing'}")

    async def _ready(self, *, reading: bool = False, writing: bool = False) -> None:
        """Before every operation: the file is open, for this, and under this client's present identity."""
        self._check_open()
        self._may(reading, writing)
        lease = self.core.lease
        if lease.over:
            await self.core.lose_lease(lease)
        if self.epoch != self.core.epoch:
            await self.core.reopen(self)
        if self.ending or (writing and not self.session):
            async with self.file.lock:
                await self._renew_session()
        if reading and self.file.seen_change > self.file.change:
            await self._catch_up()
        if reading and self.file.atime_due and self.core.options.atime:
            self.core.read_times.note(self.file)

    async def _catch_up(self) -> None:
        """This client has shown attributes that are newer than what it reads by."""
        file = self.file
        async with file.lock:
            if file.seen_change > file.change:
                await file.fetch()

    def _raise_error(self) -> None:
        """Raise what nobody has been told yet of data that was lost."""
        failure = self.file.take_error()
        if failure is not None:
            self.failures_told = self.file.failures
            raise failure

    def _take_failure(self) -> StatusError | None:
        """What was lost since this handle was told last, whoever else was: each that had the file open hears of it once, as on Linux."""
        file = self.file
        failure = file.take_error()
        if self.failures_told != file.failures:
            self.failures_told = file.failures
            failure = failure or file.failure
        return failure

    async def _renew_session(self) -> None:
        """What is settled needs a session that lives. A flush may have ended it, and so may a close that was interrupted: then another
        one begins. Under the inode's lock."""
        if self.session and not self.ending:
            return
        granted = self.file.capability_write
        request = OpenRequest(place=Place(parent=self.file.id), flags=O_WRONLY, capability=granted)
        reply = await self.core.cluster.change(META.Open, request)
        if self.session in self.file.sessions:
            self.file.sessions.remove(self.session)
        self.session = reply.session
        self.file.sessions.append(self.session)
        self.ending = False
        await self._count_reader(False)

    async def _count_reader(self, reading: bool) -> None:
        """Whether the keeper is to report the inode for this handle's sake, as nothing else says that it is open."""
        async with self.core.table_lock:
            self.file.readers += reading - self.is_reader
            self.is_reader = reading


def _columns(file: Inode, offsets: list[int], lengths: list[int]) -> Columns:
    """The pieces of many ranges, one after the other."""
    size = file.chunk_size
    index = [offset // size for offset in offsets]
    start = [offset % size for offset in offsets]
    if max(map(add, start, lengths)) <= size and all(lengths):
        return Columns((file,), (), index, start, lengths)
    rows: tuple[list[int], list[int], list[int]] = ([], [], [])
    for offset, length in zip(offsets, lengths, strict=True):
        if length:
            part = columns_of(file, offset, length)
            rows[0].extend(part.index)
            rows[1].extend(part.offset)
            rows[2].extend(part.length)
    return Columns((file,), (), *rows)


def _cuts(lengths: Sequence[int], limit: int) -> Sequence[int]:
    """Ends of portions of rows that fit into one batch of `limit` bytes."""
    if sum(lengths) <= limit:
        return [len(lengths)] if lengths else []
    cuts, total = [], 0
    for i, length in enumerate(lengths):
        if total and total + length > limit:
            cuts.append(i)
            total = 0
        total += length
    return [*cuts, len(lengths)]

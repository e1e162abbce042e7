"""Many ranges of many open files, side by side in one piece of the client's own memory: a loader's batch.

The requests go out with `start`, one to each storage process (more where it is too much for one), and servers move the bytes to where they
stay: whoever uses the batch gets views of that memory, and nothing is copied. What had to be asked for again is copied to its place.
A batch of which a request was given up moves to other memory, since a server may still move bytes into the old one; where the memory is
the caller's (shared.py), nothing is given up as long as anybody may answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING

from ...proto.copying import copy
from ...proto.errors import Status, StatusError, error
from ...proto.region import Slice
from .columns import Columns, Home, columns_of
from .holes import check_holes
from .inode import Inode
from .reads import Fetch
from .retry import Patience

if TYPE_CHECKING:
    from .client import Core
    from .reading import Reader

WINDOW_BYTES = 8 << 20  # of `read_many`, on their way while others are copied
COPIED_IN_FLIGHT = 3  # windows: each takes memory of the pool
SHARED_IN_FLIGHT = 4  # windows, where they take none: a server moves several at once


class BulkRead:
    """Bytes `offsets[i]` to `offsets[i] + lengths[i]` of `handles[file[i]]`, one range after the other. `start`, `finish`, use the view,
    `release`; `release` also gives up what is under way."""

    def __init__(
        self,
        core: Core,
        handles: Sequence[Reader],
        file: Sequence[int],
        offsets: Sequence[int],
        lengths: Sequence[int],
        place: Slice | None = None,
    ) -> None:
        """`place`: shared memory of the caller's, as long as all ranges; None: of the pool."""
        self._core = core
        self._handles = handles
        self._file = file
        self._offsets = offsets
        self._lengths = lengths
        self._place = place
        self._slice: Slice | None = None
        self._home: Home | None = None
        self._fetch: Fetch | None = None
        self.length = sum(lengths)

    async def start(self) -> BulkRead:
        """Take the memory and send the requests. Raises BUSY and TOO_LARGE when the client's memory does not suffice, INVALID for ranges
        that lie beyond the end of their file."""
        if not self.length:
            return self
        files = await self._ready()
        self._slice = self._place or self._take(self.length)
        try:
            await self._begin(files)
        except BaseException:
            self.release()
            raise
        return self

    async def finish(self) -> memoryview:
        """All bytes, verified. Valid until `release`. Raises StatusError, and has released the memory then."""
        try:
            if self._fetch is not None:
                await self._fetch.complete()
                await check_holes(self._fetch)
                self._settle(self._fetch)
        except BaseException:
            self.release()
            raise
        return self._slice.view if self._slice is not None else memoryview(b"")

    @property
    def at_home(self) -> bool:
        """Whether the bytes come into the caller's memory."""
        return self._place is not None

    def release(self) -> None:
        """Give the memory back: the view is not valid any more. Doing it twice is no harm."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.abandon()
        slice_, self._slice = self._slice, None
        if slice_ is not None and slice_ is not self._place:
            self._core.env.pool.give(slice_)

    # --- inside -----------------------------------------------------------------------------------------------------------------------

    def _take(self, length: int) -> Slice:
        while True:
            try:
                return self._core.env.pool.take(length)
            except StatusError as failure:
                if failure.status is not Status.BUSY or not self._core.cluster.drop_lookahead():
                    raise

    async def _ready(self) -> list[Inode]:
        """The inodes of the files, under this client's present identity, with everything that was written here arrived."""
        used = [self._handles[place] for place in set(self._file)]
        for handle in used:
            await handle._ready(reading=True)
        furthest = max(map(add, self._offsets, self._lengths), default=0)
        if any(handle.file.write_back is not None or handle.file.length < furthest for handle in used):
            await self._reach()
        if self._offsets and min(self._offsets) < 0:
            self._check_ends()
        return [handle.file for handle in self._handles]

    async def _reach(self) -> None:
        """See that each file is as long as is asked of it, and that what was written there has arrived. Raises INVALID."""
        ends: dict[int, int] = {}
        for place, end in zip(self._file, map(add, self._offsets, self._lengths), strict=True):
            if end > ends.get(place, 0):
                ends[place] = end
        for place, end in ends.items():
            handle = self._handles[place]
            if handle.file.write_back is not None:
                await handle._arrived(0, end)
            if end > handle.file.length:
                async with handle.file.lock:
                    await handle.file.fetch()  # it may have grown since it was opened
                self._check_ends()

    def _check_ends(self) -> None:
        """Raise INVALID for a range that is not all there."""
        for place, offset, length in zip(self._file, self._offsets, self._lengths, strict=True):
            handle = self._handles[place]
            if offset < 0 or offset + length > handle.size:
                raise error(Status.INVALID, f"{handle.name}: bytes {offset} to {offset + length} of {handle.size}")

    async def _begin(self, files: list[Inode]) -> None:
        inlined = {place for place in set(self._file) if files[place].inlined}
        contents = {place: await files[place].small_content() for place in inlined}
        small = {place: content for place, content in contents.items() if content is not None}
        columns, starts = self._columns(files, small)
        if not columns.index:
            return
        assert self._slice is not None
        self._home = Home(self._slice, starts, columns.length, dense=not small, owned=self._place is None)
        self._fetch = Fetch(self._core.cluster, columns, home=self._home)
        try:
            self._fetch.start()
        except StatusError as failure:
            if not failure.retryable:
                raise  # else `finish` will try again

    def _columns(self, files: list[Inode], small: dict[int, bytes]) -> tuple[Columns, list[int]]:
        """The rows of what lies in chunks, and where each has its place. What is `small` is put there at once."""
        sizes = [file.chunk_size for file in files]
        size = max(sizes)
        if min(sizes) == size:
            index, start = [offset // size for offset in self._offsets], [offset % size for offset in self._offsets]
        else:
            index = [offset // sizes[place] for place, offset in zip(self._file, self._offsets, strict=True)]
            start = [offset % sizes[place] for place, offset in zip(self._file, self._offsets, strict=True)]
        lengths = list(self._lengths)
        if not small and all(lengths) and max(map(add, start, lengths)) <= min(sizes):
            starts = list(accumulate(lengths, initial=0))
            starts.pop()
            return Columns(files, self._file if len(files) > 1 else (), index, start, lengths), starts
        return self._split(files, small)

    def _split(self, files: list[Inode], small: dict[int, bytes]) -> tuple[Columns, list[int]]:
        """The same where ranges run over the ends of chunks."""
        rows: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])
        starts: list[int] = []
        assert self._slice is not None
        view, position = self._slice.view, 0
        sizes = [file.chunk_size for file in files]
        for place, offset, length in zip(self._file, self._offsets, self._lengths, strict=True):
            start = offset % sizes[place]
            if place in small:
                view[position : position + length] = small[place][offset : offset + length]
            elif length and start + length <= sizes[place]:
                rows[0].append(place)
                rows[1].append(offset // sizes[place])
                rows[2].append(start)
                rows[3].append(length)
                starts.append(position)
            elif length:
                part = columns_of(files[place], offset, length)
                rows[0].extend([place] * len(part.index))
                rows[1].extend(part.index)
                rows[2].extend(part.offset)
                rows[3].extend(part.length)
                starts.extend(accumulate(part.length[:-1], initial=position))
            position += length
        return Columns(files, rows[0] if len(files) > 1 else (), *rows[1:]), starts

    def _settle(self, fetch: Fetch) -> None:
        """Bring home what came elsewhere. Raises INVALID where a file was cut meanwhile."""
        home = self._home
        assert home is not None and self._slice is not None
        short = fetch.whole is None and list(map(len, fetch.views)) != fetch.columns.length
        if not (short or home.missed or home.spoiled):
            return
        if short:
            self._check_ends()
        old = self._slice
        if old is self._place:
            _check_alive(old)
        elif home.spoiled:
            self._slice = self._take(self.length)
            if not home.dense:
                self._slice.view[:] = old.view  # what was small
        view = self._slice.view
        for start, length, piece in zip(home.starts, home.lengths, fetch.views, strict=True):
            end = start + len(piece)
            view[start:end] = piece
            view[end : start + length] = bytes(start + length - end)
        if self._slice is not old:
            self._core.env.pool.give(old)  # which keeps it aside until its server is known to be done


def _check_alive(place: Slice) -> None:
    if place.region.dead:
        raise error(Status.REGION_DEAD, "a server may still write into this shared memory: make another one")


async def read_many(core: Core, ranges: Sequence[tuple[Reader, int, int]], view: memoryview) -> list[memoryview]:
    """Many (file, offset, length) ranges into the caller's memory, one after the other; a view of each. Some are on their way while others
    are checked, and copied unless the memory is shared. Raises INVALID for ranges beyond the end of a file, or memory that does not
    suffice, REGION_DEAD for shared memory that a server may still write into."""
    if view.readonly or len(view) < sum(length for _, _, length in ranges):
        raise error(Status.INVALID, f"the buffer must be writable and hold all ranges; it has {len(view)} bytes")
    handles = list(dict.fromkeys(handle for handle, _, _ in ranges))
    places = {handle: place for place, handle in enumerate(handles)}
    rows = [(places[handle], offset, length) for handle, offset, length in ranges]
    patience = core.cluster.patience()
    whole = core.shared.find(view)
    if whole is not None:
        _check_alive(whole)
    position = asked = 0
    flying: list[BulkRead] = []
    try:
        sizes = [handle.file.chunk_size for handle in handles]
        for window in _windows(rows, sizes, min(WINDOW_BYTES, core.options.memory // 8)):
            file, offsets, lengths = zip(*window, strict=True)
            size = sum(lengths)
            place = Slice(whole.region, whole.offset + asked, size) if whole is not None else None
            asked += size
            bulk = BulkRead(core, handles, file, offsets, lengths, place)
            while not await _is_started(bulk, patience if not flying else None):
                position = await _copy(flying.pop(0), view, position)
            flying.append(bulk)
            if len(flying) >= (SHARED_IN_FLIGHT if whole is not None else COPIED_IN_FLIGHT):
                position = await _copy(flying.pop(0), view, position)
        while flying:
            position = await _copy(flying.pop(0), view, position)
    finally:
        for bulk in flying:
            if whole is not None:  # else nobody would know whether its memory is dead
                with suppress(StatusError):
                    await bulk.finish()
            bulk.release()
    ends = list(accumulate([length for _, _, length in ranges]))
    return [view[end - length : end] for end, (_, _, length) in zip(ends, ranges, strict=True)]


async def _is_started(bulk: BulkRead, patience: Patience | None) -> bool:
    """Send the requests. False where there is no memory, and nobody has the patience to wait until others give some back."""
    while True:
        try:
            await bulk.start()
            return True
        except StatusError as failure:
            if failure.status is not Status.BUSY:
                raise
            if patience is None:
                return False
            await patience.again(failure)


async def _copy(bulk: BulkRead, view: memoryview, position: int) -> int:
    """Bring a finished window to where it belongs, unless it is there; where the next one goes."""
    end = position + bulk.length
    try:
        found = await bulk.finish()
        if not bulk.at_home:
            copy(view[position:end], found)
    finally:
        bulk.release()
    return end


def _windows(
    rows: Sequence[tuple[int, int, int]], sizes: Sequence[int], limit: int
) -> list[list[tuple[int, int, int]]]:
    """Ranges in portions of at most `limit` bytes; long ones are cut, where a chunk ends if that can be: one that is read as a whole has
    one checksum. `sizes`: of the chunks of each file."""
    found: list[list[tuple[int, int, int]]] = []
    room = 0
    for place, offset, length in rows:
        done = 0
        while done < length:
            if not room:
                found.append([])
                room = limit
            part = min(room, length - done)
            beyond = (offset + done + part) % sizes[place]
            if part < length - done and beyond < part:
                part, room = part - beyond, part - beyond
            found[-1].append((place, offset + done, part))
            done += part
            room -= part
    return found

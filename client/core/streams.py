"""Reading in sequence: windows of a file on their way while earlier ones are consumed.

A `Stream` serves one handle. It holds consecutive windows, the first of which is being consumed; behind them it keeps asking for more as
long as the caller reads in sequence (adaptive: each read in sequence doubles how far it looks ahead, up to `limit` bytes). A long
read is a stream for itself. A read elsewhere drops the windows; so does any write to the inode through this client.
"""

from __future__ import annotations

from collections import deque

from ...proto.errors import Status, StatusError
from .holes import check_holes
from .inode import Inode
from .reads import Fetch, Output, columns_of

WINDOW_BYTES = 1 << 20  # of one request
AHEAD_BYTES_FIRST = 256 << 10  # after the first read in sequence
IN_FLIGHT_BYTES = 4 << 20  # of one long read


class Window:
    """One request's part of a stream: file bytes [offset, end)."""

    __slots__ = ("_done", "_lengths", "end", "fetch", "generation", "offset")

    def __init__(self, file: Inode, offset: int, end: int) -> None:
        columns = columns_of(file, offset, end - offset)
        self.offset = offset
        self.end = end
        self.generation = file.generation
        self._lengths = columns.length
        self._done = False
        self.fetch = Fetch(file.cluster, columns).start()

    async def ready(self) -> None:
        if not self._done:
            await self.fetch.finish()
            await check_holes(self.fetch)
            self._done = True

    def deliver(self, offset: int, length: int, output: Output) -> None:
        """Write the file bytes [offset, offset + length) of this window to `output`; what a chunk lacks is zeros."""
        start = self.offset
        if (whole := self.fetch.whole) is not None:
            output.write(whole[offset - start : offset - start + length])
            return
        for view, wanted in zip(self.fetch.views, self._lengths, strict=True):
            first, last = max(offset, start) - start, min(offset + length, start + wanted) - start
            if first < last:
                there = view[first:last]
                output.write(there)
                if len(there) < last - first:
                    output.write(bytes(last - first - len(there)))
            start += wanted

    def drop(self) -> None:
        self.fetch.abandon()


class Stream:
    """The windows of one handle. Its methods run under the handle's lock."""

    def __init__(self, file: Inode, limit: int) -> None:
        self.file = file
        self.windows: deque[Window] = deque()
        self.next = -1  # where a read in sequence would begin
        self._limit = limit
        self._ahead = 0  # bytes to look ahead now

    def follows(self, offset: int) -> bool:
        """Whether a read at `offset` goes on where the last one ended, or lies in a window."""
        return offset == self.next or bool(self.windows and self.windows[0].offset <= offset < self.windows[-1].end)

    def note(self, offset: int, length: int) -> None:
        """A read passed by: remember where the next in sequence would begin."""
        self.next = offset + length
        self._ahead = 0
        if self.windows:
            self.drop()

    async def read(self, offset: int, length: int, output: Output) -> None:
        """Deliver the file bytes [offset, offset + length), which lie below the file's length."""
        end = offset + length
        self._look_ahead(offset, length)
        self._align(offset)
        try:
            while offset < end:
                await self._fill(offset, end)
                window = self.windows[0]
                await window.ready()
                count = min(end, window.end) - offset
                window.deliver(offset, count, output)
                offset += count
                if offset == window.end:
                    self.windows.popleft().drop()
        except BaseException:
            self.drop()
            raise
        self._top_up(offset, offset + self._ahead)
        self.next = end

    def drop(self) -> None:
        """Forget all windows."""
        while self.windows:
            self.windows.popleft().drop()

    # --- inside -----------------------------------------------------------------------------------------------------------------------

    def _look_ahead(self, offset: int, length: int) -> None:
        if offset != self.next:
            self._ahead = 0
        elif self._limit:
            self._ahead = min(self._limit, max(AHEAD_BYTES_FIRST, 2 * self._ahead, 2 * length))

    def _align(self, offset: int) -> None:
        """Drop the windows before `offset`, or all of them if it lies in none or they are older than a write."""
        windows = self.windows
        if windows and (not self.follows(offset) or windows[0].generation != self.file.generation):
            self.drop()
        while windows and windows[0].end <= offset:
            windows.popleft().drop()
        if windows and windows[0].offset > offset:
            self.drop()

    async def _fill(self, offset: int, end: int) -> None:
        """Have a window that covers `offset`, and more on their way."""
        patience = None
        while not self.windows:
            try:
                self._begin(offset, max(end, offset + self._ahead))
            except StatusError as failure:
                patience = patience or self.file.cluster.patience()
                await patience.again(failure)
                if failure.status is not Status.BUSY:
                    await self.file.cluster.refresh()
        self._top_up(offset, end + self._ahead)

    def _top_up(self, offset: int, end: int) -> None:
        """Begin windows up to `end`, as far as the limits go; a full pool only means that less is read ahead."""
        if not self.windows:
            frontier = offset
        else:
            frontier = self.windows[-1].end
        end = min(end, self.file.length)
        reach = offset + max(IN_FLIGHT_BYTES, self._limit)
        try:
            while frontier < end and frontier < reach:
                frontier = self._begin(frontier, end)
        except StatusError:
            pass  # the read that needs the window will ask again, and tell

    def _begin(self, offset: int, end: int) -> int:
        stop = min(end, self.file.length, offset - offset % WINDOW_BYTES + WINDOW_BYTES)
        self.windows.append(Window(self.file, offset, max(stop, offset + 1)))
        return self.windows[-1].end

"""Reading in sequence: windows of a file on their way while earlier ones are consumed.

A `Stream` serves one handle. It holds consecutive windows, the first of which is being consumed; behind them it keeps asking for more as
long as the caller reads in sequence (adaptive: each read in sequence doubles how far it looks ahead, up to `limit` bytes). A long
read is a stream for itself. A read elsewhere drops the windows; so does any write to the inode through this client.

Between two reads the windows lie in the cluster's `lookahead`, where whoever lacks buffers may take them away: many files that are read
in turns share the memory, and none keeps it from the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ...proto.errors import Status, StatusError
from .columns import Lender, Output, columns_of
from .holes import check_holes
from .inode import Inode
from .reads import Fetch

WINDOW_BYTES = 2 << 20  # of one request at most: what a request costs besides its bytes is then little
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
        self._resting = False  # the windows lie in the cluster's `lookahead`, unless somebody took them

    def follows(self, offset: int) -> bool:
        """Whether a read at `offset` goes on where the last one ended, or lies in a window."""
        windows = self.windows
        try:
            return offset == self.next or bool(windows and windows[0].offset <= offset < windows[-1].end)
        except IndexError:
            return False  # asked without the lock: another thread took the last one in between

    async def read(self, offset: int, length: int, output: Output) -> None:
        """Deliver the file bytes [offset, offset + length), which lie below the file's length."""
        try:
            end = await self._deliver(offset, length, output, Window.drop)
        except BaseException:
            self.drop()
            raise
        self._go_on(end)

    async def lend(self, offset: int, length: int, lender: Lender) -> None:
        """As `read`, for one who takes the views and not a copy: they are valid until its `end` has returned."""
        passed: list[Window] = []
        try:
            end = await self._deliver(offset, length, lender, passed.append)
            lender.end()
        except BaseException:
            self.drop()
            raise
        finally:
            for window in passed:
                window.drop()
        self._go_on(end)

    def drop(self) -> None:
        """Forget all windows."""
        self._resume()
        while self.windows:
            self.windows.popleft().drop()

    # --- inside -----------------------------------------------------------------------------------------------------------------------

    async def _deliver(self, offset: int, length: int, output: Output, passed: Callable[[Window], None]) -> int:
        """Bring the bytes to `output`; where they end. `passed` is told of windows that lie behind."""
        end = offset + length
        self._resume()
        self._look_ahead(offset, length)
        self._align(offset)
        # The file may turn out to be shorter by now: another client has cut it.
        while offset < (end := min(end, self.file.length)):
            await self._fill(offset, end)
            window = self.windows[0]
            await window.ready()
            count = min(end, window.end) - offset
            window.deliver(offset, count, output)
            offset += count
            if offset == window.end:
                passed(self.windows.popleft())
        return end

    def _go_on(self, offset: int) -> None:
        """Ask for what comes next, and let go of the memory until then."""
        self._top_up(offset, offset, offset + self._ahead)
        self.next = offset
        self._rest()

    def _resume(self) -> None:
        """From here on the windows are ours alone."""
        if self._resting:
            self._resting = False
            if self.file.cluster.lookahead.pop(self, None) is None:
                self.windows = deque()

    def _rest(self) -> None:
        """Until the next read the memory may be taken away."""
        if self.windows:
            self._resting = True
            self.file.cluster.lookahead[self] = self.windows

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
                self._begin(offset, end, end if patience else offset + self._ahead)
            except StatusError as failure:
                first = patience is None
                patience = patience or self.file.cluster.patience()
                if first and failure.status is Status.BUSY:
                    continue  # at once, with what is needed and no more
                if failure.status is Status.BUSY and self.file.cluster.drop_lookahead():
                    continue
                await patience.again(failure)
                if failure.status is not Status.BUSY:
                    await self.file.cluster.refresh()
        self._top_up(offset, end, end + self._ahead)

    def _top_up(self, offset: int, needed: int, end: int) -> None:
        """Begin windows up to `end`, as far as the limits go; a full pool only means that less is read ahead. What lies beyond `needed`
        is asked for in whole windows only: a caller of small reads must not become one of small requests."""
        frontier = self.windows[-1].end if self.windows else offset
        size = min(WINDOW_BYTES, self._ahead // 2 or WINDOW_BYTES)
        reach = offset + max(IN_FLIGHT_BYTES, self._limit)
        last = self._last(offset, needed)
        if end >= last:
            end, size = last, min(size, max(1, last - frontier))
        needed = min(needed, last)
        try:
            while frontier < reach and (frontier < needed or frontier + size <= end):
                frontier = self._begin(frontier, needed, frontier + size)
        except StatusError:
            pass  # the read that needs the window will ask again, and tell

    def _begin(self, offset: int, needed: int, end: int) -> int:
        """A window from `offset` on, to `end` if it may be so long; where it ends."""
        stop = min(max(needed, end), self._last(offset, needed), offset - offset % WINDOW_BYTES + WINDOW_BYTES)
        self.windows.append(Window(self.file, offset, max(stop, offset + 1)))
        return self.windows[-1].end

    def _last(self, offset: int, needed: int) -> int:
        """Where to stop looking ahead from `offset`: at the file's end, or before bytes that were written here and have not arrived.
        Storage would have nothing there. What is `needed` has."""
        length, write_back = self.file.length, self.file.write_back
        if write_back is None or not write_back.pending:
            return length
        return max(min(needed, length), write_back.clear_end(offset, length))

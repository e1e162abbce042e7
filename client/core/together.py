"""Short reads that come at once, sent as one request.

A mount hears of the reads of many programs in one turn of its loop, and answers each by itself. To ask storage about each by itself costs
both sides ten times what it costs to ask about all (one message, one checksum table, one wake-up). So a short read waits until the turn
is over; if others came meanwhile, all go together, as the rows of one `Fetch`, and each is answered from its row. One that is alone goes
the short way (`piece.py`).

A batch is work of its own: whoever gives up waiting takes nothing from the others. A row that is not simple (a hole, bytes that are
damaged or gone) is read again by itself, by all that `Fetch` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial

from ...proto.env import Promise
from ...proto.errors import StatusError
from .cluster import Cluster
from .columns import Columns, columns_of
from .inode import Inode
from .piece import read_piece
from .reads import Fetch
from .retry import Patience

ROW_BYTES_MAX = 64 << 10  # of a read that is short: longer ones cost more by their bytes than by being many
BATCH_BYTES_MAX = 2 << 20  # of one request: the first of it is not answered before the last
BATCH_ROWS_MAX = 256

Deliver = Callable[[memoryview], object]

_NOTHING = memoryview(b"")


class _Row:
    """One read that waits for its turn."""

    __slots__ = ("deliver", "file", "index", "length", "outcome", "start")

    def __init__(
        self, file: Inode, index: int, start: int, length: int, deliver: Deliver, outcome: Promise[Fetch | None]
    ) -> None:
        self.file = file
        self.index = index  # of the chunk
        self.start = start  # bytes into it
        self.length = length
        self.deliver: Deliver | None = deliver  # None: nobody waits any more
        self.outcome = outcome  # as `read_piece` returns it

    def alone(self) -> Fetch:
        file = self.file
        return Fetch(file.cluster, columns_of(file, self.index * file.chunk_size + self.start, self.length))


class _Batch(Fetch):
    """Reads of several, none of whom waits for what another one's need besides a first attempt."""

    async def once(self) -> Container[int]:
        """Instead of `finish`: collect and verify what the first attempt brings. The rows that it did not bring, whose views say nothing.
        Raises as `finish`."""
        try:
            await self._collect()
        except BaseException:
            self.abandon()
            raise
        return self._trouble


class _Turn:
    """Reads of one target that are sent together."""

    __slots__ = ("bytes", "rows", "sent")

    def __init__(self) -> None:
        self.rows: list[_Row] = []
        self.bytes = 0
        self.sent = False

    def has_room(self, length: int) -> bool:
        return not self.sent and len(self.rows) < BATCH_ROWS_MAX and self.bytes + length <= BATCH_BYTES_MAX


class Together:
    """Of one client on an event loop. Only reads of one target go together: one that hangs keeps back nobody else's."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._turns: dict[int, _Turn] = {}  # by target

    async def read(self, file: Inode, offset: int, length: int, deliver: Deliver, patience: Patience) -> Fetch | None:
        """As `read_piece`."""
        index, start = divmod(offset, file.chunk_size)
        target = self._target(file, index) if length <= ROW_BYTES_MAX and start + length <= file.chunk_size else 0
        if not target:
            return await read_piece(file, offset, length, deliver, patience)
        env, turn = self._cluster.env, self._turns.get(target)
        row = _Row(file, index, start, length, deliver, env.promise())
        leads = turn is None or not turn.has_room(length)
        if leads:
            turn = self._turns[target] = _Turn()
        assert turn is not None
        turn.rows.append(row)
        turn.bytes += length
        try:
            if leads:
                await env.sleep(0)
                turn.sent = True
                if len(turn.rows) == 1:
                    return await read_piece(file, offset, length, deliver, patience)
                self._send(turn)
            return await row.outcome
        except BaseException:
            row.deliver = None
            if leads and not turn.sent:  # the others must not wait for who has gone
                self._send(turn)
            raise

    def _target(self, file: Inode, index: int) -> int:
        """Who is asked for this chunk; 0: that is not simple."""
        try:
            serving = self._cluster.table.route(file.chains[index % len(file.chains)]).serving
        except StatusError:
            return 0
        if len(serving) > 1:
            return self._cluster.replicas.choose(serving, index).target
        return serving[0].target if serving else 0

    def _send(self, turn: _Turn) -> None:
        turn.sent = True
        self._cluster.env.spawn(partial(self._read, turn.rows), "reads")

    async def _read(self, rows: Sequence[_Row]) -> None:
        """Read them all, and answer each. Whose bytes did not come at the first attempt goes on alone."""
        fetch = _Batch(self._cluster, _columns(rows))
        try:
            fetch.start()
            trouble = await fetch.once()
        except StatusError:
            for row in rows:
                row.outcome.set(row.alone())
            return
        except BaseException as failure:
            for row in rows:
                row.outcome.fail(failure)
            raise
        try:
            for number, (row, view) in enumerate(zip(rows, fetch.views, strict=True)):
                if row.deliver is not None:
                    self._answer(row, view if number not in trouble else _NOTHING)
        finally:
            fetch.release()

    @staticmethod
    def _answer(row: _Row, view: memoryview) -> None:
        if len(view) < row.length:  # or a hole
            row.outcome.set(row.alone())
            return
        try:
            assert row.deliver is not None
            row.deliver(view)
        except Exception as failure:
            row.outcome.fail(failure)
        else:
            row.outcome.set(None)


def _columns(rows: Sequence[_Row]) -> Columns:
    files = list(dict.fromkeys([row.file for row in rows]))
    places = {file: i for i, file in enumerate(files)} if len(files) > 1 else {}
    return Columns(
        files,
        [places[row.file] for row in rows] if places else (),
        [row.index for row in rows],
        [row.start for row in rows],
        [row.length for row in rows],
    )

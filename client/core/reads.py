"""Reading chunks: columns of operations -> one request per storage process -> verified bytes in our own buffers.

A `Fetch` is started (its requests are sent) and finished later (the replies are collected), so readahead overlaps with the caller's
work. Its bytes lie in slices of the client's own pool, never in the caller's memory: a request that was given up may still be served
later, and must then hit memory that nobody else uses.

Every byte is checked before anybody sees it. A wrong checksum is read once more from the same replica (the bytes may have been
damaged on their way), then reported to the scrubber and read from another replica; where there is none it is a CHECKSUM error.

Where a chunk has several replicas, one that fails is replaced by another at once, and the routing is asked for news beside it; only when
all have failed does the read wait. An answer that takes much longer than usual gets a rival from another replica: whichever brings
verified bytes first wins, the other is given up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ...proto.env import Call, Ticket
from ...proto.errors import Status, StatusError, error, status_of
from ...proto.gen.storage_pb2 import ReadReply
from ...proto.region import Slice
from ...proto.routing import Replica
from ...proto.rpc import STORAGE
from .cluster import Cluster
from .columns import Columns, Home, Output, cut
from .damage import report_damage
from .plan import Attempts, assign, portions, request_of
from .replicas import ELSEWHERE
from .retry import Patience
from .verify import are_units, crc32c, matches

PATIENT_ROWS_MIN = 64  # of a request of a batch: what takes a server 0.2 ms and more, while the batch before it is used
LOOK_SECONDS = 0.5  # without an answer for so long, and nobody else to ask: look for news of the routing

_EMPTY = memoryview(b"")


@dataclass(slots=True, eq=False)
class _Part:
    """One request to one storage process."""

    node: int
    rows: Sequence[int]
    targets: Sequence[int]  # row by row, which target answers
    versions: Sequence[int]  # row by row, the chain version that was sent
    target: Sequence[Slice]  # one for all rows, one after the other, or one for each
    several: bool  # the chain has other members: they have the same, or will
    ticket: Ticket | None = None
    failure: StatusError | None = None  # nothing was sent
    late: bool = False  # somebody has waited for it as long as is usual
    since: float = 0.0  # when the wait for it began, if that is not when it is collected: it came late, or is a rival
    at_home: bool = False  # its target is part of the fetch's home

    def pieces(self, lengths: Sequence[int]) -> list[memoryview]:
        """Where the bytes of each row are, or will be."""
        if len(self.target) == 1:
            return cut(self.target[0].view, lengths)
        return [slice_.view for slice_ in self.target]

    @property
    def replica(self) -> Replica:
        return Replica(self.targets[0], self.node)


@dataclass(slots=True)
class Fetch:
    """Reads on their way: `start`, `finish`, use `views`, `release`; or `abandon`."""

    cluster: Cluster
    columns: Columns
    views: list[memoryview] = field(default_factory=list)  # row by row what is there: short where the chunk ends
    whole: memoryview | None = None  # all of it, where it came in one piece
    home: Home | None = None  # where the bytes are to lie; None: wherever there is room
    _parts: list[_Part] = field(default_factory=list)
    _slices: list[Slice] = field(default_factory=list)
    _trouble: dict[int, StatusError] = field(default_factory=dict)  # row -> why it has to be read again
    _attempts: dict[int, Attempts] = field(default_factory=dict)  # row -> what was tried for it
    _renewed: bool = False  # capabilities were renewed once already
    _rounds: int = 0  # how often all replicas of some row have failed
    _first: bool = False  # requests go out for the first time

    def from_tail(self, row: int) -> Fetch:
        """A write to this row's chunk is on its way: the tail knows what counts."""
        self._tries(row).tail = True
        return self

    def doubt(self, row: int, target: int) -> Fetch:
        """The checksum of a row from this target was wrong once: read it from there once more."""
        self._tries(row).again = target
        return self

    def start(self) -> Fetch:
        """Send the requests. Raises BUSY when there is no buffer left, STALE_ROUTING for an unknown chain."""
        rows = range(len(self.columns.index))
        self.views = [_EMPTY] * len(rows)
        self._first = True
        try:
            self._send(rows)
        except BaseException:
            self.abandon()
            raise
        finally:
            self._first = False
        return self

    def adopt(self, ticket: Ticket, slice_: Slice, replica: Replica, version: int, since: float) -> Fetch:
        """Instead of `start`: take over a request for the only row, which takes longer than usual; it was sent at `since`."""
        self.views = [_EMPTY]
        self._slices.append(slice_)
        part = _Part(replica.node, (0,), (replica.target,), (version,), (slice_,), True, ticket, late=True, since=since)
        self._parts.append(part)
        return self

    async def complete(self, patience: Patience | None = None) -> Fetch:
        """`start`, unless it was, and `finish`; waits for buffers and for routing as for everything else. Raises StatusError."""
        while not self._parts:
            try:
                self.start()
            except StatusError as failure:
                if failure.status is Status.BUSY and self.cluster.drop_lookahead():
                    continue
                patience = patience or self.cluster.patience()
                await patience.again(failure)
                await self.cluster.recover(failure)
        await self.finish(patience)
        return self

    async def finish(self, patience: Patience | None = None) -> list[memoryview]:
        """Collect and verify everything, again where that can help. On an error the buffers are given back."""
        patience = patience or self.cluster.patience()
        try:
            await self._collect()
            while self._trouble:
                trouble, self._trouble = self._trouble, {}
                await self._settle_trouble(trouble, patience)
                self._send_again(sorted(trouble))
                await self._collect()
            return self.views
        except BaseException:
            self.abandon()
            raise

    async def again(self, rows: Sequence[int]) -> None:
        """Read these rows once more, after `finish`. Raises StatusError."""
        try:
            self._send(rows)
        except BaseException:
            self.abandon()
            raise
        await self.finish()

    def release(self) -> None:
        """Give the buffers back: the views are not valid any more."""
        slices, self._slices, self.views, self.whole = self._slices, [], [], None
        for slice_ in slices:
            self.cluster.env.pool.give(slice_)

    def abandon(self) -> None:
        """Nobody wants the bytes any more."""
        while self._parts:
            self._drop(self._parts[-1])
        self.release()

    def _drop(self, part: _Part) -> None:
        """Nobody wants this answer any more."""
        self._parts.remove(part)
        ticket, part.ticket = part.ticket, None
        if ticket is not None:
            self.cluster.env.abandon(ticket)
            self._spoil(part)
        if part.several:
            self.cluster.replicas.ended(part.node, part)

    def _spoil(self, part: _Part) -> None:
        """Nobody knows whether this part's server still moves bytes."""
        if part.at_home and self.home is not None:
            self.home.spoiled = True

    def deliver(self, output: Output) -> None:
        """Write everything to `output`, row after row; what chunks lack is zeros."""
        if self.whole is not None:
            output.write(self.whole)
            return
        for view, wanted in zip(self.views, self.columns.length, strict=True):
            output.write(view)
            if len(view) < wanted:
                output.write(bytes(wanted - len(view)))

    # --- sending --------------------------------------------------------------------------------------------------------------------

    def _send(self, rows: Sequence[int]) -> None:
        self.columns.placed = None  # a file that was empty may have taken another layout
        for node, (chosen, targets) in assign(self.cluster, self.columns, rows, self._attempts).items():
            every = len(chosen) == len(self.columns.length)
            for begin, end in portions(self.columns.length if every else [self.columns.length[row] for row in chosen]):
                self._send_part(node, chosen[begin:end], targets[begin:end])

    def _send_again(self, rows: Sequence[int]) -> None:
        try:
            self._send(rows)
        except StatusError as failure:
            sent = {row for part in self._parts for row in part.rows}
            self._trouble.update((row, failure) for row in rows if row not in sent)

    def _send_part(self, node: int, rows: Sequence[int], targets: Sequence[int]) -> None:
        cluster, replicas = self.cluster, self.cluster.replicas
        request, length = request_of(cluster, self.columns, rows)
        several = cluster.table.route(request.chain[0]).several
        at_home = self.home is not None and self._first and not self.home.spoiled
        target = self.home.of(rows) if self.home is not None and at_home else self._elsewhere(length)
        part = _Part(node, rows, targets, request.chain_version, target, several, at_home=at_home)
        self._parts.append(part)
        try:
            call = Call(
                cluster.node_address(node),
                STORAGE.Read,
                request,
                cluster.attempt_seconds,
                target=target,
                connect=replicas.connect_seconds * 2.0 ** min(self._rounds, 6) if several else 0.0,
                patient=at_home and len(rows) >= PATIENT_ROWS_MIN,
            )
            part.ticket = cluster.env.start(call)
        except StatusError as failure:
            part.failure = failure  # for `finish`, which may try again
        if several:
            replicas.sent(node, part)

    def _elsewhere(self, length: int) -> list[Slice]:
        """Memory for an answer that has no place, or must not use it any more."""
        if self.home is not None:
            self.home.missed = True
        self._slices.append(self.cluster.env.pool.take(length))
        return self._slices[-1:]

    # --- collecting -----------------------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Take in all replies; what has to be read again is in `_trouble` afterwards. Raises what no retry can cure."""
        env, replicas = self.cluster.env, self.cluster.replicas
        while self._parts:
            part, began = self._parts[0], 0.0
            if part.several and part.ticket is not None and self._may_give_up(part):
                began = part.since or env.now()
                seconds = 0.0 if part.late else replicas.hedge_seconds(part.replica)
                if await env.collect_any((part.ticket,), seconds) is None:
                    await self._race(part, began)
                    continue
            await self._receive(part, began)
            self._parts.pop(0)

    def _may_give_up(self, part: _Part) -> bool:
        return self.home is None or self.home.owned or not part.at_home

    async def _receive(self, part: _Part, began: float) -> None:
        """Take in one reply, which somebody has been waiting for since `began`."""
        cluster, ticket = self.cluster, part.ticket
        part.ticket = None
        try:
            if ticket is None:
                raise part.failure or error(Status.INTERNAL, "a read was collected twice")
            reply = await cluster.env.collect(ticket)
        except StatusError as failure:
            self._spoil(part)
            cluster.note(failure, part.node)
            cluster.replicas.failed(part.replica, failure.status)
            for row, target in zip(part.rows, part.targets, strict=True):
                self._failed(row, target, failure)
        else:
            if part.several:
                cluster.replicas.answered(part.node, cluster.env.now() - began)
            if self._attempts or not self._take_simple(part, reply):
                await self._take_mixed(part, reply)
        finally:
            if part.several:
                cluster.replicas.ended(part.node, part)

    def _take_simple(self, part: _Part, reply: ReadReply) -> bool:
        """The hot path: every operation brought all of its bytes under one checksum, or whole units, and all are right. Otherwise False."""
        rows, count = part.rows, len(part.rows)
        all_lengths = self.columns.length
        lengths = all_lengths if count == len(all_lengths) else [all_lengths[row] for row in rows]
        if reply.returned != lengths or any(reply.status):
            return False
        pieces = part.pieces(lengths)
        if len(reply.checksum) == count and reply.checksums == [1] * count:
            if list(map(crc32c, pieces)) != list(reply.checksum):
                return False
        elif len(part.target) > 1 or not are_units(
            part.target[0].view, reply, map(self.columns.offset.__getitem__, rows), lengths
        ):
            return False
        if count == len(all_lengths):
            self.views = pieces
            self.whole = part.target[0].view if len(part.target) == 1 else None
        else:
            for row, piece in zip(rows, pieces, strict=True):
                self.views[row] = piece
        return True

    async def _take_mixed(self, part: _Part, reply: ReadReply) -> None:
        """As `_take_simple`, operation by operation."""
        self.cluster.learn_chains(reply.chains)
        count = len(part.rows)
        if not count == len(reply.status) == len(reply.returned) == len(reply.checksums):
            raise error(
                Status.PROTOCOL,
                f"storage node {part.node} answered a read of {count} pieces with columns of another length",
            )
        pieces, sums_at = part.pieces([self.columns.length[row] for row in part.rows]), 0
        for i, row in enumerate(part.rows):
            wanted, status = self.columns.length[row], status_of(reply.status[i])
            sums = reply.checksum[sums_at : sums_at + reply.checksums[i]]
            sums_at += reply.checksums[i]
            piece = pieces[i][: min(wanted, reply.returned[i])]
            if status is Status.CHUNK_NOT_FOUND:
                await self._came(row, part.targets[i], _EMPTY)
            elif status is Status.OK and matches(
                piece, sums, reply.unit[i] if reply.unit else 0, self.columns.offset[row]
            ):
                await self._came(row, part.targets[i], piece)
            elif status in (Status.OK, Status.CHECKSUM):
                await self._damaged(row, part.targets[i])
            else:
                self._refused(row, Replica(part.targets[i], part.node), part.versions[i], status)

    # --- row by row -----------------------------------------------------------------------------------------------------------------

    def _tries(self, row: int) -> Attempts:
        return self._attempts.setdefault(row, Attempts())

    def _serving(self, row: int) -> Sequence[Replica]:
        return self.cluster.table.route(self.columns.chain(row)).serving

    def _where(self, row: int, target: int) -> str:
        return f"chunk {self.columns.chunk(row)} on target {target} (chain {self.columns.chain(row)})"

    async def _came(self, row: int, target: int, piece: memoryview) -> None:
        """Verified bytes. Fewer than wanted may be lost here and there on another replica, except where a file has holes."""
        tries = self._attempts.get(row)
        if len(piece) < self.columns.length[row] and not self.columns.inode(row).sparse:
            tries = self._tries(row)
            tries.tried.add(target)
            if tries.untried(self._serving(row)):
                tries.short.add(target)
                missing = error(Status.CHUNK_NOT_FOUND, f"{self._where(row, target)} ends before the file does")
                self._trouble[row] = missing
                return
            tries.short.clear()  # nobody has more
        self.views[row] = piece
        if tries is not None:
            del self._attempts[row]
            for short in tries.short:
                await report_damage(self.cluster, self.columns, row, short)

    def _failed(self, row: int, target: int, failure: StatusError) -> None:
        self._tries(row).tried.add(target)
        self._trouble[row] = failure

    def _refused(self, row: int, replica: Replica, version: int, status: Status) -> None:
        failure = error(status, f"reading {self._where(row, replica.target)}: {error(status).strerror}")
        newest = self.cluster.table.route(self.columns.chain(row)).version
        if status is Status.STALE_CHAIN_VERSION and newest > version:
            self._trouble[row] = failure  # we know better now: nobody has failed
            return
        self.cluster.replicas.refused(replica, status)
        self._failed(row, replica.target, failure)
        if status is Status.NOT_COMMITTED:
            self._tries(row).tail = True

    async def _damaged(self, row: int, target: int) -> None:
        """A wrong checksum: once more from there; the second time tell the scrubber and look elsewhere. Raises CHECKSUM."""
        tries = self._tries(row)
        failure = error(
            Status.CHECKSUM,
            f"{self._where(row, target)}: the bytes do not match their checksum; 'emberfs status' shows the target's disk",
        )
        if tries.again != target:
            tries.again = target
        else:
            tries.again = 0
            await report_damage(self.cluster, self.columns, row, target)
            tries.damaged.add(target)
            if all(replica.target in tries.damaged for replica in self._serving(row)):
                raise failure
        self._trouble[row] = failure

    async def _settle_trouble(self, trouble: dict[int, StatusError], patience: Patience) -> None:
        """Do what each failure asks for before the rows are sent again. Raises what cannot be cured, and DEADLINE."""
        waiting: StatusError | None = None
        expired = set()
        for row, failure in trouble.items():
            if failure.status is Status.CAPABILITY_EXPIRED:
                expired.add(self.columns.file[row] if self.columns.file else 0)
                self._attempts.pop(row, None)
            elif not self._is_elsewhere(row, failure):
                waiting = failure
                tries = self._tries(row)
                tries.tried.clear()
                tries.tail = False
        if expired and self._renewed:
            raise next(f for f in trouble.values() if f.status is Status.CAPABILITY_EXPIRED)
        for file in expired:
            self._renewed = True
            await self.columns.files[file].renew_capability(writing=False)
        if waiting is not None:
            self._rounds += 1
            await patience.again(waiting)
            await self.cluster.refresh_after(waiting)
        elif not patience.remaining():
            raise patience.exhausted(next(iter(trouble.values())))
        else:
            self.cluster.refresh_soon(trouble.values())

    def _is_elsewhere(self, row: int, failure: StatusError) -> bool:
        """Whether the row may come from another replica without waiting."""
        if failure.status in (Status.CHECKSUM, Status.CHUNK_NOT_FOUND):
            return True
        return failure.status in ELSEWHERE and bool(self._tries(row).untried(self._serving(row)))

    # --- rivals ---------------------------------------------------------------------------------------------------------------------

    async def _race(self, late: _Part, began: float) -> None:
        """An answer does not come: ask others as well. The first verified bytes of each row count; whoever is left then is given up."""
        open_rows = dict.fromkeys(late.rows)
        failures: dict[int, StatusError] = {}
        runners = [late]
        for row, target in zip(late.rows, late.targets, strict=True):
            self._tries(row).tried.add(target)
        while open_rows and runners:
            seconds = self._send_rivals(open_rows, runners)
            part = await self._first_of(runners, seconds)
            if part is None:
                continue
            await self._receive(part, part.since or began)
            runners.remove(part)
            self._parts.remove(part)
            for row in part.rows:
                failure = self._trouble.pop(row, None)
                if failure is None:
                    open_rows.pop(row, None)
                elif row in open_rows:
                    failures[row] = failure
        self._trouble.update((row, failures[row]) for row in open_rows)
        if late in runners:
            self.cluster.replicas.failed(late.replica, Status.DEADLINE)
        for loser in runners:
            self._drop(loser)

    def _send_rivals(self, rows: Iterable[int], runners: list[_Part]) -> float:
        """Ask one more replica for each row that has one left; how long to wait for an answer now."""
        replicas = self.cluster.replicas
        before = len(self._parts)
        plan: dict[int, tuple[list[int], list[int]]] = {}
        for row in rows:
            if (rival := self._rival(row)) is not None:
                chosen, targets = plan.setdefault(rival.node, ([], []))
                chosen.append(row)
                targets.append(rival.target)
        with suppress(StatusError):  # no buffer, no rival: then we wait for what is on its way
            for node, (chosen, targets) in plan.items():
                for begin, end in portions([self.columns.length[row] for row in chosen]):
                    if replicas.take_hedge():
                        self._send_part(node, chosen[begin:end], targets[begin:end])
                        for row, target in zip(chosen[begin:end], targets[begin:end], strict=True):
                            self._tries(row).tried.add(target)
        rivals, now = self._parts[before:], self.cluster.env.now()
        for part in rivals:
            part.since = now
        runners += rivals
        if rivals:
            return max(map(replicas.hedge_seconds, [part.replica for part in rivals]))
        self.cluster.refresh_soon()
        return self.cluster.options.scaled(LOOK_SECONDS)

    def _rival(self, row: int) -> Replica | None:
        """Who else has this row: nobody, where only one may answer. Who failed a moment ago only where nobody else is left: that may have
        been slow, too, and the one that is late now has no advantage over it any more."""
        tries = self._tries(row)
        left = [] if tries.tail or tries.again else tries.untried(self._serving(row))
        return self.cluster.replicas.choose(left, self.columns.index[row]) if left else None

    async def _first_of(self, runners: list[_Part], seconds: float) -> _Part | None:
        for part in runners:
            if part.ticket is None:
                return part  # it could not even be sent
        tickets = [part.ticket for part in runners if part.ticket is not None]
        ticket = await self.cluster.env.collect_any(tickets, seconds)
        return next((part for part in runners if part.ticket is ticket), None) if ticket is not None else None

"""Reading chunks: columns of operations -> one request per storage process -> verified bytes in our own buffers.

A `Fetch` is started (its requests are sent) and finished later (the replies are collected), so readahead overlaps with the caller's
work. Its bytes lie in slices of the client's own pool, never in the caller's memory: a request that was given up may still be served
later, and must then hit memory that nobody else uses.

Every byte is checked before anybody sees it. A wrong checksum is read once more from the same replica (the bytes may have been
damaged on their way), then reported to the scrubber and read from another replica; where there is none it is a CHECKSUM error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from ...proto.env import Call, Ticket
from ...proto.errors import Status, StatusError, error, status_of
from ...proto.gen.storage_pb2 import ReadReply, ReadRequest, ReportCorruptionRequest
from ...proto.ids import ChunkId
from ...proto.region import Slice
from ...proto.routing import Replica, choose_replica
from ...proto.rpc import STORAGE
from .cluster import Cluster
from .inode import Inode
from .retry import Patience
from .verify import crc32c, matches

OPERATIONS_MAX = 4096  # of one request
REQUEST_BYTES_MAX = (
    8 << 20
)  # of one request: its reply needs one contiguous slice (or one whole chunk, if that is more)
REPORT_SECONDS = 2.0  # a report of corruption waits at most so long; the error that follows matters more

_EMPTY = memoryview(b"")


class Output(Protocol):
    """Where bytes go, in order: `io.BytesIO`, or a caller's buffer."""

    def write(self, data: memoryview | bytes, /) -> int: ...


class Into:
    """An `Output` over a caller's writable buffer."""

    __slots__ = ("position", "view")

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.position = 0

    def write(self, data: memoryview | bytes, /) -> int:
        end = self.position + len(data)
        self.view[self.position : end] = data
        self.position = end
        return len(data)


@dataclass(slots=True)
class Columns:
    """Read operations, one per row: bytes [offset, offset + length) of chunk `index` of `files[file]`."""

    files: Sequence[Inode]
    file: Sequence[int]  # position in `files`; empty where there is only one
    index: Sequence[int]
    offset: Sequence[int]
    length: list[int]

    def inode(self, row: int) -> Inode:
        return self.files[self.file[row]] if self.file else self.files[0]

    def chain(self, row: int) -> int:
        chains = self.inode(row).chains
        return chains[self.index[row] % len(chains)]

    def chunk(self, row: int) -> ChunkId:
        return ChunkId(0, self.inode(row).id, self.index[row])


def columns_of(file: Inode, offset: int, length: int) -> Columns:
    """The pieces of one range of a file; `length` is at least 1."""
    size = file.chunk_size
    first, start = divmod(offset, size)
    if start + length <= size:
        return Columns((file,), (), [first], [start], [length])
    last = (offset + length - 1) // size
    lengths = [size] * (last - first + 1)
    lengths[0] = size - start
    lengths[-1] = offset + length - last * size
    return Columns((file,), (), range(first, last + 1), [start] + [0] * (last - first), lengths)


def cut(view: memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """The pieces of these lengths, one after the other."""
    size = lengths[0]
    if lengths.count(size) == len(lengths):
        return [view[at : at + size] for at in range(0, size * len(lengths), size)]
    return [view[end - length : end] for end, length in zip(accumulate(lengths), lengths, strict=True)]


@dataclass(slots=True)
class _Part:
    """One request to one storage process."""

    node: int
    rows: Sequence[int]
    targets: Sequence[int]  # row by row, which target answers
    slice: Slice
    ticket: Ticket | None = None
    failure: StatusError | None = None  # nothing was sent


@dataclass(slots=True)
class Fetch:
    """Reads on their way: `start`, `finish`, use `views`, `release`; or `abandon`."""

    cluster: Cluster
    columns: Columns
    views: list[memoryview] = field(default_factory=list)  # row by row what is there: short where the chunk ends
    whole: memoryview | None = None  # all of it, where it came in one piece
    doubtful: set[tuple[int, int]] = field(default_factory=set)  # (row, target) whose checksum was wrong once
    _parts: list[_Part] = field(default_factory=list)
    _slices: list[Slice] = field(default_factory=list)
    _trouble: dict[int, StatusError] = field(default_factory=dict)  # row -> why it has to be read again
    _avoid: dict[int, set[int]] = field(default_factory=dict)  # row -> targets that hold damaged bytes
    _pending_writes: set[int] = field(default_factory=set)  # rows to be read from the tail: a write is on its way
    _renewed: bool = False  # capabilities were renewed once already

    def start(self) -> Fetch:
        """Send the requests. Raises BUSY when there is no buffer left, STALE_ROUTING for an unknown chain."""
        rows = range(len(self.columns.index))
        self.views = [_EMPTY] * len(rows)
        try:
            self._send(rows)
        except BaseException:
            self.abandon()
            raise
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

    def release(self) -> None:
        """Give the buffers back: the views are not valid any more."""
        slices, self._slices, self.views, self.whole = self._slices, [], [], None
        for slice_ in slices:
            self.cluster.env.pool.give(slice_)

    def abandon(self) -> None:
        """Nobody wants the bytes any more."""
        parts, self._parts = self._parts, []
        for part in parts:
            if part.ticket is not None:
                self.cluster.env.abandon(part.ticket)
        self.release()

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
        for node, (chosen, targets) in self._plan(rows).items():
            every = len(chosen) == len(self.columns.length)
            for begin, end in _portions(self.columns.length if every else [self.columns.length[row] for row in chosen]):
                self._send_part(node, chosen[begin:end], targets[begin:end])

    def _send_again(self, rows: Sequence[int]) -> None:
        try:
            self._send(rows)
        except StatusError as failure:
            sent = {row for part in self._parts for row in part.rows}
            self._trouble.update((row, failure) for row in rows if row not in sent)

    def _plan(self, rows: Sequence[int]) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
        """Which node reads which rows, from which targets."""
        columns = self.columns
        if (
            len(columns.files) == 1
            and len(columns.files[0].chains) == 1
            and not self._avoid
            and not self._pending_writes
        ):
            replica = self._choose(rows[0], {})
            return {replica.node: (rows, [replica.target] * len(rows))}
        load: dict[int, int] = {}
        plan: dict[int, tuple[list[int], list[int]]] = {}
        for row in rows:
            replica = self._choose(row, load)
            load[replica.target] = load.get(replica.target, 0) + 1
            chosen, targets = plan.setdefault(replica.node, ([], []))
            chosen.append(row)
            targets.append(replica.target)
        return plan  # type: ignore[return-value]

    def _choose(self, row: int, load: dict[int, int]) -> Replica:
        serving = self.cluster.table.route(self.columns.chain(row)).serving
        if len(serving) == 1:
            return serving[0]
        if row in self._pending_writes and serving:
            return serving[-1]
        return choose_replica(serving, local=self.cluster.local_nodes, load=load, avoid=self._avoid.get(row, ()))

    def _send_part(self, node: int, rows: Sequence[int], targets: Sequence[int]) -> None:
        env = self.cluster.env
        request, length = self._request(rows)
        slice_ = env.pool.take(length)
        self._slices.append(slice_)
        part = _Part(node, rows, targets, slice_)
        self._parts.append(part)
        try:
            call = Call(
                self.cluster.node_address(node), STORAGE.Read, request, self.cluster.attempt_seconds, target=(slice_,)
            )
            part.ticket = env.start(call)
        except StatusError as failure:
            part.failure = failure  # for `finish`, which may try again

    def _request(self, rows: Sequence[int]) -> tuple[ReadRequest, int]:
        columns, table = self.columns, self.cluster.table
        index = columns.index
        whole = len(rows) == len(index)
        lengths = columns.length if whole else [columns.length[row] for row in rows]
        capability: list[int] = []
        if len(columns.files) == 1:
            file = columns.files[0]
            stripe = file.chains
            width = len(stripe)
            chains = [stripe[0]] * len(rows) if width == 1 else [stripe[index[row] % width] for row in rows]
            inodes = [file.id] * len(rows)
            capabilities = [file.capability_read]
        else:
            chains = [columns.chain(row) for row in rows]
            inodes = [columns.inode(row).id for row in rows]
            places = {file: i for i, file in enumerate(dict.fromkeys(columns.file[row] for row in rows))}
            capabilities = [columns.files[file].capability_read for file in places]
            capability = [places[columns.file[row]] for row in rows]
        versions = {chain: table.route(chain).version for chain in set(chains)}
        request = ReadRequest(
            chain=chains,
            chain_version=[versions[chain] for chain in chains],
            inode=inodes,
            index=index if whole else [index[row] for row in rows],
            offset=columns.offset if whole else [columns.offset[row] for row in rows],
            length=lengths,
            capabilities=capabilities,
            capability=capability,
        )
        return request, sum(lengths)

    # --- collecting -----------------------------------------------------------------------------------------------------------------

    async def _collect(self) -> None:
        """Take in all replies; what has to be read again is in `_trouble` afterwards. Raises what no retry can cure."""
        while self._parts:
            part = self._parts[0]
            ticket, part.ticket = part.ticket, None
            try:
                if ticket is None:
                    raise part.failure or error(Status.INTERNAL, "a read was collected twice")
                reply = await self.cluster.env.collect(ticket)
            except StatusError as failure:
                await self.cluster.recover(failure, part.node)
                self._trouble.update((row, failure) for row in part.rows)
            else:
                if not self._take_simple(part, reply):
                    await self._take_mixed(part, reply)
            self._parts.pop(0)

    def _take_simple(self, part: _Part, reply: ReadReply) -> bool:
        """The hot path: every operation brought all of its bytes under one checksum, and all are right. Otherwise False."""
        rows, count = part.rows, len(part.rows)
        all_lengths = self.columns.length
        lengths = all_lengths if count == len(all_lengths) else [all_lengths[row] for row in rows]
        if (
            reply.returned != lengths
            or len(reply.checksum) != count
            or any(reply.status)
            or reply.checksums != [1] * count
        ):
            return False
        pieces = cut(part.slice.view, lengths)
        if list(map(crc32c, pieces)) != list(reply.checksum):
            return False
        if count == len(all_lengths):
            self.views, self.whole = pieces, part.slice.view
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
        view, position, sums_at = part.slice.view, 0, 0
        for i, row in enumerate(part.rows):
            wanted, status = self.columns.length[row], status_of(reply.status[i])
            sums = reply.checksum[sums_at : sums_at + reply.checksums[i]]
            sums_at += reply.checksums[i]
            piece = view[position : position + min(wanted, reply.returned[i])]
            position += wanted
            if status is Status.CHUNK_NOT_FOUND:
                self.views[row] = _EMPTY
            elif status is Status.OK and matches(
                piece, sums, reply.unit[i] if reply.unit else 0, self.columns.offset[row]
            ):
                self.views[row] = piece
            elif status in (Status.OK, Status.CHECKSUM):
                await self._damaged(row, part.targets[i])
            else:
                self._refused(row, part.targets[i], status)

    def _refused(self, row: int, target: int, status: Status) -> None:
        if status is Status.NOT_COMMITTED:
            self._pending_writes.add(row)
        where = f"chunk {self.columns.chunk(row)} on target {target} (chain {self.columns.chain(row)})"
        self._trouble[row] = error(status, f"reading {where}: {error(status).strerror}")

    async def _damaged(self, row: int, target: int) -> None:
        """A wrong checksum: once more from there; the second time tell the scrubber and look elsewhere. Raises CHECKSUM."""
        chain = self.columns.chain(row)
        where = f"chunk {self.columns.chunk(row)} on target {target} (chain {chain})"
        failure = error(
            Status.CHECKSUM, f"{where}: the bytes do not match their checksum; 'emberfs status' shows the target's disk"
        )
        if (row, target) in self.doubtful:
            await report_damage(self.cluster, self.columns, row, target)
            self._avoid.setdefault(row, set()).add(target)
            if all(replica.target in self._avoid[row] for replica in self.cluster.table.route(chain).serving):
                raise failure
        self.doubtful.add((row, target))
        self._trouble[row] = failure

    async def _settle_trouble(self, trouble: dict[int, StatusError], patience: Patience) -> None:
        """Do what each failure asks for before the rows are sent again. Raises what cannot be cured, and DEADLINE."""
        waiting: StatusError | None = None
        expired = set()
        for row, failure in trouble.items():
            if failure.status is Status.CAPABILITY_EXPIRED:
                expired.add(self.columns.file[row] if self.columns.file else 0)
            elif failure.status is not Status.CHECKSUM:
                waiting = failure
        if expired and self._renewed:
            raise next(f for f in trouble.values() if f.status is Status.CAPABILITY_EXPIRED)
        for file in expired:
            self._renewed = True
            await self.columns.files[file].renew_capability(writing=False)
        if waiting is not None:
            await patience.again(waiting)
            if waiting.status in (Status.STALE_ROUTING, Status.TARGET_OFFLINE, Status.STALE_CHAIN_VERSION):
                await self.cluster.refresh()
        elif not patience.remaining():
            raise patience.exhausted(next(iter(trouble.values())))


async def read_piece(
    file: Inode, offset: int, length: int, output: Output, patience: Patience
) -> set[tuple[int, int]] | None:
    """The short way for a range within one chunk of one replica: one request, one checksum; None when it was delivered. If anything
    is unusual a `Fetch` knows what to do: then the (row, target) pairs whose checksum was wrong."""
    cluster = file.cluster
    index, start = divmod(offset, file.chunk_size)
    chain = file.chains[index % len(file.chains)]
    slice_: Slice | None = None
    try:
        route = cluster.table.route(chain)
        if start + length > file.chunk_size or len(route.serving) != 1:
            return set()
        slice_ = cluster.env.pool.take(length)
        request = ReadRequest(
            chain=(chain,),
            chain_version=(route.version,),
            inode=(file.id,),
            index=(index,),
            offset=(start,),
            length=(length,),
            capabilities=(file.capability_read,),
        )
        address = cluster.node_address(route.serving[0].node)
        reply = await cluster.env.call(Call(address, STORAGE.Read, request, patience.attempt(), target=(slice_,)))
        if reply.status != [0] or reply.returned != [length]:
            return set()
        view = slice_.view
        if not matches(view, reply.checksum, reply.unit[0] if reply.unit else 0, start):
            return {(0, route.serving[0].target)}
        output.write(view)
        return None
    except StatusError:
        return set()
    finally:
        if slice_ is not None:
            cluster.env.pool.give(slice_)


async def fetch_patiently(
    cluster: Cluster,
    columns: Columns,
    patience: Patience | None = None,
    doubtful: Iterable[tuple[int, int]] = (),
) -> Fetch:
    """A finished fetch. Waits for buffers and for routing as for everything else. Raises StatusError."""
    while True:
        fetch = Fetch(cluster, columns, doubtful=set(doubtful))
        try:
            fetch.start()
        except StatusError as failure:
            if failure.status is Status.BUSY and cluster.drop_lookahead():
                continue
            patience = patience or cluster.patience()
            await patience.again(failure)
            await cluster.recover(failure)
        else:
            await fetch.finish(patience)
            return fetch


async def report_damage(cluster: Cluster, columns: Columns, row: int, target: int) -> None:
    """Tell a target's server that a chunk there is damaged or missing, so that the scrubber looks at it. Best effort."""
    request = ReportCorruptionRequest(
        chain=[columns.chain(row)], target=[target], inode=[columns.inode(row).id], index=[columns.index[row]]
    )
    nodes = [r.node for r in cluster.table.route(columns.chain(row)).serving if r.target == target]
    with suppress(StatusError):
        for node in nodes:
            timeout = cluster.options.scaled(REPORT_SECONDS)
            await cluster.env.call(Call(cluster.node_address(node), STORAGE.ReportCorruption, request, timeout))


def _portions(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut rows of these lengths into requests within the limits."""
    if len(lengths) <= OPERATIONS_MAX and sum(lengths) <= REQUEST_BYTES_MAX:
        yield 0, len(lengths)
        return
    begin = total = 0
    for i, length in enumerate(lengths):
        if i > begin and (total + length > REQUEST_BYTES_MAX or i - begin == OPERATIONS_MAX):
            yield begin, i
            begin, total = i, 0
        total += length
    yield begin, len(lengths)

"""One operation on many keys: grouped by storage process, cut into windows, several on their way at once, again where that can help.

What the operations have in common is here; what they send, and what they make of a reply, is in get.py, put.py and lookup.py. Each key
has a status in the end, whatever happened: nothing is raised once a batch has begun.

Windows keep the order of the keys, so that the blocks of a prefix arrive from its head on. While this process checks one window, the
server moves the next ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ...client.core.replicas import ELSEWHERE
from ...client.core.retry import Patience
from ...proto.blocks import KEY_BYTES, KEYS_MAX
from ...proto.env import Call, Ticket
from ...proto.errors import Status, StatusError, error
from ...proto.heads import LOOK_SECONDS, is_head
from ...proto.region import Slice
from ...proto.routing import Replica
from ...proto.rpc import Method
from ..keys import Placement, select
from ..namespace import Namespace
from ..places import Places, cut
from .statuses import AGAIN, CANCELLED, DEAD, LATE, MISS, WRONG_SIZE, code_of, failure_of

if TYPE_CHECKING:
    from .core import KvCore

WINDOW_BYTES = 8 << 20  # of one request at most, or one block if that is more
WINDOW_BYTES_SHARED = 18 << 20  # where the server moves them itself: four blocks of 4.29 MiB cost a fifth less
WINDOW_BYTES_MIN = 512 << 10  # less is not divided: a request costs as much as moving half of that
WINDOWS_READ_MIN = 2  # into which a batch of reads is divided at least, so that one is checked while the next is moved
WINDOWS_IN_FLIGHT_MAX = 4  # of one batch
UNREACHABLE_SECONDS = 0.5  # so long is a server that cannot be reached tried again: then it is a miss. Scaled
HASTE_SECONDS = 5.0  # who waits for longer than that, an engine's default, is given the time in any case. Scaled
TURNS_MAX = 2  # rounds without a pause in which other replicas are asked
REPLICA_SECONDS = 0.5  # without an answer, another replica is asked, if there is one; doubling with each round. Scaled

# The server may be gone for a while. Engines compute what they miss, which is faster than waiting for that.
_GONE = frozenset({Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.TARGET_OFFLINE})
_SILENT = frozenset({Status.UNAVAILABLE, Status.MAYBE_COMMITTED, Status.DEADLINE})


@dataclass(slots=True, eq=False)
class Part:
    """One request to one storage process."""

    replica: Replica
    rows: Sequence[int]
    chains: list[int]  # runs of the rows
    counts: list[int]
    several: bool  # another member could answer as well, or will
    hasty: bool = False  # nobody else can, and it did not answer the last time: it is asked once, and not for long
    piece: Slice | None = None  # of the client's pool: for the bytes of rows that the server does not reach
    pieces: Mapping[int, memoryview] = field(default_factory=dict)  # of it, by row
    call: Call | None = None
    ticket: Ticket | None = None


@dataclass(slots=True)
class Stop:
    """Whoever waits for a batch may change their mind: windows that were not sent yet stay unsent then."""

    wanted: bool = False


@dataclass(eq=False)
class Batch:
    """Keys of one namespace. `statuses` row by row; `AGAIN` until something is known."""

    core: KvCore
    namespace: Namespace
    keys: bytes
    patience: Patience
    stop: Stop = field(default_factory=Stop)
    statuses: list[int] = field(default_factory=list)
    method: Method = field(init=False)
    reading = True  # any member of a chain answers; otherwise the head

    def __post_init__(self) -> None:
        self.count = len(self.keys) // KEY_BYTES
        self.statuses = [AGAIN] * self.count
        self._trouble: dict[int, StatusError] = {}  # row -> why it has to be tried again
        self._unreachable_until = 0.0
        self._older = False
        self._once_more: list[int] = []  # rows to be asked for again at once
        self._alone = False  # something in trouble can come from nowhere else
        self._rounds = 0  # so far
        self._turns = 0  # rounds in which other replicas were asked at once
        self._given_up: set[int] = set()  # nodes that are not asked any more

    # What an operation says of itself.

    def fits(self, row: int) -> bool:
        """Whether the memory of a row is as long as it has to be."""
        return True

    def weight(self, row: int) -> int:
        """Bytes that a row moves."""
        return 0

    def weight_of(self, rows: Sequence[int]) -> int:
        """Bytes that these rows move."""
        return 0

    def window_bytes(self, replica: Replica) -> int:
        """What one request may move at most."""
        return WINDOW_BYTES

    def call(self, part: Part) -> Call:
        """The request for a part. Raises StatusError when it cannot be made now."""
        raise NotImplementedError

    def take(self, part: Part, reply: Any) -> None:
        """Take in a reply: settle its rows, or say `again`."""
        raise NotImplementedError

    # What a reply does to rows.

    def settle(self, rows: Sequence[int], code: int) -> None:
        for row in rows:
            self.statuses[row] = code

    def fail_all(self, failure: StatusError) -> None:
        """Nothing could be asked at all: rows without an answer get this one."""
        self.statuses = [code_of(failure.status) if status == AGAIN else status for status in self.statuses]

    def again(self, row: int, failure: StatusError, part: Part) -> None:
        """A row that did not come; for good if nothing can help."""
        if self.core.closed:
            self.statuses[row] = CANCELLED
            return
        self.statuses[row] = code_of(failure.status)
        elsewhere = self.reading and part.several and failure.status in ELSEWHERE
        if elsewhere or failure.retryable or failure.status is Status.DEADLINE:
            self._trouble[row] = failure
            self._alone = self._alone or not elsewhere

    def refused(self, part: Part, codes: Sequence[int]) -> bool:
        """Settle the rows that a server refused, by the status column of its reply. Whether some were accepted."""
        if len(codes) != len(part.rows):
            self.failed(part, error(Status.PROTOCOL, f"{len(codes)} statuses for {len(part.rows)} keys"))
            return False
        failures: dict[int, StatusError] = {}
        for row, code in zip(part.rows, codes, strict=True):
            if code:
                if code not in failures:
                    failures[code] = failure_of(code, f"storage node {part.replica.node}")
                    if part.several:
                        self.core.cluster.replicas.refused(part.replica, failures[code].status)
                self.again(row, failures[code], part)
        return True

    def failed(self, part: Part, failure: StatusError) -> None:
        """A whole request came to nothing."""
        cluster = self.core.cluster
        if failure.status is Status.NOT_FOUND and self.core.is_registered(self.namespace):
            # Registered a moment ago: the server has not heard of it.
            failure = error(Status.STALE_ROUTING, failure.strerror or "")
        node = part.replica.node
        cluster.note(failure, node)
        if part.several or self._says_much(failure, part):
            cluster.replicas.failed(part.replica, failure.status)
        if part.hasty and failure.status in _SILENT:
            self._given_up.add(node)
            self.settle(part.rows, code_of(failure.status))
            return
        for row in part.rows:
            self.again(row, failure, part)

    def _says_much(self, failure: StatusError, part: Part) -> bool:
        """Whether a server that failed so is away, and not only slower than somebody had time for."""
        if failure.status is Status.DEADLINE:
            return part.call is not None and part.call.timeout >= self._scaled(UNREACHABLE_SECONDS)
        return failure.status in _SILENT

    def _scaled(self, seconds: float) -> float:
        return self.core.cluster.options.scaled(seconds)

    def checked(self, places: Places, *, all_fit: bool = False) -> Sequence[int]:
        """The rows that can be asked for at all; the others get their status. `all_fit`: as far as it is known without a look at each."""
        rows: Sequence[int] = range(self.count)
        if not all_fit:
            rows = [row for row in rows if self.fits(row)]
            if len(rows) != self.count:
                self.settle(range(self.count), WRONG_SIZE)
                self.settle(rows, AGAIN)
        if dead := places.dead_rows(rows):
            self.core.env.pool.reclaim()
            dead = places.dead_rows(rows)
        if dead:
            self.settle(dead, DEAD)
            rows = [row for row in rows if self.statuses[row] != DEAD]
        return rows

    # Rounds.

    async def carry_out(self, rows: Sequence[int], placement: Placement, *, older: bool = False) -> None:
        """Do it for these rows, where a version of the table places them, and again until the patience is over. `older`: where an older
        version does, so that what cannot be asked at once is a miss: a chain may have left the table because it is gone."""
        self._older = older
        chains = placement.chains_of(self.keys) if len(placement.chains) > 1 else None
        alone = placement.chains[0] if placement.chains else 0
        while len(rows):
            self._trouble, self._alone, self._once_more = {}, False, []
            await self._round(self._planned(rows, chains, alone))
            self._rounds += 1
            rows = self._once_more
            if self._trouble and not self.stop.wanted:
                rows = sorted([*rows, *await self._after(self._trouble)])

    async def _after(self, trouble: Mapping[int, StatusError]) -> Sequence[int]:
        """Wait as long as is good, and look for news. The rows to try again; none when the time is over."""
        rows = sorted(trouble)
        failures = list({id(failure): failure for failure in trouble.values()}.values())
        cluster, now = self.core.cluster, self.patience.env.now()
        if not self._alone and self._turns < TURNS_MAX:
            self._turns += 1
            return rows  # whoever failed is left alone for a while: this time another replica answers
        if self._older and not all(failure.status is Status.STALE_CHAIN_VERSION for failure in failures):
            self.settle(rows, MISS)
            return ()
        if all(failure.status in _GONE for failure in failures):
            self._unreachable_until = self._unreachable_until or now + cluster.options.scaled(UNREACHABLE_SECONDS)
            if now > self._unreachable_until:
                cluster.refresh_soon(failures)
                return ()
        try:
            await self.patience.again(self._worst(failures))
        except StatusError as final:
            if self.patience.remaining() < 0.001 or final.status is Status.DEADLINE:
                self.settle([row for row in rows if trouble[row].status is not Status.BUSY], LATE)
            return ()
        if any(failure.status is Status.STALE_ROUTING for failure in failures):
            await cluster.refresh()
        else:
            cluster.refresh_soon(failures)
        return rows

    @staticmethod
    def _worst(failures: Sequence[StatusError]) -> StatusError:
        """The one to wait for: what only needs a look at the routing does not delay, the others do."""
        return next((failure for failure in failures if failure.status is not Status.STALE_CHAIN_VERSION), failures[0])

    # Planning.

    def _planned(self, rows: Sequence[int], chains: Sequence[int] | None, alone: int) -> deque[Part]:
        """Requests for these rows, in the order in which they are to be sent."""
        by_chain: dict[int, Sequence[int]] = {}
        if chains is None:
            by_chain[alone] = rows
        else:
            lists: dict[int, list[int]] = {}
            for row in rows:
                lists.setdefault(chains[row], []).append(row)
            by_chain.update(lists)
        by_node: dict[int, tuple[Replica, bool, list[Sequence[int]]]] = {}
        for chain, of_chain in by_chain.items():
            if self._is_retired(chain):
                self.settle(of_chain, MISS)
                continue
            try:
                replica, several = self._replica(chain)
            except StatusError as failure:
                for row in of_chain:
                    self._trouble[row] = failure
                    self.statuses[row] = code_of(failure.status)
                self._alone = True
                continue
            entry = by_node.setdefault(replica.node, (replica, several, []))
            by_node[replica.node] = (entry[0], entry[1] or several, [*entry[2], of_chain])
        queues = []
        for replica, several, groups in by_node.values():
            mine = groups[0] if len(groups) == 1 else sorted([row for group in groups for row in group])
            windows = self._windows(mine, self.window_bytes(replica))
            parts = [self._part(replica, several, window, chains, alone) for window in windows]
            if self._is_in_vain(replica.node, several):
                for part in parts:
                    part.hasty = True
            queues.append(parts)
        return _interleaved(queues)

    def _is_in_vain(self, node: int, several: bool) -> bool:
        """Whether a server was away before this batch began. Of those who ask it for an engine none waits as long as the first."""
        if several or self._rounds or not self.core.cluster.replicas.is_silent(node):
            return False
        return self.patience.total <= self._scaled(HASTE_SECONDS)

    def _is_retired(self, chain: int) -> bool:
        """A chain that has left the table, and then lost its last member: no blocks are there, for ever."""
        known = self.core.cluster.table.chains.get(chain)
        return known is not None and not known.members

    def _replica(self, chain: int) -> tuple[Replica, bool]:
        cluster = self.core.cluster
        route = cluster.table.route(chain)
        if not self.reading or len(route.serving) < 2:
            return cluster.table.head(chain), route.several
        return cluster.replicas.choose(route.serving, chain), True

    def _windows(self, rows: Sequence[int], window: int) -> list[Sequence[int]]:
        total = self.weight_of(rows)
        window = min(window, max(WINDOW_BYTES, -(-total // WINDOWS_IN_FLIGHT_MAX)))  # there is work for all in flight
        if self.reading:
            window = min(window, max(WINDOW_BYTES_MIN, -(-total // WINDOWS_READ_MIN)))
        if len(rows) <= KEYS_MAX and total <= window:
            return [rows]
        begin = weight = 0
        found: list[Sequence[int]] = []
        for i, row in enumerate(rows):
            more = self.weight(row)
            if i > begin and (weight + more > window or i - begin == KEYS_MAX):
                found.append(rows[begin:i])
                begin, weight = i, 0
            weight += more
        found.append(rows[begin:])
        return found

    def _part(
        self, replica: Replica, several: bool, rows: Sequence[int], chains: Sequence[int] | None, alone: int
    ) -> Part:
        if chains is None:
            return Part(replica, rows, [alone], [len(rows)], several)
        runs: dict[int, list[int]] = {}
        for row in rows:
            runs.setdefault(chains[row], []).append(row)
        ordered = rows if len(runs) == 1 else [row for run in runs.values() for row in run]
        return Part(replica, ordered, list(runs), list(map(len, runs.values())), several)

    # Sending and collecting.

    async def _round(self, waiting: deque[Part]) -> None:
        flying: list[Part] = []
        try:
            while waiting or flying:
                self._send(waiting, flying)
                if flying:
                    await self._receive(await self._next(flying))
        except BaseException:
            for part in flying:
                if part.ticket is not None:
                    self.core.env.abandon(part.ticket)
                self._give_back(part)
            raise

    def _send(self, waiting: deque[Part], flying: list[Part]) -> None:
        while waiting and len(flying) < WINDOWS_IN_FLIGHT_MAX:
            part = waiting[0]
            if self.stop.wanted or part.replica.node in self._given_up:
                self.settle(waiting.popleft().rows, CANCELLED if self.stop.wanted else AGAIN)
                continue
            try:
                part.call = self.call(part)
            except StatusError as failure:
                self._give_back(part)
                if failure.status is Status.BUSY and flying:
                    return  # buffers are short: when some have come back
                self.failed(waiting.popleft(), failure)
                continue
            waiting.popleft()
            part.ticket = self.core.env.start(part.call)
            flying.append(part)

    async def _next(self, flying: list[Part]) -> Part:
        """The first that has been answered, or has failed. It is removed."""
        if len(flying) == 1 and not flying[0].several:
            return flying.pop()
        cluster = self.core.cluster
        seconds = cluster.options.scaled(LOOK_SECONDS)
        while True:
            tickets = [part.ticket for part in flying if part.ticket is not None]
            ticket = await self.core.env.collect_any(tickets, seconds)
            for part in flying:
                if part.ticket is ticket:
                    flying.remove(part)
                    return part
            for part in flying:
                if part.several and self._is_elsewhere(part):
                    flying.remove(part)
                    return part
            cluster.refresh_soon()

    def _is_elsewhere(self, part: Part) -> bool:
        """Whether somebody else has taken over meanwhile what this part asked for: then nobody waits for the answer any more."""
        table, replica = self.core.cluster.table, part.replica
        if self.reading:
            gone = any(replica not in table.route(chain).serving for chain in part.chains)
        else:
            gone = not is_head(table, replica.node, part.chains)
        if gone and part.ticket is not None:
            self.core.env.abandon(part.ticket)
            part.ticket = None
        return gone

    async def _receive(self, part: Part) -> None:
        try:
            if part.ticket is None:
                raise error(
                    Status.MAYBE_COMMITTED, f"node {part.replica.node} did not answer, and its chain has changed"
                )
            ticket, part.ticket = part.ticket, None
            reply = await self.core.env.collect(ticket)
        except StatusError as failure:
            self.failed(part, failure)
        else:
            self.core.cluster.replicas.spoke(part.replica.node)
            if reply.chains:
                self.core.cluster.learn_chains(reply.chains)
            self.take(part, reply)
        finally:
            self._give_back(part)

    def _give_back(self, part: Part) -> None:
        piece, part.piece, part.pieces = part.piece, None, {}
        if piece is not None:
            self.core.env.pool.give(piece)

    # For the requests.

    @staticmethod
    def chain_of(part: Part, row: int) -> int:
        """The chain that a row was asked of."""
        at = part.rows.index(row)
        for chain, count in zip(part.chains, part.counts, strict=True):
            if at < count:
                return chain
            at -= count
        raise ValueError(f"row {row} is in no run")

    def address(self, part: Part) -> str:
        """Where to send it. Raises STALE_ROUTING, UNAVAILABLE."""
        return self.core.cluster.node_address(part.replica.node)

    def seconds(self, part: Part) -> float:
        """The time-out of a request."""
        seconds = self.patience.attempt()
        if part.hasty:
            return min(seconds, self._scaled(UNREACHABLE_SECONDS))
        if self.reading and (part.several or self._older):
            return min(seconds, self.core.cluster.options.scaled(REPLICA_SECONDS) * 2.0 ** min(self._rounds, 8))
        return seconds

    def window_over(self, replica: Replica, places: Places) -> int:
        """The window of a batch that moves bytes to or from these places."""
        is_reached = replica.node in self.core.cluster.replicas.local and not places.is_private
        return WINDOW_BYTES_SHARED if is_reached else WINDOW_BYTES

    def head(self, part: Part) -> dict[str, Any]:
        """The fields that every request begins with. Raises STALE_ROUTING."""
        route = self.core.cluster.table.route
        return {
            "namespace": self.namespace.id,
            "chain": part.chains,
            "chain_version": [route(chain).version for chain in part.chains],
            "count": part.counts,
            "keys": select(self.keys, part.rows),
        }

    def bulk(self, part: Part, places: Places, private: Collection[int] = ()) -> list[Slice]:
        """Where the bytes of a part's rows are moved to or from: the caller's memory where the server reaches it (or where they pass
        through a socket anyway), otherwise the client's pool. Rows in `private` go to the pool. Raises BUSY."""
        shared = self.core.env.shares_memory(self.address(part))
        if not private and (ready := places.all_slices(part.rows, shared)) is not None:
            return ready
        if shared and places.is_private:
            part.piece = whole = self.core.env.pool.take(self.weight_of(part.rows))
            part.pieces = dict(zip(part.rows, cut(whole.view, places.lengths_of(part.rows)), strict=True))
            return [whole]
        found: list[Sequence[Slice] | None] = []
        missing = 0
        for row in part.rows:
            slices = None if row in private else places.slices(row, shared)
            found.append(slices)
            if slices is None:
                missing += places.lengths[row]
        if not missing:
            return [slice_ for slices in found for slice_ in slices or ()]
        part.piece = whole = self.core.env.pool.take(missing)
        view, position, bulk, pieces = whole.view, 0, [], {}
        for row, slices in zip(part.rows, found, strict=True):
            if slices is None:
                length = places.lengths[row]
                pieces[row] = view[position : position + length]
                bulk.append(Slice(whole.region, whole.offset + position, length))
                position += length
            else:
                bulk += slices
        part.pieces = pieces
        return bulk


def _interleaved(queues: Sequence[Sequence[Part]]) -> deque[Part]:
    """The first window of every server, then the second ones: all of them have something to do from the start."""
    return deque(part for turn in zip_longest(*queues) for part in turn if part is not None)

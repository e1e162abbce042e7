"""Between the members of a chain: batches on their way to the successor, and which version of a chunk is the chain's.

The machine says what is forwarded, and again until it is acknowledged; this shell finds the successor, gives it the private copy of the
payload that the update came with (or, where whole contents are wanted, reads them back), and brings the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ..proto.env import Environment
from ..proto.errors import Status, StatusError, error
from ..proto.gen.common_pb2 import Chain
from ..proto.gen.storage_pb2 import CommittedReply, CommittedRequest, ForwardReply, ForwardRequest
from ..proto.ids import CHANNELS, CHUNK_ID_BYTES
from ..proto.region import Region, Slice, joined
from ..proto.rpc import STORAGE, Context
from ..proto.settings import time_scale
from .blocks.record import unpack_record
from .columns import need_trust
from .engine.disk import Disk
from .engine.reads import ReadPlan, verify
from .engine.row import State
from .events import ALWAYS, Forward, Kind, Result, Source, Update, Version
from .exchange import CLIENT_BYTES, forget_records
from .peers import Peers
from .reach import Reach
from .target import Target
from .updates import chunk_size_of

FORWARD_S_MAX = 5.0  # of one forward, until it is taken for lost; scaled
ASK_TAIL_S_MAX = 0.02  # a reader had better go to the tail itself than wait longer; scaled
WHOLE_BYTES_MAX = 16 << 20  # of contents that are read back and sent together; one that is larger goes alone
JOINED_BYTES_MAX = 256 << 10  # payloads of so many bytes together are sent as one piece, longer ones where they lie
PIECES_MAX = 64
SHARED_BYTES_MIN = 64 << 10  # payloads from here on go through memory that a successor on the same machine shares

_NO_CHUNK = bytes(CHUNK_ID_BYTES)
_KINDS = frozenset(map(int, Kind))

Learn = Callable[[Iterable[Chain]], None]  # takes the newer entries that come with refusals


class Forwarder:
    """Of one target: carries out its machine's Forward effects, and asks the tail for it."""

    def __init__(self, target: Target, peers: Peers, learn: Learn) -> None:
        self._target = target
        self._peers = peers
        self._learn = learn
        self.reach = Reach(lambda: target.replica, target.lease, target.env, self._ask, target.state_changed)
        self._silent = False  # the successor did not answer the last time; said once
        self._behind = False  # the successor has an older entry of the chain than we

    async def forward(self, effect: Forward) -> Sequence[Result] | None:
        """The successor's results, one per update (one for a sync); None when it did not answer."""
        results = await (self._forward_contents(effect) if effect.whole else self._send(effect, effect.updates))
        counters = self._target.counters
        if results is None:
            counters.forwards_unanswered += 1
        else:
            counters.forwards += 1
        return results

    async def _forward_contents(self, effect: Forward) -> Sequence[Result] | None:
        results: list[Result] = []
        for i, part in enumerate(_parts(effect.updates)):
            piece = self._target.replica.next_part(effect) if i else effect
            try:
                found = await self._send_contents(piece, part) if piece is not None else None
            except StatusError as failed:
                self._say(effect.target, failed)
                found = None
            if found is None:
                return None
            results += found
        return results if effect.updates else await self._send(effect, ())

    async def _send_contents(self, effect: Forward, updates: Sequence[Update]) -> Sequence[Result] | None:
        engine = self._target.engine
        states = [self._state(update) for update in updates]
        held = [(update, state) for update, state in zip(updates, states, strict=True) if state is not None]
        memory = _Memory(self._target.env, sum([state.length for _, state in held]))
        try:
            reads = [(update.chunk, 0, state.length) for update, state in held]
            versions = {update.chunk: state.version for update, state in held}
            with engine.plan(reads, versions=versions) as plans:
                views = memory.cut([plan.length for plan in plans])
                failures = await self._target.blocking(_read_all, engine.disk, plans, views)
            read = zip(views, failures, strict=True)
            contents = [
                _removed(update) if state is None else self._content(update, state, *next(read))
                for update, state in zip(updates, states, strict=True)
            ]
            results = await self._send(effect, contents, memory.slices)
            if results is not None:
                self._target.counters.bytes_copied += sum(
                    [update.length for update in contents if update.data is not None]
                )
            return results
        finally:
            memory.release()

    def _state(self, update: Update) -> State | None:
        """What the update makes of its chunk; None: nothing. Raises NOT_COMMITTED when that is something else by now (its line is the
        machine's, so only we have left the chain)."""
        version = update.version
        assert version is not None
        state = self._target.engine.content(update.chunk, version)
        if state is None and update.kind is not Kind.REMOVE:
            raise error(Status.NOT_COMMITTED, f"version {version.number} is not here any more")
        return state if state is not None and not state.removed else None

    def _content(self, update: Update, state: State, data: memoryview, failure: StatusError | None) -> Update:
        """REPLACE of everything. A damaged chunk goes as it is, with the checksums that it should have: the successor knows of the damage
        and can be repaired once another member has the chunk, and nobody waits for that here, in the line in which the repair waits."""
        units = b""
        if failure is not None:
            if failure.status not in (Status.CHECKSUM, Status.IO_ERROR):
                raise failure
            self._target.found_damaged(update.chunk, str(failure.strerror))
            units = self._target.engine.units_of(update.chunk, state)
        return update._replace(
            kind=Kind.REPLACE,
            offset=0,
            length=state.length,
            checksum=state.whole,
            truncate_version=state.truncate_version,
            chunk_size=chunk_size_of(state),
            data=data,
            units=units,
            block=state.block,
        )

    async def _send(
        self, effect: Forward, updates: Sequence[Update], source: Sequence[Slice] | None = None
    ) -> Sequence[Result] | None:
        chain = self._target.replica.chain
        if chain is None:
            return None
        request = _request(effect, chain.id, self._target.id, updates)
        if self._behind:
            request.entry.CopyFrom(chain)
        memory: _Memory | _Lent | None = None
        # Counted now: by the time of the answer the batch may have been answered too, and its payload given back.
        size = sum([len(update.data) for update in updates if update.data is not None])
        if source is None:
            views = [update.data for update in updates if update.data is not None]
            memory = self._shared(effect.target, views)
            source = memory.slices if memory is not None else _slices(views)
        self.reach.sent(effect.batch, effect.chain_version)
        try:
            seconds = FORWARD_S_MAX * time_scale()
            reply = await self._peers.call(effect.target, STORAGE.Forward, request, seconds, source=source)
        except StatusError as failed:
            self._say(effect.target, failed)
            return None
        finally:
            if memory is not None:
                memory.release()
        self._silent = False
        self.reach.answered(effect.batch)
        self._target.counters.bytes_forwarded += size
        self._learn(reply.chains)
        columns = zip(reply.status, reply.number, reply.length, reply.checksum, strict=False)
        results = [Result(*column) for column in columns]
        stale = any(result.status == Status.STALE_CHAIN_VERSION for result in results)
        self._behind = stale and all(theirs.version < effect.chain_version for theirs in reply.chains)
        return results if len(results) == max(len(updates), 1) else None

    def _shared(self, successor: int, views: Sequence[memoryview]) -> _Memory | _Lent | None:
        """The payload where a successor on this machine takes it from itself: where it lies, if it came through shared memory itself,
        or else in a copy, which spares two through a socket."""
        size = sum(map(len, views))
        if size < SHARED_BYTES_MIN or not self._peers.shares_memory(successor):
            return None
        pool = self._target.env.pool
        found = [pool.find(view) for view in views]
        slices = [slice_ for slice_ in found if slice_ is not None]
        if len(slices) == len(found):
            return _Lent(self._target.env, joined(slices))
        memory = _Memory(self._target.env, size)
        for piece, view in zip(memory.cut([len(view) for view in views]), views, strict=True):
            piece[:] = view
        return memory

    def _say(self, successor: int, failed: StatusError) -> None:
        """That it will be tried again, once in a row."""
        if not self._silent:
            self._target.log.warning(
                "cannot forward; trying again", target=self._target.id, successor=successor, error=failed.strerror
            )
        self._silent = True

    async def _ask(self, target: int, chain: Chain, seconds: float) -> CommittedReply:
        """A question that anything alive answers, with a refusal at least. Raises as `Peers.call`."""
        request = CommittedRequest(chain=chain.id, chain_version=chain.version)
        reply: CommittedReply = await self._peers.call(target, STORAGE.Committed, request, seconds)
        return reply

    async def committed(self, chunks: Sequence[bytes]) -> list[int] | None:
        """Each chunk's committed number at the tail, 0 where it has none; None when the tail does not say in time."""
        chain = self._target.replica.chain
        tail = self._target.replica.last_serving
        if chain is None or tail in (0, self._target.id):
            return None  # nobody knows, or we do not know ourselves
        request = CommittedRequest(chain=chain.id, chain_version=chain.version, chunks=b"".join(chunks))
        try:
            reply = await self._peers.call(tail, STORAGE.Committed, request, ASK_TAIL_S_MAX * time_scale())
        except StatusError:
            return None
        self._learn(reply.chains)
        return list(reply.number) if reply.status == Status.OK and len(reply.number) == len(chunks) else None


def _parts(updates: Sequence[Update]) -> Iterable[Sequence[Update]]:
    """Cut by what their contents are about to take."""
    part: list[Update] = []
    size = 0
    for update in updates:
        length = max(update.chunk_size, update.length)
        if part and size + length > WHOLE_BYTES_MAX:
            yield part
            part, size = [], 0
        part.append(update)
        size += length
    if part:
        yield part


class _Memory:
    """Where contents are read to on their way: of the pool, which a server on this machine takes them from itself, or our own."""

    def __init__(self, env: Environment, size: int) -> None:
        self._pool = env.pool
        self._taken: Slice | None = None
        self.slices: Sequence[Slice] = ()
        if not size:
            return
        try:
            self._taken = env.pool.take(size)
        except StatusError:  # the pool is used up
            self.slices = (Slice(Region(memoryview(bytearray(size))), 0, size),)
        else:
            self.slices = (self._taken,)

    def cut(self, lengths: Sequence[int]) -> list[memoryview]:
        """One piece after the other."""
        whole = self.slices[0].view if self.slices else memoryview(b"")
        ends = [0, *accumulate(lengths)]
        return [whole[begin:end] for begin, end in pairwise(ends)]

    def release(self) -> None:
        if self._taken is not None:
            self._pool.give(self._taken)


class _Lent:
    """Memory of the pool that somebody else may give back before we have the answer."""

    def __init__(self, env: Environment, slices: Sequence[Slice]) -> None:
        self._pool = env.pool
        self._hold = env.pool.hold(slices)
        self.slices = slices

    def release(self) -> None:
        self._pool.release(self._hold)


def _removed(update: Update) -> Update:
    return update._replace(kind=Kind.REMOVE, offset=0, length=0, checksum=0, data=None, block=b"")


def _read_all(disk: Disk, plans: Sequence[ReadPlan], views: Sequence[memoryview]) -> list[StatusError | None]:
    """Where blocking is allowed. What cannot be read is zeros."""
    failures: list[StatusError | None] = []
    for plan, view in zip(plans, views, strict=True):
        failure: StatusError | None = None
        try:
            if plan.status is not Status.OK:
                raise error(plan.status, f"chunk {plan.chunk.hex()}: {plan.status.name}")
            plan.read_once(disk, (view,))
            verify(plan, 0, view)
        except StatusError as failed:
            failure = failed
            if failed.status is not Status.CHECKSUM:
                view[:] = bytes(len(view))
        failures.append(failure)
    return failures


def _request(effect: Forward, chain: int, sender: int, updates: Sequence[Update]) -> ForwardRequest:
    request = _columns(effect, chain, sender, updates)
    if any(update.kind is Kind.CLONE for update in updates):
        sources = [update.source or Source(_NO_CHUNK) for update in updates]
        request.sources = b"".join([source.chunk for source in sources])
        versions = [source.version or Version(0, 0) for source in sources]
        request.source_chain[:] = [version.chain_version for version in versions]
        request.source_number[:] = [version.number for version in versions]
    return request


def _columns(effect: Forward, chain: int, sender: int, updates: Sequence[Update]) -> ForwardRequest:
    clients = {client: i for i, client in enumerate(dict.fromkeys(update.client for update in updates))}
    versions = [update.version or Version(0, 0) for update in updates]
    return ForwardRequest(
        chain=chain,
        chain_version=effect.chain_version,
        target=sender,
        session=effect.session,
        number=effect.number,
        kind=[update.kind for update in updates],
        chunks=b"".join([update.chunk for update in updates]),
        offset=[update.offset for update in updates],
        length=[update.length for update in updates],
        checksum=[update.checksum for update in updates],
        truncate_version=[update.truncate_version for update in updates],
        chunk_size=[update.chunk_size for update in updates],
        version_chain=[version.chain_version for version in versions],
        version_number=[version.number for version in versions],
        clients=list(clients),
        client=[clients[update.client] for update in updates],
        channel=[update.channel for update in updates],
        sequence=[update.sequence for update in updates],
        units=[update.units for update in updates] if any(update.units for update in updates) else (),
        block=[update.block for update in updates] if any(update.block for update in updates) else (),
    )


def _slices(payload: Sequence[memoryview]) -> Sequence[Slice]:
    """Views of our own: the handler that the payload came with may be over before an unanswered forward is."""
    views = [memoryview(view) for view in payload]
    size = sum(map(len, views))
    if len(views) > 1 and (size <= JOINED_BYTES_MAX or len(views) > PIECES_MAX):
        views = [memoryview(b"".join(views))]
    return [Slice(Region(view), 0, len(view)) for view in views]


class Forwarding:
    """Handlers of Forward and Committed, for servers of the cluster. `member(chain)` is our target in that chain, `newer(chain)` the
    chain's entry for whoever comes with an old version; `learn` takes a newer one."""

    def __init__(
        self, member: Callable[[int], Target | None], newer: Callable[[int], Sequence[Chain]], learn: Learn
    ) -> None:
        self._member = member
        self._newer = newer
        self._learn = learn

    async def forward(self, request: ForwardRequest, context: Context) -> ForwardReply:
        need_trust(context)
        data = await context.pull()
        updates = _updates(request, data)
        if request.HasField("entry"):
            self._learn((request.entry,))
        target = self._member(request.chain)
        if target is None:
            results: Sequence[Result] = [Result(Status.STALE_ROUTING)] * max(len(updates), 1)
        else:
            await forget_records(target, request.chain_version)  # of a member that is being made equal, once
            forwarded = {"sender": request.target, "session": request.session, "number": request.number}
            if updates:
                results = await target.start_update(request.chain_version, updates, **forwarded)
            else:
                results = await target.start_sync(request.chain_version, **forwarded)
        for update in updates:
            if update.data is not None:
                update.data.release()  # so that the buffer behind can be used again at once
        stale = any(result.status == Status.STALE_CHAIN_VERSION for result in results)
        return ForwardReply(
            status=[result.status for result in results],
            number=[result.number for result in results],
            length=[result.length for result in results],
            checksum=[result.checksum for result in results],
            chains=self._newer(request.chain) if stale else (),
        )

    async def committed(self, request: CommittedRequest, context: Context) -> CommittedReply:
        need_trust(context)
        if len(request.chunks) % CHUNK_ID_BYTES:
            raise error(Status.INVALID, f"{len(request.chunks)} bytes are no chunk ids")
        target = self._member(request.chain)
        status = target.may_read(request.chain_version) if target is not None else Status.STALE_ROUTING
        if target is None or status is not Status.OK:
            chains = self._newer(request.chain) if status is Status.STALE_CHAIN_VERSION else ()
            return CommittedReply(status=status, chains=chains)
        if not target.replica.decides:
            return CommittedReply(status=Status.STALE_ROUTING)
        numbers = []
        for at in range(0, len(request.chunks), CHUNK_ID_BYTES):
            info = target.engine.info(request.chunks[at : at + CHUNK_ID_BYTES])
            numbers.append(info.version if info is not None else 0)
        return CommittedReply(status=Status.OK, number=numbers)


def _updates(request: ForwardRequest, data: memoryview) -> list[Update]:
    """What was forwarded. Raises INVALID when the columns do not fit, BAD_FORMAT for a block that a newer emberfs put."""
    count = len(request.kind)
    columns: tuple[Sequence[Any], ...] = (
        request.offset[:],
        request.length[:],
        request.checksum[:],
        request.client[:],
        request.channel[:],
        request.sequence[:],
        request.truncate_version[:],
        request.chunk_size[:],
        request.version_chain[:],
        request.version_number[:],
    )
    columns_fit = all(len(column) == count for column in columns)
    columns_fit = columns_fit and len(request.units) in (0, count) and len(request.block) in (0, count)
    if not columns_fit or len(request.chunks) != count * CHUNK_ID_BYTES:
        raise error(Status.INVALID, "columns of different lengths in a forward")
    _check_numbers(request)
    sources = _sources(request, count)
    updates: list[Update] = []
    position = 0
    for i, kind in enumerate(map(Kind, request.kind)):
        chunk = request.chunks[i * CHUNK_ID_BYTES : (i + 1) * CHUNK_ID_BYTES]
        offset, length, checksum, client, channel, sequence, truncate_version, chunk_size, under, number = (
            column[i] for column in columns
        )
        view = None
        if kind in (Kind.WRITE, Kind.REPLACE):
            view = data[position : position + length]
            position += length
        updates.append(
            Update(
                kind,
                chunk,
                offset,
                length,
                checksum,
                request.clients[client],
                channel,
                sequence,
                truncate_version,
                chunk_size,
                view,
                Version(under, number),
                request.units[i] if request.units else b"",
                sources[i] if sources and kind is Kind.CLONE else None,
                request.block[i] if request.block else b"",
            )
        )
    if position != len(data):
        raise error(Status.INVALID, f"{position} bytes announced, {len(data)} sent")
    return updates


def _check_numbers(request: ForwardRequest) -> None:
    """What no member sends: it must not reach the machine and the index, which rely on it. Raises INVALID."""
    if not request.target:
        raise error(Status.INVALID, "a forward that does not say which member it comes from")
    if max(request.channel, default=0) >= CHANNELS or max(request.client, default=-1) >= len(request.clients):
        raise error(Status.INVALID, f"channels are below {CHANNELS}, clients those that are named")
    if any(client and len(client) != CLIENT_BYTES for client in request.clients):
        raise error(Status.INVALID, f"a client has {CLIENT_BYTES} bytes")
    for kind, truncate_version, number in zip(
        request.kind, request.truncate_version, request.version_number, strict=True
    ):
        if kind not in _KINDS:
            raise error(Status.INVALID, f"there is no update of kind {kind}")
        if truncate_version > (ALWAYS if kind == Kind.REMOVE else ALWAYS - 1):
            raise error(Status.INVALID, f"truncate version {truncate_version}: it has 32 bits")
        if not number and kind != Kind.REMOVE:  # to remove what was never there has no number
            raise error(Status.INVALID, "an update that the head has given no version")
    for block in request.block:
        if block:
            unpack_record(block)


def _sources(request: ForwardRequest, count: int) -> list[Source | None]:
    """Of clones, by update; empty where there are none."""
    if not request.sources:
        return []
    chains, numbers = request.source_chain[:], request.source_number[:]
    if (
        not len(request.sources)
        == count * CHUNK_ID_BYTES
        == len(chains) * CHUNK_ID_BYTES
        == len(numbers) * CHUNK_ID_BYTES
    ):
        raise error(Status.INVALID, "columns of different lengths in a forward")
    found: list[Source | None] = []
    for i, (chain, number) in enumerate(zip(chains, numbers, strict=True)):
        chunk = request.sources[i * CHUNK_ID_BYTES : (i + 1) * CHUNK_ID_BYTES]
        version = Version(chain, number) if number else None
        found.append(Source(chunk, 0, version) if chunk != _NO_CHUNK else None)
    return found


__all__ = ["Forwarder", "Forwarding"]

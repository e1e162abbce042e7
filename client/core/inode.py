"""What a client knows of one inode while it is open: shared by all its handles, so that each sees what the others wrote.

Length: `length` is what this client sees, the larger of the server's length and the end of what was written here. `written_end` is the
hint for the next settlement; the server takes it only under the truncate version that it was written under, so a stale hint never
regrows a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...proto.errors import Status, StatusError, error
from ...proto.gen.common_pb2 import Attributes, Layout
from ...proto.gen.meta_pb2 import (
    CloseRequest,
    GrowRequest,
    OpenReply,
    OpenRequest,
    Place,
    StatRequest,
    SyncFileReply,
    SyncFileRequest,
    TimesSet,
    TruncateReply,
    TruncateRequest,
)
from ...proto.layout import stripe_chains
from ...proto.ranges import Piece, overlaid
from ...proto.rpc import META
from .cluster import Cluster
from .options import O_RDONLY, O_RDWR, O_WRONLY
from .steps import Runs, noted, since

if TYPE_CHECKING:
    from .append import Token
    from .writeback import WriteBack

ACCESS = 3  # mask of the access mode in open flags


def name_of(inode: int) -> str:
    """An inode as error messages name it."""
    return f"inode {inode:x}"


class Inode:
    """One open inode of one client. `lock` guards writing, settling and truncating; reads need it only where dirty data lies."""

    __slots__ = (
        "_chains",
        "arrived_end",
        "atime_due",
        "atime_set_ns",
        "capability_read",
        "capability_write",
        "change",
        "chunk_size",
        "cluster",
        "content",
        "ctime_ns",
        "durable_length",
        "epoch",
        "error",
        "exact_until",
        "failed",
        "failure",
        "failures",
        "generation",
        "giving",
        "granted",
        "handles",
        "id",
        "inline_max",
        "inlined",
        "inlining",
        "keeps_no_locks",
        "layout",
        "length",
        "length_max",
        "lock",
        "locks",
        "lost",
        "mtime_set",
        "only_times",
        "readers",
        "runs",
        "seen_change",
        "sessions",
        "settled_length",
        "sparse",
        "stale_end",
        "stale_version",
        "synced",
        "syncing",
        "taking",
        "token",
        "truncate_version",
        "unheard",
        "unsettled",
        "unsettled_since",
        "unsynced",
        "write_back",
        "written_end",
        "written_ns",
    )

    def __init__(self, cluster: Cluster, attributes: Attributes, epoch: int) -> None:
        self.cluster = cluster
        self.epoch = epoch  # of the client, in which it was opened
        self.id = attributes.inode
        self.layout: Layout = attributes.layout
        self.chunk_size = attributes.layout.chunk_size
        self._chains: Sequence[int] | None = None  # many a file is made and closed
        self.lock = cluster.env.lock()
        self.length = self.settled_length = attributes.length
        self.length_max: int | None = None  # as far as quotas let it grow, as of the last open or settlement
        self.durable_length = -1  # that the namespace certainly keeps, with a name; -1: nobody has asked it to
        self.written_end = self.arrived_end = 0  # the latter: as far as what was written certainly reached storage
        self.failed = False  # some of it did not
        self.truncate_version = attributes.truncate_version
        self.sparse = attributes.sparse
        self.change = attributes.change
        self.runs: Runs = ()  # of changes that this client made
        self.seen_change = attributes.change  # the newest version of which this client has heard
        self.inlined = attributes.inlined  # the bytes lie beside the inode, at the metadata server
        self.content: bytes | None = _content_of(attributes)  # these, as of `change`; None: to be asked for
        self.inlining = False  # a settlement was sent that may have brought them there
        self.inline_max = 0  # up to which what is written here may be settled beside the inode
        self.atime_due = False  # the server wants to know when the file is read
        self.capability_read = self.capability_write = b""
        self.sessions: list[int] = []  # of writers, the newest last
        self.handles = self.readers = 0  # the latter are some of these: they have no session, the keeper reports them
        self.generation = 0  # grows when written bytes arrive: what was read ahead before that is dropped
        self.unsettled = False  # something was written that the server's length and times do not know
        self.unsettled_since = 0.0  # on the environment's clock
        # Of what is unsettled, by the wall clock: mtime is when the last write here was, whenever it is settled, or what it was set to
        # since.
        self.written_ns = self.ctime_ns = 0
        self.mtime_set = False
        self.atime_set_ns: int | None = None  # what atime was set to
        self.only_times = False  # nothing was written
        self.synced = False  # nothing was written since the last fsync; before the first one nobody knows, the file was closed before
        self.unsynced: dict[int, int] = {}  # chain that took what is not synced yet -> its losses then
        self.syncing: dict[int, int] = {}  # the same, of what a sync of all files has taken and not finished
        self.error: StatusError | None = None  # of data written in the background, and nobody has been told yet
        self.lost = (0, 0)  # from where to where such data was, at most
        self.failure: StatusError | None = None  # the same, the last one, for those who have the file open as well
        self.failures = 0  # how many there were
        self.stale_end = 0  # end of what was written after a truncate that this inode has not heard of yet,
        self.stale_version = 0  # and the truncate version that it was written under
        self.unheard: TruncateRequest | None = None  # may still be carried out, and nobody waits for it
        self.write_back: WriteBack | None = None
        self.token: Token | None = None  # this client may append
        self.locks: dict[
            tuple[int, int], list[Piece[int]]
        ] = {}  # (kind, owner) -> ranges that this client holds, with the type

        # What the server has of this client's byte-range locks, by owner: at least those of `locks`, and what is kept (`kept.py`).
        self.granted: dict[int, list[Piece[int]]] = {}
        self.giving = cluster.env.lock()  # what is kept is being given back
        self.taking = 0  # requests for locks that are on their way
        self.exact_until = 0.0  # nothing is kept before then, on the environment's clock
        self.keeps_no_locks = False  # a process before this one may have taken some, which are in none of these tables

    @property
    def chains(self) -> Sequence[int]:
        """The chains of the layout, in striping order. Raises STALE_ROUTING when the table is newer than our routing."""
        if self._chains is None:
            self._chains = chains_of(self.cluster, self.layout)
        return self._chains

    # --- what the server said -------------------------------------------------------------------------------------------------------

    def take_open(self, reply: OpenReply, flags: int) -> None:
        """Take over the grant and the attributes of an open."""
        access = flags & ACCESS
        if access != O_RDONLY:
            self.take_limit(reply)
        if access in (O_RDONLY, O_RDWR):
            self.capability_read = reply.capability
            self.atime_due = self.atime_due or reply.atime_due
        if access in (O_WRONLY, O_RDWR):
            self.capability_write = reply.capability
            if not self.sessions:
                self.inline_max = reply.inline_max
            self.sessions.append(reply.session)
        self.take(reply.attributes)

    def take(self, attributes: Attributes) -> None:
        """Newer attributes (older ones, of a reply that was overtaken, say nothing). What was written here and is not settled stays
        visible, unless a truncate came after it."""
        if attributes.change < self.change:
            return
        self.inlined = attributes.inlined
        if attributes.change != self.change or not self.inlined:
            self.content = None
        self.content = _content_of(attributes) if self.content is None else self.content
        if attributes.truncate_version != self.truncate_version:
            self.truncate_version = attributes.truncate_version
            self.synced = False  # storage has cut chunks since
            # What was settled or sent before the truncate is cut; what came after it stays.
            self.written_end = self.write_back.dirty_end() if self.write_back else 0
            self.arrived_end = 0
            self.generation += 1
        if self.stale_end and self.stale_version <= attributes.truncate_version:
            if self.stale_version == attributes.truncate_version:  # else yet another truncate has cut it
                self.written_end = max(self.written_end, self.stale_end)
                self.arrived_end = max(self.arrived_end, self.stale_end)
            self.stale_end = 0
        if attributes.change != self.change:
            self.change = attributes.change
            self.durable_length = -1
            self.generation += 1
            if attributes.layout != self.layout:  # it was empty, and has taken the layout of another file
                self.layout, self.chunk_size = attributes.layout, attributes.layout.chunk_size
                self._chains = chains_of(self.cluster, attributes.layout)
                self.write_back = None
        self.settled_length = attributes.length
        self.length = max(attributes.length, self.written_end)
        self.sparse = attributes.sparse or (self.sparse and self.unsettled)

    def take_own(self, attributes: Attributes) -> None:
        """`take`, of what a change that was made here and by nobody else has led to."""
        self.made(attributes.change)
        self.take(attributes)

    def made(self, change: int) -> None:
        """Note that the step to this version was this client's own, whenever its reply came."""
        self.runs = noted(self.runs, change)

    @property
    def since(self) -> int:
        """From this version on only this client has changed the file."""
        return since(self.runs, self.change)

    def take_limit(self, reply: OpenReply | SyncFileReply) -> None:
        """What quotas allow, as of now."""
        self.length_max = reply.length_max if reply.HasField("length_max") else None

    def check_growth(self, end: int) -> None:
        """Raise QUOTA_EXCEEDED where a write up to `end` would let the file grow beyond what quotas allow."""
        if self.length_max is not None and end > max(self.length, self.length_max):
            raise error(
                Status.QUOTA_EXCEEDED,
                f"{name_of(self.id)}: a quota lets it grow to {self.length_max} bytes only: remove something, or have it raised",
            )

    def wrote(self, offset: int, end: int) -> None:
        """Note that the range [offset, end) was written here (perhaps not yet sent)."""
        if offset > self.length:
            self.sparse = True
        self.length = max(self.length, end)
        self.written_end = max(self.written_end, end)
        if not self.unsettled:
            self.unsettled = True
            self.unsettled_since = self.cluster.env.now()
        self.written_ns = self.ctime_ns = self.cluster.env.wall_ns()
        self.mtime_set = self.only_times = self.synced = False

    def set_times(self, *, atime_ns: int | None = None, mtime_ns: int | None = None) -> bool:
        """Set times (and ctime in any case) together with what was written here, when that is settled. Under the lock. Whether that may
        be: somebody here has the file open for writing, and does not append."""
        if not self.sessions or self.token is not None or self.failed:
            return False
        if not self.unsettled:
            if mtime_ns is not None or atime_ns is not None:
                return False  # after the death of a mount nobody would know
            self.unsettled = self.only_times = True
            self.unsettled_since = self.cluster.env.now()
        self.ctime_ns = self.cluster.env.wall_ns()
        if atime_ns is not None:
            self.atime_set_ns = atime_ns
        if mtime_ns is not None:
            self.written_ns, self.mtime_set = mtime_ns, True
        return True

    @property
    def times_set(self) -> TimesSet | None:
        """What the settlement says of times, besides that of the last write."""
        if self.atime_set_ns is None and not self.mtime_set and not self.only_times:
            return None
        return TimesSet(
            atime_ns=self.atime_set_ns,
            mtime_ns=self.written_ns if self.mtime_set else None,
            ctime_ns=self.ctime_ns,
            alone=self.only_times,
        )

    def came_after(self, truncate_version: int, end: int) -> None:
        """Note that a write was refused as older than a truncate, and is sent again as one that comes after it."""
        if truncate_version > self.stale_version:
            self.stale_version, self.stale_end = truncate_version, 0
        self.stale_end = max(self.stale_end, end)

    @property
    def hint_end(self) -> int:
        """Where the written data ends, as the server is told: only as far as it arrived, if some did not."""
        return self.arrived_end if self.failed else self.written_end

    def fail(self, failure: StatusError, extent: tuple[int, int] | None = None) -> None:
        """Note that data written in the background was lost, in this range if that is known; the first reason is the one that is
        reported."""
        self.failed = True
        if extent is not None:
            begin, end = extent if self.error is None or not self.lost[1] else self.lost
            self.lost = min(begin, extent[0]), max(end, extent[1])
        self.error = self.failure = self.error or failure
        self.failures += 1

    def arrived(self, chain: int, losses: int) -> None:
        """A chain took what it was sent first when it had so many losses."""
        if losses < self.unsynced.setdefault(chain, losses):
            self.unsynced[chain] = losses

    def take_unsynced(self) -> dict[int, int]:
        """For `check_kept`, after a sync of everything that has arrived by now: also of what another one has taken, which may end later."""
        taken, self.unsynced = {**self.unsynced, **self.syncing}, {}
        return taken

    def check_kept(self, taken: Mapping[int, int]) -> None:
        """Its chains were synced: note that data was lost if one of them has lost power since it took what was synced only now."""
        if lost := self.cluster.lost_since(taken):
            self.syncing.clear()  # it is told
            message = (
                "lost power before what was written there had been synced: some of it may be missing, write it again"
            )
            self.fail(error(Status.LOST_DATA, f"{name_of(self.id)}: chain {', '.join(map(str, lost))} {message}"))

    def take_error(self) -> StatusError | None:
        """The error of background writes, handed out once."""
        failure, self.error, self.lost = self.error, None, (0, 0)
        return failure

    def lost_in(self, offset: int, end: int) -> StatusError | None:
        """Why bytes of [offset, end) are not what was written here, as long as nobody has been told."""
        return self.error if self.error is not None and offset < self.lost[1] and end > self.lost[0] else None

    def note_lock(self, kind: int, owner: int, start: int, end: int, type_: int | None) -> None:
        """What an owner holds in this range from now on; None: nothing."""
        pieces = overlaid(self.locks.get((kind, owner), ()), start, end, type_)
        if pieces:
            self.locks[kind, owner] = pieces
        else:
            self.locks.pop((kind, owner), None)

    def note_granted(self, owner: int, start: int, end: int, type_: int | None) -> None:
        """What the server certainly has of an owner's byte-range locks in this range from now on; None: perhaps nothing."""
        pieces = overlaid(self.granted.get(owner, ()), start, end, type_)
        if pieces:
            self.granted[owner] = pieces
        else:
            self.granted.pop(owner, None)

    # --- asking the server ------------------------------------------------------------------------------------------------------------

    async def ask(self) -> Attributes:
        """The attributes as the server has them now. Raises STALE_HANDLE when the inode is gone."""
        reply = await self.cluster.meta(META.Stat, StatRequest(places=[Place(parent=self.id)]))
        if reply.statuses[0]:
            raise gone(self.id, reply.statuses[0])
        return reply.attributes[0]  # type: ignore[no-any-return]

    async def fetch(self) -> Attributes:
        """`ask`, and take them over."""
        attributes = await self.ask()
        self.take(attributes)
        return attributes

    def settlement(self, *, durable: bool = False) -> SyncFileRequest:
        """What `settle` asks for, of what has arrived or is small."""
        small = self.write_back.small_pieces() if self.write_back is not None else None
        self.inlining = self.inlining or small is not None
        return SyncFileRequest(
            inode=self.id,
            session=self.sessions[-1] if self.sessions else 0,
            written=(self.unsettled or small is not None) and bool(self.sessions),
            length=self.hint_end,
            truncate_version=self.truncate_version,
            sparse=self.sparse,
            durable=durable,
            inlined=small,
            mtime_ns=self.written_ns,
            times=self.times_set,
        )

    @property
    def may_settle_along(self) -> bool:
        """Whether what is unsettled may go along with another request: nothing has to be sent or asked before, and nothing is wrong. Under
        the lock."""
        waits = self.write_back is not None and self.write_back.pending and not self.write_back.small
        fine = not (self.failed or self.stale_end or self.token is not None)
        return fine and self.unsettled and bool(self.sessions) and not waits

    def settled_along(self, request: SyncFileRequest, attributes: Attributes) -> None:
        """It went along with a change of attributes, which was a step of its own."""
        if request.HasField("inlined") and self.write_back is not None:
            self.write_back.discard()
        self.made(attributes.change - 1)
        self.settled(attributes)

    async def settle(self, *, durable: bool = False) -> None:
        """Publish length and times of what was written (and reached storage); `durable` syncs the namespace too."""
        if not self.unsettled and not durable:
            return
        if self.stale_end:
            await self.fetch()
        request = self.settlement(durable=durable)
        try:
            reply = await self.cluster.change(META.SyncFile, request)
        except StatusError as failure:
            if failure.status is not Status.NOT_INLINE:
                raise
            await self.not_inline()
            await self.settle(durable=durable)
            return
        if request.HasField("inlined") and self.write_back is not None:
            self.write_back.discard()
        self.take_limit(reply)
        self.settled(reply.attributes, ours=request.written)
        if durable:
            self.durable_length = reply.attributes.length

    async def not_inline(self) -> None:
        """The server does not take what is small: it goes to chunks after all (`error` says why it did not arrive there)."""
        self.inline_max = 0
        await self.fetch()
        if self.write_back is not None:
            await self.write_back.drain()

    async def grow(self) -> None:
        """Have the server move the bytes into chunks, as more is written than fits beside the inode."""
        session = self.sessions[-1] if self.sessions else 0
        reply = await self.cluster.change(META.Grow, GrowRequest(inode=self.id, session=session))
        now = reply.attributes
        if now.change == self.change + 1 and not now.inlined and now.length == self.settled_length:
            self.made(now.change)  # nothing but that step, whoever made it: the bytes are the same
        self.take(now)
        self.inlining = False

    async def small_content(self) -> bytes | None:
        """The bytes of an inlined file, asked for if they are not known; None where it lies in chunks by now."""
        while self.inlined:
            if self.content is not None:
                return self.content
            request = OpenRequest(place=Place(parent=self.id), flags=O_RDONLY, capability=self.capability_read)
            self.take((await self.cluster.meta(META.Open, request)).attributes)
        return None

    def settled(self, attributes: Attributes, *, ours: bool = True) -> None:
        """The server has taken over what was written, which was a change of `ours` if there was anything. Only its own words count from
        here on; newer ones may have come before these."""
        self.unsettled = self.failed = self.mtime_set = self.only_times = False
        self.atime_set_ns = None
        self.written_end = self.arrived_end = 0
        self.length = self.settled_length
        if ours:
            self.made(attributes.change)
            if attributes.change == self.change + 1:
                self.change = attributes.change  # our own write: that is no reason to drop what was read ahead
        self.content = None
        self.inlining = False
        self.take(attributes)

    async def cut(self, request: TruncateRequest) -> TruncateReply:
        """Truncate. Under the lock. If it fails without a clear answer, it may be carried out at any time later: `hear` before anything
        that it must not cut."""
        await self.hear()
        patience = self.cluster.patience()
        try:
            reply: TruncateReply = await self.cluster.change(META.Truncate, request, patience)
        except BaseException as failure:
            reached_nobody = (
                isinstance(failure, StatusError) and failure.status is Status.DEADLINE and not patience.uncertain
            )
            if not (reached_nobody or _is_clear(failure)):
                self.unheard = request
            raise
        return reply

    async def hear(self) -> None:
        """Wait for the answer to a truncate that nobody has waited for. Under the lock. It is asked again under its old number: whatever
        arrives later under that is a repetition. Raises DEADLINE."""
        if self.unheard is None:
            return
        try:
            await self.cluster.meta(META.Truncate, self.unheard, ids=self.cluster.requests)
        except StatusError as failure:
            if not _is_clear(failure):
                raise
        self.unheard = None
        if self.cluster.leases is not None:
            self.cluster.leases.forget((self.id,))
        await self.fetch()

    async def renew_capability(self, *, writing: bool) -> None:
        """A fresh capability for a file that stays open longer than one is valid: the old one stands for the right to open it, which
        its mode may not give any more, or never gave to others than whoever made it. Raises what an open raises."""
        flags, granted = (O_WRONLY, self.capability_write) if writing else (O_RDONLY, self.capability_read)
        request = OpenRequest(place=Place(parent=self.id), flags=flags, capability=granted)
        reply = await self.cluster.change(META.Open, request)
        if writing:
            self.capability_write = reply.capability
            # The session that writes under it is the one that we have.
            await self.cluster.change(META.Close, CloseRequest(inode=self.id, session=reply.session))
        else:
            self.capability_read = reply.capability


def _is_clear(failure: BaseException) -> bool:
    """Whether it says that what was asked for will not be carried out any more."""
    if not isinstance(failure, StatusError) or failure.maybe_committed:
        return False
    return failure.status not in (Status.DEADLINE, Status.UNAVAILABLE)


def _content_of(attributes: Attributes) -> bytes | None:
    """The bytes that came with attributes of an inlined file."""
    content = attributes.content
    return content if attributes.inlined and len(content) == attributes.length else None


def gone(inode: int, code: int) -> StatusError:
    """The error for an open inode that the server no longer has."""
    if code == Status.NOT_FOUND:
        return error(Status.STALE_HANDLE, f"{name_of(inode)} was removed while it was open here")
    status = Status(code) if code in Status._value2member_map_ else Status.INTERNAL
    return error(status, f"{name_of(inode)}: {status.name}")


def chains_of(cluster: Cluster, layout: Layout) -> list[int]:
    """The chains of a layout, in striping order. Raises STALE_ROUTING when the table is newer than our routing."""
    table = cluster.table.table(layout.table, layout.table_version)
    return stripe_chains(table, layout.base, max(1, layout.stripe), layout.seed)

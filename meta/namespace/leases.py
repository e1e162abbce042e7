"""Metadata leases: what a client may believe of attributes and names until it is told otherwise. Memory only.

    Stat, Open, Create, ReadDirectory with `lease`  ->  keep, keep_listed   the client holds what the reply says
    every commit of the engine, whoever made it     ->  _committed          the others who hold what was written are told
    WatchLeases                                     ->  watch               held open until there is something to tell, or for a moment

**A lease is on a key**: INOD of an inode for its attributes, DENT of a name for where it leads or that there is none. So what a commit
takes away is read off the keys that it wrote, and no operation, and no worker in the background, can forget to say so. Counters of a
directory (DCNT) are part of its attributes. Nobody hears of a name that he has not asked for himself, but who made a directory holds a
lease on all its names, the key DENT without a name: he knows which ones there are, and hears of the first that somebody else changes.

**A lease belongs to a session**: one connection of one client. A change counts as the session's own, and is not told to it, only if it
came by that connection after the session had begun. A copy that arrives late, after the client gave it up and forgot its leases, is
a change by somebody else.

**What is granted is of now.** Between the read and the grant no commit may lie: commits are counted. Over the embedded engine
a read never suspends, so that is the rule; where it does happen, nothing is granted.

A server over an engine that others write to as well does not hear of all commits, and grants nothing (`kv.engine.Watched`). While
nobody has a session, commits are not even looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, cast

from ...proto.errors import Status, error
from ...proto.gen import meta_pb2
from ...proto.gen.meta_pb2 import Place, WatchLeasesReply, WatchLeasesRequest
from ...proto.ids import ROOT_INODE
from ...proto.rpc import PeerInfo
from .. import keys
from ..kv.engine import Engine, Pair, Transaction, Watched, WatchedTransaction
from .attempt import Task
from .seams import Clock

BEAT_SECONDS = 0.3  # after which a request that waits is answered without news; scaled
SILENT_SECONDS = (
    3.0  # without a request of its client a session is over: a client believes nothing for longer than 1 s; scaled
)
SESSIONS_MAX = 10_000
LEASES_MAX = 1 << 18  # of one session; about 250 bytes each
LEASES_OF_ALL_MAX = 1 << 19
DROPPED_PART = 8  # at the limit a session loses the oldest 1/8
NEWS_MAX = 1 << 16  # keys that wait to be told to one client; beyond, it is told to forget everything
SLICE = 4096  # leases of a session that ended, that go before requests come in between

_ATTACHMENT = "meta.leases"  # in a connection's attachments
_DOTS = (b".", b"..")
_INODE, _COUNTER = keys.INODE, keys.DIRECTORY_COUNTER
_HELD = (keys.INODE, keys.DENTRY)
_DETACHED = (keys.TRASH, keys.DEAD_TREE[:4])
_NUMBER = slice(4, 12)  # the inode column of a key
_ENTRIES = b"e"  # the counter that is no attribute


class Session:
    """What one connection holds, and what it has not been told yet."""

    __slots__ = (
        "alone",
        "changed",
        "client",
        "dropped",
        "everything",
        "heard",
        "held",
        "locks",
        "number",
        "over",
        "turn",
    )

    def __init__(self, client: bytes, number: int, now: float) -> None:
        self.client = client
        self.number = number
        self.locks: dict[int, None] = {}  # inodes whose locks others want
        self.held: dict[bytes, None] = {}  # keys, the oldest first
        self.changed: dict[bytes, None] = {}
        self.dropped: list[bytes] = []
        self.everything = False
        self.heard = now
        self.over = False
        self.turn: Any = None  # a promise, while a request waits
        self.alone = (self,)  # who holds most keys: one tuple for all of them

    def has_news(self) -> bool:
        return bool(self.changed or self.dropped or self.everything or self.locks)

    def tell(self, key: bytes) -> None:
        """The client hears soon that it does not know this any more."""
        if len(self.changed) >= NEWS_MAX:
            self.tell_everything()
        elif not self.everything:
            self.changed[key] = None
        self.wake()

    def tell_everything(self) -> None:
        self.everything = True
        self.changed.clear()
        self.dropped.clear()
        self.wake()

    def wake(self) -> None:
        """Answer the request that waits, if there is one."""
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.set(None)

    def take(self) -> WatchLeasesReply:
        """All that is to be told."""
        reply = WatchLeasesReply(granting=True, everything=self.everything)
        if self.changed:
            _fill(reply.changed, self.changed)
            self.changed = {}
        if self.dropped:
            _fill(reply.dropped, self.dropped)
            self.dropped = []
        if self.locks:
            reply.locks.extend(self.locks)
            self.locks = {}
        self.everything = False
        return reply


def _fill(ended: meta_pb2.EndedLeases, told: Iterable[bytes]) -> None:
    for key in told:
        if key[:4] == _INODE:
            ended.inodes.append(keys.inode_of(key))
        else:
            ended.directories.append(keys.inode_of(key))
            ended.names.append(key[keys.DENTRY_NAME_AT :])


def session_of(peer: PeerInfo) -> Session | None:
    """The session that a connection has."""
    return peer.attachments.get(_ATTACHMENT)


class Leases:
    """All leases of one server."""

    def __init__(self, engine: Engine, clock: Clock, scale: float, is_closing: Callable[[], bool]) -> None:
        self._engine = engine if isinstance(engine, Watched) else None
        self._clock = clock
        self._scale = scale
        self._is_closing = is_closing
        self._holders: dict[bytes, tuple[Session, ...]] = {}
        self._sessions: dict[Session, None] = {}
        self._clients: dict[bytes, Session] = {}  # their newest ones
        self._ended: list[Session] = []  # whose leases are still in the table
        self._beating = False
        self.count = 0  # leases, of all sessions
        self.commits = 0  # since somebody listens
        self.watching = False  # to commits

    # --- sessions -----------------------------------------------------------------------------------------------------------------

    async def watch(self, peer: PeerInfo, request: WatchLeasesRequest) -> WatchLeasesReply:
        """What has ended of a session's leases, as soon as there is anything. A session that is not known begins here. Raises BUSY
        for one too many, UNAVAILABLE when this server stops."""
        if self._engine is None:
            return WatchLeasesReply()
        session = session_of(peer)
        if session is None or session.over or session.number != request.session:
            if session is not None:
                self._end(session)
            peer.attachments[_ATTACHMENT] = self._begin(peer.client, request.session)
            return WatchLeasesReply(granting=True, fresh=True)
        if not session.has_news():
            session.turn = session.turn or self._clock.promise()
            await session.turn
            if self._is_closing():
                raise error(Status.UNAVAILABLE, "the metadata server stops")
        session.heard = self._clock.now()
        return session.take()

    def recall_locks(self, client: bytes, inode: int) -> bool:
        """Somebody wants locks that this client has: it may only keep them (client/core/kept.py). False: it has no session, so no."""
        session = self._clients.get(client)
        if session is None or session.over:
            return False
        session.locks[inode] = None
        session.wake()
        return True

    def _begin(self, client: bytes, number: int) -> Session:
        if len(self._sessions) >= SESSIONS_MAX:
            raise error(Status.BUSY, f"over {SESSIONS_MAX} clients hold metadata leases here")
        session = self._clients[client] = Session(client, number, self._clock.now())
        self._sessions[session] = None
        if not self.watching and self._engine is not None:
            self.watching = True
            self._engine.watchers.append(self._committed)
        if not self._beating:
            self._beating = True
            self._clock.spawn(self._run, "leases")
        return session

    def _end(self, session: Session) -> None:
        if not session.over:
            session.over = True
            session.wake()
            self._sessions.pop(session, None)
            if self._clients.get(session.client) is session:
                del self._clients[session.client]
            self._ended.append(session)

    async def _run(self) -> None:
        try:
            while (self._sessions or self._ended) and not self._is_closing():
                await self._clock.sleep(BEAT_SECONDS * self._scale)
                await self.beat()
        finally:
            self._beating = False
            for session in self._sessions:
                session.wake()

    async def beat(self) -> None:
        """Answer who waits, give up who does not, and stop listening to commits when nobody is left."""
        silent = self._clock.now() - SILENT_SECONDS * self._scale
        for session in list(self._sessions):
            if session.turn is not None:
                session.wake()
            elif session.heard < silent:
                self._end(session)
        while self._ended:
            session = self._ended[-1]
            await self._forget(session)
            self._ended.remove(session)  # only now: `_forget_all` takes what is left of it, too
        if not self._sessions and self.watching and self._engine is not None:
            self.watching = False
            self._engine.watchers.remove(self._committed)

    async def _forget(self, session: Session) -> None:
        while session.held:
            for key in list(islice(session.held, SLICE)):
                self._let_go(session, key)
            await self._clock.sleep(0)

    # --- granting -------------------------------------------------------------------------------------------------------------------

    def keep(self, session: Session, mark: int, place: Place, inode: int) -> bool:
        """Grant what a reply says of a place: the attributes of an inode, and the name that led there; inode 0: there is no such name.
        `mark` is `commits` as of what was read. False: nothing is granted."""
        name = place.path
        wanted = [keys.inode_key(inode)] if inode else []
        if name and b"/" not in name and name not in _DOTS:
            wanted.append(keys.dentry_key(place.parent or ROOT_INODE, name))
        return bool(wanted) and self._grant(session, mark, wanted)

    def keep_made(self, session: Session, mark: int, directory: int) -> bool:
        """Grant that a new directory is empty, until a name appears in it."""
        return self._grant(session, mark, [keys.dentry_key(directory, b"")])

    def keep_listed(self, session: Session, mark: int, directory: int, reply: meta_pb2.ReadDirectoryReply) -> bool:
        """Grant a page of a directory."""
        wanted = [keys.inode_key(inode) for inode in reply.inodes]
        wanted += [keys.dentry_key(directory, name) for name in reply.names]
        return self._grant(session, mark, wanted)

    def _grant(self, session: Session, mark: int, wanted: Sequence[bytes]) -> bool:
        if mark != self.commits or session.over or not self._make_room(session, len(wanted)):
            return False
        holders, held, alone = self._holders, session.held, session.alone
        for key in wanted:
            if key in held:
                continue
            found = holders.get(key)
            holders[key] = alone if found is None else (*found, session)
            held[key] = None
            self.count += 1
        return True

    def _make_room(self, session: Session, count: int) -> bool:
        held = len(session.held)
        if held + count <= LEASES_MAX and self.count + count <= LEASES_OF_ALL_MAX:
            return True
        oldest = list(islice(session.held, max(count, held // DROPPED_PART)))
        for key in oldest:
            self._let_go(session, key)
        session.dropped += oldest
        session.wake()
        return len(session.held) + count <= LEASES_MAX and self.count + count <= LEASES_OF_ALL_MAX

    def _let_go(self, session: Session, key: bytes) -> None:
        del session.held[key]
        self.count -= 1
        left = tuple([other for other in self._holders[key] if other is not session])
        if not left:
            del self._holders[key]
        else:
            self._holders[key] = left[0].alone if len(left) == 1 else left

    # --- ending ---------------------------------------------------------------------------------------------------------------------

    def on_behalf(self, txn: Transaction, task: Task) -> None:
        """Have a transaction say whose it is."""
        cast("WatchedTransaction", txn).actor = task

    def _committed(self, actor: object, written: Sequence[bytes], cleared: Sequence[Pair]) -> None:
        """These keys were written, and these ranges cleared."""
        self.commits += 1
        task = cast("Task | None", actor)
        own = None
        if task is not None:
            task.committed = self.commits
            own = task.session
        holders = self._holders
        if not holders:
            return
        trashed = moved = False
        for key in written:
            letters = key[:4]
            if letters in _HELD:
                if letters == keys.DENTRY and (found := holders.get(key[: keys.DENTRY_NAME_AT])) is not None:
                    self._changed(key[: keys.DENTRY_NAME_AT], found, own, task, key)
                found = holders.get(key)
            elif letters == _COUNTER:
                if key[12:] == _ENTRIES:
                    continue
                key = _INODE + key[_NUMBER]  # noqa: PLW2901
                found = holders.get(key)
            else:
                trashed = trashed or letters in _DETACHED
                moved = moved or key == keys.DIRECTORY_VERSION
                continue
            if found is not None:
                self._changed(key, found, own, task, key)
        if (trashed and moved) or any(begin[:4] in (*_HELD, _COUNTER) for begin, _ in cleared):
            # A tree was detached, or came back: what lies in it has not been written, and yet no name leads there.
            self._forget_all()

    def _changed(
        self, key: bytes, holders: tuple[Session, ...], own: Session | None, task: Task | None, told: bytes
    ) -> None:
        """The leases on a key end, because this one was written."""
        kept = False
        for session in holders:
            if session is own:
                kept = True
                continue
            del session.held[key]
            self.count -= 1
            if not session.over:
                session.tell(told)
                if task is not None:
                    task.told = True
        if kept and own is not None:
            self._holders[key] = own.alone
        else:
            del self._holders[key]

    def _forget_all(self) -> None:
        self._holders.clear()
        self.count = 0
        for session in [*self._sessions, *self._ended]:
            session.held = {}
            session.tell_everything()

"""The client core: everything a client can do, as coroutines over one environment."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ...proto.env import Environment
from ...proto.errors import Status, StatusError, error
from ...proto.gen import common_pb2
from ...proto.gen.cluster_pb2 import EndClientRequest, GetRoutingRequest, StatusReply, StatusRequest
from ...proto.gen.meta_pb2 import (
    CloseRequest,
    OpenReply,
    OpenRequest,
    Place,
    PublishRequest,
    TruncateRequest,
)
from ...proto.rpc import CLUSTER, META, Method
from ...proto.weakly import living
from . import kept
from .acting import Acting
from .append import Tokens
from .atimes import ReadTimes
from .attributes import Stat, stat_of
from .budget import Budget
from .channels import Channels
from .cluster import Cluster
from .ended import Ended
from .file import Handle
from .held import Held
from .inode import ACCESS, Inode
from .keeper import Keeper
from .lease import Lease
from .leases import Kept, Leases
from .namespace import Namespace, with_path
from .options import O_APPEND, O_CREAT, O_ONCE, O_RDONLY, O_TRUNC, Mode, Options
from .paths import PathLike, at, place, text
from .reading import Reader
from .shared import SharedMemories
from .succession import chains_of_files, settle_predecessor
from .together import Together
from .writeback import WriteBack
from .writes import sync_chains

END_SECONDS = 2.0  # for the farewell of a closing client
UNSYNCED_FILES_MAX = 4096  # closed ones of which it is known each by itself that they were not synced


class Core(Namespace):
    """One client of one cluster, with one identity: a fork or a lost lease begins a new `epoch`."""

    def __init__(self, env: Environment, addresses: Sequence[str], options: Options, umask: int) -> None:
        self.env = env
        self.options = options
        self.umask = umask
        self.cluster = Cluster(env, addresses, options)
        self.epoch = 0
        self.closed = False
        self.numbers = itertools.count(1)  # of handles and waits for locks, in all epochs
        self.handles: WeakSet[Handle] = WeakSet()
        self.losing = env.lock()
        self._predecessor = 0  # updates up to this number are those of a process that has died
        self.orphans: deque[Handle] = deque()  # open handles that nobody refers to any more
        # As an inode's, of those that were closed, in all epochs: by inode, and of those that there are too many of.
        self.unsynced_files: dict[int, dict[int, int]] = {}
        self.unsynced: dict[int, int] = {}
        self.together: Together | None = None  # where many read at once
        self.shared = SharedMemories(env)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        """All that belongs to one identity: its lease, its channels, the inodes that it holds, and the locks around them."""
        self.epoch += 1
        self.inodes: dict[int, Inode] = {}
        self.table_lock = self.env.lock()
        self.reopening = self.env.lock()
        self.channels = Channels(self.env)
        self.write_budget = Budget(self.env, self.options.memory // 2)
        self.lease = Lease(self.env)
        self.held = Held(self.inodes)
        self.keeper = Keeper(self)
        self.read_times = ReadTimes(self)
        self.tokens = Tokens(self)
        self.ended = Ended()

    def acting_for(self, uid: int, gid: int, groups: Sequence[int] = (), umask: int = 0) -> Acting:
        """This client as another user sees it."""
        return Acting(self, uid, gid, groups, umask)

    def succeed(self, number: int) -> None:
        """Be the client that a process was which has died. All numbers begin beyond those that it can have used. Before anything else."""
        self._predecessor = number
        self.cluster.requests.last = number
        self.channels.begin(number)
        self.keeper.begin(number)
        self.numbers = itertools.count(number + 1)

    async def settle_predecessor(self, keep: Sequence[int] = ()) -> None:
        """What the process before us had sent and not settled comes too late from now on; its sessions for writing end, but not these,
        which are ours: its files are as long as its chunks say. Raises DEADLINE when storage does not answer for so long."""
        await settle_predecessor(self, self._predecessor, keep)

    def hold_leases(
        self, keep: Callable[[Stat], Kept], advance: Callable[[Kept, int, int], Kept] | None = None
    ) -> Leases[Kept]:
        """From now on remember attributes and names for as long as the server says that they have not changed; what is kept of the
        attributes is what `keep` makes of them; `advance` as of Leases."""
        leases = Leases(self.cluster, keep, advance)
        self.cluster.leases = leases
        leases.on_recall = lambda inode: self._in_background(kept.recalled(self, inode))
        leases.on_end = lambda: self._in_background(kept.give_all_back(self))
        return leases

    def read_together(self) -> None:
        """From now on lent reads that come in one turn of the loop go together: for who serves many."""
        self.together = Together(self.cluster)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            await work

        self.env.spawn(run, "locks")

    async def connect(self) -> None:
        """The first contact. Raises UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED."""
        await self.cluster.connect()

    @property
    def cluster_id(self) -> str:
        return self.cluster.table.cluster

    def seen(self, stat: Stat) -> Stat:
        if self.inodes and (inode := self.inodes.get(stat.inode)) is not None:
            inode.seen_change = max(inode.seen_change, stat.change)
            if inode.unsettled:
                stat.size = inode.length
                stat.mtime_ns = stat.mtime_ns if inode.only_times else inode.written_ns
                stat.ctime_ns = max(stat.ctime_ns, inode.ctime_ns)
                if inode.atime_set_ns is not None:
                    stat.atime_ns = inode.atime_set_ns
        return stat

    # --- opening ------------------------------------------------------------------------------------------------------------------

    async def open(
        self,
        path: PathLike,
        mode: Mode,
        *,
        buffered: bool = True,
        chunk_size: int | None = None,
        stripe: int | None = None,
        permissions: int = 0o666,
        parents: bool = False,
        unnamed: bool = False,
        known_new: bool = False,
        acting: Acting | None = None,
    ) -> Handle:
        """Open for whom this client is, or for the user that it is `acting` for. `known_new`: there was no such file a moment ago, so
        that nothing of it can be on its way."""
        if mode.flags & O_TRUNC and not known_new:
            await self._write_out(path)
        request = OpenRequest(
            place=place(path),
            flags=mode.flags,
            mode=permissions & 0o7777,
            umask=acting.umask if acting is not None else self.umask,
            chunk_size=chunk_size or 0,
            stripe=stripe or 0,
            parents=parents,
            unnamed=unnamed,
            caller=acting.caller if acting is not None else None,
        )
        try:
            return await self._open(request, buffered=buffered, name=text(path))
        except StatusError as failure:
            raise with_path(failure, path) from None

    async def _open(self, request: OpenRequest, *, buffered: bool, name: str) -> Handle:
        flags = request.flags
        inode, reply = await self._open_inode(request)
        handle = Handle(
            self, inode, flags, session=reply.session, buffered=buffered, name=name, unnamed=request.unnamed
        )
        handle.opened = self.seen(stat_of(reply.attributes))
        if flags & O_APPEND:
            handle.position = inode.length
        self.handles.add(handle)
        return handle

    async def _open_inode(self, request: OpenRequest) -> tuple[Inode, OpenReply]:
        """Open, and hold the inode, both under one identity."""
        while True:
            if self.closed:
                raise error(Status.CANCELLED, "the client is closed; connect again")
            lease, epoch, sent = self.lease, self.epoch, self.env.now()
            by_number = not request.place.path and request.flags & ACCESS == O_RDONLY
            with self.held.opening(request.place.parent if by_number else 0):
                try:
                    reply = await self._ask_open(request)
                except StatusError as failure:
                    if failure.status is not Status.SESSION_ENDED or epoch != self.epoch:
                        raise
                    await self.lose_lease(lease)  # refused, so nothing was opened: again, as somebody else
                    continue
                await self.know_table(reply.attributes.layout)
                inode = await self._hold(reply, request.flags, sent, epoch)
                if inode is not None:
                    return inode, reply
            if reply.session:
                raise Lease.ended_error()  # the session is the old identity's, which is gone

    async def _ask_open(self, request: OpenRequest) -> OpenReply:
        leases = self.cluster.leases
        if leases is not None and request.flags & O_CREAT:
            request.lease = leases.asked() > 0
        if request.flags == O_RDONLY:
            reply = await self.cluster.meta(META.Open, request)
        else:
            reply = await self.changing(META.Open, request)
        if reply.attributes.type == common_pb2.FILE_TYPE_DIRECTORY:
            raise error(Status.IS_DIRECTORY)
        return reply  # type: ignore[no-any-return]

    async def changing(self, method: Method, request: OpenRequest | CloseRequest) -> Any:
        """`cluster.change`, and the ends of earlier sessions go along."""
        ended = self.ended
        if not ended:
            return await self.cluster.change(method, request)
        ended.tell(request)
        try:
            return await self.cluster.change(method, request)
        except BaseException:
            ended.again(request)
            raise

    async def tell_ended(self) -> None:
        """Tell the server of all sessions that have ended. What fails is told later."""
        if self.ended:
            with suppress(StatusError):
                await self.changing(META.Close, CloseRequest())

    async def _hold(self, reply: OpenReply, flags: int, sent: float, epoch: int) -> Inode | None:
        """The shared state of an inode that was opened in this epoch, with one handle more. None where another one has begun."""
        attributes = reply.attributes
        async with self.table_lock:
            if epoch != self.epoch:
                return None
            inode = self.inodes.get(attributes.inode)
            if inode is None:
                inode = self.inodes[attributes.inode] = Inode(self.cluster, attributes, epoch)
                inode.unsynced = self.unsynced_files.pop(inode.id, inode.unsynced)
            truncated = attributes.truncate_version != inode.truncate_version
            inode.take_open(reply, flags)
            inode.handles += 1
            inode.readers += not reply.session
        if truncated and inode.write_back is not None and inode.write_back.pending:
            # Whether what is on its way came before the truncate or after it, storage decides: then we know the length.
            async with inode.lock:
                await inode.write_back.drain()
                with suppress(StatusError):
                    await inode.fetch()
        if reply.session:
            self.lease.begin(sent)
        self.keeper.start()
        return inode

    async def know_table(self, layout: common_pb2.Layout) -> None:
        """Have the chain table that a layout speaks of: it may be newer than our routing."""
        wanted = (layout.table, layout.table_version)
        if wanted not in self.cluster.table.tables:
            await self.cluster.refresh()
        if wanted not in self.cluster.table.tables:  # whom it asked did not answer: now with all that finds another one
            request = GetRoutingRequest(since=self.cluster.table.version)
            await self.cluster.learn(await self.cluster.meta(CLUSTER.GetRouting, request))

    async def reopen(self, handle: Reader) -> None:
        """Give a handle from before a fork or a lost lease a place in this epoch: the same inode, a new session. Raises once
        what went wrong with data that it had written."""
        async with self.reopening:
            if handle.epoch == self.epoch:
                return  # another thread was faster
            old = handle.file
            request = OpenRequest(place=at(old.id), flags=handle.flags & ~O_ONCE)
            try:
                inode, reply = await self._open_inode(request)
            except FileNotFoundError:
                raise error(Status.STALE_HANDLE, f"{handle.name} was removed; open the path again") from None
            failure = handle._take_failure()
            handle.adopt(inode, reply.session)
            _add_unsynced(inode.unsynced, old.take_unsynced())
            locked, handle.locked = handle.locked, False
        if failure is not None:
            raise failure
        if locked:
            raise Lease.ended_error()  # what it guarded may be another client's by now

    def write_back_of(self, inode: Inode) -> WriteBack:
        """The write-back of an inode, made with the first write. Under the inode's lock."""
        if inode.write_back is None:
            limit = self.options.write_back
            inode.write_back = WriteBack(inode, self.channels, self.lease, self.write_budget, limit)
        return inode.write_back

    async def flush_inode(self, inode: Inode) -> None:
        """Send what is dirty and publish the length. Under the inode's lock."""
        if inode.write_back is not None:
            await inode.write_back.drain()
            if inode.write_back.abandoned:
                return  # the session is over, nothing of it is ours to settle: the file's error says so
        await inode.settle()

    async def shed(self) -> bool:
        """Get buffers free: send what some file has buffered for longest. False if no file has. The caller holds no inode's lock."""
        dirty = [i for i in list(self.inodes.values()) if i.write_back is not None and i.write_back.pending]
        if not dirty:
            return False
        inode = min(dirty, key=lambda i: i.unsettled_since)
        async with inode.lock:
            if inode.write_back is not None:
                await inode.write_back.empty()
        return True

    async def release_inode(self, inode: Inode, *, reader: bool) -> None:
        """One handle less."""
        async with self.table_lock:
            inode.handles -= 1
            inode.readers -= reader
            if inode.handles <= 0:
                self._keep_unsynced(inode)
                if self.inodes.get(inode.id) is inode:
                    del self.inodes[inode.id]

    def _keep_unsynced(self, inode: Inode) -> None:
        """For who opens it again and syncs it, or syncs everything."""
        if inode.unsynced:
            kept = self.unsynced_files
            _add_unsynced(kept.setdefault(inode.id, {}), inode.unsynced)
            if len(kept) > UNSYNCED_FILES_MAX:
                _add_unsynced(self.unsynced, kept.pop(next(iter(kept))))

    async def close_orphan(self) -> None:
        """Close a file that was forgotten. An error of its data can only be a warning: whom else could it be told?"""
        try:
            handle = self.orphans.popleft()
        except IndexError:
            return  # another thread, or the keeper, closes it
        try:
            await handle.close()
        except (StatusError, ValueError) as failure:
            warnings.warn(
                f"{handle.name} was never closed, and its data is lost: {failure}", ResourceWarning, stacklevel=2
            )

    async def _write_out(self, path: PathLike) -> None:
        """Before another way to the same file cuts it: what this client wrote to it earlier goes first."""
        if any(inode.unsettled for inode in list(self.inodes.values())):
            inode = await self._written_here(path)
            if inode is not None:
                async with inode.lock:
                    await self.flush_inode(inode)

    async def _written_here(self, path: PathLike) -> Inode | None:
        """What a path names, if this client has it open for writing or has bytes of it that nobody else knows."""
        if not any(inode.unsettled or inode.sessions for inode in list(self.inodes.values())):
            return None
        try:
            named = path.parent if isinstance(path, Place) and not path.path else (await self.stat(path)).inode
            inode = self.inodes.get(named)
        except StatusError:
            return None  # there is no such file, and the operation itself will say what it thinks of that
        return inode if inode is not None and (inode.unsettled or inode.sessions) else None

    # --- by path --------------------------------------------------------------------------------------------------------------

    async def truncate(self, path: PathLike, length: int, *, acting: Acting | None = None) -> Stat:
        """Cut or extend a file; its attributes."""
        if not 0 <= length < 1 << 63:
            raise error(Status.INVALID, f"cannot truncate to {length} bytes", text(path))
        caller = acting.caller if acting is not None else None
        request = TruncateRequest(place=place(path), length=length, caller=caller)
        written = await self._written_here(path)
        if written is not None:
            # As if through a handle: no write of another thread comes in between, half before the truncate and half after it.
            async with written.lock:
                await self.flush_inode(written)
                try:
                    reply = await written.cut(request)
                except StatusError as failure:
                    raise with_path(failure, path) from None
                if reply.attributes.inode == written.id:
                    written.take(reply.attributes)
                    return stat_of(reply.attributes)
        else:
            reply = await self._changed(META.Truncate, request, path)
        inode = self.inodes.get(reply.attributes.inode)
        if inode is not None:
            async with inode.lock:
                inode.take(reply.attributes)
        return self.seen(stat_of(reply.attributes))

    async def publish(self, handles: Sequence[Handle], targets: Sequence[PathLike], *, exclusive: bool = False) -> None:
        """Give unnamed files their names, all of them or none. Raises what went wrong with their data, however often it is tried: a file
        that lacks some of it has to be written anew."""
        if len(handles) != len(targets):
            raise error(Status.INVALID, f"{len(handles)} files for {len(targets)} names")
        for handle in handles:
            await self._written_whole(handle)
        request = PublishRequest(
            inodes=[handle.file.id for handle in handles], targets=[place(t) for t in targets], exclusive=exclusive
        )
        if handles:
            await self._changed(META.Publish, request, ", ".join(text(t) for t in targets))
        for handle in handles:
            await handle.close()

    async def link_open(self, handle: Handle, target: PathLike) -> None:
        """Give an open file one name more, or an unnamed one its first, after its data was written out. Raises as `publish` where it has no
        name yet."""
        if handle.unnamed:
            await self._written_whole(handle)
        else:
            await handle.flush()
        await self.link(at(handle.file.id), target)

    async def _written_whole(self, handle: Handle) -> None:
        """Write out what a file is to have that gets its name now. Raises, too, what was told before of data that it lacks."""
        await handle.flush()
        if handle.file.failure is not None:
            raise handle.file.failure

    # --- the whole ----------------------------------------------------------------------------------------------------------------

    async def sync(self) -> None:
        """Write out and make durable all that can be. Raises the first of what went wrong; at once where nobody answers."""
        # What is synced here: of the files that are open, and of those that were.
        taken: list[tuple[Inode | None, dict[int, int]]] = []
        try:
            failure = await self._sync(taken)
        except BaseException:
            async with self.table_lock:
                for inode, unsynced in taken:
                    # One may have been closed meanwhile.
                    _add_unsynced(inode.unsynced if inode is not None and inode.handles else self.unsynced, unsynced)
            raise
        finally:
            for inode, _ in taken:
                if inode is not None:
                    inode.syncing = {}
        for inode, unsynced in taken:
            if inode is not None:
                inode.check_kept(unsynced)
                failure = failure or inode.error
            elif lost := self.cluster.lost_since(unsynced):
                chains = f"chain {', '.join(map(str, lost))} lost power"
                message = f"{chains}: what was written there and not synced may be missing"
                failure = failure or error(Status.LOST_DATA, message)
        if failure is not None:
            raise failure

    async def _sync(self, taken: list[tuple[Inode | None, dict[int, int]]]) -> StatusError | None:
        chains: set[int] = set()
        failure: StatusError | None = None
        for inode in list(self.inodes.values()):
            async with inode.lock:
                try:
                    await self.flush_inode(inode)
                except StatusError as failed:
                    if failed.retryable or failed.status is Status.DEADLINE:
                        raise
                    failure = failure or failed
                failure = failure or inode.error
                if not inode.synced:  # nor afterwards, for `fsync`: this may fail, or somebody write meanwhile
                    chains.update(inode.chains)
                taken.append((inode, inode.take_unsynced()))
                inode.syncing = taken[-1][1]
        # What arrived before a lease ended is with the handles that have not gone on since.
        for before in {handle.file for handle in living(self.handles) if handle.epoch != self.epoch}:
            taken.append((before, before.take_unsynced()))
        # What was closed before lies on chains that we do not remember: all of those that files may use.
        chains.update(chains_of_files(self.cluster))
        async with self.table_lock:
            for unsynced in self.unsynced_files.values():
                _add_unsynced(self.unsynced, unsynced)
            taken.append((None, self.unsynced))
            self.unsynced_files, self.unsynced = {}, {}
        await sync_chains(self.cluster, sorted(chains))
        await self.sync_names()
        return failure

    async def status(self) -> StatusReply:
        return await self.cluster.meta(CLUSTER.Status, StatusRequest())  # type: ignore[no-any-return]

    async def close(self) -> None:
        if self.closed:
            return
        failure: BaseException | None = None
        while self.orphans:
            await self.close_orphan()
        for handle in living(self.handles):
            try:
                await handle.close()
            except (StatusError, ValueError) as broken:
                failure = failure or broken
        for inode in list(self.inodes.values()):  # of a forgotten file that the keeper is just closing: it ends with us
            try:
                async with inode.lock:
                    await self.flush_inode(inode)
            except StatusError as broken:
                failure = failure or broken
        await self.read_times.tell()
        await self.tell_ended()
        self.closed = True
        try:
            if self.keeper.started:
                patience = self.cluster.patience(END_SECONDS)
                await self.cluster.meta(CLUSTER.EndClient, EndClientRequest(), patience)
        except StatusError:
            pass  # the manager ends the session of a client that is silent
        finally:
            self.shared.close()
            done = self.env.close()
            if done is not None:
                await done
        if failure is not None:
            raise failure

    # --- identities ---------------------------------------------------------------------------------------------------------------

    async def lose_lease(self, lease: Lease) -> None:
        """This lease is over: what was not written out is lost (its files say so once), everything else goes on as a new client."""
        async with self.losing:
            if lease is not self.lease:
                return  # another thread or the keeper was faster
            lease.end()  # for whoever is in the middle of a write: it must not send what is thrown away here
            ended = lease.ended_error()
            for inode in list(self.inodes.values()):
                if inode.unsettled or (inode.write_back is not None and inode.write_back.pending):
                    inode.fail(ended)
                if inode.write_back is not None:
                    inode.write_back.abandon()
            self.env.renew_identity()
            self.cluster.renew_identity()
            self._begin_epoch()

    def after_fork_in_child(self) -> None:
        """In a forked child, before anything else runs: nothing that a lock guards is taken over, nothing that the parent wrote is
        written again. Handles find out by the epoch."""
        for inode in self.inodes.values():
            inode.error = None  # the parent's to report
        for handle in living(self.handles):
            handle.locked = False  # the locks are the parent's
            handle.failures_told = handle.file.failures  # and so are the errors
            handle.file.unsynced = {}  # and what it has not synced
        self.unsynced_files, self.unsynced = {}, {}
        self.orphans.clear()
        self.shared.after_fork_in_child()
        self.cluster.after_fork_in_child()
        self.losing = self.env.lock()
        self._begin_epoch()


def _add_unsynced(unsynced: dict[int, int], more: Mapping[int, int]) -> None:
    """Of a chain, the lower number counts: the one of what it took first."""
    for chain, losses in more.items():
        unsynced[chain] = min(losses, unsynced.get(chain, losses))

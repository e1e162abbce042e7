"""An open file: writes, truncates, and how it all gets out, in order within one client.

Other clients see a write after `flush`, `fsync` or `close` (close-to-open).

Appending (`a` modes): a write goes to the end of the file, wherever other clients and handles have moved it by then, in one piece
(`append.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...proto.copying import bytes_of
from ...proto.errors import Status, StatusError, error
from ...proto.gen.common_pb2 import Attributes
from ...proto.gen.meta_pb2 import CloseReply, CloseRequest, Place, TruncateRequest
from ...proto.layout import file_bytes_max
from ...proto.rpc import META
from . import locks
from .allocate import allocate
from .attributes import Stat, stat_of
from .clone import copy_range
from .locks import LockInfo, Span
from .reading import OFFSET_MAX, Reader
from .writeback import WriteBack
from .writes import sync_chains

_FLOCKS = {"shared": locks.SHARED, "exclusive": locks.EXCLUSIVE}


class Handle(Reader):
    """One `open`, with all that can be done to the file through it. The machinery is in `streams`, `writeback`, `reads` and `writes`."""

    # --- writing --------------------------------------------------------------------------------------------------------------------

    async def write(self, data: Any) -> int:
        """Write at the position, or at the end in append mode; bytes written."""
        await self._ready(writing=True)
        view = bytes_of(data)
        async with self.lock:
            self.position = await self._write(view, self.position)
        return len(view)

    async def pwrite(self, data: Any, offset: int) -> int:
        """Write at `offset` (in append mode at the end); bytes written."""
        await self._ready(writing=True)
        view = bytes_of(data)
        await self._write(view, offset)
        return len(view)

    async def write_at(self, data: Any, offset: int, *, exact: bool = False) -> int:
        """Write at `offset`, or in append mode at the end unless it is to be `exact`; where it ended."""
        await self._ready(writing=True)
        return await self._write(bytes_of(data), offset, exact=exact)

    async def _write(self, view: memoryview, offset: int, *, exact: bool = False) -> int:
        """Write (`exact`: here, in append mode too); where it ended. Waits for buffers that other files hold."""
        if not len(view) and offset >= 0:
            return offset
        patience = None
        while True:
            try:
                return await self._write_once(view, offset, exact)
            except StatusError as failure:
                if failure.status is not Status.BUSY:
                    raise
                patience = patience or self.core.cluster.patience()
                if not (await self.core.shed() or self.core.cluster.drop_lookahead()):
                    await patience.again(failure)

    async def _write_once(self, view: memoryview, offset: int, exact: bool) -> int:
        file = self.file
        async with file.lock:
            if not self.session:
                await self._renew_session()  # a flush came in between
            if file.error is not None:
                # Earlier bytes are lost, so these cannot make the file whole. `flush` or `close` takes the error away. Without this, a
                # long copy would go on for hours, and wait in vain for each of its pieces.
                raise file.error
            await file.hear()
            if self.append and not exact:
                if file.inline_max and file.write_back is not None:
                    await file.write_back.empty()
                file.inline_max = 0  # what is appended goes to chunks
                if file.times_set is not None:
                    await file.settle()  # which an append does not do
                await self.core.tokens.have(file, self.session)
                offset = file.length
            if offset < 0 or offset + len(view) > file_bytes_max(file.chunk_size):
                status = Status.INVALID if offset < 0 else Status.FILE_TOO_BIG
                raise error(status, f"{self.name}: cannot write {len(view)} bytes at offset {offset}")
            file.check_growth(offset + len(view))
            write_back = self.core.write_back_of(file)
            if not file.unsettled:
                file.wrote(0, 0)  # should it fail after some of it has left, the server hears that there may be chunks
            # Asked now: while bytes of a small file move into chunks, its length becomes that of all that is written here.
            leaves_hole = offset > file.length
            file.sparse = file.sparse or leaves_hole
            await write_back.write(view, offset)
            file.wrote(offset, offset + len(view))
            file.sparse = file.sparse or leaves_hole  # unless it was settled in between, with what was small
            if not self.buffered or not self.core.options.write_back:
                await write_back.empty()
                self._raise_error()
        return offset + len(view)

    async def truncate(self, size: int | None = None) -> int:
        """Cut or extend to `size` bytes (default: the position)."""
        length = self.position if size is None else size
        await self.truncate_with_stat(length)
        return length

    async def truncate_with_stat(self, length: int) -> Stat:
        """`truncate`, and the attributes that it left."""
        await self._ready(writing=True)
        if not 0 <= length <= OFFSET_MAX:
            raise error(Status.INVALID, f"{self.name}: cannot truncate to {length} bytes")
        file = self.file
        async with file.lock:
            if file.write_back is not None:
                await file.write_back.drain()
            self._raise_error()
            await file.settle()
            self._raise_error()  # of what was small, and went to chunks after all
            if not self.session:
                await self._renew_session()  # a flush came in between
            request = TruncateRequest(place=Place(parent=file.id), length=length, session=self.session)
            reply = await file.cut(request)
            file.take_own(reply.attributes)
            file.generation += 1
        return stat_of(reply.attributes)

    async def allocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2): mode 0 and KEEP_SIZE make sure that there is room, PUNCH_HOLE and ZERO_RANGE make zeros. Raises UNSUPPORTED for
        modes that move data."""
        await allocate(self, mode, offset, length)

    async def copy_from(self, source: Reader, start: int, offset: int, length: int) -> int:
        """copy_file_range(2): `length` bytes of `source` from `start` on, to `offset` of this file, shared where chunks can be; how many
        there were."""
        return await copy_range(source, start, self, offset, length)

    # --- getting it out ---------------------------------------------------------------------------------------------------------------

    async def flush(self, *, ending: bool = False) -> None:
        """Send everything and publish the length. Raises what went wrong since the last time, once. `ending`: in the same request the
        writer's session ends, and the next write begins another; for one who does not know whether more will come, as a mount at
        each close(2)."""
        if self.closed or not self.can_write:
            return
        await self._ready()
        file = self.file
        async with file.lock:
            ends = ending and self.session and file.unsettled
            if not ends:
                await self.core.flush_inode(file)
            elif file.write_back is not None:
                await file.write_back.drain()  # here, and not with the end: what cannot be sent now may be sent later
        if ends:
            with self.core.held.opening(file.id):  # from here on it is open as if for reading
                await self._end_session(False)
        elif (failure := self._take_failure()) is not None:
            raise failure

    async def fsync(self, *, data_only: bool = False) -> None:
        """`flush`, and make it durable on every replica and in the namespace. `data_only`: as fdatasync(2), which does not mind the
        times of a file that has not grown."""
        await self._ready()
        file = self.file
        async with file.lock:
            grown = file.length > file.durable_length or bool(file.stale_end)
            durable: set[int] = set()  # chains
            if file.write_back is not None:
                # Times are told after the bytes have arrived and while they become durable: that needs two requests. Without, one will do.
                durable = await file.write_back.drain(durable=data_only or grown)
            if (failure := self._take_failure()) is not None:
                raise failure
            if file.write_back is not None and file.write_back.small:
                await file.settle(durable=True)  # to chunks, if the server will not have it
                self._raise_error()
                if file.inlined:
                    file.synced = True
                    return
            grown = file.length > file.durable_length or bool(file.stale_end)
            told = not (file.inlined or grown) and data_only  # or has nothing to be told
            chains = [] if file.synced or file.inlined else [chain for chain in file.chains if chain not in durable]
            if chains:
                told = await self._sync_chains(chains, with_times=not (told or grown)) or told
            file.check_kept(file.take_unsynced())
            if (failure := self._take_failure()) is not None:
                raise failure
            if not told:
                await file.settle(durable=True)
            file.synced = True

    async def _sync_chains(self, chains: Sequence[int], *, with_times: bool) -> bool:
        """Make the chunks durable. `with_times`: the namespace hears at the same time that they were written; whether it did. Not of a new
        length: that must not be durable before the bytes are."""
        file, settled = self.file, False
        failure: StatusError | None = None

        async def settle() -> None:
            nonlocal failure, settled
            try:
                await file.settle(durable=True)
                settled = True
            except StatusError as failed:
                failure = failed

        await sync_chains(self.core.cluster, chains, settle if with_times else None)
        if failure is not None:
            raise failure
        return settled

    async def close(self) -> None:
        """Send everything, settle the length, end the session. The handle is closed even if this raises, unless it is interrupted. When
        this returns, every replica has the data and everybody sees the length; where both was so before, nobody is asked, and the
        server hears within a second that the session is over (`ended.py`)."""
        await self._end(discard=False)

    async def close_with_stat(self) -> Stat:
        """`close`, and the attributes that the file was left with: by the close itself, after which the file may be gone."""
        await self._end(discard=False, answered=True)
        # A handle from before the lease ran out has no session to end.
        return self._last or stat_of(await self.file.ask())

    async def discard(self) -> None:
        """Close without sending what is still here; an unnamed file is dropped."""
        await self._end(discard=True)

    async def _end(self, *, discard: bool, answered: bool = False) -> None:
        if self.closed:
            return
        self.closed = True
        self.unwanted = self.unwanted or discard
        if self.epoch != self.core.epoch:
            # Inherited over a fork, or from before the lease ran out: nothing of it is ours to settle any more.
            self.file.cluster.forget_lookahead(self.stream)
            await self._leave()
            if self.can_write and not self.unwanted and (lost := self._take_failure()) is not None:
                raise lost
            return
        failure, self.untold = self.untold, None
        try:
            async with self.lock:  # a read in another thread still looks into the windows
                self.stream.drop()
            if self.session:
                try:
                    await self._end_session(self.unwanted, answered=answered)
                except StatusError as broken:
                    failure = broken  # of data: no reason to let others wait for the locks until this client is gone
            if self.file.locks or self.file.granted:
                try:
                    await locks.leave(self, last=self.file.handles == 1)
                except StatusError as broken:
                    failure = failure or broken
            if failure is not None:
                raise failure
        except Exception:
            await self._leave()
            raise
        except BaseException:
            # Interrupted or cancelled: what is still here is not lost. Whoever comes next closes the file, the keeper at last.
            self.closed, self.untold = False, failure
            raise
        await self._leave()

    # --- locks ------------------------------------------------------------------------------------------------------------------------

    async def flock(self, how: str, *, blocking: bool = True, owner: int | None = None) -> None:
        """Lock the whole file "shared" or "exclusive", or "unlock" it, for this handle (or the `owner` that the caller names)."""
        await self._ready()
        span = Span(locks.FLOCK, self.number if owner is None else owner)
        if how == "unlock":
            await locks.give(self, span)
        elif how in _FLOCKS:
            await locks.take(self, span, _FLOCKS[how], blocking=blocking)
        else:
            raise error(Status.INVALID, f"{self.name}: flock {how!r}: shared, exclusive or unlock")

    async def lock_range(
        self, start: int, length: int, *, exclusive: bool, blocking: bool, owner: int, pid: int
    ) -> None:
        """Lock a byte range, as fcntl(2) does."""
        self._may(reading=not exclusive, writing=exclusive)
        await self._ready()
        type_ = locks.EXCLUSIVE if exclusive else locks.SHARED
        await locks.take(self, locks.checked_span(self, start, length, owner), type_, pid=pid, blocking=blocking)

    async def unlock_range(self, start: int, length: int, *, owner: int, keep: bool = False) -> None:
        """Give back what an owner holds in a range. `keep`: for an owner that may well lock it again (`kept.py`)."""
        await self._ready()
        await locks.give(self, locks.checked_span(self, start, length, owner), keep=keep)

    async def test_lock(self, start: int, length: int, *, exclusive: bool, owner: int) -> LockInfo | None:
        """The lock that is in the way of this one, if any."""
        await self._ready()
        type_ = locks.EXCLUSIVE if exclusive else locks.SHARED
        return await locks.find(self, locks.checked_span(self, start, length, owner), type_)

    async def _leave(self) -> None:
        self.core.handles.discard(self)
        await self.core.release_inode(self.file, reader=self.is_reader)

    async def _end_session(self, discard: bool, *, answered: bool = False) -> None:
        file = self.file
        async with file.lock:
            if not answered and self._may_end_silently():
                self.core.ended.add(file.id, self.session)
                await self._forget_session()
                return
            await self._renew_session()
            if file.write_back is not None:
                if discard and file.handles == 1 and file.write_back.pending:
                    file.write_back.discard()
                    file.failed = True  # what was not sent does not count: the length is that of what arrived
                await self._drain(file.write_back)
            if file.stale_end:
                await file.fetch()
            failure = self._take_failure()
            small = file.write_back.small_pieces() if file.write_back is not None else None
            request = CloseRequest(
                inode=file.id,
                session=self.session,
                written=file.unsettled and not (discard and self.unnamed),
                length=file.hint_end,
                truncate_version=file.truncate_version,
                sparse=file.sparse,
                mtime_ns=file.written_ns,
                times=file.times_set,
                discard=discard and self.unnamed,
                reading=not self.closed,
                token=file.token is not None and file.sessions == [self.session],
                inlined=small,
            )
            if request.token:
                self.core.tokens.forget(file)
            try:
                self.ending = True
                reply = await self._close_small(request) if small is not None else await self._ask_close(request)
                self._last = stat_of(reply.attributes)
                if request.written:
                    file.settled(reply.attributes)
                self.ending = False
                if not reply.kept:
                    await self._forget_session()
            except StatusError as broken:
                failure = failure or broken
                if self.closed:
                    await self._forget_session()
            failure = failure or self._take_failure()  # of what was small, and went to chunks after all
        if failure is not None and not discard:
            raise failure

    def _may_end_silently(self) -> bool:
        """Whether nothing was written that the server has not settled yet, and nothing is wrong: it may hear later (`ended.py`)."""
        file, written = self.file, self.file.write_back
        if file.unsettled or file.stale_end or file.token is not None or (written is not None and written.pending):
            return False
        fine = file.error is None and self.failures_told == file.failures and not self.ending
        return fine and self.closed and not self.unnamed and not self.core.ended.full

    async def _forget_session(self) -> None:
        """It is over, and the handle one like those for reading."""
        file = self.file
        if self.session in file.sessions:
            file.sessions.remove(self.session)
        self.session = 0
        await self._count_reader(True)

    async def _drain(self, write_back: WriteBack) -> None:
        """Send everything for the last time: what cannot even be sent is lost, and the session ends all the same."""
        try:
            await write_back.drain()
        except StatusError as failure:
            self.file.fail(failure)
            write_back.discard()

    async def _ask_close(self, request: CloseRequest) -> CloseReply:
        return await self.core.changing(META.Close, request)  # type: ignore[no-any-return]

    async def _close_small(self, request: CloseRequest) -> CloseReply:
        """Close with the bytes of a small file, or without, after these went to chunks."""
        file = self.file
        file.inlining = True
        try:
            reply = await self._ask_close(request)
        except StatusError as failure:
            if failure.status is not Status.NOT_INLINE:
                raise
            await file.not_inline()
            request.ClearField("inlined")
            request.ClearField("request_id")
            request.length, request.truncate_version, request.sparse = file.hint_end, file.truncate_version, file.sparse
            return await self._ask_close(request)
        if file.write_back is not None:
            file.write_back.discard()
        return reply

    async def stat(self) -> Stat:
        """The attributes, after what was written here was published."""
        await self._ready()
        async with self.file.lock:
            if self.can_write:
                await self.core.flush_inode(self.file)
            attributes: Attributes = await self.file.fetch()
        return stat_of(attributes)

"""Garbage: what nothing names any more is freed in the background, in three durable queues (keys.py, DEAD*).

Trees are dismantled name by name: files go to the queue of files, subdirectories to the queue of trees, until the directory is empty.
Files wait until every reading client has reported what it holds open (readers.py), then for writers and reported readers. The
inode ceases to exist in one transaction, which leaves its layout in the queue of chunks; only when that is synced are the chunks
removed, so that a power failure never shows a file whose chunks are gone. Every step is a transaction, so a crash anywhere, or another
server doing the same work, is harmless.

The queue of files is gone through in rounds: a file that somebody holds goes to the end of the queue, and is looked at again in the
next round. A round begins as often as clients report, and with every start of a server; sooner where the last one met nobody who held
anything, so that a large tree is freed while it is still being dismantled.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import TYPE_CHECKING

from ...proto.errors import StatusError
from .. import keys
from ..kv.engine import Pair, Transaction
from . import dentry as dentries
from . import extended, quota, session
from . import inode as inodes
from .attempt import DEAD_RECORD, UNNAMED_RECORD
from .inode import Inode
from .seams import DeadFile, Layout
from .trash import Emptier

if TYPE_CHECKING:
    from .namespace import Namespace

FILES_PER_STEP = 128  # records of one transaction: about 5 ms, in which the server answers nobody
NAMES_PER_STEP = 128
CHUNKS_PER_STEP = 512  # files of one request to storage: before each the log is synced
HOLDERS_MAX = 256  # sessions, and readers' holds, that are read at once to see which of some files are held
IDLE_SECONDS = 0.5  # between looks at empty queues
ROUND_SECONDS = 10.0  # between the beginnings of two rounds through the queue of files
QUIET_ROUND_SECONDS = 0.2  # the same, when the last one met nobody who held anything
SHORT_ROUND_SECONDS = 1.0  # the same, when space is short:
SHORT_PART = 0.05  # less than this part of some target is free
GIVE_WAY_SECONDS = 2.0  # between pieces of the trash that go before their time, as space is short
EVENTS_SECONDS = 30.0  # between looks for old events
PENDING_MAX = 10_000  # records of each queue that are counted for people
CHUNKS_VERSION = 1

_LAYOUT = struct.Struct(
    ">BBBIIIIQ"
)  # version, redundancy, log2 of the chunk size, table, its version, base, stripe, seed


def pack_layout(layout: Layout) -> bytes:
    """The value of a record in the queue of chunks."""
    redundancy, chunk_size, *rest = layout
    return _LAYOUT.pack(CHUNKS_VERSION, redundancy, chunk_size.bit_length() - 1, *rest)


def unpack_layout(data: bytes) -> Layout:
    """Raises BAD_FORMAT for a record of a newer version."""
    version, redundancy, bits, *rest = _LAYOUT.unpack(data)
    if version > CHUNKS_VERSION:
        raise keys.refused("a record of dead chunks", version)
    return Layout(redundancy, 1 << bits, *rest)


def may_have_chunks(inode: Inode) -> bool:
    """Whether anything was ever written of a file whose sessions are over. All that ends a session under which something was, sets a
    length, or a truncate version where there is none: a tree of empty or small files asks storage for nothing."""
    return bool(inode.truncate_version or (inode.length and not inode.flags & inodes.INLINE))


class Collector:
    """The garbage collector of one server. `step` does one piece of work; `run` repeats it for ever."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._due = b""  # keys up to this one belong to the round under way
        self._round = float("-inf")  # when it began
        self._held = 0  # files that somebody held in it
        self._left_chunks = 0  # files that came into the queue of chunks since that was last looked at
        self.space_is_short = False
        self._emptier = Emptier(namespace)
        self._events_cut = float("-inf")
        self._given_way = float("-inf")  # when the trash last gave way
        # Where each queue begins, as far as this server knows: a scan from its letters on would cross the tombstones of
        # everything that ever was in it. New records only ever come behind.
        self._trees, self._trees_end = keys.prefix_range(keys.DEAD_TREE)
        self._files, self._files_end = keys.prefix_range(keys.DEAD_FILE)
        self._chunks, self._chunks_end = keys.prefix_range(keys.DEAD_CHUNKS)
        self._names = (0, b"")  # the directory being dismantled, and where its names go on

    async def run(self) -> None:
        """Work until the namespace closes. An error is logged and tried again later."""
        await self._namespace.repeat(self.step, "garbage collection", IDLE_SECONDS, at_once=True)

    async def step(self) -> bool:
        """Some of each queue; whether there was anything to do."""
        worked = False
        await self._begin_round()
        worked |= await self._empty_trash()
        worked |= await self._cut_events()
        for piece in (self._dismantle, self._free_files):
            worked |= await piece()
            await self._namespace.clock.sleep(0)  # requests come in between
        if (
            not worked or self._left_chunks >= CHUNKS_PER_STEP
        ):  # few at once would wait for the log and for storage as long as many
            worked |= await self._remove_chunks()
        return worked

    async def _cut_events(self) -> bool:
        now = self._namespace.clock.now()
        if now - self._events_cut < EVENTS_SECONDS * self._namespace.time_scale:
            return False
        if not (more := await self._namespace.events.cut()):
            self._events_cut = now
        return more

    async def _empty_trash(self) -> bool:
        # Where space is short, more only when the last of it is free: its files wait for their readers, and the storage servers'
        # figures are some seconds old.
        now = self._namespace.clock.now()
        short = self.space_is_short and now - self._given_way >= GIVE_WAY_SECONDS * self._namespace.time_scale
        if short and await self.pending():
            short = False
        if short:
            self._given_way = now
        return await self._emptier.step(short=short)

    async def pending(self) -> int:
        """How many records the queues hold; of each at most PENDING_MAX are counted."""
        txn = self._namespace.engine.begin()
        total = 0
        for begin, end in (
            (self._files, self._files_end),
            (self._trees, self._trees_end),
            (self._chunks, self._chunks_end),
        ):
            total += len(await txn.scan(begin, end, PENDING_MAX, snapshot=True))
        return total

    # the queue of files

    async def last(self) -> bytes:
        """The key at which the queue of files ends now; empty when it is empty. What is unlinked later comes behind it."""
        txn = self._namespace.engine.begin()
        if not await txn.scan(self._files, self._files_end, 1, snapshot=True):
            return b""  # from the end of an empty queue one would come across everything that was ever in it
        page = await txn.scan(self._files, self._files_end, 1, reverse=True, snapshot=True)
        return page[0][0] if page else b""

    async def _begin_round(self) -> None:
        now = self._namespace.clock.now()
        self.space_is_short = self._namespace.chunks.space().free_part_min < SHORT_PART
        seconds = SHORT_ROUND_SECONDS if self.space_is_short else ROUND_SECONDS
        if not self._held:
            seconds = QUIET_ROUND_SECONDS
        if now - self._round < seconds * self._namespace.time_scale:
            return
        self._round = now
        self._held = 0
        self._due = max(self._due, await self._namespace.clients.readers.covered())

    async def _free_files(self) -> bool:
        begin, end = self._files, self._due + b"\0"
        if begin >= end:
            return False

        narrow = False

        async def work(txn: Transaction) -> tuple[list[Pair], int]:
            nonlocal narrow
            # All reads come before the first write: a scan over a transaction's own writes is slow in every engine.
            page = await txn.scan(begin, end, FILES_PER_STEP)
            records = await txn.get_many([keys.inode_key(keys.dead_inode(key)) for key, _ in page])
            found = {
                (inode := inodes.unpack(keys.dead_inode(key), record)).id: inode
                for (key, _), record in zip(page, records, strict=True)
                if record is not None
            }
            # What got a name after it came here only leaves the queue; if that name is gone again, a later record says since when.
            unlinked = {
                dead.id: (dead, value)
                for key, value in page
                if (dead := found.get(keys.dead_inode(key))) is not None
                and dead.nlink <= 0
                and (value != UNNAMED_RECORD or dead.flags & inodes.UNNAMED)
            }
            held = await _held_of(txn, list(unlinked), narrow=narrow)
            narrow = True  # if this conflicts: somebody opens files with numbers between these
            for key, _ in page:
                txn.delete(key)
            for inode, value in unlinked.values():
                self._free_file(txn, inode, value, is_held=inode.id in held)
            return page, len(held)

        page, held = await self._namespace.transact(work)
        self._held += held
        self._left_chunks += len(page) - held
        self._files = page[-1][0] if page else end
        return bool(page)

    def _free_file(self, txn: Transaction, inode: Inode, value: bytes, *, is_held: bool) -> None:
        if is_held:
            txn.put_versionstamped(keys.DEAD_FILE, keys.dead_suffix(inode.id), value)
            return
        txn.delete(keys.inode_key(inode.id))
        txn.add(keys.INODES_USED, -1)
        if inode.flags & inodes.TRIMMING:
            txn.delete(keys.trim_key(inode.id))
        if inode.flags & inodes.EXTENDED:
            extended.erase(txn, inode.id)
        if inode.flags & inodes.INLINE:
            txn.delete(keys.inline_key(inode.id))
        if inode.layout is not None and may_have_chunks(inode):
            txn.put_versionstamped(keys.DEAD_CHUNKS, keys.dead_suffix(inode.id), pack_layout(inode.layout))

    # the queue of trees

    async def _dismantle(self) -> bool:
        page = await self._namespace.engine.begin().scan(self._trees, self._trees_end, 1, snapshot=True)
        if not page:
            return False
        record = page[0][0]
        number = keys.dead_inode(record)
        begin, end = keys.dentry_range(number)
        if self._names[0] == number:
            begin = self._names[1]

        async def work(txn: Transaction) -> list[Pair]:
            if await txn.get(record) is None:
                return []  # another server was faster
            names = await txn.scan(begin, end, NAMES_PER_STEP)
            top = inodes.existing(number, await txn.get(keys.inode_key(number)))
            await self._drop_names(txn, names)
            if len(names) < NAMES_PER_STEP:  # nothing comes into a detached directory, so it is empty now
                quota.vanished(txn, top)
                quota.forget(txn, top)
                if top.flags & inodes.EXTENDED:
                    extended.erase(txn, number)
                self._erase(txn, number)
                txn.delete(record)
            return names

        names = await self._namespace.transact(work)
        if len(names) < NAMES_PER_STEP:
            self._trees = record
        else:
            self._names = (number, names[-1][0])
        return True

    async def _drop_names(self, txn: Transaction, names: list[Pair]) -> None:
        # The directory's own counters are left alone: they go with it.
        now_ns = self._namespace.clock.wall_ns()
        entries = [dentries.unpack(value) for _, value in names]
        links = Counter(
            entry.inode for entry in entries if not entry.is_directory
        )  # two names of one file may lie in one page
        numbers = list(links)
        records = await txn.get_many([keys.inode_key(number) for number in numbers])
        for key, _ in names:
            txn.delete(key)
        for entry in entries:
            if entry.is_directory:
                txn.put_versionstamped(keys.DEAD_TREE, keys.dead_suffix(entry.inode), DEAD_RECORD)
        for number, record in zip(numbers, records, strict=True):
            if record is not None:
                inode = inodes.unpack(number, record)
                inode.nlink -= links[number]
                inode.touched(now_ns)
                self._put_unlinked(txn, inode)

    def _put_unlinked(self, txn: Transaction, inode: Inode) -> None:
        if inode.nlink <= 0:
            quota.vanished(txn, inode)
        if inode.nlink > 0:
            txn.put(keys.inode_key(inode.id), inode.pack())
        elif inode.layout is None:
            if inode.flags & inodes.EXTENDED:
                extended.erase(txn, inode.id)
            txn.delete(keys.inode_key(inode.id))
            txn.add(keys.INODES_USED, -1)
        else:
            txn.put(keys.inode_key(inode.id), inode.pack())
            txn.put_versionstamped(keys.DEAD_FILE, keys.dead_suffix(inode.id), DEAD_RECORD)

    def _erase(self, txn: Transaction, number: int) -> None:
        txn.delete(keys.inode_key(number))
        for counter in (keys.entries_key(number), keys.subdirectories_key(number), keys.changed_key(number)):
            txn.delete(counter)
        txn.add(keys.INODES_USED, -1)

    # the queue of chunks

    async def _remove_chunks(self) -> bool:
        self._left_chunks = 0
        page = await self._namespace.engine.begin().scan(self._chunks, self._chunks_end, CHUNKS_PER_STEP, snapshot=True)
        if not page:
            return False
        await self._namespace.engine.sync()
        files = [DeadFile(keys.dead_inode(key), unpack_layout(value)) for key, value in page]
        results = await self._namespace.chunks.remove(files)
        await self._settle(page, results)
        self._chunks = page[-1][0]
        if results and (refusal := results[0]) is not None and None not in results:
            raise refusal  # nothing worked: pause
        return True

    async def _settle(self, page: list[Pair], results: list[StatusError | None]) -> None:
        # What failed goes to the end of the queue, so that one chain that is down does not hold up the others.
        async def work(txn: Transaction) -> None:
            for (key, value), result in zip(page, results, strict=True):
                txn.delete(key)
                if result is not None:
                    txn.put_versionstamped(keys.DEAD_CHUNKS, keys.dead_suffix(keys.dead_inode(key)), value)

        await self._namespace.transact(work)


async def _held_of(txn: Transaction, numbers: list[int], *, narrow: bool) -> set[int]:
    """Those of these inodes that somebody has open. What is removed together was mostly made together: one look at all that lies between
    the least and the greatest number does, unless others are there too (or `narrow`)."""
    if not numbers:
        return set()
    if not narrow:
        first, last = min(numbers), max(numbers)
        begin, end = keys.session_range(first)[0], keys.session_range(last)[1]
        sessions = await txn.scan(begin, end, HOLDERS_MAX)
        begin, end = keys.hold_range(first)[0], keys.hold_range(last)[1]
        holds = await txn.scan(begin, end, HOLDERS_MAX)
        if max(len(sessions), len(holds)) < HOLDERS_MAX:
            return {keys.inode_of(key) for key, _ in [*sessions, *holds]} & set(numbers)
    return {number for number in numbers if await session.any_holder(txn, number)}

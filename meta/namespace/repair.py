"""Repairs what the checker found, so that what can be kept is kept: things without a name come to /lost+found under their numbers.

To be run on an engine that no server uses. One repair may bring another fault to light (a directory that is found again has entries to
be counted), so checking and repairing take turns until nothing is left that can be repaired. Every repair is a transaction of its
own that looks at the newest state, so that an interrupted run loses nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ...proto.ids import FIRST_INODE, ROOT_INODE
from .. import keys
from ..kv import retry
from ..kv.engine import Engine, Transaction
from . import dentry as dentries
from . import inline
from . import inode as inodes
from .allocate import INODES_PER_RANGE
from .check import Facts, Problem, survey
from .dentry import Dentry
from .inode import Inode

ROUNDS_MAX = 50  # each mends one kind of problem
LOST_AND_FOUND = b"lost+found"
LOST_MODE = 0o700  # of that directory: what lies in it may have been private
ROOT_MODE = 0o755

Report = Callable[[Problem], None]
Mend = Callable[["Repair", Transaction, Problem], Awaitable[None]]


class Outcome(NamedTuple):
    """What a run did."""

    repaired: int
    left: list[Problem]  # nobody knows how to mend these


async def repair(engine: Engine, now_ns: int, report: Report = lambda _: None) -> Outcome:
    """Mend everything that can be. `report` hears of each problem before it is mended."""
    done = 0
    problems: list[Problem] = []
    for _ in range(ROUNDS_MAX):
        facts = await survey(engine)
        problems = facts.problems
        known = [problem for problem in problems if problem.kind in MENDS]
        if not known:
            break
        worker = Repair(engine, facts, now_ns)
        first = min(_ORDER[problem.kind] for problem in known)
        for problem in known:
            if _ORDER[problem.kind] == first:  # those behind may follow from these
                report(problem)
                await worker.mend(problem)
                done += 1
    return Outcome(done, problems)


class Repair:
    """One round over what one survey found."""

    def __init__(self, engine: Engine, facts: Facts, now_ns: int) -> None:
        self._engine = engine
        self._facts = facts
        self._now_ns = now_ns

    async def mend(self, problem: Problem) -> None:
        async def work(txn: Transaction) -> None:
            await MENDS[problem.kind](self, txn, problem)

        await retry.run(self._engine, work, durable=True)

    # names

    async def drop_key(self, txn: Transaction, problem: Problem) -> None:
        txn.delete(problem.key)

    async def drop_damaged_inode(self, txn: Transaction, problem: Problem) -> None:
        # Its chunks stay: their file is gone, and the storage servers' scrubbers report them.
        txn.delete(problem.key)

    async def right_type(self, txn: Transaction, problem: Problem) -> None:
        entry = dentries.unpack(_there(await txn.get(problem.key)))
        inode = self._facts.inodes[entry.inode]
        txn.put(problem.key, dentries.pack(Dentry(inode.type, inode.id)))

    async def find_again(self, txn: Transaction, problem: Problem) -> None:
        """Something without a name, or in no directory, or on a way that goes in a circle, gets a name in /lost+found."""
        if problem.key.startswith(keys.DENTRY):
            inode = await _inode(txn, dentries.unpack(_there(await txn.get(problem.key))).inode)
            txn.delete(problem.key)
        else:
            inode = await _inode(txn, keys.inode_of(problem.key))
            inode.nlink = self._facts.names[inode.id] + 1
        if (name := self._facts.named_by.get(inode.id)) is not None:
            txn.delete(name)
        inode.flags &= ~inodes.UNNAMED
        inode.parent = lost = await self._lost_and_found(txn)
        txn.put(keys.inode_key(inode.id), inode.pack())
        txn.put(keys.dentry_key(lost, b"%x" % inode.id), dentries.pack(Dentry(inode.type, inode.id)))

    async def _lost_and_found(self, txn: Transaction) -> int:
        """The directory's number; it is made where it is missing, under another name where something else has this one."""
        key = keys.dentry_key(ROOT_INODE, LOST_AND_FOUND)
        for other in itertools.count(1):
            if (found := await txn.get(key)) is None:
                break
            if (entry := dentries.unpack(found)).is_directory:
                return entry.inode
            key = keys.dentry_key(ROOT_INODE, b"%s.%d" % (LOST_AND_FOUND, other))
        number = max(keys.counter(await txn.get(keys.NEXT_INODE)), FIRST_INODE, max(self._facts.inodes, default=0) + 1)
        txn.put(keys.NEXT_INODE, keys.counter_value(number + INODES_PER_RANGE))
        txn.put(keys.inode_key(number), self._directory(number, ROOT_INODE, LOST_MODE).pack())
        txn.put(key, dentries.pack(Dentry(inodes.DIRECTORY, number)))
        return number

    def _directory(self, number: int, parent: int, mode: int) -> Inode:
        now = self._now_ns
        made = Inode(number, inodes.DIRECTORY, 0, mode, 0, 0, 1, 0, now, now, now, now, 1, 0)
        made.parent = parent
        return made

    async def new_root(self, txn: Transaction, problem: Problem) -> None:
        txn.put(problem.key, self._directory(ROOT_INODE, ROOT_INODE, ROOT_MODE).pack())

    # columns of inodes

    async def right_parent(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.parent = self._facts.parents[inode.id]
        txn.put(problem.key, inode.pack())

    async def right_links(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        if not self._facts.names[inode.id]:
            await self.find_again(txn, problem)
            return
        inode.nlink = self._facts.names[inode.id]
        txn.put(problem.key, inode.pack())

    async def finish_trim(self, txn: Transaction, problem: Problem) -> None:
        """The chunks may still be there: with the flag, whoever reads next finishes the trim."""
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.flags |= inodes.TRIMMING
        txn.put(keys.inode_key(inode.id), inode.pack())

    async def no_trim(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.flags &= ~inodes.TRIMMING
        txn.put(problem.key, inode.pack())

    async def no_trash(self, txn: Transaction, problem: Problem) -> None:
        """Without a record it is an orphan: the next round finds it again."""
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.flags &= ~inodes.TRASH
        txn.put(problem.key, inode.pack())

    async def right_content(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.length = len(await inline.content(txn, inode))
        txn.put(keys.inode_key(inode.id), inode.pack())

    async def no_content(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.flags &= ~inodes.INLINE
        inode.length = 0
        txn.put(problem.key, inode.pack())

    async def flag_attributes(self, txn: Transaction, problem: Problem) -> None:
        inode = await _inode(txn, keys.inode_of(problem.key))
        inode.flags |= inodes.XATTRS
        txn.put(keys.inode_key(inode.id), inode.pack())

    async def no_acl(self, txn: Transaction, problem: Problem) -> None:
        """Nobody knows any more what the mask was for: the group's bits go with the ACL, so that it gains nothing."""
        inode = await _inode(txn, keys.inode_of(problem.key))
        if problem.key == keys.acl_key(inode.id):
            inode.flags &= ~inodes.ACL
            inode.mode &= ~0o070
        else:
            inode.flags &= ~inodes.DEFAULT_ACL
        txn.put(keys.inode_key(inode.id), inode.pack())

    # counters

    async def recount(self, txn: Transaction, problem: Problem) -> None:
        if problem.key == keys.INODES_USED:
            txn.put(problem.key, keys.counter_value(len(self._facts.inodes)))
            return
        number = keys.inode_of(problem.key)
        txn.put(keys.entries_key(number), keys.counter_value(self._facts.entries[number]))
        txn.put(keys.subdirectories_key(number), keys.counter_value(self._facts.subdirectories[number]))

    async def right_usage(self, txn: Transaction, problem: Problem) -> None:
        kind, number = keys.split_quota_key(problem.key)
        txn.put(problem.key, keys.counter_value(self._facts.used[kind, number, problem.key[-1:]]))

    async def later_numbers(self, txn: Transaction, problem: Problem) -> None:
        txn.put(keys.NEXT_INODE, keys.counter_value(keys.inode_of(problem.key) + INODES_PER_RANGE))


# In this order: what stands earlier may be the cause of what stands later.
MENDS: dict[str, Mend] = {
    "damaged inode": Repair.drop_damaged_inode,
    "no root": Repair.new_root,
    "damaged record": Repair.drop_key,
    "name without inode": Repair.drop_key,
    "wrong type": Repair.right_type,
    "name in no directory": Repair.find_again,
    "directory with two names": Repair.drop_key,
    "cycle": Repair.find_again,
    "wrong parent": Repair.right_parent,
    "inode from the future": Repair.later_numbers,
    "orphan": Repair.find_again,
    "wrong link count": Repair.right_links,
    "dead tree without inode": Repair.drop_key,
    "trash without inode": Repair.drop_key,
    "trash without flag": Repair.drop_key,
    "flag without trash": Repair.no_trash,
    "chunks of a live inode are going": Repair.drop_key,
    "counter without directory": Repair.drop_key,
    "session without inode": Repair.drop_key,
    "locks without inode": Repair.drop_key,
    "empty lock table": Repair.drop_key,
    "locks in conflict": Repair.drop_key,
    "append token without inode": Repair.drop_key,
    "trim without flag": Repair.finish_trim,
    "flag without trim": Repair.no_trim,
    "content without inode": Repair.drop_key,
    "content without flag": Repair.drop_key,
    "wrong content": Repair.right_content,
    "flag without content": Repair.no_content,
    "attribute without inode": Repair.drop_key,
    "attribute without flag": Repair.flag_attributes,
    "damaged ACL": Repair.drop_key,
    "ACL without flag": Repair.drop_key,
    "ACL without mask": Repair.drop_key,
    "flag without ACL": Repair.no_acl,
    "wrong count": Repair.recount,
    "quota without directory": Repair.drop_key,
    "wrong usage": Repair.right_usage,
}
_ORDER = {kind: place for place, kind in enumerate(MENDS)}


def _there(value: bytes | None) -> bytes:
    assert value is not None, "the engine changes while it is repaired"
    return value


async def _inode(txn: Transaction, number: int) -> Inode:
    return inodes.existing(number, await txn.get(keys.inode_key(number)))

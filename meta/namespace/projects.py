"""Quotas of directories that have content: what is there is taken into the project, or given back when the quota is removed.

The directory itself belongs to its project from the start, so all that is made in it does. Below it, a directory is marked
before its names are gone through, and that changes DIRV: whoever makes something in it afterwards knows. So one walk from the top down
meets everything that counts elsewhere. A walk that was interrupted begins again, and what was counted is not counted twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import keys
from ..kv.engine import Pair, Transaction
from . import dentry as dentries
from . import inode as inodes
from . import quota
from .inode import Inode
from .quota import DIRECTORY, Limits

if TYPE_CHECKING:
    from .namespace import Namespace

IDLE_SECONDS = 0.5  # between looks for quotas to be counted; scaled
NAMES_PER_STEP = 128  # of one transaction


class Recounter:
    """A background worker of the namespace."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def run(self) -> None:
        """Work until the namespace closes."""
        namespace = self._namespace
        await namespace.repeat(self.step, "counting for a quota", IDLE_SECONDS * namespace.time_scale)

    async def step(self) -> bool:
        """Count for every quota that needs it; whether there was one."""
        worked = False
        for kind, project in await quota.read_limits(self._namespace.engine.begin()):
            if kind != DIRECTORY:
                continue
            # As it is by now: the walk before may have put another project around this one.
            record = await self._namespace.engine.begin().get(keys.quota_key(kind, project), snapshot=True)
            if record is not None and (found := quota.unpack(record)).counting:
                worked = True
                await _Walk(self._namespace, project, found).run()
        return worked


class _Walk:
    """One quota: every inode below its directory comes to another project."""

    def __init__(self, namespace: Namespace, project: int, limits: Limits) -> None:
        self._namespace = namespace
        self._project = project
        self._ending = limits.ending
        self._to = limits.parent if limits.ending else project
        self._from = project if limits.ending else limits.parent

    async def run(self) -> None:
        if self._ending and not await self._namespace.transact(self._mark_top):
            return
        stack = [self._project]
        while stack and not self._namespace.closing:
            stack += await self._directory(stack.pop())
        if not self._namespace.closing:
            await self._namespace.transact(self._finish)

    async def _mark_top(self, txn: Transaction) -> bool:
        record = await txn.get(keys.inode_key(self._project))
        if record is None:
            return False  # it was removed, and the quota with it
        self._mark(txn, inodes.unpack(self._project, record))
        return True

    async def _directory(self, number: int) -> list[int]:
        """Mark what has a name in it; the directories that are to be gone through."""
        begin, end = keys.dentry_range(number)
        deeper: list[int] = []
        while not self._namespace.closing:
            start = begin

            async def work(txn: Transaction, start: bytes = start) -> tuple[list[Pair], list[int]]:
                if not await self._is_wanted(txn):
                    return [], []
                page = await txn.scan(start, end, NAMES_PER_STEP)
                numbers = list(dict.fromkeys(dentries.unpack(value).inode for _, value in page))
                records = await txn.get_many([keys.inode_key(each) for each in numbers])
                found = [inodes.unpack(each, r) for each, r in zip(numbers, records, strict=True) if r is not None]
                return page, [inode.id for inode in found if await self._is_gone_through(txn, inode)]

            page, directories = await self._namespace.transact(work)
            deeper += directories
            if len(page) < NAMES_PER_STEP:
                break
            begin = page[-1][0] + b"\0"
            await self._namespace.clock.sleep(0)
        return deeper

    async def _is_wanted(self, txn: Transaction) -> bool:
        """Whether the quota is still there and being counted this way: another server, that is in charge now, may have finished it, and
        removed what this one would bring back."""
        record = await txn.get(keys.quota_key(DIRECTORY, self._project))
        return record is not None and (limits := quota.unpack(record)).counting and limits.ending == self._ending

    async def _is_gone_through(self, txn: Transaction, inode: Inode) -> bool:
        """Mark one inode; whether it is a directory whose content belongs to the same project."""
        if inode.is_directory and inode.project == inode.id != self._project:
            await self._reparent(txn, inode.id)
            return False
        self._mark(txn, inode)
        return inode.is_directory

    def _mark(self, txn: Transaction, inode: Inode) -> None:
        if inode.project == self._to:
            return
        if not inode.is_directory and inode.nlink > 1 and inode.project != self._from:
            return  # it has another name below an inner quota, and counts there
        before = quota.owner_of(inode)
        inode.project = self._to
        quota.changed_hands(txn, inode, before)
        txn.put(keys.inode_key(inode.id), inode.pack())
        if inode.is_directory:
            txn.add(keys.DIRECTORY_VERSION, 1)

    async def _reparent(self, txn: Transaction, inner: int) -> None:
        """A quota inside has another project around it now."""
        key = keys.quota_key(DIRECTORY, inner)
        record = await txn.get(key)
        if record is not None and (limits := quota.unpack(record)).parent == self._from:
            txn.put(key, limits._replace(parent=self._to).pack())
            txn.add(keys.DIRECTORY_VERSION, 1)

    async def _finish(self, txn: Transaction) -> None:
        key = keys.quota_key(DIRECTORY, self._project)
        record = await txn.get(key)
        if record is None:
            return
        limits = quota.unpack(record)
        if limits.ending != self._ending:
            return  # it was removed meanwhile: that walk comes next
        if self._ending:
            txn.delete(key)
        else:
            txn.put(key, limits._replace(counting=False).pack())
        txn.add(keys.DIRECTORY_VERSION, 1)

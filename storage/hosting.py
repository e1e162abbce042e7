"""The targets of a storage process: opened at the start, added and dropped while it runs, each with what it needs in the background.

A target is for files or for KV blocks, as its format says; chains have members of one kind only.

Which targets there are is said by the command line (or the default), and by two facts in the data directory: those that were added
later, and those that were dropped and are not to be made anew at the next start. A target is added in the order: format, register
as spare, remember; and dropped: remember, unregister, delete. Interrupted anywhere, nothing is lost, and the same request brings it to
its end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ..proto.blocks import TABLE_OF_BLOCKS, TABLE_OF_FILES
from ..proto.datadir import DataDirectory
from ..proto.drivers.aio import AioEnvironment
from ..proto.drivers.workers import Workers
from ..proto.errors import Status, StatusError, error
from ..proto.gen.cluster_pb2 import LOCAL_STATE_OFFLINE
from ..proto.gen.cluster_pb2 import Target as TargetEntry
from ..proto.process import Process
from ..proto.routing import RoutingTable
from ..proto.settings import KV_CAPACITY_PART
from ..proto.transport.readiness import Luck
from .engine.recovery import Opened
from .engine.target import FORMAT_FILE, LOCK_FILE, open_target, read_format
from .lease import Lease
from .membership import Membership, Reported
from .metrics import TargetMetrics
from .peers import Peers
from .repair import Repairer
from .resyncer import Resyncer, Share
from .scrub import Scrubber
from .service import StorageService
from .target import Target

THREADS_PER_TARGET = 8  # for blocking I/O, and large reads: a slow disk does not take the threads of another
CAPACITY_PART = 0.9  # of the disk's free space, where --capacity does not say
TARGETS_MAX = 256  # of one process, as the manager takes
ADDED, DROPPED = "targets_added", "targets_dropped"  # facts: paths
CONTENT = ("blocks", "index", FORMAT_FILE, LOCK_FILE)  # of a target's directory


class Hosting:
    """`targets` is the process's own list; `service` is told of every change of it."""

    def __init__(
        self,
        process: Process,
        directory: DataDirectory,
        env: AioEnvironment,
        routing: RoutingTable,
        membership: Membership,
        lease: Lease,
    ) -> None:
        self.targets: list[Target] = []
        self.service: StorageService | None = None
        self._process = process
        self._directory = directory
        self._env = env
        self._routing = routing
        self._membership = membership
        self._lease = lease
        self._cluster = ""
        self._changing = asyncio.Lock()
        self._workers: dict[int, list[asyncio.Task[None]]] = {}  # by target
        self._metrics = TargetMetrics(process.metrics.registry)
        self._disks: dict[str, int] = {}  # path -> bytes of the file system
        self._left_out: dict[str, TargetEntry] = {}  # by path: damaged targets of ours, as the manager is told of them
        self._share = Share(env, self._load)

    # --- the start and the end ---

    async def open(self, cluster: str) -> None:
        """Open the targets. One whose disk or index fails is left out, loudly, as long as another one opens: it is reported as damaged,
        and the other members of its chain go on without it. What the operator has to put right (a foreign or newer format, a directory
        in use) is raised."""
        self._cluster = cluster
        places = self._places()
        opening = (self._open(path, self._capacity(table), table) for path, table in places.items())
        found = await asyncio.gather(*opening, return_exceptions=True)  # at once: each waits for its own disk
        self.targets.extend(target for target in found if isinstance(target, Target))
        failures = [
            (path, failed) for path, failed in zip(places, found, strict=True) if not isinstance(failed, Target)
        ]
        for path, failed in failures:
            if not isinstance(failed, StatusError):
                raise failed
            await self._leave_out(path, failed)
        if failures and not self.targets:
            raise failures[-1][1]

    async def _leave_out(self, path: str, failed: StatusError) -> None:
        """Raises `failed` where it is no damage."""
        try:
            found = await asyncio.to_thread(read_format, path)
        except (OSError, StatusError):
            found = None
        if failed.status is not Status.IO_ERROR and (failed.status is not Status.BAD_FORMAT or found is None):
            raise failed
        message = "target left out; restore it, or replace it with 'emberfs target replace'"
        self._process.log.error(message, path=path, error=failed.strerror)
        if found is not None:
            entry = TargetEntry(incarnation=found.incarnation, path=path, state=LOCAL_STATE_OFFLINE, damaged=True)
            entry.capacity, entry.table = found.capacity, found.table
            self._left_out[path] = entry

    def _places(self) -> dict[str, int]:
        """Directories of targets, with the chain tables that they are for (0: as their formats say)."""
        facts, options = self._directory.facts, self._process.options
        wanted = dict.fromkeys(options.target or [str(self._directory.path / "target-1")], TABLE_OF_FILES)
        wanted |= dict.fromkeys(options.kv_target, TABLE_OF_BLOCKS)
        dropped = set(facts.get(DROPPED, ()))
        for path in wanted:
            if path in dropped:
                self._process.log.info("not opened: it was dropped", path=path)
        added = {path: 0 for path in facts.get(ADDED, ()) if path not in wanted}
        return {path: table for path, table in (wanted | added).items() if path not in dropped}

    def _capacity(self, table: int) -> int:
        """As the command line says; 0 where it does not, or not whether it speaks of this target."""
        options = self._process.options
        asked: dict[int, int] = {TABLE_OF_FILES: options.capacity, TABLE_OF_BLOCKS: options.kv_capacity}
        return asked.get(table, 0)

    async def _open(self, path: str, capacity: int, table: int) -> Target:
        """Open (or format) a target, in a thread: recovery reads. Raises BAD_FORMAT, WRONG_CLUSTER, BUSY_RESOURCE, INVALID, IO_ERROR."""
        process, cluster = self._process, self._cluster
        workers = Workers(THREADS_PER_TARGET, f"emberfs-{os.path.basename(path)}")

        def opened() -> Any:
            os.makedirs(path, mode=0o700, exist_ok=True)
            direct = process.options.direct
            self._disks[path] = shutil.disk_usage(path).total
            size = capacity_of(path, capacity, table)
            engine, found = open_target(path, cluster=cluster, capacity=size, direct=direct, table=table)
            engine.on_close(workers.close)
            return engine, found

        try:
            engine, found = await workers.run(opened)
        except StatusError:
            workers.close()
            raise
        except OSError as failed:
            workers.close()
            raise error(Status.IO_ERROR, f"target {path} cannot be opened: {failed.strerror or failed}") from failed
        if engine.found.opened is Opened.POWER_LOSS:
            fell_back = len(engine.found.fell_back)
            process.log.warning("power was lost, or a sync had failed", path=path, fell_back=fell_back)
        if engine.lost:
            process.log.error("the index is not the one from before: what it named is lost here", path=path)
        process.log.info("target opened", path=path, how=engine.found.opened.value, chunks=engine.found.chunks)
        target = Target(
            engine, path, found.incarnation, workers.run, self._env, process.log, self._lease, table=found.table
        )
        target.beside = workers.beside
        target.luck = Luck()
        return target

    def reported(self) -> list[Reported]:
        """What the manager is told."""
        opened = [Reported(self._entry(target), target.replica.chain, target.unreached()) for target in self.targets]
        return opened + self._reported_damaged()

    def _reported_damaged(self) -> list[Reported]:
        """Those that the cluster knows: nobody shall lay out anything over one that it does not."""
        numbers = {entry.incarnation: entry.id for entry in self._routing.targets.values()}
        for entry in self._left_out.values():
            entry.id = numbers.get(entry.incarnation, 0)
        return [Reported(entry) for entry in self._left_out.values() if entry.id]

    def _entry(self, target: Target) -> TargetEntry:
        entry = target.entry()
        entry.disk = self._disks.get(target.path, 0)
        return entry

    def keep_all(self) -> None:
        """Start what the targets need in the background, once they have their numbers."""
        for target in self.targets:
            self._keep(target)

    def _keep(self, target: Target) -> None:
        process, path = self._process, target.path
        peers = Peers(self._env, self._routing, self._membership.node.host)
        target.state_watchers.append(self._report_soon)
        repairer = Repairer(target, peers, self._env, process.log)
        Resyncer(target, peers, self._env, process.log, self._share).routing_changed()  # our place may be known already
        living = self._membership.living if target.table == TABLE_OF_FILES else None  # blocks belong to no inode
        scrubber = Scrubber(target, process.options.scrub_rate, living, repairer)
        self._workers[target.id] = [
            process.spawn(target.keep_retrying(), f"retries of {path}"),
            process.spawn(target.checkpoints.keep(), f"checkpoints of {path}"),
            process.spawn(scrubber.run(), f"scrubber of {path}"),
        ]
        self._metrics.watch(target, repairer)

    def _report_soon(self) -> None:
        self._env.spawn(self._report_now, "news")

    async def _report_now(self) -> None:
        with suppress(StatusError):  # the next heartbeat says it again
            await self._membership.heartbeat()

    def _load(self) -> tuple[int, int]:
        """What clients have moved, in bytes and operations: a resync leaves room for them."""
        counters = [target.counters for target in self.targets]
        moved = sum(each.bytes_read + each.bytes_written for each in counters)
        return moved, sum(each.reads + each.writes for each in counters)

    async def close(self) -> None:
        for target in self.targets:
            await target.close()

    # --- while it runs ---

    async def add(self, path: str, capacity: int, table: int = TABLE_OF_FILES) -> Target:
        """Format one more target (or take up what lies there), as a member of no chain. A bare name lies beside the first target, and
        without one each call makes another. Raises INVALID, TOO_LARGE, and what opening raises."""
        async with self._changing:
            table = table or TABLE_OF_FILES
            path = self._place(path, table)
            if (known := next((t for t in self.targets if t.path == path), None)) is not None:
                return known
            if len(self.targets) >= TARGETS_MAX:
                raise error(Status.TOO_LARGE, f"this process has {TARGETS_MAX} targets, which is the most")
            like = next((t for t in self.targets if t.table == table), None)
            if not capacity and like is not None:
                capacity = like.engine.space_info().capacity
            target = await self._open(path, capacity or self._capacity(table), table)
            self._left_out.pop(path, None)
            self._membership.spare = self._membership.spare_blocks = (
                True  # from now on: whatever is new comes from here
            )
            self._serve([*self.targets, target])
            try:
                await self._membership.register()
            except BaseException:
                await self._take_back(target)
                raise
            self._serve(self.targets)
            try:
                self._remember(added=path)
            except BaseException:
                await self._take_back(target)
                # The manager has heard of it, and a chain that got it would wait for it.
                await self._membership.register()
                raise
            self._keep(target)
            self._process.log.info("target added", target=target.id, path=path)
            return target

    async def _take_back(self, target: Target) -> None:
        self._serve([t for t in self.targets if t is not target])
        await target.close()

    def _place(self, wanted: str, table: int) -> str:
        """The directory that a request means; a new one if it does not say. Raises INVALID."""
        if os.path.isabs(wanted):
            return wanted
        if "/" in wanted or "\0" in wanted or wanted in (".", ".."):
            raise error(Status.INVALID, f"{wanted}: give an absolute path, or a name")
        parent = os.path.dirname(self.targets[0].path) if self.targets else str(self._directory.path)
        if wanted:
            return os.path.join(parent, wanted)
        taken = {target.path for target in self.targets}
        prefix = "kv" if table == TABLE_OF_BLOCKS else "target"
        names = (os.path.join(parent, f"{prefix}-{number}") for number in range(1, 2 * TARGETS_MAX + 2))
        return next(name for name in names if name not in taken and not os.path.exists(name))

    async def drop(self, number: int) -> None:
        """Close a target that no chain has, and delete what it holds. Raises NOT_FOUND, BUSY_RESOURCE."""
        async with self._changing:
            target = next((t for t in self.targets if t.id == number), None)
            if target is None:
                await self._drop_left_out(number)
                return
            await self._membership.heartbeat()
            if target.replica.chain is not None:
                raise _in_use(target)
            self._remember(dropped=target.path)
            self._serve([t for t in self.targets if t is not target])
            try:
                await self._membership.register(dropped=[number])
            except BaseException:
                self._serve([*self.targets, target])
                self._remember(added=target.path)
                raise
            await self._forget(target)
            self._process.log.info("target dropped", target=number, path=target.path)

    async def _drop_left_out(self, number: int) -> None:
        """A target that could not be opened is dropped by its record alone; what is left of it stays where it lies. Raises NOT_FOUND, and
        BUSY_RESOURCE by the manager while a chain has it."""
        entry = self._routing.targets.get(number)
        if entry is None or entry.node != self._membership.node.id:
            raise error(Status.NOT_FOUND, f"this process has no target {number}")
        self._remember(dropped=entry.path)
        left_out = self._left_out.pop(entry.path, None)
        try:
            await self._membership.register(dropped=[number])
        except BaseException:
            if left_out is not None:
                self._left_out[entry.path] = left_out
            self._remember(added=entry.path)
            raise
        self._process.log.info("target dropped, which could not be opened", target=number, path=entry.path)

    async def _forget(self, target: Target) -> None:
        workers = self._workers.pop(target.id, [])
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        self._metrics.forget(target)
        await target.close()
        await target.blocking(_delete, target.path)

    def _serve(self, targets: Sequence[Target]) -> None:
        self.targets[:] = targets
        if self.service is not None:
            self.service.host(self.targets)

    def _remember(self, *, added: str = "", dropped: str = "") -> None:
        facts = self._directory.facts
        paths = [path for path in facts.get(ADDED, ()) if path not in (added, dropped)]
        gone = [path for path in facts.get(DROPPED, ()) if path not in (added, dropped)]
        self._directory.remember(
            **{ADDED: [*paths, added] if added else paths, DROPPED: [*gone, dropped] if dropped else gone}
        )


def capacity_of(path: str, wanted: int, table: int = TABLE_OF_FILES) -> int:
    """Bytes that the target may take: what was asked for; else 0 for a formatted target (as it was formatted), else a part of
    what the disk has free."""
    if wanted or os.path.exists(os.path.join(path, FORMAT_FILE)):
        return wanted
    part = CAPACITY_PART * (KV_CAPACITY_PART if table == TABLE_OF_BLOCKS else 1.0)
    return int(shutil.disk_usage(path).free * part) // 4096 * 4096


def _in_use(target: Target) -> StatusError:
    chain = target.replica.chain
    return error(
        Status.BUSY_RESOURCE,
        f"target {target.id} is a member of chain {chain.id if chain else 0}: give its place to another one first",
    )


def _delete(path: str) -> None:
    """Blocking."""
    for name in CONTENT:
        place = os.path.join(path, name)
        if os.path.isdir(place):
            shutil.rmtree(place, ignore_errors=True)
        elif os.path.exists(place):
            os.unlink(place)
    with suppress(OSError):  # a mount point, or somebody put something else there
        os.rmdir(path)

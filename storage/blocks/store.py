"""The blocks of one target, as the handlers of requests see them: its directory, reservations, leases, and what evicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...proto.blocks import chunk_of
from ...proto.env import Environment, Promise
from ...proto.errors import Status, StatusError
from ...proto.routing import RoutingTable
from ..engine.disk import Disk
from ..engine.removal import Gone, is_quiet, remove_blocks
from ..engine.slots import CLASS_BYTES
from ..events import ALWAYS, Kind, Update
from ..target import Target
from .directory import FIRST, HERE
from .evictor import Evictor, Tenants
from .leases import Leases
from .record import unpack_record
from .tier import Range, Tier

REMOVES_MAX = 1024  # blocks of one batch of removes


class Leaving(NamedTuple):
    """A block whose removal has begun."""

    slot: int
    namespace: int
    key: bytes


class Store:
    """Of one target."""

    def __init__(self, target: Target, tenants: Tenants, routing: RoutingTable, env: Environment, log: Any) -> None:
        self.target = target
        self.directory = target.directory
        self.leases = Leases()
        self.evictor = Evictor(self, tenants, routing, env, log)
        self.tier = Tier(target.directory, target.engine)
        self._trimming = False
        target.damage_watchers.append(self.damaged)
        env.spawn(self.evictor.keep, "blocks")
        self.reserved: dict[tuple[int, bytes], Promise[None]] = {}  # (namespace, key) of blocks that are being put

    # --- what the chain allows ---

    def may_read(self, chain_version: int) -> Status:
        return self.target.may_read(chain_version)

    def may_change(self, chain_version: int) -> Status:
        """Whether changes enter here: only at the head of the chain."""
        target = self.target
        status = target.may_write(chain_version)
        return Status.STALE_ROUTING if status is Status.OK and target.replica.predecessor else status

    @property
    def is_head(self) -> bool:
        replica = self.target.replica
        return replica.serving and not replica.predecessor

    @property
    def is_alone(self) -> bool:
        """Whether what is written here is committed with it."""
        return not self.target.replica.shared

    # --- removes ---

    async def remove(self, slots: Sequence[int]) -> list[Status]:
        """Remove blocks; all of them are gone for readers at once, and those that cannot be removed come back. What became of each."""
        rest = self._remove_now(slots)
        became = await self._remove_all(self._leave(rest)) if rest else {}
        return [became.get(slot, Status.OK) for slot in slots]

    def _remove_now(self, slots: Sequence[int]) -> Sequence[int]:
        """In a chain of one, those that nothing else is done with go in one index write. Returns the others."""
        if not self.is_alone or not self.is_head or self.target.refusal(writing=True):
            return slots
        directory, engine, busy = self.directory, self.target.engine, self.target.replica.busy
        generation, place, length = directory.generation, directory.place, directory.length
        rest, going, gone = [], [], []
        for slot in dict.fromkeys(slots):
            if directory.state[slot] != HERE:
                continue
            chunk = chunk_of(directory.namespace[slot], directory.keys[slot])
            if slot in directory.retold or busy(chunk) or not is_quiet(engine, chunk):
                rest.append(slot)
                continue
            going.append(slot)
            gone.append(Gone(chunk, place[slot], generation[slot], length[slot]))
        for begin in range(0, len(gone), REMOVES_MAX):
            try:
                remove_blocks(engine, gone[begin : begin + REMOVES_MAX])
            except StatusError:
                self.target.tell_offline()
                return slots
            directory.forget(going[begin : begin + REMOVES_MAX])
        self.target.checkpoints.relieve()
        return rest

    def _leave(self, slots: Sequence[int]) -> list[Leaving]:
        directory = self.directory
        here = [slot for slot in dict.fromkeys(slots) if directory.state[slot] == HERE]
        leaving = [Leaving(slot, directory.namespace[slot], directory.keys[slot]) for slot in here]
        directory.leave(here)
        return leaving

    async def _remove_all(self, leaving: Sequence[Leaving]) -> dict[int, Status]:
        became: dict[int, Status] = {}
        for begin in range(0, len(leaving), REMOVES_MAX):
            became.update(await self._remove(leaving[begin : begin + REMOVES_MAX]))
        return became

    async def _remove(self, leaving: Sequence[Leaving]) -> dict[int, Status]:
        directory, chain = self.directory, self.target.replica.chain
        # What was put under the same key meanwhile has taken the place of the block that was to go.
        due = [(at.slot, chunk_of(at.namespace, at.key)) for at in leaving if self._still_leaves(at)]
        if chain is None:
            became = {slot: Status.TARGET_OFFLINE for slot, _ in due}
        else:
            updates = [Update(Kind.REMOVE, chunk, 0, 0, 0, b"", 0, 0, ALWAYS, 0) for _, chunk in due]
            results = await self.target.start_update(chain.version, updates) if updates else ()
            became = {slot: Status(result.status) for (slot, _), result in zip(due, results, strict=True)}
        directory.stay([at.slot for at in leaving if became.get(at.slot) and self._still_leaves(at)])
        return became

    def _still_leaves(self, at: Leaving) -> bool:
        return self.directory.shelf(at.namespace).leaving.get(at.key) == at.slot

    def is_protected(self, slot: int, now: float, wall: float) -> bool:
        """Whether a lease (by the environment's clock, `now`) or a pin (by the wall) keeps the block."""
        return self.is_leased(slot, now) or self.directory.is_pinned(slot, wall)

    def is_leased(self, slot: int, now: float) -> bool:
        if slot not in self.leases.held:
            return False
        self.leases.expire(now)
        return slot in self.leases.held

    def drop(self, namespace: int) -> None:
        """Remove all blocks of a namespace, in the background; they are gone for readers when this returns."""
        leaving = self._leave(list(self.directory.shelf(namespace).slots.values()))

        async def run() -> None:
            await self._remove_all(leaving)

        self.target.env.spawn(run, "dropped blocks")

    def damaged(self, chunk: bytes) -> bool:
        """A chunk is damaged. A block that no other member can give is a miss from now on; whether that is so."""
        replica = self.target.replica
        if not chunk.startswith(FIRST) or replica.others_serve or not self.is_head:
            return False
        info = self.target.engine.info(chunk)
        if info is None or not info.block:
            return False
        record = unpack_record(info.block)
        slot = self.directory.shelf(record.namespace).slots.get(record.key, -1)
        if slot >= 0:
            leaving = self._leave([slot])

            async def run() -> None:
                await self._remove_all(leaving)
                self.target.damaged.pop(chunk, None)

            self.target.env.spawn(run, "damaged block")
        return slot >= 0

    # --- places and hits ---

    def touched(self, slots: Sequence[int]) -> None:
        """Somebody has read these."""
        touched = self.evictor.policy.touched
        for slot in slots:
            touched(slot)
        self.tier.read(slots)
        if self.tier.is_over:
            self.trim()

    def trim(self) -> None:
        """Give pages of blocks back, in the background, one pass at a time."""
        if not self._trimming and (ranges := self.tier.leaving()):
            self._trimming = True
            self.target.env.spawn(lambda: self._trim(ranges), "tier in memory")

    async def _trim(self, ranges: Sequence[Range]) -> None:
        try:
            await self._advise(ranges, needed=False)
        finally:
            self._trimming = False

    async def _advise(self, ranges: Sequence[Range], *, needed: bool) -> None:
        if not self.target.engine.failed:
            with self.target.at_work():
                await self.target.blocking(_advise_all, self.target.engine.disk, ranges, needed)

    def prefetch(self, slots: Sequence[int]) -> None:
        """Somebody is about to read these."""
        if ranges := self.tier.coming(slots):
            self.target.env.spawn(lambda: self._advise(ranges, needed=True), "read ahead")

    def slot_bytes(self, slot: int) -> int:
        """Of disk space that the block takes."""
        return CLASS_BYTES[self.directory.place[slot] >> 48]


def _advise_all(disk: Disk, ranges: Sequence[Range], needed: bool) -> None:
    """In any thread."""
    for handle, offset, length in ranges:
        disk.advise(handle, offset, length, needed)

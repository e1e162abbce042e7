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
from .directory import FIRST, FREE
from .evictor import Evictor, Tenants
from .leases import Leases
from .record import unpack_record
from .tier import Range, Tier

WARM_PART = (
    4  # of the capacity: free slots that keep their disk space; watermarks let as much go between two checkpoints
)
REMOVES_MAX = 1024  # blocks of one batch of removes
DROPS_MAX = 128  # blocks that go in the background before others have their turn


class Leaving(NamedTuple):
    """A block whose removal has begun."""

    slot: int
    namespace: int
    key: bytes
    chunk: bytes
    is_busy: bool  # an update of it is under way, or waits
    generation: int


class Store:
    """Of one target."""

    def __init__(self, target: Target, tenants: Tenants, routing: RoutingTable, env: Environment, log: Any) -> None:
        self.target = target
        self.directory = target.directory
        space = target.engine.space
        # New blocks go where evicted ones were, in memory and on disk: giving that back and asking for it again costs more than writing.
        space.warm_bytes_max = max(space.warm_bytes_max, space.capacity // WARM_PART)
        self.leases = Leases()
        self.evictor = Evictor(self, tenants, routing, env, log)
        self.tier = Tier(target.directory, target.engine)
        self.describing = env.lock()  # held by whoever changes what rows say of blocks
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

    async def remove(self, slots: Sequence[int], *, quiet: bool = False) -> list[Status]:
        """Remove blocks; all of them are gone for readers at once, and those that cannot be removed come back. What became of each. With
        `quiet` those that somebody does something else with (a pin, a time to live) stay: WOULD_BLOCK."""
        became: dict[int, Status] = {}
        due: list[Leaving] = []
        for slot in dict.fromkeys(slots):
            if not self.directory.is_here(slot):
                continue
            leaving = self._leaving(slot)
            # One whose time is over may be being replaced: its remove would come behind what takes its place.
            if (leaving.namespace, leaving.key) in self.reserved or (quiet and leaving.is_busy):
                became[slot] = Status.WOULD_BLOCK
            else:
                due.append(leaving)
        rest = self._remove_now(due)
        if rest:
            self.directory.leave([at.slot for at in rest])
            became.update(await self._remove_all(rest))
        return [became.get(slot, Status.OK) for slot in slots]

    def _leaving(self, slot: int) -> Leaving:
        namespace, key = self.directory.namespace[slot], self.directory.keys[slot]
        chunk = chunk_of(namespace, key)
        is_busy = self.target.replica.busy(chunk) or not is_quiet(self.target.engine, chunk)
        return Leaving(slot, namespace, key, chunk, is_busy, self.directory.generation[slot])

    def _remove_now(self, due: Sequence[Leaving]) -> Sequence[Leaving]:
        """In a chain of one, those that nothing else is done with go in one index write, whether they leave already or not. Returns
        the others."""
        if not self.is_alone or not self.is_head or self.target.refusal(writing=True):
            return due
        directory, engine = self.directory, self.target.engine
        place, generation, length = directory.place, directory.generation, directory.length
        going = [at for at in due if not at.is_busy and at.slot not in directory.retold]
        for begin in range(0, len(going), REMOVES_MAX):
            part = going[begin : begin + REMOVES_MAX]
            try:
                remove_blocks(
                    engine, [Gone(at.chunk, place[at.slot], generation[at.slot], length[at.slot]) for at in part]
                )
            except StatusError:
                self.target.tell_offline()
                return [at for at in due if directory.state[at.slot] != FREE]
            directory.forget([at.slot for at in part])
        self.target.checkpoints.relieve()
        return [at for at in due if at.is_busy or at.slot in directory.retold]

    async def _remove_all(self, leaving: Sequence[Leaving]) -> dict[int, Status]:
        became: dict[int, Status] = {}
        for begin in range(0, len(leaving), REMOVES_MAX):
            became.update(await self._remove(leaving[begin : begin + REMOVES_MAX]))
        return became

    async def _remove(self, leaving: Sequence[Leaving]) -> dict[int, Status]:
        """Through the replica's machine."""
        # Where a key is being put anew the outcome is waited for: a remove behind it in line would take away what was acknowledged.
        reserved = self.reserved
        while others := [reserved[at[1:3]] for at in leaving if at[1:3] in reserved and self._still_leaves(at)]:
            await others[0]
        directory, chain = self.directory, self.target.replica.chain
        # What was put under the same key meanwhile has taken the place of the block that was to go.
        due = [at for at in leaving if self._still_leaves(at)]
        if chain is None:
            became = {at.slot: Status.TARGET_OFFLINE for at in due}
        else:
            updates = [Update(Kind.REMOVE, at.chunk, 0, 0, 0, b"", 0, 0, ALWAYS, 0) for at in due]
            results = await self.target.start_update(chain.version, updates) if updates else ()
            became = {at.slot: Status(result.status) for at, result in zip(due, results, strict=True)}
        directory.stay([at.slot for at in leaving if became.get(at.slot) and self._still_leaves(at)])
        return became

    def _still_leaves(self, at: Leaving) -> bool:
        directory = self.directory
        leaves = directory.shelf(at.namespace).leaving.get(at.key) == at.slot
        return leaves and directory.generation[at.slot] == at.generation

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
        slots = self._all_leave(namespace)
        self.target.env.spawn(lambda: self._take_away(slots), "dropped blocks")

    async def empty(self, namespace: int) -> None:
        """As `drop`, but done when this returns."""
        await self._take_away(self._all_leave(namespace))

    def _all_leave(self, namespace: int) -> list[int]:
        # A key that is being put stays: a remove behind it in line would take away what is acknowledged.
        staying = [key for number, key in self.reserved if number == namespace]
        return self.directory.leave_all(self.directory.shelf(namespace), staying)

    async def _take_away(self, slots: Sequence[int]) -> None:
        """Those that leave, with turns for others: there may be millions."""
        for begin in range(0, len(slots), DROPS_MAX):
            # What is not leaving any more was replaced, or taken away by somebody else.
            leaving = [
                self._leaving(slot) for slot in slots[begin : begin + DROPS_MAX] if self.directory.is_leaving(slot)
            ]
            await self._remove_all(self._remove_now(leaving))
            for at in leaving:
                if not self._still_leaves(at):
                    self.target.damaged.pop(at.chunk, None)
            await self.target.env.sleep(0)

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
        if slot >= 0 and (record.namespace, record.key) not in self.reserved:
            self.directory.leave([slot])
            self.target.env.spawn(lambda: self._take_away([slot]), "damaged block")
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

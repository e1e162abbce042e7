"""Which blocks a target holds: the directory, in memory, of everything that its rows say of blocks.

A block is a slot number here, an index into columns; one dictionary for each namespace leads from keys to slots. So a block takes about
200 bytes of memory, and a look-up is one step in a dictionary and one in each column that is wanted: no row, no lock, no disk.

It is filled when the target is opened, and told of every commit by the engine, whoever caused it: a put, an eviction, the predecessor in
the chain, a resync, a repair. So every member of a chain has it, and one that becomes the head has nothing to read first.

A block is here or leaving: then its removal is under way, and it is gone for readers and writers of its key already. Which of both is said
by its shelf alone, so that a whole shelf leaves at once. What is put under the key of a leaving block replaces it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from ...proto.blocks import HARD_PIN, KV_TENANT, seed_of
from ..engine.checksum import shift_for
from ..engine.engine import ChunkEngine
from ..engine.row import State
from ..engine.slots import CLASS_BYTES
from .record import Record, unpack_record

if TYPE_CHECKING:
    Numbers = array[int]
else:
    Numbers = array

FREE, TAKEN = 0, 1
FOUND_MAX = 1024  # blocks that are taken in together when a target is opened
EXPIRY_STEP = 16  # seconds: what is over is looked for in steps of this
OVER_MAX = 1024  # blocks whose time is over that are named at once
EXPIRING_SLACK = 1024  # times of blocks that are gone, before they are forgotten

FIRST = KV_TENANT.to_bytes(2, "big")  # chunk ids of blocks: FIRST <= id < LAST
LAST = (KV_TENANT + 1).to_bytes(2, "big")

_NO_KEY = b""


class Follower(Protocol):
    """Whoever keeps something for each block: the policy of eviction, the tier in memory."""

    def inserted(self, blocks: Sequence[int]) -> None:
        """These of one namespace are here, in the order in which they were put."""

    def removed(self, block: int) -> None:
        """It is not here any more."""


class Shelf:
    """The blocks of one namespace on one target, and what was done with them since the start of the process."""

    __slots__ = (
        "bytes_here",
        "bytes_read",
        "bytes_written",
        "evictions",
        "expired",
        "hits",
        "leaving",
        "misses",
        "namespace",
        "puts",
        "puts_existing",
        "puts_refused",
        "slots",
        "timed",
    )

    def __init__(self, namespace: int) -> None:
        self.namespace = namespace
        self.slots: dict[bytes, int] = {}  # keys of blocks that are here
        self.leaving: dict[bytes, int] = {}  # keys of blocks whose removal is under way; none of them is in `slots`
        self.bytes_here = 0
        self.timed = 0  # blocks that have a time to live
        self.hits = self.misses = self.puts = self.puts_existing = self.puts_refused = 0
        self.evictions = self.expired = self.bytes_read = self.bytes_written = 0


class Directory:
    """Of one target. `slot`s below are the directory's own; where bytes lie is `place`, a slot of the engine."""

    def __init__(self, engine: ChunkEngine) -> None:
        """Raises BAD_FORMAT for records that a newer emberfs wrote."""
        self.shelves: dict[int, Shelf] = {}
        self.keys: list[bytes] = []
        self.namespace: Numbers = array("I")
        self.generation: Numbers = array("Q")
        self.place: Numbers = array("Q")
        self.length: Numbers = array("I")  # bytes
        self.handle: Numbers = array("I")  # of the block file that the place is in
        self.offset: Numbers = array("Q")  # in the file
        self.checksum: Numbers = array("I")  # CRC32C of the content, or of identity and content
        self.is_sealed = bytearray()  # 1: the latter; worked out when a block is read for the first time
        self.depth: Numbers = array("I")
        self.expiry: Numbers = array("I")  # seconds since the epoch; 0: none
        self.pin: Numbers = array("I")
        self.state = bytearray()
        self._columns = (
            self.namespace,
            self.generation,
            self.place,
            self.length,
            self.handle,
            self.offset,
            self.checksum,
            self.depth,
            self.expiry,
            self.pin,
        )
        self._where = engine.space.place
        self.additions = 0  # rises when blocks come
        self.followers: list[Follower] = []
        self._pinned: dict[
            int, int
        ] = {}  # slots with a pin, and what they take on disk; those that are over until somebody looks
        self.pinned: dict[int, int] = {}  # namespace -> bytes on disk of these, and of what is being pinned
        self.retold: set[int] = set()  # slots whose row has a higher version than their generation
        self._free: list[int] = []
        self._expiring: dict[int, list[tuple[int, int]]] = {}  # step -> (slot, generation)
        self._times = 0  # in there: some of blocks that are gone, or whose time was changed
        self._epochs: Numbers = array("I")  # of the blocks that were found, by slot: the checkpoints that covered them
        self._fill(engine)
        engine.blocks = self

    def _fill(self, engine: ChunkEngine) -> None:
        found: dict[int, list[tuple[Record, State]]] = {}  # by namespace
        for state in engine.scan_blocks(FIRST, LAST):
            record = unpack_record(state.block)
            mine = found.setdefault(record.namespace, [])
            mine.append((record, state))
            if len(mine) == FOUND_MAX:
                self._take_many(found.pop(record.namespace))
        for mine in found.values():
            self._take_many(mine)

    def _take_many(self, found: Sequence[tuple[Record, State]]) -> None:
        """Blocks of one namespace that were found when the target was opened."""
        records, states = [record for record, _ in found], [state for _, state in found]
        shelf = self.shelf(records[0].namespace)
        slots = self.add(
            shelf,
            [record.key for record in records],
            0,
            [state.slot for state in states],
            [self._where(state.slot) for state in states],
            [state.length for state in states],
            [state.whole for state in states],
            [record.depth for record in records],
            [0] * len(records),
            0,
        )
        for slot, record, state in zip(slots, records, states, strict=True):
            self.generation[slot] = record.generation or state.version
            self._set_pin(slot, record.pin)
            self.expiry[slot] = record.expiry
            if record.expiry:
                self._count_time(shelf, slot)
            if record.generation not in (0, state.version):
                self.retold.add(slot)
            self._epochs.append(state.epoch)

    # --- look-ups ---

    def shelf(self, namespace: int) -> Shelf:
        """Made where there is none yet."""
        found = self.shelves.get(namespace)
        if found is None:
            found = self.shelves[namespace] = Shelf(namespace)
        return found

    def find(self, shelf: Shelf, keys: Sequence[bytes], now: float) -> list[int]:
        """The slot of each key's block, -1 where none is here or its time is over."""
        find = shelf.slots.get
        found = [find(key, -1) for key in keys]
        if shelf.timed:
            expiry = self.expiry
            found = [-1 if slot >= 0 and 0 < expiry[slot] <= now else slot for slot in found]
        return found

    def record(self, slot: int) -> Record:
        """What the block's row says, with the generation in any case."""
        return Record(
            self.namespace[slot],
            self.keys[slot],
            self.depth[slot],
            self.expiry[slot],
            self.pin[slot],
            self.generation[slot],
        )

    def is_here(self, slot: int) -> bool:
        """Whether there is a block that does not leave."""
        return self.state[slot] != FREE and self.shelves[self.namespace[slot]].slots.get(self.keys[slot]) == slot

    def is_leaving(self, slot: int) -> bool:
        return self.state[slot] != FREE and self.shelves[self.namespace[slot]].leaving.get(self.keys[slot]) == slot

    def is_pinned(self, slot: int, now: float) -> bool:
        pin = self.pin[slot]
        return pin == HARD_PIN or pin > now

    def pinned_bytes(self, now: float) -> dict[int, int]:
        """By namespace."""
        found: dict[int, int] = {}
        for slot in self._pinned:
            if self.is_here(slot) and self.is_pinned(slot, now):
                number = self.namespace[slot]
                found[number] = found.get(number, 0) + self.length[slot]
        return found

    def oldest_first(self) -> list[int]:
        """The slots of all blocks, in the order in which they were written as far as that is known."""
        found = sorted(range(len(self._epochs)), key=self._epochs.__getitem__)
        return [slot for slot in (*found, *range(len(found), len(self.state))) if self.state[slot]]

    def __len__(self) -> int:
        return len(self.state) - len(self._free)

    def seal(self, slots: Sequence[int], digest: bytes) -> None:
        """Work out what clients compare whole blocks with, for those that were never read; `digest` is their namespace's."""
        is_sealed = self.is_sealed
        for slot in slots:
            if not is_sealed[slot]:
                seed = seed_of(digest, self.keys[slot], self.generation[slot])
                self.checksum[slot] ^= shift_for(self.length[slot])(seed)
                self.is_sealed[slot] = 1

    # --- changes ---

    def committed(self, chunk: bytes, old: State | None, new: State | None) -> None:
        """The engine commits a chunk that was a block before, or is one now."""
        record = unpack_record(new.block) if new is not None and new.block else None
        if old is not None and old.block:
            was = unpack_record(old.block)
            if record is None or (was.namespace, was.key) != (record.namespace, record.key):
                self._forget(was)
        if record is not None and new is not None:
            self._take(record, new)

    def _take(self, record: Record, state: State) -> None:
        shelf = self.shelf(record.namespace)
        slot = shelf.leaving.pop(record.key, -1)
        if slot >= 0:
            self._free_slot(shelf, slot)  # what follows it is another block
        slot = shelf.slots.get(record.key, -1)
        generation = record.generation or state.version
        if slot >= 0 and self.generation[slot] != generation:
            del shelf.slots[record.key]
            self._uncount(shelf, slot)
            self._free_slot(shelf, slot)
            slot = -1
        if slot < 0:
            what = ((state.length,), (state.whole,), (record.depth,), (record.expiry,), record.pin)
            where = (self._where(state.slot),)
            (slot,) = self.add(shelf, (record.key,), generation, (state.slot,), where, *what)
        else:
            self._uncount(shelf, slot)
            self._describe(slot, record, state)
            self._count(shelf, slot)
        if generation != state.version:
            self.retold.add(slot)
        else:
            self.retold.discard(slot)

    def add(
        self,
        shelf: Shelf,
        keys: Sequence[bytes],
        generation: int,
        places: Sequence[int],
        where: Sequence[tuple[int, int]],
        lengths: Sequence[int],
        checksums: Sequence[int],
        depths: Sequence[int],
        expiries: Sequence[int],
        pin: int,
    ) -> list[int]:
        """Blocks that are not here yet are committed; their slots. `where`: what `places` are as handles and offsets."""
        if not keys:
            return []
        free, count = self._free, len(keys)
        slots = [free.pop() for _ in range(min(len(free), count))]
        more = count - len(slots)
        if more:
            slots += range(len(self.state), len(self.state) + more)
            self._grow(more)
        all_keys, state, namespace, number, generations = (
            self.keys,
            self.state,
            self.namespace,
            shelf.namespace,
            self.generation,
        )
        place_of, handle_of, offset_of, length_of = self.place, self.handle, self.offset, self.length
        checksum_of, depth_of = self.checksum, self.depth
        columns = zip(slots, keys, places, where, lengths, checksums, depths, strict=True)
        for slot, key, place, (handle, offset), length, checksum, depth in columns:
            all_keys[slot] = key
            state[slot] = TAKEN
            namespace[slot] = number
            generations[slot] = generation
            place_of[slot] = place
            handle_of[slot] = handle
            offset_of[slot] = offset
            length_of[slot] = length
            checksum_of[slot] = checksum
            depth_of[slot] = depth
        shelf.slots.update(zip(keys, slots, strict=True))
        shelf.bytes_here += sum(lengths)
        if pin or any(expiries):
            for slot, expiry in zip(slots, expiries, strict=True):
                self._set_pin(slot, pin)
                self.expiry[slot] = expiry
                if expiry:
                    self._count_time(shelf, slot)
        self.additions += 1
        for follower in self.followers:
            follower.inserted(slots)
        return slots

    def _grow(self, more: int) -> None:
        for column in self._columns:
            column.frombytes(bytes(more * column.itemsize))
        self.keys += [_NO_KEY] * more
        self.state += bytes(more)
        self.is_sealed += bytes(more)

    def _describe(self, slot: int, record: Record, state: State) -> None:
        """The block is what it was; where it lies and what is said of it may be new."""
        self.place[slot] = state.slot
        self.handle[slot], self.offset[slot] = self._where(state.slot)
        self.checksum[slot] = state.whole
        self.is_sealed[slot] = 0
        self.depth[slot] = record.depth
        self.expiry[slot] = record.expiry
        self._set_pin(slot, record.pin)

    def _set_pin(self, slot: int, pin: int) -> None:
        self._forget_pin(slot)
        self.pin[slot] = pin
        if pin:
            self._pinned[slot] = size = CLASS_BYTES[self.place[slot] >> 48]
            self.count_pins(self.namespace[slot], size)

    def _forget_pin(self, slot: int) -> None:
        size = self._pinned.pop(slot, 0)
        if size:
            self.count_pins(self.namespace[slot], -size)

    def count_pins(self, namespace: int, size: int) -> None:
        """So many bytes on disk are being pinned; negative: they were, or will not be."""
        pinned = self.pinned.get(namespace, 0) + size
        if pinned:
            self.pinned[namespace] = pinned
        else:
            self.pinned.pop(namespace, None)

    def forget_pins(self, now: float) -> None:
        """Those that are over do not count any more."""
        for slot in [slot for slot in self._pinned if not self.is_pinned(slot, now)]:
            self._forget_pin(slot)

    def has_pin(self, slot: int) -> bool:
        """Whether it counts as pinned."""
        return slot in self._pinned

    def _count(self, shelf: Shelf, slot: int) -> None:
        shelf.bytes_here += self.length[slot]
        if self.expiry[slot]:
            self._count_time(shelf, slot)

    def _count_time(self, shelf: Shelf, slot: int) -> None:
        shelf.timed += 1
        if self._times > 2 * len(self.state) + EXPIRING_SLACK:
            self._forget_times()
        self._note_time(slot, self.expiry[slot] // EXPIRY_STEP + 1)

    def _note_time(self, slot: int, step: int) -> None:
        self._expiring.setdefault(step, []).append((slot, self.generation[slot]))
        self._times += 1

    def _forget_times(self) -> None:
        """Blocks may go, or be given another time, long before their time is over: what was noted of them would only grow."""
        self._expiring, self._times = {}, 0
        for slot, expiry in enumerate(self.expiry):
            if expiry and self.is_here(slot):
                self._note_time(slot, expiry // EXPIRY_STEP + 1)

    def _uncount(self, shelf: Shelf, slot: int) -> None:
        shelf.bytes_here -= self.length[slot]
        if self.expiry[slot]:
            shelf.timed -= 1

    def forget(self, slots: Sequence[int]) -> None:
        """Blocks that are here, or leave, were removed."""
        for slot in slots:
            shelf, key = self.shelves[self.namespace[slot]], self.keys[slot]
            if shelf.slots.get(key) == slot:
                del shelf.slots[key]
                self._uncount(shelf, slot)
            else:
                del shelf.leaving[key]
            self._free_slot(shelf, slot)

    def leave(self, slots: Sequence[int]) -> None:
        """Their removal begins."""
        for slot in slots:
            shelf, key = self.shelves[self.namespace[slot]], self.keys[slot]
            del shelf.slots[key]
            shelf.leaving[key] = slot
            self._uncount(shelf, slot)

    def leave_all(self, shelf: Shelf, staying: Iterable[bytes]) -> list[int]:
        """The removal of all blocks of a shelf begins, but for some keys. Those that leave now; whatever their number, it takes no time."""
        going, shelf.slots = shelf.slots, {key: shelf.slots[key] for key in staying if key in shelf.slots}
        for key in shelf.slots:
            del going[key]
        found = list(going.values())
        going.update(shelf.leaving)
        shelf.leaving = going
        shelf.bytes_here = shelf.timed = 0
        for slot in shelf.slots.values():
            self._count(shelf, slot)
        return found

    def stay(self, slots: Sequence[int]) -> None:
        """Their removal failed: those that still leave are here again."""
        for slot in slots:
            shelf, key = self.shelves[self.namespace[slot]], self.keys[slot]
            if not self.is_leaving(slot):
                continue
            del shelf.leaving[key]
            shelf.slots[key] = slot
            self._count(shelf, slot)

    def _forget(self, record: Record) -> None:
        """A block's row is gone."""
        shelf = self.shelf(record.namespace)
        slot = shelf.leaving.pop(record.key, -1)
        if slot < 0:
            slot = shelf.slots.pop(record.key, -1)
            if slot < 0:
                return
            self._uncount(shelf, slot)
        self._free_slot(shelf, slot)

    def _free_slot(self, shelf: Shelf, slot: int) -> None:
        for follower in self.followers:
            follower.removed(slot)
        self.retold.discard(slot)
        self._forget_pin(slot)
        self.keys[slot] = _NO_KEY
        self.state[slot] = FREE
        self.expiry[slot] = self.pin[slot] = self.is_sealed[slot] = 0
        self._free.append(slot)

    def over(self, now: float) -> list[int]:
        """Blocks whose time is over and that are still here, OVER_MAX at most: where so many are found there may be more. Each is named
        once: who does not remove it says so with `not_yet`."""
        found: list[int] = []
        for step in sorted(step for step in self._expiring if step * EXPIRY_STEP <= now):
            times = self._expiring[step]
            while times and len(found) < OVER_MAX:
                slot, generation = times.pop()
                self._times -= 1
                if self._is_over(slot, generation, now):
                    found.append(slot)
            if times:
                break
            del self._expiring[step]
        return list(dict.fromkeys(found))

    def _is_over(self, slot: int, generation: int, now: float) -> bool:
        return self.generation[slot] == generation and 0 < self.expiry[slot] <= now and self.is_here(slot)

    def not_yet(self, slots: Sequence[int], now: float) -> None:
        """Blocks whose time is over and that could not be removed now."""
        for slot in slots:
            self._note_time(slot, int(now) // EXPIRY_STEP + 1)

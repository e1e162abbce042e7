"""Which slots are free: allocation, accounting, and when a slot may be used again.

A slot is *used* from its allocation until it is released. A row that gives it up retires its reference, which counts until
1. the checkpoint of the epoch in which it was retired has passed: until then a power loss may bring back the row that refers to it;
2. every reader that started before has left: its bytes may still be on their way to a client.
The slot is released with its last reference. Several rows may refer to one (clones): then nothing is written into it in place, not
even behind the end of what one of them has there, until all but one of the references are gone in this sense.

A released slot is *warm*: it keeps its disk space for the next chunk of its class. Above WARM_BYTES_MAX warm slots are trimmed:
their space is punched out of the file by the next checkpoints, and they become *cold*. That is slow, above all where the file system
tells the disk at once, and writes to the same file wait for it; and who overwrites a large file needs the space again soon. So it
goes in small steps, unless the disk is short. Nothing of this is on disk: at open the used slots are those that rows refer to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from ...proto.errors import Status, error
from .disk import Disk
from .slots import CLASS_BYTES, NO_SLOT, SLOTS_PER_FILE, class_for, file_name, pack_slot, parse_file_name, unpack_slot

WARM_BYTES_MAX = (
    64 << 20
)  # free slots that keep their disk space, over all classes; in a small target 1/16 of its capacity
WARM_PART = 16
TRIM_BYTES = 64 << 20  # of the excess, punched by one checkpoint
TRIM_PART = 8  # of the excess, if that is more
PUNCH_BYTES = 8 << 20  # by one system call, or one slot: a few milliseconds, in which nobody writes to the file
DISK_RESERVE_BYTES = (
    128 << 20
)  # of the disk, kept for the index: without it not even a remove would work; 1/16 in a small target
DISK_RESERVE_PART = 16
FILES_MAX = 1 << 20  # block files of one class
EXTEND_BYTES_MAX = 32 << 20  # by which a block file grows at once: on the loop, and behind whoever writes to it
RESERVE_PART = 64  # 1/64 of the capacity is kept from new chunks, for overwrites of those that are there
RESERVE_BYTES_MAX = 256 << 20


class BlockFile:
    """One block file: bit i of a map stands for slot i."""

    __slots__ = ("cold", "handle", "number", "size", "size_class", "slots", "used", "warm")

    def __init__(self, size_class: int, number: int, handle: int, slots: int) -> None:
        self.size_class = size_class
        self.number = number
        self.handle = handle
        self.size = CLASS_BYTES[size_class]
        self.slots = slots  # how many the file is long
        self.used = 0
        self.warm = 0
        self.cold = 0


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


class Space:
    """The slots of one target. Raises NO_SPACE where there is none, BUSY where the next checkpoint will make some."""

    def __init__(self, disk: Disk, capacity: int) -> None:
        self._disk = disk
        self.capacity = capacity
        self.used_bytes = 0
        self.warm_bytes = 0
        self.warm_bytes_max = min(
            WARM_BYTES_MAX, capacity // WARM_PART
        )  # whoever uses slots again and again may raise it
        self.retired_bytes = 0  # part of used_bytes that a checkpoint, or readers that leave, will free
        self.short = False  # an allocation was refused that would succeed after a checkpoint
        self.new_names = False  # a file was made since the last checkpoint
        self._files: dict[int, list[BlockFile]] = {
            c: [] for c in range(len(CLASS_BYTES))
        }  # by class, in order of number
        self._roomy: dict[int, dict[int, BlockFile]] = {c: {} for c in self._files}  # those with a free slot
        self._shared: dict[int, int] = {}  # slot -> references beyond the first, retired ones included
        self._leaving: dict[int, int] = {}  # slot that is shared -> how many of its references are retired
        self._retired: deque[tuple[int, int, int]] = deque()  # (epoch, reader, slot)
        self._waiting: deque[tuple[int, int]] = deque()  # (reader, slot): checkpoint passed, readers have not left
        self._readers: dict[int, None] = {}  # tickets of readers at work, oldest first
        self._next_reader = 0
        for name in disk.names():
            self._add_file(name)

    def _add_file(self, name: str) -> BlockFile | None:
        parsed = parse_file_name(name)
        if parsed is None:
            return None
        size_class, number = parsed
        files = self._files[size_class]
        while len(files) <= number:
            missing = file_name(size_class, len(files))
            handle = self._disk.open(missing)
            slots = min(self._disk.size(handle) // CLASS_BYTES[size_class], SLOTS_PER_FILE)
            files.append(BlockFile(size_class, len(files), handle, slots))
        return files[number]

    # --- at open: what rows refer to is used, the rest is free ---

    def adopt(self, slot: int) -> None:
        """A row refers to this slot."""
        size_class, number, position = unpack_slot(slot)
        if size_class >= len(CLASS_BYTES) or position >= SLOTS_PER_FILE or number >= FILES_MAX:
            raise error(Status.BAD_FORMAT, f"an index row refers to slot {slot:#x}, which cannot be")
        if number >= len(self._files[size_class]):
            self._add_file(file_name(size_class, number))
        file = self._files[size_class][number]
        file.slots = max(file.slots, position + 1)  # a file that lost its end: reads will say so
        if file.used >> position & 1:
            self._shared[slot] = self._shared.get(slot, 0) + 1
            return
        file.used |= 1 << position
        self.used_bytes += file.size

    def adopted(self) -> None:
        """All rows were seen."""
        for size_class, files in self._files.items():
            for file in files:
                file.warm = ((1 << file.slots) - 1) & ~file.used
                file.cold = 0
                self.warm_bytes += file.warm.bit_count() * file.size
                if file.warm:
                    self._roomy[size_class][file.number] = file

    # --- allocation ---

    @property
    def limit_new(self) -> int:
        """Bytes of slots up to which new chunks are taken."""
        return self.capacity - min(self.capacity // RESERVE_PART, RESERVE_BYTES_MAX)

    def capacity_now(self) -> int:
        """Bytes of slots that there can be: no more than the disk has room for, which others may have filled."""
        try:
            free = self._disk.free()
        except OSError:  # who reads or writes next will say so
            return self.capacity
        return min(self.capacity, self.used_bytes + self.warm_bytes + max(0, free - self._disk_reserve))

    @property
    def _disk_reserve(self) -> int:
        return min(DISK_RESERVE_BYTES, self.capacity // DISK_RESERVE_PART)

    def allocate(self, length: int, *, new: bool) -> int:
        """A slot for `length` bytes. `new`: for a chunk that does not exist yet, which may not use the reserve."""
        size_class = class_for(length)
        size = CLASS_BYTES[size_class]
        limit = self.limit_new if new else self.capacity
        if self.used_bytes + size > limit:
            self._refuse(size, limit)
        roomy = self._roomy[size_class]
        file = next(iter(roomy.values())) if roomy else self._extend(size_class)
        if not file.warm:
            self._check_disk(size)
        if file.warm:
            position = _lowest(file.warm)
            file.warm &= ~(1 << position)
            self.warm_bytes -= size
        else:
            position = _lowest(file.cold)
            file.cold &= ~(1 << position)
        if not file.warm and not file.cold:
            del roomy[file.number]
        file.used |= 1 << position
        self.used_bytes += size
        return pack_slot(size_class, file.number, position)

    def allocate_many(self, lengths: Sequence[int]) -> list[int]:
        """A slot for each new chunk of these lengths, neighbours as far as possible; all or none."""
        slots: list[int] = []
        begin = 0
        try:
            while begin < len(lengths):
                size_class, end = class_for(lengths[begin]), begin + 1
                while end < len(lengths) and lengths[end] == lengths[begin]:
                    end += 1
                while begin < end:
                    slots += self._allocate_run(size_class, end - begin)
                    begin = len(slots)
        except BaseException:
            for slot in slots:
                self.release(slot)
            raise
        return slots

    def _allocate_run(self, size_class: int, count: int) -> list[int]:
        """At least one slot for a new chunk, at most `count` that lie side by side."""
        size = CLASS_BYTES[size_class]
        roomy = self._roomy[size_class]
        file = next(iter(roomy.values())) if roomy else None
        fits = (self.limit_new - self.used_bytes) // size
        if file is None or count == 1 or fits < 1:
            return [self.allocate(size, new=True)]
        free = file.warm or file.cold
        first = _lowest(free)
        run = min(_lowest(~(free >> first)), count, fits)
        bits = ((1 << run) - 1) << first
        if file.warm:
            file.warm &= ~bits
            self.warm_bytes -= run * size
        else:
            self._check_disk(run * size)
            file.cold &= ~bits
        file.used |= bits
        if not file.warm and not file.cold:
            del roomy[file.number]
        self.used_bytes += run * size
        base = pack_slot(size_class, file.number, first)
        return list(range(base, base + run))

    def _refuse(self, size: int, limit: int) -> None:
        if self.used_bytes - self.retired_bytes + size <= limit:
            self.short = True
            raise error(Status.BUSY, "the target is full until its next checkpoint")
        raise error(
            Status.NO_SPACE,
            f"the target is full: {self.used_bytes} of {self.capacity} bytes; remove files or add a target",
        )

    def _check_disk(self, length: int) -> None:
        """Disk space is about to be taken. Others may have filled the disk."""
        reserve = self._disk_reserve
        if self._disk.free() < length + reserve:
            raise error(Status.NO_SPACE, f"the disk under the target has less than {length + reserve} bytes left")

    def _extend(self, size_class: int) -> BlockFile:
        """Make the last file of the class longer, or begin another; only its first byte range grows, so it never fragments."""
        files = self._files[size_class]
        self._check_disk(CLASS_BYTES[size_class])
        try:
            if not files or files[-1].slots == SLOTS_PER_FILE:
                self._add_file(file_name(size_class, len(files)))
                self.new_names = True
        except OSError as failed:
            raise error(Status.NO_SPACE, f"a new block file cannot be made: {failed.strerror}") from failed
        file = files[-1]
        # As many as there are already: a target with few chunks of a class reserves little for it.
        count = max(
            1, min(EXTEND_BYTES_MAX // file.size, file.used.bit_count() + len(files) - 1, SLOTS_PER_FILE - file.slots)
        )
        if count > 1 and self._disk.free() < DISK_RESERVE_BYTES + count * file.size:
            count = 1  # the last bytes go where they are needed
        try:
            self._disk.allocate(file.handle, file.slots * file.size, count * file.size)
        except OSError as failed:
            raise error(
                Status.NO_SPACE, f"no disk space for {count * file.size} bytes of block file: {failed.strerror}"
            ) from failed
        file.warm |= ((1 << count) - 1) << file.slots
        file.slots += count
        self.warm_bytes += count * file.size
        self._roomy[size_class][file.number] = file
        return file

    def share(self, slot: int) -> None:
        """One more row refers to the slot: nothing is written into it in place any more."""
        self._shared[slot] = self._shared.get(slot, 0) + 1

    def unshare(self, slot: int) -> None:
        """A row that was about to refer to the slot will not."""
        if slot not in self._shared:  # those that did are gone for good meanwhile
            self.release(slot)
            return
        self._drop_reference(slot)
        if self._leaving.get(slot, 0) > self._shared.get(slot, 0):
            self.retired_bytes += CLASS_BYTES[slot >> 48]
        if slot not in self._shared:
            self._leaving.pop(slot, None)

    def _drop_reference(self, slot: int) -> None:
        if self._shared[slot] == 1:
            del self._shared[slot]
        else:
            self._shared[slot] -= 1

    def is_shared(self, slot: int) -> bool:
        """Whether several rows refer to the slot, or did at the last checkpoint."""
        return slot in self._shared

    def has(self, slot: int) -> bool:
        """Whether the slot lies within the block files that are there."""
        size_class, number, position = unpack_slot(slot)
        files = self._files.get(size_class, [])
        return number < len(files) and position < files[number].slots

    def place(self, slot: int) -> tuple[int, int]:
        """(handle, offset in the file) of a slot."""
        return (
            (file := self._files[slot >> 48][slot >> 16 & 0xFFFFFFFF]).handle,
            (slot & 0xFFFF) * file.size,
        )

    # --- the way back ---

    def retire(self, slot: int, epoch: int) -> None:
        """A row that was written in `epoch` gave the slot up."""
        others = self._shared.get(slot, 0)
        leaving = 1
        if others:
            leaving += self._leaving.get(slot, 0)
            self._leaving[slot] = leaving
        if leaving > others:  # it was the last one
            self.retired_bytes += CLASS_BYTES[slot >> 48]
        self._retired.append((epoch, self._next_reader, slot))

    def release(self, slot: int) -> None:
        """Free a slot that no row ever referred to."""
        file = self._files[slot >> 48][slot >> 16 & 0xFFFFFFFF]
        bit = 1 << (slot & 0xFFFF)
        assert file.used & bit, f"slot {slot:#x} was released twice"
        file.used &= ~bit
        file.warm |= bit
        self.used_bytes -= file.size
        self.warm_bytes += file.size
        self._roomy[file.size_class][file.number] = file

    def checkpoint_passed(self, epoch: int) -> None:
        """All that was written in `epoch` and before is durable."""
        while self._retired and self._retired[0][0] <= epoch:
            _, reader, slot = self._retired.popleft()
            self._waiting.append((reader, slot))
        self._reap()

    def _reap(self) -> None:
        oldest = next(iter(self._readers), self._next_reader)
        while self._waiting and self._waiting[0][0] <= oldest:
            slot = self._waiting.popleft()[1]
            if slot in self._shared:
                self._leave(slot)
            else:
                self.retired_bytes -= CLASS_BYTES[slot >> 48]
                self.release(slot)

    def _leave(self, slot: int) -> None:
        """A retired reference to a shared slot counts no more."""
        self._drop_reference(slot)
        leaving = self._leaving.pop(slot) - 1
        if leaving and slot in self._shared:
            self._leaving[slot] = leaving

    def enter(self) -> int:
        """A reader begins: no slot that is referred to now is used again before it left. Returns its ticket."""
        ticket = self._next_reader
        self._next_reader += 1
        self._readers[ticket] = None
        return ticket

    def leave(self, ticket: int) -> None:
        del self._readers[ticket]
        if self._waiting:
            self._reap()

    # --- trimming, in three steps because punching is slow: choose, punch elsewhere, mark ---

    @property
    def excess(self) -> int:
        """Warm bytes that are to be given back. Who keeps more than is usual keeps no more than the disk has left for others."""
        usual, limit = min(WARM_BYTES_MAX, self.capacity // WARM_PART), self.warm_bytes_max
        if self.warm_bytes > usual < limit:
            try:
                limit = max(usual, min(limit, self._disk.free()))
            except OSError:  # who reads or writes next will say so
                limit = usual
        return max(0, self.warm_bytes - limit)

    def _trim_now(self) -> int:
        """Bytes that go back with the next checkpoint."""
        excess = self.excess
        try:
            is_short = self._disk.free() < excess
        except OSError:  # who reads or writes next will say so
            is_short = False
        return excess if is_short else min(excess, max(TRIM_BYTES, excess // TRIM_PART))

    def choose_trim(self) -> list[tuple[int, int]]:
        """Take warm slots out of use until few enough bytes are warm for now: [(slot, count of neighbours)] to be punched."""
        if not self.excess:
            return []
        bytes_max = self.warm_bytes - self._trim_now()
        runs: list[tuple[int, int]] = []
        for size_class in reversed(range(len(CLASS_BYTES))):
            for file in self._files[size_class]:
                while file.warm and self.warm_bytes > bytes_max:
                    first = _lowest(file.warm)
                    count = min(_lowest(~(file.warm >> first)), -(-(self.warm_bytes - bytes_max) // file.size))
                    file.warm &= ~(((1 << count) - 1) << first)
                    self.warm_bytes -= count * file.size
                    runs.append((pack_slot(size_class, file.number, first), count))
                if not file.warm and not file.cold:
                    self._roomy[size_class].pop(file.number, None)
        return runs

    def punch(self, runs: list[tuple[int, int]]) -> None:
        """The slow part of trimming: only the disk is touched."""
        for slot, count in runs:
            handle, offset = self.place(slot)
            size = CLASS_BYTES[slot >> 48]
            step = max(1, PUNCH_BYTES // size) * size
            for at in range(0, count * size, step):
                self._disk.punch(handle, offset + at, min(step, count * size - at))

    def trimmed(self, runs: list[tuple[int, int]], *, kept: bool = False) -> None:
        """What was chosen is free again: cold, or where it `kept` its disk space as warm as before, to be chosen once more."""
        for slot, count in runs:
            file = self._files[slot >> 48][slot >> 16 & 0xFFFFFFFF]
            bits = ((1 << count) - 1) << (slot & 0xFFFF)
            if kept:
                file.warm |= bits
                self.warm_bytes += count * file.size
            else:
                file.cold |= bits
            self._roomy[file.size_class][file.number] = file

    # --- what is where ---

    def used_slots(self) -> Iterator[int]:
        """Every slot that is in use, for checks."""
        for files in self._files.values():
            for file in files:
                bits = file.used
                while bits:
                    position = _lowest(bits)
                    bits &= bits - 1
                    yield pack_slot(file.size_class, file.number, position)

    def references(self, slot: int) -> int:
        """How many rows refer to a used slot, retired references included."""
        return 1 + self._shared.get(slot, 0)

    def retired_slots(self) -> list[int]:
        """The slot of every retired reference."""
        return [slot for _, _, slot in self._retired] + [slot for _, slot in self._waiting]

    def handles(self) -> list[int]:
        return [file.handle for files in self._files.values() for file in files]


def slot_total(slots: list[int]) -> int:
    """Bytes of these slots."""
    return sum(CLASS_BYTES[slot >> 48] for slot in slots if slot != NO_SLOT)

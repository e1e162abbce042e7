"""The resync machine: what is compared, copied, throttled, tried again; and a model of two chunk sets under live updates and crashes."""

from __future__ import annotations

import random

import pytest

from emberfs.proto.errors import Status
from emberfs.storage import resync
from emberfs.storage.resync import (
    BATCH_BYTES,
    BATCH_CHUNKS,
    PAGE_CHUNKS,
    RATE_FLOOR_BYTES,
    WINDOW_BYTES,
    Begin,
    Complain,
    Copied,
    Copy,
    Effect,
    Entry,
    Failed,
    Finish,
    Finished,
    List,
    Listed,
    Phase,
    PutRecords,
    RecordsPut,
    Resync,
    Side,
    Tick,
    differ,
)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def entry(number: int, version: int = 1, length: int = 100, *, chain: int = 1, checksum: int = 7, **more: int) -> Entry:
    truncate_version, pending = more.get("truncate", 0), bool(more.get("pending"))
    return Entry(key(number), version, chain, length, truncate_version, checksum, pending)


def begun(ours: list[Entry], theirs: list[Entry], *, more: bool = False) -> tuple[Resync, list[Effect]]:
    machine = Resync()
    lists = machine.step(0, Begin(len(ours)))
    assert lists == [List(Side.OURS, b"", PAGE_CHUNKS), List(Side.THEIRS, b"", PAGE_CHUNKS)]
    effects = machine.step(0, Listed(Side.OURS, ours, more))
    return machine, effects + machine.step(0, Listed(Side.THEIRS, theirs, more))


def copied(effects: list[Effect]) -> list[bytes]:
    return [chunk for effect in effects if isinstance(effect, Copy) for chunk in effect.chunks]


# --- comparing ---


def test_equal_sides_need_no_copy_and_end_with_records_and_a_checkpoint() -> None:
    machine, effects = begun([entry(1), entry(2)], [entry(1), entry(2)])
    assert effects == [PutRecords(b"")]
    assert machine.step(0, RecordsPut(b"next")) == [PutRecords(b"next")]
    assert machine.step(0, RecordsPut(None)) == [Finish()]
    assert machine.phase is Phase.FINISHING
    assert machine.step(0, Finished()) == []
    assert machine.phase is Phase.DONE and (machine.done, machine.total) == (2, 2)


@pytest.mark.parametrize(
    "other",
    [
        entry(1, 4),
        entry(1, 6),  # newer there: a reviver that lost what it had not synced wins all the same
        entry(1, 5, chain=2),
        entry(1, 5, checksum=8),  # 3FS calls the same version with other bytes fatal, and the target stays out for ever
        entry(1, 5, length=99),
        entry(1, 5, truncate=1),
        entry(1, 5, pending=1),
        entry(1, 0, pending=1),
    ],
)
def test_any_difference_is_a_copy(other: Entry) -> None:
    assert differ(entry(1, 5), other)


def test_presence_is_a_difference_either_way() -> None:
    assert differ(entry(1), None)
    assert differ(None, entry(1))
    _, effects = begun([entry(1), entry(3)], [entry(2), entry(3)])
    assert copied(effects) == [key(1), key(2)]


def test_what_is_pending_here_is_on_its_way_already() -> None:
    assert not differ(entry(1, 5, pending=1), entry(1, 5))
    assert not differ(entry(1, 0, pending=1), None)
    assert differ(entry(1, 0, pending=1), entry(1, 5))


def test_lists_are_read_a_page_at_a_time() -> None:
    ours = [entry(n) for n in range(PAGE_CHUNKS)]
    machine, effects = begun(ours, ours[:10], more=True)
    # The first ten are equal; the rest may still come from the other side.
    assert effects == [List(Side.THEIRS, key(9) + b"\0", PAGE_CHUNKS)]
    effects = machine.step(0, Listed(Side.THEIRS, ours[10:], True))
    after = ours[-1].chunk + b"\0"
    assert effects == [List(Side.OURS, after, PAGE_CHUNKS), List(Side.THEIRS, after, PAGE_CHUNKS)]


def test_no_page_is_asked_for_while_the_queue_is_full() -> None:
    ours = [entry(n, length=BATCH_BYTES) for n in range(PAGE_CHUNKS)]
    machine = Resync()
    machine.step(0, Begin())
    machine.step(0, Listed(Side.OURS, ours, True))
    effects = machine.step(0, Listed(Side.THEIRS, [], False))
    assert not any(isinstance(effect, List) for effect in effects[:-1])
    before = len(copied(effects))
    assert before == WINDOW_BYTES // BATCH_BYTES
    assert isinstance(effects[-1], List)  # the batches under way have left the queue, which therefore has room again


# --- copying ---


def test_batches_have_a_size_and_the_window_an_end() -> None:
    _, effects = begun([entry(n, length=1 << 20) for n in range(100)], [])
    batches = [effect.chunks for effect in effects if isinstance(effect, Copy)]
    assert [len(batch) for batch in batches] == [BATCH_BYTES >> 20] * (WINDOW_BYTES // BATCH_BYTES)
    _, effects = begun([entry(n, length=1) for n in range(100)], [])
    assert max(len(e.chunks) for e in effects if isinstance(e, Copy)) == BATCH_CHUNKS


def test_a_chunk_larger_than_the_window_is_copied_alone() -> None:
    machine, effects = begun([entry(n, length=64 << 20) for n in range(2)], [])
    assert effects == [Copy(1, [key(0)])]
    assert machine.step(0, Copied(1, [Status.OK])) == [Copy(2, [key(1)])]


def test_a_copy_that_failed_has_another_turn() -> None:
    machine, effects = begun([entry(1), entry(2)], [])
    assert effects == [Copy(1, [key(1), key(2)])]
    (complaint,) = machine.step(0, Copied(1, [Status.OK, Status.BUSY]))
    assert isinstance(complaint, Complain) and "BUSY" in complaint.why
    assert machine.step(0.1, Tick()) == []
    assert machine.step(1, Tick()) == [Copy(2, [key(2)])]
    assert machine.step(1, Copied(2, [Status.OK])) == [PutRecords(b"")]


# --- beginning again ---


def test_a_failure_begins_the_comparison_again_after_a_pause() -> None:
    machine, effects = begun([entry(1)], [])
    assert effects == [Copy(1, [key(1)])]
    assert machine.step(0, Copied(1, [Status.OK])) == [PutRecords(b"")]
    assert machine.step(0, Failed("it cannot be reached")) == [Complain("it cannot be reached")]
    assert machine.step(0.1, Tick()) == []
    assert [type(effect) for effect in machine.step(5, Tick())] == [List, List]
    assert machine.phase is Phase.COPYING and machine.done == 0


def test_the_next_try_waits_for_what_is_under_way() -> None:
    machine, _ = begun([entry(n, length=BATCH_BYTES) for n in range(2)], [])
    assert machine.step(0, Copied(1, [Status.STALE_CHAIN_VERSION])) != []
    assert machine.step(5, Tick()) == []  # the second batch
    assert machine.step(5, Copied(2, [Status.STALE_CHAIN_VERSION])) == []
    assert [type(effect) for effect in machine.step(5, Tick())] == [List, List]


def test_pauses_grow_with_failures_in_a_row_and_have_an_end() -> None:
    machine = Resync()
    now, pauses = 0.0, []
    effects = machine.step(now, Begin())
    for _ in range(10):
        for _ in effects:
            machine.step(now, Failed("away"))
        begun_at = now
        effects = []
        while not effects:
            now += 0.1
            effects = machine.step(now, Tick())
        pauses.append(now - begun_at)
    assert [round(pause) for pause in pauses] == sorted(round(pause) for pause in pauses)
    assert pauses[0] <= resync.RETRY_S + 0.2 and pauses[-1] <= resync.RETRY_S_MAX + 0.2


# --- throttle ---


def copied_in(seconds: float, client_rate: float, operations: int) -> float:
    """Bytes a second that a sync of endless chunks copies beside clients that move this much."""
    machine = Resync()
    now, size, ticks, number = 0.05, 0, 1, 0
    machine.step(0, Begin())
    machine.step(0, Tick())
    machine.step(now, Tick(int(client_rate * now), operations))
    effects = machine.step(now, Listed(Side.THEIRS, [], False))
    page = [entry(n, length=1 << 20) for n in range(PAGE_CHUNKS)]
    effects = machine.step(now, Listed(Side.OURS, page, True))
    while now < seconds:
        for effect in effects:
            if isinstance(effect, List):
                number += PAGE_CHUNKS
                more = [entry(number + n, length=1 << 20) for n in range(PAGE_CHUNKS)]
                effects += machine.step(now, Listed(Side.OURS, more, True))
            elif isinstance(effect, Copy):
                size += len(effect.chunks) << 20
                effects += machine.step(now, Copied(effect.batch, [Status.OK] * len(effect.chunks)))
            if size > 1 << 34:
                return float("inf")
        now += 0.05
        ticks += 1
        effects = machine.step(now, Tick(int(client_rate * now), operations * ticks))
    return size / now


def test_without_clients_there_is_no_limit() -> None:
    assert copied_in(1, 0, 0) == float("inf")


def test_beside_clients_a_part_of_their_rate_is_copied() -> None:
    rate = copied_in(20, 1 << 30, 100)
    assert rate == pytest.approx(resync.CLIENT_PART * (1 << 30), rel=0.2)


def test_several_syncs_share_the_rate() -> None:
    throttles = [resync.Throttle() for _ in range(2)]
    for syncs, throttle in enumerate(throttles, 1):
        for tick in range(200):
            throttle.tick(tick / 20, tick << 26, tick, syncs)
    assert throttles[0].rate == pytest.approx(2 * throttles[1].rate)


def test_clients_never_stop_a_sync() -> None:
    rate = copied_in(20, 1 << 20, 100_000)
    assert rate == pytest.approx(RATE_FLOOR_BYTES, rel=0.2)


# --- the model ---


class World:
    """Two chunk sets, live updates, and a network that answers in any order or not at all."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.version = 0  # of the chain
        self.ours: dict[bytes, Entry] = {}
        self.theirs: dict[bytes, Entry] = {}
        self.universe = self.random.choice([3, 40, 200])
        for _ in range(self.universe):
            self.update()
            chunk = key(self.random.randrange(self.universe))
            if self.random.random() < 0.3:  # whatever it was that it held before
                self.theirs[chunk] = entry(
                    int.from_bytes(chunk, "big"), self.random.randrange(4), checksum=99, pending=1
                )
            elif self.random.random() < 0.7:
                self.follow(chunk)
        self.syncing = False
        self.restart()

    def restart(self) -> None:
        """The other side has crashed; while it is away, updates pass it by. Then a new chain version begins."""
        for _ in range(self.random.randrange(20)):
            self.update()
        self.version += 1
        self.machine = Resync()
        self.syncing = True
        self.waiting: list[Effect] = self.machine.step(self.now, Begin(len(self.ours)))

    def follow(self, chunk: bytes) -> None:
        if chunk in self.ours:
            self.theirs[chunk] = self.ours[chunk]
        else:
            self.theirs.pop(chunk, None)

    def update(self) -> None:
        """A client's: it goes to the other side as a whole, at once, when that is SYNCING."""
        number = self.random.randrange(self.universe)
        chunk = key(number)
        if self.random.random() < 0.3:
            self.ours.pop(chunk, None)
        else:
            old = self.ours.get(chunk)
            version = old.number + 1 if old is not None else self.random.randrange(1, 100)
            self.ours[chunk] = entry(number, version, self.random.randrange(1 << 20), chain=self.version)
        if getattr(self, "syncing", False):
            self.follow(chunk)

    def answer(self) -> None:
        """One effect, any of those that wait, is carried out, or fails."""
        effect = self.waiting.pop(self.random.randrange(len(self.waiting)))
        fails = self.random.random() < 0.03
        if isinstance(effect, Complain):
            return
        if isinstance(effect, Copy):
            done = [Status.OK if self.random.random() < 0.95 else Status.BUSY for _ in effect.chunks]
            for chunk, status in zip(effect.chunks, done, strict=True):
                if status is Status.OK:
                    self.follow(chunk)
            self.tell(Copied(effect.batch, done))
        elif fails:
            self.tell(Failed("lost"))
        elif isinstance(effect, List):
            side = self.ours if effect.side is Side.OURS else self.theirs
            found = sorted(chunk for chunk in side if chunk >= effect.first)
            count = min(effect.count, self.random.choice([1, 7, 1000]))
            self.tell(Listed(effect.side, [side[c] for c in found[:count]], len(found) > count))
        elif isinstance(effect, PutRecords):
            self.tell(RecordsPut(b"more" if self.random.random() < 0.2 else None))
        else:
            self.tell(Finished())

    def tell(self, event: resync.Event) -> None:
        self.waiting += self.machine.step(self.now, event)

    def run(self) -> None:
        crashes = self.random.randrange(4)
        for _ in range(200_000):
            if self.machine.phase is Phase.DONE:
                return
            chance = self.random.random()
            if chance < 0.3:
                self.update()
            elif chance < 0.31 and crashes:
                crashes -= 1
                self.syncing = False
                self.restart()
            elif chance < 0.5 or not self.waiting:
                self.now += 0.05
                self.tell(Tick(int(self.now * 1e9), int(self.now * 100)))
            else:
                self.answer()
        raise AssertionError("it never ended")


@pytest.mark.parametrize("seed", range(60))
def test_at_the_end_both_sides_are_equal(seed: int) -> None:
    """Whatever the sides held, whatever clients do meanwhile, whoever crashes: DONE means equal."""
    world = World(seed)
    world.run()
    assert world.theirs == world.ours

"""Killed, reset and failing at every effect: each call of the disk or the index is a place to die at.

The promise (design §5, §10.3): "a crash at any instant leaves the old or the new version, never a mixture"; what was acknowledged survives
kill -9; what a checkpoint covered survives power loss; bytes that were never written are never returned.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.engine import ChunkEngine, Kind, Receipt, Update
from emberfs.storage.engine.recovery import Opened
from emberfs.storage.engine.simulated import Crash, Faults

from .harness import CHUNK_SIZE, Target, check_invariants, clone, content, key, small_pages, write, written

CHUNKS = 5
STEPS = 45
CLIENT = b"c" * 16


class Promise:
    """What a client of the engine may rely on, kept beside the engine."""

    def __init__(self) -> None:
        self.committed: dict[bytes, bytes | None] = {key(n): None for n in range(CHUNKS)}
        self.history: dict[bytes, list[bytes | None]] = {chunk: [None] for chunk in self.committed}
        self.flying: dict[bytes, bytes | None] = {}  # begun, not acknowledged
        self.pending: dict[bytes, tuple[int, bytes | None]] = {}
        self.staged: dict[bytes, set[bytes]] = {chunk: set() for chunk in self.committed}  # ever, or begun
        self.receipts: dict[bytes, Receipt] = {}
        self.marks: dict[bytes, int] = {}  # of the checkpoint under way

    def acknowledge(self) -> None:
        for chunk, new in self.flying.items():
            self.committed[chunk] = new
            self.history[chunk].append(new)
        self.flying = {}

    def checkpoint_begun(self) -> None:
        self.marks = {chunk: len(history) - 1 for chunk, history in self.history.items()}

    def checkpoint_passed(self) -> None:
        for chunk, mark in self.marks.items():
            del self.history[chunk][:mark]

    def restart(self, found: dict[bytes, bytes | None]) -> None:
        """From here on, what was found is what there is, and opening has made it durable."""
        self.committed = dict(found)
        self.history = {chunk: [now] for chunk, now in found.items()}
        self.flying, self.pending = {}, {}


class Run:
    """One life of a target under a seeded workload, with the promise beside it."""

    def __init__(self, seed: int, faults: Faults, capacity: int = 4 << 20) -> None:
        self.choice = random.Random(seed)
        self.target = Target(faults, capacity=capacity, cache_bytes=8000)
        self.promise = Promise()
        self.checkpoint: Any = None
        self.readers: list[Any] = []

    @property
    def engine(self) -> ChunkEngine:
        return self.target.engine

    def go(self, steps: int = STEPS) -> None:
        self.target.open()
        for _ in range(steps):
            try:
                self.step()
            except StatusError as failed:
                assert failed.status in (Status.IO_ERROR, Status.NO_SPACE, Status.TARGET_OFFLINE, Status.BUSY), failed
                if self.engine.failed:
                    return
                self.promise.flying = {}

    def step(self) -> None:
        act = self.choice.choices(
            [self.change, self.clone, self.resolve, self.step_checkpoint, self.sync, self.remove_range, self.read],
            [10, 3, 2, 3, 2, 1, 2],
        )[0]
        act()

    def random_update(self, chunk: bytes) -> Update:
        choice = self.choice
        old = self.promise.committed[chunk] or b""
        kind = choice.choices(["append", "overwrite", "full", "any", "truncate", "remove"], [6, 6, 2, 2, 2, 1])[0]
        if kind == "remove":
            return Update(Kind.REMOVE, chunk)
        if kind == "truncate":
            return Update(
                Kind.TRUNCATE, chunk, choice.randint(0, min(CHUNK_SIZE, len(old) + 5000)), chunk_size=CHUNK_SIZE
            )
        length = choice.choice([choice.randint(1, 200), 4096, choice.randint(1, 6000), choice.randint(1, CHUNK_SIZE)])
        offset = {
            "append": len(old),
            "overwrite": choice.randrange(len(old)) if old else 0,
            "full": 0,
            "any": choice.randrange(CHUNK_SIZE),
        }[kind]
        offset = min(offset, CHUNK_SIZE - 1)
        length = max(length, len(old)) if kind == "full" else min(length, 2 * CHUNK_SIZE // 3)
        return write(chunk, offset, choice.randbytes(min(length, CHUNK_SIZE - offset)))

    def change(self) -> None:
        free = [chunk for chunk in self.promise.committed if chunk not in self.promise.pending]
        chosen = self.choice.sample(free, min(len(free), self.choice.choice([1, 1, 2])))
        self.perform([self.random_update(chunk) for chunk in chosen])

    def clone(self) -> None:
        free = [chunk for chunk in self.promise.committed if chunk not in self.promise.pending]
        if len(free) > 1:
            source, chunk = self.choice.sample(free, 2)
            limit = self.choice.choice([CHUNK_SIZE, CHUNK_SIZE, self.choice.randint(0, CHUNK_SIZE)])
            self.perform([clone(source, chunk, limit)])

    def perform(self, updates: list[Update]) -> None:
        promise = self.promise
        commit = self.choice.random() < 0.7
        jobs = []
        after = {}
        try:
            for update in updates:
                source = promise.committed.get(update.source)
                after[update.chunk] = written(promise.committed[update.chunk], update, source)
                jobs.append(self.engine.prepare(update))
            for job in jobs:
                job.run()
        except StatusError:
            for job in jobs:
                self.engine.abandon(job)
            raise
        receipts = [
            Receipt(CLIENT, chunk[15], job.version, job.version, job.length)
            for chunk, job in zip(after, jobs, strict=True)
        ]
        for chunk, new in after.items():
            promise.staged[chunk] |= {new} if new is not None else set()
        if commit:
            promise.flying = after
        self.engine.stage(jobs, commit=commit, receipts=receipts)
        promise.receipts.update({job.chunk: receipt for job, receipt in zip(jobs, receipts, strict=True)})
        if commit:
            promise.acknowledge()
        else:
            promise.pending.update({job.chunk: (job.version, after[job.chunk]) for job in jobs})

    def resolve(self) -> None:
        promise = self.promise
        if not promise.pending:
            return
        chunk = self.choice.choice(sorted(promise.pending))
        version, new = promise.pending[chunk]
        if self.choice.random() < 0.3:
            self.engine.discard([chunk])
            del promise.pending[chunk]
            return
        promise.flying = {chunk: new}
        self.engine.commit([(chunk, version)])
        del promise.pending[chunk]
        promise.acknowledge()

    def remove_range(self) -> None:
        promise = self.promise
        gone = [chunk for chunk in (key(0), key(1)) if chunk not in promise.pending]
        promise.flying = {chunk: None for chunk in gone if promise.committed[chunk] is not None}
        count, _ = self.engine.remove_range(key(0), key(2), 10)
        assert count == len(promise.flying)
        promise.acknowledge()

    def step_checkpoint(self) -> None:
        """One of its three steps, so that updates happen between them."""
        if self.checkpoint is None:
            self.checkpoint = (self.engine.begin_checkpoint(), "run")
            self.promise.checkpoint_begun()
        elif self.checkpoint[1] == "run":
            self.checkpoint[0].run(self.beside)
            self.checkpoint = (self.checkpoint[0], "finish")
        else:
            self.engine.finish_checkpoint(self.checkpoint[0])
            self.checkpoint = None
            self.promise.checkpoint_passed()

    def beside(self, work: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        """The other thread: done before the bytes are synced, or afterwards; and updates happen in between."""
        if self.choice.random() < 0.5:
            work(*arguments)
            return self.change_meanwhile

        def finish() -> None:
            self.change_meanwhile()
            work(*arguments)

        return finish

    def change_meanwhile(self) -> None:
        with suppress(StatusError):
            self.change()
        if not self.engine.failed:
            self.promise.flying = {}

    def sync(self) -> None:
        while self.checkpoint is not None:
            self.step_checkpoint()
        for _ in range(3):
            self.step_checkpoint()

    def read(self) -> None:
        """Look at what was pinned earlier, whatever happened to the chunk since; then pin something else."""
        if self.readers:
            batch, expected = self.readers.pop(0)
            with batch as (plan,):
                data = bytearray(plan.length)
                assert plan.status is not Status.OK or plan.read_into(self.engine.disk, (data,), True)
                assert data == expected, "pinned bytes have changed"
        chunk = self.choice.choice(sorted(self.promise.committed))
        assert content(self.engine, chunk) == self.promise.committed[chunk]
        self.readers.append((self.engine.plan([(chunk, 0, CHUNK_SIZE)]), self.promise.committed[chunk] or b""))

    # --- afterwards ---

    def look(self, power: bool) -> None:
        """Open what is left, and compare it with the promise."""
        engine, promise = self.target.open(), self.promise
        check_invariants(engine)
        found = {chunk: content(engine, chunk) for chunk in promise.committed}
        for chunk, now in found.items():
            allowed = promise.history[chunk] if power else [promise.committed[chunk]]
            if chunk in promise.flying:
                allowed = [*allowed, promise.flying[chunk]]
            assert now in allowed, f"chunk {chunk[15]}: {describe(now)} is none of {[describe(a) for a in allowed]}"
        for chunk in engine.found.pending:
            info = engine.info(chunk)
            if not info.pending_removes:
                assert bytes(engine.read(chunk, version=info.pending)) in promise.staged[chunk]
        if not power:
            self.look_killed(engine, found)
        engine.discard(engine.found.pending)
        promise.restart(found)
        promise.receipts = {r_chunk: r for r_chunk in promise.committed if (r := engine.receipt(CLIENT, r_chunk[15]))}

    def look_killed(self, engine: ChunkEngine, found: dict[bytes, bytes | None]) -> None:
        promise = self.promise
        new = {
            chunk: found[chunk] == after for chunk, after in promise.flying.items() if after != promise.committed[chunk]
        }
        assert len(set(new.values())) <= 1, "one index write, but some of it is missing"
        for chunk, (version, after) in promise.pending.items():
            if chunk in promise.flying:
                continue  # its commit was under way
            info = engine.info(chunk)
            if info is None or not info.pending:
                continue  # its discard was under way
            assert info.pending == version
            assert after is None or engine.read(chunk, version=version) == after
        for chunk, receipt in promise.receipts.items():
            assert engine.receipt(CLIENT, chunk[15]).sequence >= receipt.sequence


def describe(data: bytes | None) -> str:
    return "absent" if data is None else f"{len(data)} bytes {data[:4].hex()}…{data[-4:].hex()}"


def live_and_die(seed: int, at: int, kind: str, power: bool) -> None:
    """Die at one effect; open, perhaps die again while opening; then go on, lose power, and open once more."""
    faults = Faults(at, kind)
    run = Run(seed, faults)
    with suppress(Crash):
        run.go()
    choice = random.Random(seed * 1000 + at)

    def lose() -> None:
        if power:
            run.target.power_loss(choice)
        else:
            run.target.kill()

    lose()
    faults.at = faults.count + choice.randint(1, 6)  # often while it opens
    faults.kind = choice.choice(["before", "after", "torn"])
    try:
        run.look(power)
    except Crash:
        lose()
        faults.at = 0
        run.look(power)
    faults.at = 0
    run.checkpoint, run.readers = None, []
    for _ in range(12):
        try:
            run.step()
        except StatusError as full:
            assert full.status in (Status.NO_SPACE, Status.BUSY)
    run.target.power_loss(choice)
    run.look(True)


def effects(seed: int) -> int:
    faults = Faults()
    Run(seed, faults).go()
    return faults.count


WAYS = [("before", True), ("after", False), ("torn", True), ("after", True), ("torn", False), ("before", False)]


@pytest.mark.parametrize("pages", ["inline", "pages"])
@pytest.mark.parametrize("seed", range(6))
def test_every_effect_is_a_place_to_die(seed: int, pages: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if pages == "pages":
        small_pages(monkeypatch)
        seed += 100
    for at in range(1, effects(seed) + 1):
        kind, power = WAYS[(at + seed) % len(WAYS)]
        live_and_die(seed, at, kind, power)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pages(monkeypatch)
    for seed in range(1000, 1060):
        for at in range(1, effects(seed) + 1):
            for kind, power in WAYS:
                live_and_die(seed, at, kind, power)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("seed", [3, 4])
def test_every_effect_may_fail(seed: int, code: int) -> None:
    """An error fails the update that met it or takes the target out; what was acknowledged before is there when it is opened again. After
    a sync that failed only what was synced is."""
    offline = doubted = 0
    for at in range(2, effects(seed) + 1):
        faults = Faults(at, code)
        run = Run(seed, faults)
        try:
            run.go()
        except OSError:
            assert faults.count <= at, "only opening may raise the disk's own error"
        if run.engine is not None and run.engine.failed:
            offline += 1
            with pytest.raises(StatusError) as caught:
                run.engine.prepare(Update(Kind.REMOVE, key(0)))
            assert caught.value.status is Status.TARGET_OFFLINE
        elif run.engine is not None:
            check_invariants(run.engine)
        is_out = run.engine is not None and run.engine.failed
        run.target.kill()
        faults.at = 0
        failed_sync = bool(is_out and faults.seen[at - 1] in ("fdatasync", "sync_names", "index sync"))
        doubted += failed_sync
        run.look(failed_sync)
        assert (run.engine.found.opened is Opened.POWER_LOSS) is failed_sync
    assert offline > 10
    assert doubted > 5


def test_what_was_synced_stays_where_the_disk_cannot_be_asked_after_a_power_loss() -> None:
    """The index does not say yet that the last checkpoint has passed; an I/O error while its bytes are compared is no proof that they
    are missing. (Random faults over chains found both members giving up a chunk that way.)"""
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)])

    def beside(work: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        work(*arguments)
        return lambda: None

    checkpoint = engine.begin_checkpoint()
    checkpoint.run(beside)
    engine.finish_checkpoint(checkpoint)
    engine.apply([write(key(2), 0, b"never synced")])
    target.power_loss(random.Random(1))

    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, "for a moment")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target.disk, "preadv", broken)
        engine = target.open()
    assert content(engine, key(1)) == b"x" * 5000
    assert content(engine, key(2)) is None


def test_losses_of_power_are_counted() -> None:
    """Whoever looks at the number later knows whether something that was not synced may be gone: also where the process that found it was
    killed at once."""
    target = Target()
    choice = random.Random(1)
    assert target.open().found.power_losses == 0
    target.kill()
    assert target.open().found.power_losses == 0
    target.power_loss(choice)
    assert target.open().found.power_losses == 1
    target.kill()
    assert target.open().found.power_losses == 1
    target.power_loss(choice)
    assert target.open().found.power_losses == 2
    target.engine.close()
    target.boot += 1  # the machine was shut down in peace
    assert target.open().found.power_losses == 2

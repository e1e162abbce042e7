"""Everything at once: puts, gets, pins, deletes, eviction and kills. No get ever returns other bytes, and what was acknowledged is lost to
eviction and deletes alone."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from emberfs.proto.blocks import HARD_PIN
from emberfs.proto.errors import Status

from .test_service import run
from .world import ANY_LENGTH, Blocks, content, key

OK = Status.OK
LENGTHS = (4095, 20_000, 300_000, 1 << 20, 1 << 20)
CAPACITY = 64 << 20
NUMBERS = 300
HERE = {"namespace": ANY_LENGTH}


def length_of(number: int) -> int:
    return LENGTHS[number % len(LENGTHS)]


class Churn:
    def __init__(self, world: Blocks, seed: int) -> None:
        self.world = world
        self.chance = random.Random(seed)
        self.wrong = 0
        self.reads = 0
        self.pinned: set[int] = set()

    def some(self, count: int) -> list[int]:
        """Numbers of blocks of one length, so that they are got together."""
        length = self.chance.choice(LENGTHS)
        return self.chance.sample([n for n in range(NUMBERS) if length_of(n) == length], count)

    async def put(self) -> None:
        numbers = self.some(self.chance.randrange(1, 6))
        pin = HARD_PIN if self.chance.random() < 0.05 and len(self.pinned) < 10 else 0
        blocks = {key(n): content(n, length_of(n)) for n in numbers}
        reply = await self.world.put(blocks, **HERE, depth=list(range(len(numbers))), pin_s=pin)
        statuses = list(reply.status) or [OK] * len(numbers)
        assert set(statuses) <= {OK, Status.WOULD_BLOCK}, [Status(s).name for s in statuses]
        existed = list(reply.existed) or [0] * len(numbers)
        if pin:
            found = zip(numbers, statuses, existed, strict=True)
            self.pinned |= {n for n, status, was_there in found if status == OK and not was_there}

    async def get(self) -> None:
        numbers = self.some(self.chance.randrange(1, 8))
        found = await self.world.get([key(n) for n in numbers], length_of(numbers[0]), **HERE)
        for number, got in zip(numbers, found, strict=True):
            self.reads += got is not Status.NOT_FOUND
            self.wrong += got not in (content(number, length_of(number)), Status.NOT_FOUND)

    async def delete(self) -> None:
        numbers = [n for n in self.some(2) if n not in self.pinned]
        statuses = await self.world.delete([key(n) for n in numbers], **HERE)
        assert set(statuses) <= {OK, Status.NOT_FOUND}

    async def work(self, rounds: int) -> None:
        for _ in range(rounds):
            what = self.chance.random()
            await (self.put() if what < 0.5 else self.get() if what < 0.95 else self.delete())

    def here(self) -> dict[bytes, tuple[int, int]]:
        """What the directory says: generation and length, by key."""
        directory = self.world.store.directory
        slots = directory.shelf(ANY_LENGTH).slots
        return {k: (directory.generation[slot], directory.length[slot]) for k, slot in slots.items()}


@pytest.mark.parametrize("seed", range(3))
def test_no_wrong_bytes_and_nothing_lost(tmp_path: Path, seed: int) -> None:
    async def test(world: Blocks) -> None:
        churn, evictions = Churn(world, seed), 0
        for turn in range(3):
            workers = [Churn(world, seed * 100 + turn * 10 + n) for n in range(4)]
            for worker in workers:
                worker.pinned = churn.pinned
            await asyncio.gather(*[worker.work(40) for worker in workers])
            churn.wrong += sum(worker.wrong for worker in workers)
            churn.reads += sum(worker.reads for worker in workers)
            await world.store.evictor.settle()
            before = churn.here()
            evictions += world.store.directory.shelf(ANY_LENGTH).evictions
            assert {key(n) for n in churn.pinned} <= before.keys()
            await world.restart(clean=False)
            assert churn.here() == before
            assert world.open[0].engine.space_info().chunks == len(before)
        assert churn.wrong == 0
        assert churn.reads > 100 and evictions > 0

    run(test, tmp_path, capacity=CAPACITY)

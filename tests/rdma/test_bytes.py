"""Every byte arrives where it belongs and nothing beside it changes: memory of every kind, odd sizes and offsets, many regions."""

from __future__ import annotations

import mmap
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberfs.proto.region import Slice

from ..proto.pieces import READ, SIZE, WRITE, Pair, paired, read, write

pytestmark = pytest.mark.rdma

ROUNDS, ROUNDS_LONG = 8, 600
PIECES_MAX = 24  # of one request
PIECE_BYTES_MAX = 150_000


@pytest.fixture(params=["blocking", "aio"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    with paired("rdma", request.param, tmp_path) as made:
        yield made


def memories() -> Iterator[tuple[Any, int]]:
    """Memory as users have it, and its descriptor if it has one."""
    yield bytearray(1_000_003), -1
    yield mmap.mmap(-1, 1 << 20), -1
    yield np.zeros(300_000, dtype=np.float32), -1
    yield memoryview(bytearray(2_000_000))[777:1_300_001], -1  # begins and ends anywhere
    descriptor = os.memfd_create("test")
    os.ftruncate(descriptor, 1 << 20)
    yield mmap.mmap(descriptor, 1 << 20), descriptor
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.ftruncate(file.fileno(), 900_000)
        yield mmap.mmap(file.fileno(), 900_000), os.dup(file.fileno())


class Model:
    """What the regions of a client and the server's buffer must hold."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.draw = random.Random(seed)
        env = pair.client.env
        self.regions = [env.register(memory, descriptor) for memory, descriptor in memories()]
        for region in self.regions:
            region.view[:] = self.draw.randbytes(len(region.view))
        self.held = [bytearray(region.view) for region in self.regions]
        self.served = bytearray(pair.service.data)

    def slices(self) -> list[tuple[int, int, int]]:
        """Some (region, offset, length) that do not overlap, in any order."""
        found = []
        for number, held in enumerate(self.held):
            at = self.draw.choice([0, 1, 4096, 4095, self.draw.randrange(len(held))])
            while at < len(held) and self.draw.random() < 0.8 and len(found) < PIECES_MAX:
                longest = min(PIECE_BYTES_MAX, len(held) - at)
                length = self.draw.choice([1, 7, 4096, self.draw.randint(1, PIECE_BYTES_MAX)])
                found.append((number, at, min(length, longest)))
                at += length + self.draw.choice([0, 0, 1, 63, 5000])
        self.draw.shuffle(found)
        return found

    def read(self) -> None:
        places = self.slices()
        total = sum(length for _, _, length in places)
        start = self.draw.randint(0, SIZE - total)
        self.pair.client.call(self.pair.address, READ, read((start, total)), target=self.of(places))
        for number, at, length in places:
            self.held[number][at : at + length] = self.served[start : start + length]
            start += length

    def write(self) -> None:
        places = self.slices()
        total = sum(length for _, _, length in places)
        start = self.draw.randint(0, SIZE - total)
        self.pair.client.call(self.pair.address, WRITE, write(start), source=self.of(places))
        self.served[start : start + total] = b"".join(
            self.held[number][at : at + length] for number, at, length in places
        )

    def of(self, places: list[tuple[int, int, int]]) -> list[Slice]:
        return [Slice(self.regions[number], at, length) for number, at, length in places]

    def check(self) -> None:
        assert self.pair.service.data == self.served
        for region, held in zip(self.regions, self.held, strict=True):
            assert region.view == held


@pytest.mark.parametrize("seed", [1])
def test_bytes_are_right_everywhere(pair: Pair, seed: int) -> None:
    _exchange(pair, seed, ROUNDS)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [2, 3])
def test_bytes_are_right_everywhere_for_long(pair: Pair, seed: int) -> None:
    _exchange(pair, seed, ROUNDS_LONG)


def _exchange(pair: Pair, seed: int, rounds: int) -> None:
    model = Model(pair, seed)
    for _ in range(rounds):
        model.draw.choice([model.read, model.write])()
        model.check()


def test_many_regions_of_one_client(pair: Pair) -> None:
    env = pair.client.env
    regions = [env.register(bytearray(5000 + number)) for number in range(64)]
    for number, region in enumerate(regions):
        pair.client.call(pair.address, READ, read((number * 31, 4999)), target=[Slice(region, number % 2, 4999)])
    for number, region in enumerate(regions):
        assert region.view[number % 2 : number % 2 + 4999] == pair.service.data[number * 31 : number * 31 + 4999]
        env.unregister(region)

"""The disk and index of one simulated target over all the lives of its machine, and what goes wrong with them."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from typing import Any

from emberfs.storage.engine.simulated import Crash, Faults, SimulatedDisk, SimulatedIndex


class ProcessFaults(Faults):
    """Where an effect of the disk is the process's last one, the whole process ends with it."""

    def __init__(self, die: Callable[[], None]) -> None:
        super().__init__()
        self._die = die

    def effect(self, name: str, act: Callable[[], None], half: Callable[[], None] | None = None) -> None:
        self.seen.clear()  # a run has many thousand, and nobody asks
        try:
            super().effect(name, act, half)
        except Crash:
            self._die()
            raise

    def strike(self, after: int, kind: str | int) -> None:
        """At the effect that comes `after` others: "before", "after", "torn", or an errno."""
        self.at, self.kind = self.count + 1 + after, kind

    def disarm(self) -> None:
        self.at = 0

    @property
    def armed(self) -> bool:
        return self.at > self.count


class FailingDisk(SimulatedDisk):
    """Reads fail or take long as its owner says, and bits flip where they lie."""

    def __init__(self, faults: Faults, chance: random.Random) -> None:
        super().__init__(faults)
        self.read_errors = 0.0  # share of the reads
        self._chance = chance

    def preadv(self, handle: int, buffers: Sequence[Any], offset: int, wait: bool, cold: bool = False) -> int:
        if self.read_errors and self._chance.random() < self.read_errors:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().preadv(handle, buffers, offset, wait, cold)

    def flip_at(self, handle: int, offset: int) -> None:
        file = self._handles[handle]
        for data in (file.data, file.durable):
            if offset < len(data):
                data[offset] ^= 1

    def flip(self) -> str:
        """One bit of one byte that is not zero, also in what is durable. Returns where."""
        places = [name for name, file in sorted(self.files.items()) if any(file.data)]
        if not places:
            return "nowhere"
        name = self._chance.choice(places)
        file = self.files[name]
        position = self._chance.choice([i for i, byte in enumerate(file.data) if byte])
        bit = 1 << self._chance.randrange(8)
        file.data[position] ^= bit
        if position < len(file.durable):
            file.durable[position] ^= bit
        return f"{name} at {position}"


class Platters:
    """What a target has lain on since it was formatted; outlives processes and power."""

    def __init__(self, chance: random.Random, die: Callable[[], None], capacity: int, *, cold: bool) -> None:
        self.chance = chance
        self.cold = cold
        self.capacity = capacity
        self.faults = ProcessFaults(die)
        self.dark = False  # power was lost, and no process has opened it since
        self._format()

    def _format(self) -> None:
        self.incarnation = self.chance.getrandbits(63) | 1
        self.disk = FailingDisk(self.faults, self.chance)
        self.disk.cold = self.cold
        self.index = SimulatedIndex(self.faults)

    def kill(self) -> None:
        """The process is gone; what it gave to the kernel is there."""
        self.faults.disarm()
        self.disk.close()

    def power_loss(self) -> None:
        self.dark = True
        self.faults.disarm()
        self.disk.power_loss(self.chance)
        self.index.power_loss(self.chance)

    def replace(self) -> None:
        """Somebody puts an empty disk in its place."""
        self.faults.disarm()
        self._format()

"""One client under chaos: `python -m emberfs.tests.scenarios.chaos.worker URL LEDGER NUMBER WORKERS SEED TIMEOUT`.

It reads all registers and writes its own until the ledger says stop; then it ends with 0. Any error and any wrong byte ends it at once.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import emberfs
from emberfs.client.blocking import Client, File

from .registers import REGISTERS, Ledger, Register, content

BATCH_MAX = 8  # registers of one batch


def path_of(file: int) -> str:
    return f"/chaos/{file}"


class Worker:
    """Unbuffered handles for what is judged on its own; buffered ones for writes that count at their flush."""

    def __init__(self, client: Client, ledger: Ledger, number: int, workers: int, seed: int) -> None:
        self.ledger = ledger
        self.number = number
        self.chance = random.Random(f"{seed} {number}")
        self.own = [register for register in REGISTERS if register.number % workers == number]
        files = sorted({register.file for register in REGISTERS})
        self.files: list[File] = [client.open(path_of(file), "r+b", buffering=0) for file in files]
        self.buffered: list[File] = [client.open(path_of(file), "r+b") for file in files]

    def work(self) -> None:
        while not self.ledger.stopping:
            self.chance.choices([self.read, self.read_batch, self.write, self.write_batch], [4, 2, 3, 1])[0]()

    def read(self) -> None:
        self.read_of(self.chance.choice(REGISTERS))
        self.ledger.count(self.number, reads=1)

    def read_of(self, register: Register) -> int:
        oldest = self.ledger.oldest(register)
        data = self.files[register.file].pread(register.length, register.offset)
        return self.ledger.check(self.number, register, data, oldest)

    def read_batch(self) -> None:
        file = self.chance.randrange(len(self.files))
        registers = self.chance.sample([r for r in REGISTERS if r.file == file], BATCH_MAX)
        oldest = [self.ledger.oldest(register) for register in registers]
        views = self.files[file].preadv_batch([(register.offset, register.length) for register in registers])
        for register, view, least in zip(registers, views, oldest, strict=True):
            self.ledger.check(self.number, register, view, least)
        self.ledger.count(self.number, reads=len(registers))

    def write(self) -> None:
        register = self.chance.choice(self.own)
        write = self.ledger.begin(register)
        self.files[register.file].pwrite(content(register, write), register.offset)
        self.acknowledge([(register, write)])

    def write_batch(self) -> None:
        """Several registers of a file in one flush: chunks of several chains, several pieces of a chunk."""
        file = self.chance.randrange(len(self.files))
        mine = [register for register in self.own if register.file == file]
        begun = [(r, self.ledger.begin(r)) for r in self.chance.sample(mine, min(BATCH_MAX, len(mine)))]
        for register, write in begun:
            self.buffered[file].pwrite(content(register, write), register.offset)
        self.buffered[file].flush()
        self.acknowledge(begun)

    def acknowledge(self, writes: list[tuple[Register, int]]) -> None:
        for register, write in writes:
            self.ledger.acknowledge(register, write)
            self.read_of(register)
        self.ledger.count(self.number, reads=len(writes), writes=len(writes))

    def close(self) -> None:
        for file in (*self.files, *self.buffered):
            file.close()


def main(arguments: list[str]) -> int:
    url, path, number, workers, seed, timeout = arguments
    ledger = Ledger(Path(path), int(workers))
    with emberfs.connect(url, timeout=float(timeout)) as client:
        worker = Worker(client, ledger, int(number), int(workers), int(seed))
        worker.work()
        worker.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

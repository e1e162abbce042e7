"""Workers as processes of their own, and what is left of their work at the end."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import emberfs
from emberfs.proto.settings import time_scale
from emberfs.tests.scenarios.test_kill_under_load import expected

from .registers import CHUNK_BYTES, FILES, REGISTERS, Ledger, content
from .worker import path_of

WORKERS = 3  # on registers; one more works on names
PATIENCE_S = 600.0  # of one operation, before the time scale: any error is a failure, so it must outlast every fault
WAIT_S = 120.0  # for what must come to pass, however busy the machine is
POLL_S = 0.05


def until(condition: Callable[[], bool], what: str, seconds: float = WAIT_S) -> None:
    """Ask again and again, with pauses. Raises AssertionError after `seconds`."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        pause.wait(POLL_S)


class Load:
    """`within` begins the command of each worker: where it runs."""

    def __init__(self, url: str, folder: Path, seed: int, within: Sequence[str] = ()) -> None:
        self.url = url
        self.seed = seed
        self._folder = folder
        self._within = within
        self._ledger_path = folder / "ledger"
        self._journal = folder / "journal"
        self._stop = folder / "stop"
        self.ledger = Ledger(self._ledger_path, WORKERS)
        self.processes: list[subprocess.Popen[bytes]] = []

    def prepare(self) -> None:
        """Every register holds write 0, striped over all chains."""
        with emberfs.connect(self.url, timeout=self._patience()) as client:
            client.mkdir("/names")
            client.mkdir("/chaos")
            client.set_layout("/chaos", chunk_size=CHUNK_BYTES)
            for file in range(FILES):
                mine = [register for register in REGISTERS if register.file == file]
                client.write_bytes(path_of(file), b"".join(content(register, 0) for register in mine))

    @staticmethod
    def _patience() -> float:
        """Not scaled down: a machine that has much else to do is not faster for it."""
        return min(3600.0, PATIENCE_S / min(1.0, time_scale()))

    def start(self) -> None:
        for number in range(WORKERS):
            self._start("worker", self.url, str(self._ledger_path), str(number), str(WORKERS), str(self.seed))
        self._start("names", self.url, "/names", str(self.seed), str(self._journal), str(self._stop))
        self.advance()

    def _start(self, module: str, *arguments: str) -> None:
        command = [*self._within, sys.executable, "-P", "-m", f"{__package__}.{module}", *arguments]
        with open(self._log(len(self.processes)), "wb") as log:
            self.processes.append(subprocess.Popen([*command, str(self._patience())], stdout=log, stderr=log, cwd="/"))

    def _log(self, number: int) -> Path:
        return self._folder / f"worker-{number}.log"

    def check(self) -> None:
        """Raise AssertionError with the worker's own words if one has ended."""
        for number, process in enumerate(self.processes):
            if process.poll() is not None and (process.returncode or not self.ledger.stopping):
                text = self._log(number).read_text()
                raise AssertionError(f"worker {number} ended with {process.returncode}, seed {self.seed}:\n{text}")

    def progress(self) -> list[tuple[int, int]]:
        return [self.ledger.progress(number) for number in range(WORKERS)]

    def advance(self, *, writes: bool = True) -> None:
        """Until every worker has read and written once more."""
        before = self.progress()

        def has() -> bool:
            self.check()
            return all(
                now[0] > then[0] and (not writes or now[1] > then[1])
                for now, then in zip(self.progress(), before, strict=True)
            )

        until(has, f"every worker reads{' and writes' * writes}, seed {self.seed}")

    def end(self) -> tuple[int, int]:
        """Workers end after what they are at. Returns how many reads and writes there were. Raises AssertionError if one failed."""
        self.ledger.stop()
        self._stop.touch()
        for process in self.processes:
            process.wait(self._patience() * time_scale() + WAIT_S)
        self.check()
        self.verify()
        done = self.progress()
        return sum(reads for reads, _ in done), sum(writes for _, writes in done)

    def verify(self) -> None:
        """A client that knows nothing finds the last acknowledged write of every register, or one that was begun after it."""
        with emberfs.connect(self.url, timeout=self._patience()) as client:
            for file in range(FILES):
                data = client.read_bytes(path_of(file))
                for register in (each for each in REGISTERS if each.file == file):
                    piece = data[register.offset : register.offset + register.length]
                    self.ledger.check(0, register, piece, self.ledger.oldest(register))
            files, unfinished = expected(self._journal)
            assert unfinished is None
            assert {f"/names/{name}" for name in client.listdir("/names")} == set(files)
            for name, digest in files.items():
                assert hashlib.sha256(client.read_bytes(name)).hexdigest() == digest, name

    def kill(self) -> None:
        """However the test ends, no worker is left."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def seed_of_this_run() -> int:
    """EMBERFS_CHAOS_SEED, or one that nobody has tried. Printed: pytest shows it with a failure."""
    seed = int(os.environ.get("EMBERFS_CHAOS_SEED") or random.randrange(1 << 30))
    print(f"EMBERFS_CHAOS_SEED={seed}")
    return seed


def soak_seconds() -> float:
    """EMBERFS_CHAOS_SECONDS: how long a soak goes on."""
    return float(os.environ.get("EMBERFS_CHAOS_SECONDS") or 300)

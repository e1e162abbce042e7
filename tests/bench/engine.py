"""The chunk engine alone: planned reads, staged writes against bare pwrite, memory per 100,000 chunks.

`run()` returns the figures as a dictionary; ratios compare with what the host does for the same bytes in the same run.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from emberfs.proto.ids import chunk_key
from emberfs.storage.engine.checksum import crc32c, unit_crcs
from emberfs.storage.engine.engine import ChunkEngine, Kind, Update
from emberfs.storage.engine.target import open_target

KIB, MIB = 1 << 10, 1 << 20
CHUNKS = 512  # of 1 MiB, for the reads
BATCH = 64
ROUNDS = 8


def _best(work: Callable[[], int]) -> float:
    """Seconds per operation: the best of some rounds, each of which says how many operations it was."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        count = work()
        best = min(best, (time.perf_counter() - begin) / count)
    return best


def _write(engine: ChunkEngine, chunk: bytes, offset: int, data: bytes, crc: int, commit: bool = True) -> None:
    job = engine.prepare(Update(Kind.WRITE, chunk, offset, data, crc))
    job.run()
    engine.stage([job], commit=commit)
    if not commit:
        engine.commit([(chunk, job.version)])


def _reads(engine: ChunkEngine) -> dict[str, float]:
    """4 KiB random reads in batches, and the same `preadv` calls without the engine."""
    choice = random.Random(1)
    batches = [
        [(chunk_key(1024, choice.randrange(CHUNKS)), choice.randrange(256) * 4 * KIB, 4 * KIB) for _ in range(BATCH)]
        for _ in range(64)
    ]
    view = memoryview(bytearray(BATCH * 4 * KIB))
    buffers = [(view[i * 4 * KIB : (i + 1) * 4 * KIB],) for i in range(BATCH)]
    places = []
    for batch in batches:
        with engine.plan(batch) as plans:
            places.append([plan.segments[0] for plan in plans])

    def plan_only() -> int:
        for batch in batches:
            engine.plan(batch).release()
        return BATCH * len(batches)

    def plan_and_read() -> int:
        disk = engine.disk
        for batch in batches:
            with engine.plan(batch) as plans:
                for plan, buffer in zip(plans, buffers, strict=True):
                    plan.read_into(disk, buffer, False)
        return BATCH * len(batches)

    def bare() -> int:
        for batch in places:
            for (fd, offset, _), buffer in zip(batch, buffers, strict=True):
                os.preadv(fd, buffer, offset, os.RWF_NOWAIT)
        return BATCH * len(batches)

    figures = {
        "plan_4k_us": _best(plan_only) * 1e6,
        "read_4k_us": _best(plan_and_read) * 1e6,
        "bare_preadv_4k_us": _best(bare) * 1e6,
    }
    figures["planned_reads_per_s"] = 1e6 / figures["read_4k_us"]
    return figures


def _writes(engine: ChunkEngine, path: str) -> dict[str, float]:
    """Writes of 4 KiB and 1 MiB, staged and committed, against `pwrite` of the same bytes. Checkpoints run between the timed rounds."""
    small, large = os.urandom(4 * KIB), os.urandom(MIB)
    crc_small, crc_large = crc32c(small), crc32c(large)
    numbers = iter(range(1, 1 << 30))

    def bare(data: bytes, count: int, fresh: bool) -> float:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        best = float("inf")
        for round_ in range(ROUNDS):
            first = round_ * count if fresh else 0
            best = min(
                best, _timed(lambda: [os.pwrite(fd, data, (first + i) * len(data)) for i in range(count)]) / count
            )
            os.fdatasync(fd)
        os.close(fd)
        os.unlink(path)
        return best

    def engine_writes(count: int, one: Callable[[int], None]) -> float:
        best = float("inf")
        for _ in range(ROUNDS):
            best = min(best, _timed(lambda: [one(i) for i in range(count)]) / count)
            engine.checkpoint()
        return best

    def append(commit: bool) -> float:
        first = iter(range(1 << 30))
        return engine_writes(
            256,
            lambda i: _write(
                engine, chunk_key(4096 + commit, next(first) // 256), i * 4 * KIB, small, crc_small, commit
            ),
        )

    figures = {
        "pwrite_4k_us": bare(small, 256, False) * 1e6,
        "append_4k_us": append(True) * 1e6,
        "append_4k_stage_then_commit_us": append(False) * 1e6,
        "patch_4k_us": engine_writes(
            256, lambda i: _write(engine, chunk_key(1024, i), (i * 37 % 256) * 4 * KIB, small, crc_small)
        )
        * 1e6,
        "pwrite_1m_fresh_us": bare(large, 32, True) * 1e6,
        "pwrite_1m_over_us": bare(large, 32, False) * 1e6,
        "write_1m_fresh_us": engine_writes(
            32, lambda i: _write(engine, chunk_key(2048, next(numbers)), 0, large, crc_large)
        )
        * 1e6,
        "write_1m_over_us": engine_writes(32, lambda i: _write(engine, chunk_key(2048, 1 + i), 0, large, crc_large))
        * 1e6,
        "unit_checksums_1m_us": _best(lambda: len([unit_crcs(memoryview(large), 4 * KIB) for _ in range(8)])) * 1e6,
    }
    figures["write_1m_fresh_against_pwrite"] = figures["pwrite_1m_fresh_us"] / figures["write_1m_fresh_us"]
    figures["write_1m_over_against_pwrite"] = figures["pwrite_1m_over_us"] / figures["write_1m_over_us"]
    return figures


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def resident_mib() -> float:
    """What of this process is in memory and its own, MiB."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as rollup:
        fields = dict(line.split(":") for line in rollup if ":" in line and line[0].isupper())
    return int(fields["Rss"].split()[0]) / 1024


def memory(chunks: int = 100_000) -> dict[str, float]:
    """Run in a process of its own: resident memory with that many chunks of 1 MiB, of which all were read since. Their bytes are holes."""
    with tempfile.TemporaryDirectory(prefix="emberfs-bench-") as path:
        engine, _ = open_target(path, cluster="bench", capacity=1 << 40)
        before = resident_mib()
        _fill(engine, chunks)
        choice = random.Random(3)
        for _ in range(2 * chunks // BATCH):
            reads = [
                (chunk_key(1024, choice.randrange(chunks)), choice.randrange(256) * 4 * KIB, 4 * KIB)
                for _ in range(BATCH)
            ]
            engine.plan(reads).release()
        gc.collect()
        after = resident_mib()
        begin = time.perf_counter()
        for _ in range(100):
            reads = [
                (chunk_key(1024, choice.randrange(chunks)), choice.randrange(256) * 4 * KIB, 4 * KIB)
                for _ in range(BATCH)
            ]
            engine.plan(reads).release()
        cold = (time.perf_counter() - begin) / 100 / BATCH
        engine.close()
        begin = time.perf_counter()
        engine, _ = open_target(path, cluster="bench")
        opened = time.perf_counter() - begin
        engine.close()
    return {
        "memory_empty_mib": before,
        "memory_with_chunks_mib": after,
        "memory_chunks": chunks,
        "plan_4k_over_all_chunks_us": cold * 1e6,
        "open_s": opened,
    }


class _NoBytes:
    """A disk that takes writes and keeps nothing: 100 GB of chunks in an instant."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def pwritev(self, handle: int, buffers: Any, offset: int, cold: bool = False) -> None:
        pass

    def allocate(self, handle: int, offset: int, length: int) -> None:
        os.ftruncate(handle, offset + length)


def _fill(engine: ChunkEngine, chunks: int) -> None:
    hollow = _NoBytes(engine.disk)
    engine.space._disk = hollow  # type: ignore[assignment]
    data = os.urandom(MIB)
    crc = crc32c(data)
    for first in range(0, chunks, 256):
        jobs = []
        for i in range(first, min(first + 256, chunks)):
            job = engine.prepare(Update(Kind.WRITE, chunk_key(1024, i), 0, data, crc))
            job.disk = hollow  # type: ignore[assignment]
            job.run()
            jobs.append(job)
        engine.stage(jobs, commit=True)


def run() -> dict[str, Any]:
    """All figures. Takes about half a minute and 2 GiB of disk."""
    with tempfile.TemporaryDirectory(prefix="emberfs-bench-") as path:
        engine, _ = open_target(os.path.join(path, "target"), cluster="bench", capacity=64 << 30)
        data = os.urandom(MIB)
        for i in range(CHUNKS):
            _write(engine, chunk_key(1024, i), 0, data, crc32c(data))
        engine.checkpoint()
        figures: dict[str, Any] = _reads(engine)
        figures |= _writes(engine, os.path.join(path, "plain"))
        engine.close()
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from emberfs.tests.bench import engine; print(json.dumps(engine.memory()))",
        ],
        check=True,
        capture_output=True,
    )
    return figures | json.loads(child.stdout)


if __name__ == "__main__":
    for name, value in run().items():
        print(f"{name:34} {value:12.2f}")

"""The embedded KV engine beside bare rocksdict, in one run: reads, transactions of three keys, durable ones; one and sixteen in flight.

    python -m emberfs.tests.bench.kv_engine [--files N]

`--files N` also fills a store like a namespace of N files (an inode and an entry each) and prints what the process then has resident.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from rocksdict import Rdict, WriteBatch, WriteOptions

from emberfs.meta.kv.engine import KEYS_END
from emberfs.meta.kv.rocksdb import RocksEngine
from emberfs.meta.kv.rocksdb_options import options

ROWS = 100_000
VALUE = b"v" * 100
IN_FLIGHT = 16


def key(i: int) -> bytes:
    return b"INOD" + (i % ROWS).to_bytes(8, "big")


def bare(folder: str) -> dict[str, float]:
    """Microseconds per operation of rocksdict itself, with the engine's options."""
    database = Rdict(folder + "/bare", options())
    for i in range(ROWS):
        database.put(key(i), VALUE)

    def write(i: int, how: WriteOptions | None = None) -> None:
        batch = WriteBatch(raw_mode=True)
        for j in range(3):
            batch.put(key(i + j), VALUE)
        database.write(batch, how)

    synced = WriteOptions()
    synced.sync = True
    figures = {
        "get": each(lambda i: database.get(key(i * 7919)), 100_000),
        "batch of 3": each(write, 30_000),
        "synced batch of 3": each(lambda i: write(i, synced), 300),
    }
    database.close()
    return figures


def each(work: Callable[[int], Any], count: int) -> float:
    began = time.perf_counter()
    for i in range(count):
        work(i)
    return (time.perf_counter() - began) / count * 1e6


async def each_of(work: Callable[[int], Awaitable[Any]], count: int, in_flight: int = 1) -> float:
    async def worker(first: int) -> None:
        for i in range(first, count, in_flight):
            await work(i)

    began = time.perf_counter()
    await asyncio.gather(*(worker(first) for first in range(in_flight)))
    return (time.perf_counter() - began) / count * 1e6


async def engine_figures(folder: str) -> dict[str, float]:
    """Microseconds per operation of the engine."""
    engine = RocksEngine(folder + "/kv", time.monotonic)
    for i in range(0, ROWS, 1000):
        transaction = engine.begin()
        for j in range(i, i + 1000):
            transaction.put(key(j), VALUE)
        await transaction.commit()

    async def commit(i: int, durable: bool = False) -> None:
        transaction = engine.begin()
        await transaction.get(key(i))
        for j in range(3):
            transaction.put(key(i + j), VALUE)
        await transaction.commit(durable=durable)

    async def contend(i: int) -> None:
        transaction = engine.begin()
        await transaction.get(key(i))
        await asyncio.sleep(0)  # all the others begin and commit in between
        for j in range(3):
            transaction.put(key(i + j * 50), VALUE)
        transaction.add(b"count", 1)
        await transaction.commit()

    reader = engine.begin()
    figures = {
        "get": await each_of(lambda i: reader.get(key(i * 7919), snapshot=True), 100_000),
        "begin + get": await each_of(lambda i: engine.begin().get(key(i * 7919)), 100_000),
        "scan of 100": await each_of(lambda i: engine.begin().scan(key(i * 100), KEYS_END, 100), 1000),
        "get + 3 puts, commit": await each_of(commit, 30_000),
        f"the same, {IN_FLIGHT} in flight": await each_of(commit, 30_000, IN_FLIGHT),
        f"interleaved, with an add, {IN_FLIGHT} in flight": await each_of(
            lambda i: contend(i * 200), 30_000, IN_FLIGHT
        ),
        "durable commit": await each_of(lambda i: commit(i, True), 300),
        f"durable commit, {IN_FLIGHT} in flight": await each_of(lambda i: commit(i, True), 3000, IN_FLIGHT),
    }
    await engine.close()
    return figures


async def resident_megabytes(folder: str, files: int) -> dict[str, float]:
    """What this process has resident, in MB, after a store was filled with `files` files, and after all were read in random order."""
    engine = RocksEngine(folder + "/files", time.monotonic)
    before = _resident()
    for i in range(0, files, 100):
        transaction = engine.begin()
        for j in range(i, i + 100):
            transaction.put(b"INOD" + j.to_bytes(8, "little"), VALUE + os.urandom(40))
            transaction.put(b"DENT" + (j // 1000).to_bytes(8, "big") + b"file-%09d.parquet" % j, os.urandom(17))
            transaction.add(b"USAG" + (j // 1000).to_bytes(8, "big"), 1)
        await transaction.commit()
    filled = _resident()
    for i in range(files):
        await engine.begin().get(b"INOD" + (i * 7919 % files).to_bytes(8, "little"))
    read = _resident()
    await engine.close()
    return {"before": before, "filled": filled, "all read": read}


def _resident() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def run(files: int = 0) -> dict[str, Any]:
    """The figures: microseconds, ratios against bare rocksdict, megabytes."""
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        alone = bare(folder)
        ours = uvloop.run(engine_figures(folder))
        result: dict[str, Any] = {
            "rocksdict_us": alone,
            "engine_us": ours,
            "ratio": {
                "get": ours["get"] / alone["get"],
                "commit": ours["get + 3 puts, commit"] / (alone["get"] + alone["batch of 3"]),
                "durable commit": ours["durable commit"] / alone["synced batch of 3"],
                f"durable commit, {IN_FLIGHT} in flight": ours[f"durable commit, {IN_FLIGHT} in flight"]
                / alone["synced batch of 3"],
            },
        }
        if files:
            result["resident_mb"] = {"files": files, **uvloop.run(resident_megabytes(folder, files))}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--files", type=int, default=0, help="also measure the memory with this many files")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    result = run(chosen.files)
    if chosen.json:
        print(json.dumps(result))
        return
    for title, figures in result.items():
        print(title)
        for name, figure in figures.items():
            print(f"  {name:45} {figure:10.2f}")


if __name__ == "__main__":
    main()

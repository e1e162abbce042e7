"""What only the embedded engine has: opening, durability, a disk that fails, a process that is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from emberfs.meta.kv import log_sync
from emberfs.meta.kv.engine import KEYS_END
from emberfs.meta.kv.overlay import Overlay
from emberfs.meta.kv.recent import WRITE_SETS_MAX, Recent
from emberfs.meta.kv.rocksdb import CLEAR_SINGLY_MAX, RocksEngine
from emberfs.meta.kv.rocksdb_options import FORMAT_KEY, options
from emberfs.proto.errors import Status, StatusError

from .conftest import Clock
from .test_conformance import everything, number, refuses, store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "kv")


# Opening.


async def test_what_was_committed_is_there_after_reopening(path: str, clock: Clock) -> None:
    versions = []
    for i in range(3):
        engine = RocksEngine(path, clock.now)
        transaction = engine.begin()
        transaction.add(b"opened", 1)
        transaction.put_versionstamped(b"log/", b"", b"%d" % i)
        versions.append(await transaction.commit())
        await engine.close()
    engine = RocksEngine(path, clock.now)
    assert await engine.begin().get(b"opened") == number(3)
    assert [value for _, value in await engine.begin().scan(b"log/", b"log0", 9)] == [b"0", b"1", b"2"]
    assert versions == sorted(versions)
    assert (await everything(engine)).keys().isdisjoint([FORMAT_KEY])
    await engine.close()


async def test_a_store_is_opened_once(path: str, clock: Clock) -> None:
    engine = RocksEngine(path, clock.now)
    with pytest.raises(StatusError, match="another process has the metadata store open") as refusal:
        RocksEngine(path, clock.now)
    assert refusal.value.status is Status.BUSY_RESOURCE
    code = (
        "import sys, time; from emberfs.meta.kv.open import open_engine\n"
        "try: open_engine(sys.argv[1])\n"
        "except OSError as failure: print(failure.status.name)"
    )
    done = subprocess.run([sys.executable, "-c", code, f"rocksdb://{path}"], capture_output=True, text=True, check=True)
    assert done.stdout == "BUSY_RESOURCE\n"
    reader = engine.begin()
    await store(engine, a=b"1")
    await engine.close()
    await RocksEngine(path, clock.now).close()  # although `reader` still has a snapshot
    del reader


def refused(path: str, clock: Clock, status: Status, words: str) -> None:
    with pytest.raises(StatusError, match=words) as refusal:
        RocksEngine(path, clock.now)
    assert refusal.value.status is status
    assert path in str(refusal.value)


def test_not_a_directory(path: str, clock: Clock) -> None:
    Path(path).write_text("a file")
    refused(path, clock, Status.NOT_DIRECTORY, "is not a directory")
    with pytest.raises(StatusError) as refusal:
        RocksEngine(path + "/below", clock.now)
    assert refusal.value.status is Status.NOT_DIRECTORY


def test_not_permitted(path: str, clock: Clock) -> None:
    os.mkdir(path, 0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        refused(path, clock, Status.PERMISSION_DENIED, "must own it")
    finally:
        os.seteuid(user)


def test_files_of_somebody_else(path: str, clock: Clock) -> None:
    os.mkdir(path)
    (Path(path) / "thesis.tex").write_text("")
    refused(path, clock, Status.BAD_FORMAT, "choose an empty directory")


def test_a_database_of_somebody_else(path: str, clock: Clock) -> None:
    database = Rdict(path, Options(raw_mode=True))
    database.put(b"theirs", b"")
    database.close()
    refused(path, clock, Status.BAD_FORMAT, "emberfs did not write")


@pytest.mark.parametrize(
    ("value", "words"), [(b"emberfs-kv 2", "start a newer emberfs"), (b"?", "no version of emberfs")]
)
async def test_another_format(path: str, clock: Clock, value: bytes, words: str) -> None:
    await RocksEngine(path, clock.now).close()
    database = Rdict(path, options())
    database.put(FORMAT_KEY, value)
    database.close()
    refused(path, clock, Status.BAD_FORMAT, words)


async def test_a_damaged_manifest(path: str, clock: Clock) -> None:
    await RocksEngine(path, clock.now).close()
    current = Path(path) / (Path(path) / "CURRENT").read_text().strip()
    current.write_bytes(b"\x55" * current.stat().st_size)
    refused(path, clock, Status.BAD_FORMAT, "damaged")


async def test_an_unreadable_block_is_an_error_not_an_end(path: str, clock: Clock) -> None:
    engine = RocksEngine(path, clock.now)
    await store(engine, **{f"{i:04}": os.urandom(100) for i in range(2000)})
    await engine.close()
    (table,) = Path(path).glob("*.sst")
    healthy = table.read_bytes()
    third = len(healthy) // 3
    table.write_bytes(healthy[:third] + b"\x55" * 50 + healthy[third + 50 :])
    engine = RocksEngine(path, clock.now)
    reader = engine.begin()
    assert len(await reader.scan(b"", KEYS_END, 100)) == 100
    with refuses(Status.IO_ERROR):
        await reader.scan(b"", KEYS_END, 10_000)
    with refuses(Status.IO_ERROR):
        for i in range(2000):
            await engine.begin().get(b"%04d" % i)
    transaction = engine.begin()
    for i in range(2000):
        transaction.add(b"%04d" % i, 1)
    with refuses(Status.IO_ERROR):
        await transaction.commit()
    await store(engine, other=b"")  # a block is lost, the engine lives
    await engine.close()


async def test_an_unreadable_format_record(path: str, clock: Clock) -> None:
    engine = RocksEngine(path, clock.now)
    await store(engine, a=b"1")
    await engine.close()
    (table,) = Path(path).glob("*.sst")
    damaged = bytearray(table.read_bytes())
    damaged[5:20] = b"\x55" * 15
    table.write_bytes(damaged)
    refused(path, clock, Status.BAD_FORMAT, "damaged")


# Conflicts with the past.


async def test_a_wiped_range_is_not_read_back_from_the_past(path: str, clock: Clock) -> None:
    """Its keys are not kept, so a scan of an older version cannot be answered; a single key can."""
    engine = RocksEngine(path, clock.now)
    await store(engine, **{f"m{i:04}": b"" for i in range(CLEAR_SINGLY_MAX + 1)})
    reader = engine.begin()
    cleaner = engine.begin()
    cleaner.delete_range(b"m", b"n")
    await cleaner.commit()
    assert await everything(engine) == {}
    assert await reader.get(b"m0007", snapshot=True) == b""
    assert await reader.scan(b"n", b"z", 9) == []
    with refuses(Status.CONFLICT):
        await reader.scan(b"a", b"z", 9, snapshot=True)
    await engine.close()


async def test_nothing_is_kept_for_transactions_that_are_gone(path: str, clock: Clock) -> None:
    engine = RocksEngine(path, clock.now)
    recent = engine.recent
    kept: Callable[[], tuple[int, int]] = lambda: (len(recent._epochs), len(recent._write_sets))  # noqa: E731
    await store(engine, a=b"1")
    assert kept() == (0, 0)
    old = engine.begin()
    for _ in range(3):
        await store(engine, a=b"1")
    assert kept()[1] == 3
    clock.time += 6
    await store(engine, a=b"2")
    assert kept() == (0, 0)
    with refuses(Status.CONFLICT):
        await old.get(b"a")
    dropped = engine.begin()
    await store(engine, a=b"3")
    del dropped
    await store(engine, a=b"4")
    assert kept() == (0, 0)
    await engine.close()


def test_write_sets_have_a_greatest_number() -> None:
    recent: Recent[str] = Recent(0)
    old = recent.join(0.0)
    for version in range(1, WRITE_SETS_MAX + 2):
        recent.keep_snapshot(lambda: "snapshot")
        recent.committed(version, Overlay(), [b"k"], [], 0.0)
        assert old.lost == (version == WRITE_SETS_MAX + 1)


# Durability.


def syncs(made: Options) -> int:
    """How often RocksDB has synced its log, by its own count."""
    line = next(line for line in made.get_statistics().splitlines() if line.startswith("rocksdb.wal.synced"))
    return int(line.split()[-1])


async def test_durable_means_that_the_log_was_synced(path: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_sync, "SYNC_DELAY_SECONDS", 600.0)  # what nobody waits for does not count here
    made = options()
    made.enable_statistics()
    engine = RocksEngine(path, clock.now, using=made)
    await engine.sync()
    before = syncs(made)
    await store(engine, a=b"1")
    assert syncs(made) == before
    reader = engine.begin()
    assert await reader.get(b"a") == b"1"
    await reader.commit(durable=True)  # what it read must not vanish either
    assert syncs(made) == before + 1
    await reader_of_the_same(engine)
    assert syncs(made) == before + 1
    transaction = engine.begin()
    transaction.put(b"a", b"2")
    await transaction.commit(durable=True)
    assert syncs(made) == before + 2
    await store(engine, a=b"3")
    await engine.sync()
    assert syncs(made) == before + 3

    async def durable(i: int) -> None:
        transaction = engine.begin()
        transaction.put(b"%d" % i, b"")
        await transaction.commit(durable=True)

    await asyncio.gather(*(durable(i) for i in range(100)))
    assert before + 4 <= syncs(made) <= before + 6  # shared
    await store(engine, a=b"4")
    last = syncs(made)
    await engine.close()
    assert syncs(made) > last


async def reader_of_the_same(engine: RocksEngine) -> None:
    reader = engine.begin()
    await reader.get(b"a")
    await reader.commit(durable=True)


async def test_what_nobody_waits_for_is_synced_within_a_second(path: str, clock: Clock) -> None:
    synced = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sync(database: Rdict) -> None:
        database.flush_wal(True)
        loop.call_soon_threadsafe(synced.set)

    engine = RocksEngine(path, clock.now, sync_wal=sync)
    for _ in range(2):
        synced.clear()
        await store(engine, a=b"1")
        assert not synced.is_set()
        await asyncio.wait_for(synced.wait(), 60)
        await engine.sync()
    await engine.close()


async def test_a_cancelled_waiter_leaves_the_others_waiting(path: str, clock: Clock) -> None:
    engine = RocksEngine(path, clock.now)
    await store(engine, a=b"1")
    tasks = [asyncio.create_task(engine.sync()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled() or tasks[0].done()
    await engine.close()


async def test_a_failed_sync_takes_the_engine_down(path: str, clock: Clock) -> None:
    tried: list[str] = []
    heard: list[StatusError] = []

    def sync(_: Rdict) -> None:
        tried.append("sync")
        raise OSError(5, "Input/output error")

    engine = RocksEngine(path, clock.now, sync_wal=sync, on_failure=heard.append)
    begun = [engine.begin() for _ in range(3)]
    for transaction in begun:
        transaction.put(b"a", b"1")
    results = await asyncio.gather(*(t.commit(durable=True) for t in begun), return_exceptions=True)
    assert [result.status for result in results if isinstance(result, StatusError)] == [Status.MAYBE_COMMITTED] * 3
    with refuses(Status.IO_ERROR):
        engine.begin()
    with refuses(Status.IO_ERROR):
        await engine.sync()
    await engine.close()
    assert tried == ["sync"]  # a second fsync could call lost pages written
    assert [failure.status for failure in heard] == [Status.IO_ERROR]
    assert path in str(heard[0])


FULL_DISK = """
import asyncio, resource, sys
from emberfs.meta.kv.open import open_engine
from emberfs.proto.errors import Status, StatusError

async def main():
    heard = []
    engine = open_engine(sys.argv[1], on_failure=heard.append)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # what a write to a full disk does, for any user
    for i in range(100):
        transaction = engine.begin()
        transaction.put(b"%04d" % i, b"v" * 9000)
        try:
            await transaction.commit()
        except StatusError as failure:
            assert failure.status is Status.MAYBE_COMMITTED, failure
            break
        print(i, flush=True)
    assert len(heard) == 1 and heard[0].status is Status.IO_ERROR, heard
    try:
        engine.begin()
    except StatusError as failure:
        assert failure.status is Status.IO_ERROR
        print("down", flush=True)
    await engine.close()

asyncio.run(main())
"""


async def test_a_failed_write_takes_the_engine_down(path: str, clock: Clock) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"rocksdb://{path}"], capture_output=True, text=True, check=False
    )
    assert "down" in done.stdout.splitlines(), done.stderr
    assert "kv_engine_down" in done.stdout
    acknowledged = [line for line in done.stdout.splitlines() if line.isdigit()]
    assert len(acknowledged) > 5
    engine = RocksEngine(path, clock.now)
    found = await everything(engine)
    assert found.keys() >= {b"%04d" % int(i) for i in acknowledged}
    await engine.close()


# Kill -9.

COMMITTER = """
import asyncio, os, sys
from emberfs.meta.kv.open import open_engine

async def main():
    engine = open_engine(sys.argv[1])
    start = int(sys.argv[2])

    async def commit(worker):
        for i in range(100_000):
            name = b"%d/%d/%d" % (start, worker, i)
            transaction = engine.begin()
            await transaction.get(name)
            transaction.put(b"a/" + name, b"x" * 300)
            transaction.put(b"b/" + name, b"y" * 300)
            transaction.put_versionstamped(b"c/", b"/" + name, b"z")
            transaction.add(b"count", 1)
            await transaction.commit(durable=i % 7 == worker)
            os.write(1, name + b"\\n")
            await asyncio.sleep(0)

    await asyncio.gather(*(commit(worker) for worker in range(6)))

asyncio.run(main())
"""


def commit_until_killed(path: str, round_: int, acknowledgements: int) -> set[bytes]:
    """The names of the transactions that a process has acknowledged before it was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMITTER, f"rocksdb://{path}", str(round_)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    return {line[:-1] for line in lines if line.endswith(b"\n")}


async def test_acknowledged_commits_survive_kill_9_whole(path: str, clock: Clock) -> None:
    chance = random.Random(11)
    acknowledged: set[bytes] = set()
    for round_ in range(4):
        acknowledged |= commit_until_killed(path, round_, chance.randrange(1, 1500))
        engine = RocksEngine(path, clock.now)
        found: dict[bytes, set[bytes]] = {}
        reader = engine.begin()
        for prefix in (b"a/", b"b/", b"c/"):
            pairs = await reader.scan(prefix, prefix[:1] + b"0", 1_000_000)
            found[prefix] = {key[2:] if prefix != b"c/" else key[13:] for key, _ in pairs}
        assert found[b"a/"] == found[b"b/"] == found[b"c/"]  # no half transaction
        assert acknowledged <= found[b"a/"]
        assert await reader.get(b"count") == number(len(found[b"a/"]))
        await engine.close()
    assert len(acknowledged) > 100

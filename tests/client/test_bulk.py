"""Many ranges of many files in one batched read: in place, verified, whatever has to be asked for again."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from emberfs.client import aio
from emberfs.client.blocking import Client
from emberfs.client.core.client import Core
from emberfs.client.core.options import Options
from emberfs.client.core.reads import PATIENT_ROWS_MIN
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError, error

from .world import World

MIB = 1 << 20
SIZES = (3 * MIB + 17, 100, 2 * MIB, 70_000)  # the second lies beside its inode


@pytest.fixture
def files(client: Client) -> list[tuple[Any, bytes]]:
    made = []
    for number, size in enumerate(SIZES):
        data = random.Random(number).randbytes(size)
        client.write_bytes(f"/{number}", data)
        made.append((client.open(f"/{number}", "rb"), data))
    return made


def ranges(files: list[tuple[Any, bytes]], count: int, seed: int = 1) -> list[tuple[int, int, int]]:
    """(file, offset, length), some of them empty, some over the ends of chunks."""
    choose = random.Random(seed)
    made = []
    for _ in range(count):
        file = choose.randrange(len(files))
        size = len(files[file][1])
        offset = choose.randrange(size)
        made.append((file, offset, min(choose.choice((0, 1, 4096, 200_000)), size - offset)))
    return made


def bulk(client: Client, files: list[tuple[Any, bytes]], wanted: list[tuple[int, int, int]]) -> bytes:
    file, offsets, lengths = map(list, zip(*wanted, strict=True))
    batch = client.bulk_read([one for one, _ in files], file, offsets, lengths)
    try:
        return bytes(batch.finish())
    finally:
        batch.release()


def expected(files: list[tuple[Any, bytes]], wanted: list[tuple[int, int, int]]) -> bytes:
    return b"".join(files[file][1][offset : offset + length] for file, offset, length in wanted)


def test_a_batch_holds_the_ranges_one_after_the_other(client: Client, files: list[tuple[Any, bytes]]) -> None:
    for seed in range(5):
        wanted = ranges(files, 60, seed)
        assert bulk(client, files, wanted) == expected(files, wanted)
    assert client.core.env.pool.used == 0


def test_one_request_for_all_of_a_batch(world: World, client: Client, files: list[tuple[Any, bytes]]) -> None:
    wanted = [(file, 4096 * i, 4096) for i in range(10) for file in (0, 2, 3)]
    world.storage.requests.clear()
    assert bulk(client, files, wanted) == expected(files, wanted)
    assert world.storage.requests.count("read") == 1


def test_only_who_waits_for_many_ranges_is_patient(client: Client, files: list[tuple[Any, bytes]]) -> None:
    env = client.core.env
    start, patient = env.start, []

    def started(call: Call) -> Any:
        if call.target:
            patient.append(call.patient)
        return start(call)

    env.start = started  # type: ignore[method-assign]
    for count in (PATIENT_ROWS_MIN, PATIENT_ROWS_MIN - 1):
        wanted = [(0, 4096 * i, 4096) for i in range(count)]
        assert bulk(client, files, wanted) == expected(files, wanted)
    assert patient == [True, False]


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.STALE_CHAIN_VERSION, Status.CAPABILITY_EXPIRED])
def test_what_was_refused_is_asked_for_again_and_brought_home(
    world: World, client: Client, files: list[tuple[Any, bytes]], status: Status
) -> None:
    wanted = ranges(files, 30)
    world.storage.statuses.extend([Status.OK, status, Status.OK, status])
    assert bulk(client, files, wanted) == expected(files, wanted)
    assert client.core.env.pool.used == 0


def test_a_request_that_fails_leaves_its_memory_alone(
    world: World, client: Client, files: list[tuple[Any, bytes]]
) -> None:
    wanted = ranges(files, 30)
    world.storage.raises.append(error(Status.BUSY, "try again"))
    assert bulk(client, files, wanted) == expected(files, wanted)
    world.storage.raises_after.append(error(Status.MAYBE_COMMITTED, "nobody knows"))
    assert bulk(client, files, wanted) == expected(files, wanted)
    assert client.core.env.pool.used == 0


def test_damaged_bytes_are_read_again(world: World, client: Client, files: list[tuple[Any, bytes]]) -> None:
    wanted = ranges(files, 30)
    world.storage.flips.append(0x40)
    assert bulk(client, files, wanted) == expected(files, wanted)


def test_ranges_beyond_the_end_are_refused_unless_the_file_has_grown(
    client: Client, files: list[tuple[Any, bytes]]
) -> None:
    with pytest.raises(StatusError) as refused:
        bulk(client, files, [(3, 69_999, 2)])
    assert refused.value.status is Status.INVALID
    with client.open("/3", "ab") as more:
        more.write(b"more")
    assert bulk(client, files, [(3, 69_999, 2)])[1:] == b"m"
    assert client.core.env.pool.used == 0


def test_what_was_written_here_is_seen(client: Client) -> None:
    with client.open("/file", "wb+") as file:
        file.write(b"x" * 10_000)
        batch = client.bulk_read([file], [0, 0], [9_000, 0], [1000, 10])
        assert bytes(batch.finish()) == b"x" * 1010
        batch.release()


def test_holes_are_zeros(client: Client) -> None:
    with client.open("/sparse", "wb+") as file:
        file.pwrite(b"end", 3 * MIB)
        file.flush()
        batch = client.bulk_read([file], [0, 0], [MIB, 3 * MIB - 1], [5000, 4])
        assert bytes(batch.finish()) == bytes(5001) + b"end"
        batch.release()


def test_a_full_pool_says_so_and_what_is_given_up_comes_back(client: Client, files: list[tuple[Any, bytes]]) -> None:
    held = []
    with pytest.raises(StatusError) as refused:
        while True:
            held.append(client.bulk_read([files[0][0]], [0] * 3, [0] * 3, [3 * MIB] * 3))
    assert refused.value.status is Status.BUSY and held
    for batch in held:
        batch.release()
        batch.release()
    assert client.core.env.pool.used == 0
    assert bulk(client, files, [(0, 0, 10)]) == files[0][1][:10]


def test_into_given_memory(client: Client, files: list[tuple[Any, bytes]]) -> None:
    wanted = [*ranges(files, 50), (0, 0, SIZES[0]), (2, 5, SIZES[2] - 5)] * 4  # more than one window
    rows = [(files[file][0], offset, length) for file, offset, length in wanted]
    memory = bytearray(len(expected(files, wanted)) + 7)
    views = client.read_many(rows, memory)
    assert bytes(memory) == expected(files, wanted) + bytes(7)
    assert [bytes(view) for view in views] == [expected(files, [one]) for one in wanted]
    with pytest.raises(StatusError):
        client.read_many(rows, bytes(len(memory)))
    assert client.core.env.pool.used == 0
    assert client.read_many([]) == []


async def test_on_a_loop(world: World, files: list[tuple[Any, bytes]]) -> None:
    chosen = Options.of({"memory": 64 << 20})
    core = Core(AioEnvironment(pool_bytes=chosen.memory, local=world.network), ["local:meta"], chosen, 0o022)
    async with aio.Client(core) as client:
        await client.core.connect()
        opened = [await client.open(f"/{number}") for number in range(len(SIZES))]
        wanted = ranges(files, 40)
        file, offsets, lengths = map(list, zip(*wanted, strict=True))
        batch = await client.bulk_read(opened, file, offsets, lengths)
        assert bytes(await batch.finish()) == expected(files, wanted)
        batch.release()
        views = await client.read_many([(opened[f], offset, length) for f, offset, length in wanted])
        assert b"".join(views) == expected(files, wanted)


def test_a_child_goes_on_by_itself(client: Client, files: list[tuple[Any, bytes]]) -> None:
    wanted = ranges(files, 30)
    batch = client.bulk_read([one for one, _ in files], *map(list, zip(*wanted, strict=True)))
    child = os.fork()
    if child == 0:
        batch.release()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert bytes(batch.finish()) == expected(files, wanted)
    batch.release()

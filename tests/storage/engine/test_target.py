"""Real directories: format, lock, reopening, damage, and a killed process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.checksum import crc32c
from emberfs.storage.engine.engine import ChunkEngine, Kind, Opened, Update
from emberfs.storage.engine.row import PATCHES_MAX
from emberfs.storage.engine.slots import CLASS_BYTES
from emberfs.storage.engine.target import CAPACITY_MIN, FORMAT_FILE, Format, open_target, read_format

from .harness import check_invariants, key, written

CAPACITY = 256 << 20
MIB = 1 << 20


def opened(path: Path, **more: object) -> ChunkEngine:
    return open_target(str(path), cluster="c1", capacity=CAPACITY, **more)[0]  # type: ignore[arg-type]


def put(engine: ChunkEngine, chunk: bytes, offset: int, data: bytes, chunk_size: int = MIB) -> Update:
    update = Update(Kind.WRITE, chunk, offset, data, crc32c(data), chunk_size)
    engine.apply([update])
    return update


def refused(status: Status, path: Path, **more: object) -> str:
    with pytest.raises(StatusError) as caught:
        open_target(str(path), **{"cluster": "c1", "capacity": CAPACITY, **more})  # type: ignore[arg-type]
    assert caught.value.status is status
    return str(caught.value)


def test_an_empty_directory_is_formatted_once(tmp_path: Path) -> None:
    engine, first = open_target(str(tmp_path / "t"), cluster="c1", capacity=CAPACITY)
    assert engine.found.opened is Opened.NEW
    engine.close()
    engine, again = open_target(str(tmp_path / "t"), cluster="c1")
    assert first == again == Format(1, first.incarnation, "c1", CAPACITY)
    assert engine.found.opened is Opened.CLEAN
    engine.close()


def test_an_index_that_is_gone_is_noticed_and_not_forgotten_at_the_next_start(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    assert not engine.lost  # nothing was here before
    engine.close()
    shutil.rmtree(tmp_path / "index")
    for _ in range(2):
        engine = opened(tmp_path)
        assert engine.lost
        engine.close()
    engine = opened(tmp_path)
    engine.complete()
    assert not engine.lost
    engine.close()
    engine = opened(tmp_path)
    assert not engine.lost
    engine.close()


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert "thesis.tex" in refused(Status.BAD_FORMAT, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["lock", "thesis.tex"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"version": 3}, Status.BAD_FORMAT),
        ({"version": "x"}, Status.BAD_FORMAT),
        ({"chunk_id": "other"}, Status.BAD_FORMAT),
        ({"version": 0}, Status.BAD_FORMAT),
        ({"incarnation": 0}, Status.BAD_FORMAT),
        ({"incarnation": 1 << 64}, Status.BAD_FORMAT),
        ({"incarnation": float("inf")}, Status.BAD_FORMAT),
        ({"capacity": -1}, Status.BAD_FORMAT),
        ({"capacity": 1 << 64}, Status.BAD_FORMAT),
        ({"cluster": "c2"}, Status.WRONG_CLUSTER),
    ],
)
def test_another_format_is_refused(tmp_path: Path, change: dict[str, object], status: Status) -> None:
    opened(tmp_path).close()
    file = tmp_path / FORMAT_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    refused(status, tmp_path)


def test_a_damaged_format_file_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for content in ("{", "[]", "[" * 100_000):
        (tmp_path / FORMAT_FILE).write_text(content)
        refused(Status.BAD_FORMAT, tmp_path)


def test_too_small_a_target_is_refused(tmp_path: Path) -> None:
    refused(Status.INVALID, tmp_path, capacity=CAPACITY_MIN - 1)
    assert read_format(str(tmp_path)) is None


def test_a_target_is_served_by_one_process(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    refused(Status.BUSY_RESOURCE, tmp_path)
    engine.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("chunk_size", [64 << 10, MIB, 16 * MIB])
def test_random_updates_on_real_files(tmp_path: Path, direct: bool, chunk_size: int) -> None:
    choice = random.Random(chunk_size)
    engine = opened(tmp_path, direct=direct)
    content: bytes | None = None
    shapes = set()
    for round_ in range(40):
        size = len(content or b"")
        offset = choice.choice([0, size, choice.randrange(size + 1), min(size + 9000, chunk_size - 1)])
        offset = min(offset, chunk_size - 1)
        length = min(
            choice.choice([1, 4096, choice.randint(1, 60_000), choice.randint(1, chunk_size // 4)]), chunk_size - offset
        )
        data = choice.randbytes(length)
        update = Update(Kind.WRITE, key(1), offset, data, crc32c(data), chunk_size)
        if round_ % 9 == 8:
            update = Update(Kind.TRUNCATE, key(1), choice.randint(1, size), chunk_size=chunk_size)
        job = engine.prepare(update)
        shapes.add(job.shape.name)
        job.run()
        engine.stage([job], commit=True)
        content = written(content, update)
        if round_ % 10 == 9:
            engine.close()
            engine = opened(tmp_path, direct=direct)
        assert engine.read(key(1)) == content
    check_invariants(engine)
    engine.close()
    assert {"APPEND", "COPY", "PATCH"} <= shapes


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    """Read as a whole, as a unit, at an edge, and when new bytes must be merged with it."""
    engine = opened(tmp_path)
    put(engine, key(1), 0, random.Random(1).randbytes(MIB))
    with engine.plan([(key(1), 8192, 4096)]) as (plan,):
        handle, offset, _ = plan.segments[0]
    flipped = bytes([os.pread(handle, 1, offset + 77)[0] ^ 4])
    os.pwrite(handle, flipped, offset + 77)
    for piece in [(0, MIB), (8192, 4096), (4096, 8192), (8192 + 100, 10), (8000, 1000)]:
        with pytest.raises(StatusError) as caught:
            engine.read(key(1), *piece)
        assert caught.value.status is Status.CHECKSUM
        assert key(1).hex() in str(caught.value)
    assert len(engine.read(key(1), 0, 8192)) == 8192
    with pytest.raises(StatusError) as caught:
        put(engine, key(1), 8192 + 5, b"x")
    assert caught.value.status is Status.CHECKSUM
    put(engine, key(1), 8192, b"y" * 4096)  # the whole unit is new: nothing of the damage is left
    assert engine.read(key(1), 8192, 4096) == b"y" * 4096
    engine.close()


def test_a_block_file_that_lost_its_end_is_an_error_not_zeros(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    put(engine, key(1), 0, b"z" * MIB)
    engine.close()
    (file,) = (tmp_path / "blocks").iterdir()
    os.truncate(file, 4096)
    engine = opened(tmp_path)
    with pytest.raises(StatusError) as caught:
        engine.read(key(1), 0, 8192)
    assert caught.value.status is Status.IO_ERROR
    engine.close()


def test_one_patch_too_many_folds(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    put(engine, key(1), 0, bytes(MIB))
    shapes = []
    for i in range(PATCHES_MAX + 2):
        job = engine.prepare(Update(Kind.WRITE, key(1), i * 28672, b"p" * 4096, crc32c(b"p" * 4096)))
        shapes.append(job.shape.name)
        job.run()
        engine.stage([job], commit=True)
    assert shapes == ["PATCH"] * PATCHES_MAX + ["COPY", "PATCH"]
    assert engine.read(key(1)).count(b"p") == 4096 * (PATCHES_MAX + 2)
    check_invariants(engine)
    engine.close()


def test_patches_that_are_overwritten_go_and_all_together_take_no_more_than_twice_the_chunk(tmp_path: Path) -> None:
    engine = opened(tmp_path)
    put(engine, key(1), 0, bytes(MIB))
    for i in range(3 * PATCHES_MAX):  # a database's first page
        put(engine, key(1), 0, bytes([i]) * 4096)
        put(engine, key(1), 8192, bytes([i]) * 8192)
    put(engine, key(1), 12288, b"h" * 4096)  # a half of a patch
    info = engine.info(key(1))
    assert info is not None and info.patches == 3
    assert engine.read(key(1), 0, 20480) == bytes([i]) * 4096 + bytes(4096) + bytes([i]) * 4096 + b"h" * 4096 + bytes(
        4096
    )
    size = MIB // 4 - 4096
    for i in range(12):
        put(engine, key(1), i * 65536 + 32768, bytes([i]) * size)
    assert sum(CLASS_BYTES[slot >> 48] for slot in engine.space.used_slots()) - engine.space.retired_bytes <= 4 * MIB
    assert engine.read(key(1), 11 * 65536 + 32768, size) == bytes([11]) * size
    check_invariants(engine)
    engine.close()


def test_a_destination_that_went_away_is_its_owners_fault(tmp_path: Path) -> None:
    import mmap

    engine = opened(tmp_path)
    put(engine, key(1), 0, b"z" * 65536)
    fd = os.memfd_create("region")
    os.ftruncate(fd, 65536)
    region = mmap.mmap(fd, 65536)
    os.ftruncate(fd, 0)
    with engine.plan([(key(1), 0, 65536)]) as (plan,), pytest.raises(StatusError) as caught:
        plan.read_into(engine.disk, (region,), True)
    assert caught.value.status is Status.REGION_DEAD
    assert not engine.failed
    os.close(fd)
    engine.close()


KILLED = """
import os, sys
from emberfs.proto.ids import chunk_key
from emberfs.storage.engine.checksum import crc32c
from emberfs.storage.engine.engine import Kind, Update
from emberfs.storage.engine.target import open_target
engine, _ = open_target(sys.argv[1], cluster="c1", capacity=256 << 20)
data = os.urandom(50_000)
for i in range(1000000):
    piece = b"%010d" % i + data
    engine.apply([Update(Kind.WRITE, chunk_key(1024, i % 50), 0, piece, crc32c(piece))])
    if i % 100 == 99:
        engine.checkpoint()
    print(i, flush=True)
"""


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = -1
    for line in child.stdout:
        last = int(line)
        if last == 330:
            child.send_signal(signal.SIGKILL)
    child.wait()
    assert last >= 330
    engine = opened(tmp_path)
    assert engine.found.opened is Opened.KILLED
    for slot in range(50):
        newest = max(i for i in range(last + 1) if i % 50 == slot)
        found = int(engine.read(key(slot), 0, 10))
        assert found in (newest, last + 1), f"chunk {slot} holds write {found}, {newest} was acknowledged"
        engine.read(key(slot))
    check_invariants(engine)
    engine.close()

"""The engine's promises one by one, in memory."""

from __future__ import annotations

import errno
import random

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine import space
from emberfs.storage.engine.cache import Cache
from emberfs.storage.engine.checksum import combine, crc32c, fold, unit_crcs, zeros
from emberfs.storage.engine.engine import ChunkEngine, Kind, Opened, Receipt, Update
from emberfs.storage.engine.job import Shape
from emberfs.storage.engine.row import Patch, Row, State, decode_row, encode_row
from emberfs.storage.engine.slots import CLASS_BYTES, class_for, file_name, pack_slot, parse_file_name, unpack_slot

from .harness import CHUNK_SIZE, Target, check_invariants, content, key, write

KIB = 1 << 10


def status_of(call, *arguments, **more) -> Status:
    with pytest.raises(StatusError) as caught:
        call(*arguments, **more)
    return caught.value.status


def test_size_classes_are_four_per_power_of_two() -> None:
    assert CLASS_BYTES[0] == 4 * KIB
    assert CLASS_BYTES[-1] == 64 << 20
    for power in range(14, 26):
        inside = [size for size in CLASS_BYTES if 1 << power < size <= 2 << power]
        assert inside == [(1 << power) * k // 4 for k in (5, 6, 7, 8)]
    for length in (1, 4096, 4097, 5 << 20, 64 << 20):
        assert CLASS_BYTES[class_for(length)] >= length
        assert class_for(length) == 0 or CLASS_BYTES[class_for(length) - 1] < length
    assert unpack_slot(pack_slot(51, 70_000, 8191)) == (51, 70_000, 8191)
    assert parse_file_name(file_name(7, 12)) == (7, 12)
    assert parse_file_name("LOCK") is None


def test_checksum_arithmetic() -> None:
    data = random.Random(2).randbytes(100_001)
    for cut in (0, 1, 4096, 77_777, len(data)):
        assert combine(crc32c(data[:cut]), crc32c(data[cut:]), len(data) - cut) == crc32c(data)
    assert zeros(12_345) == crc32c(bytes(12_345))
    assert fold(unit_crcs(memoryview(data), 4096), 4096, len(data)) == crc32c(data)


def test_rows_survive_encoding() -> None:
    plain = State(
        5, 2, 1, 9000, 9500, 77, 3, 4096, pack_slot(3, 0, 1), (), b"", [unit_crcs(memoryview(bytes(9000)), 4096)]
    )
    paged = State(6, 2, 1, 2 << 20, 2 << 20, 78, 4, 16384, 9, (Patch(4, 16384, 5), Patch(5, 0, 16384)), b"\1", [None])
    for row in (Row(plain), Row(None, paged), Row(plain, paged, (plain, paged), 2, 3), Row()):
        again = decode_row(encode_row(row))
        assert encode_row(again) == encode_row(row)
        assert len(again.states()) == len(row.states())
    data = encode_row(Row(plain))
    for bad in (b"\x02" + data[1:], data[:-1], data + b"x", b""):
        assert status_of(decode_row, bad) is Status.BAD_FORMAT


def test_the_cache_keeps_what_is_used_and_stays_within_its_budget() -> None:
    cache: Cache[int] = Cache(1000)
    for i in range(500):
        cache.put(b"%d" % i, i, 10)
        assert cache.get(b"0", 10) == 0
        assert len(cache) <= 101
    assert cache.get(b"1", 10) is None


def test_shapes_of_updates() -> None:
    engine = Target().open()

    def shape(offset: int, length: int) -> Shape:
        job = engine.prepare(write(key(0), offset, b"s" * length))
        job.run()
        engine.stage([job], commit=True)
        return job.shape

    assert shape(0, 6 * KIB) is Shape.COPY  # fresh, in a slot of 8 KiB
    assert shape(6 * KIB, 2 * KIB) is Shape.APPEND
    assert shape(8 * KIB, KIB) is Shape.COPY  # grows into a slot with room for twice as much
    assert shape(9 * KIB, 9 * KIB) is Shape.APPEND
    assert shape(0, 100) is Shape.PATCH  # of 4 KiB in 18
    assert shape(0, 18 * KIB) is Shape.COPY
    engine.apply([Update(Kind.TRUNCATE, key(0), 16 * KIB, chunk_size=CHUNK_SIZE)])
    assert shape(16 * KIB, KIB) is not Shape.APPEND  # the bytes behind the cut may still be needed
    check_invariants(engine)


def test_a_chunk_has_one_update_under_way() -> None:
    engine = Target().open()
    job = engine.prepare(write(key(0), 0, b"x"))
    assert status_of(engine.prepare, write(key(0), 0, b"y")) is Status.BUSY
    job.run()
    engine.stage([job])
    assert status_of(engine.prepare, write(key(0), 0, b"y")) is Status.BUSY
    assert engine.read(key(0), version=1) == b"x"
    with engine.plan([(key(0), 0, 1)]) as (plan,):
        assert plan.status is Status.CHUNK_NOT_FOUND
    with engine.plan([(key(0), 0, 1)], versions={key(0): 2}) as (plan,):
        assert plan.status is Status.NOT_COMMITTED
    assert status_of(engine.commit, [(key(0), 2)]) is Status.NOT_FOUND
    engine.commit([(key(0), 1)])
    engine.commit([(key(0), 1)])  # a repeated commit does nothing
    assert content(engine, key(0)) == b"x"


def test_an_abandoned_update_never_was() -> None:
    engine = Target().open()
    used = engine.space_info().used
    job = engine.prepare(write(key(0), 0, b"x" * 5000))
    job.run()
    engine.abandon(job)
    assert engine.space_info().used == used
    assert engine.info(key(0)) is None
    check_invariants(engine)


def test_versions_go_on_counting_after_a_remove() -> None:
    """A version is never given to other content."""
    target = Target()
    engine = target.open()
    for _ in range(3):
        engine.apply([write(key(0), 0, b"a")])
    engine.apply([Update(Kind.REMOVE, key(0))])
    assert engine.version_floor == 4
    target.kill()
    engine = target.open()
    engine.apply([write(key(0), 0, b"b")])
    assert engine.info(key(0)).version == 5
    assert status_of(engine.prepare, write(key(0), 0, b"c", version=5)) is Status.INVALID


def test_writes_from_before_a_truncate_are_refused() -> None:
    """Also to chunks that the truncate removed, and after a restart."""
    target = Target()
    engine = target.open()
    engine.apply([write(key(n), 0, b"x" * 9000) for n in range(3)])
    engine.apply([Update(Kind.TRUNCATE, key(1), 100, truncate_version=2, chunk_size=CHUNK_SIZE)])
    assert engine.remove_range(key(2), key(9), 100, truncate_version=2) == (1, False)
    target.kill()
    engine = target.open()
    for n in range(3):
        assert status_of(engine.prepare, write(key(n), 0, b"late", truncate_version=1)) is Status.STALE_TRUNCATE_VERSION
    engine.apply([write(key(2), 0, b"new", truncate_version=2)])
    assert engine.remove_range(key(0), key(9), 100, truncate_version=2) == (1, False)  # chunk 0 is of version 0
    assert content(engine, key(2)) == b"new"
    assert engine.query_last(key(0)[:10], 2) == (True, 2, 3, 2, 103)
    assert engine.remove_range(key(0), key(9), 100) == (2, False)
    assert engine.truncate_floor(key(0)) == 0
    assert not engine.query_last(key(0)[:10]).found


def test_ranges_are_removed_in_steps() -> None:
    engine = Target().open()
    engine.apply([write(key(n), 0, b"x") for n in range(10)])
    engine.apply([write(key(n, inode=1025), 0, b"x") for n in range(2)])
    assert engine.remove_range(key(0), key(1 << 31), 4) == (4, True)
    assert [info.chunk for info in engine.chunks(key(0), key(99), 3, reverse=True)] == [key(9), key(8), key(7)]
    assert engine.remove_range(key(0), key(1 << 31), 6) == (6, False)
    assert engine.space_info().chunks == 2
    check_invariants(engine)


def test_receipts_are_kept_until_the_client_is_over() -> None:
    target = Target()
    engine = target.open()
    one, other = b"1" * 16, b"2" * 16
    engine.apply([write(key(0), 0, b"x")], receipts=[Receipt(one, 3, 7, 1, 1), Receipt(other, 1023, 8, 1, 1)])
    target.kill()
    engine = target.open()
    assert engine.receipt(one, 3) == Receipt(one, 3, 7, 1, 1)
    assert engine.receipt(one, 4) is None
    assert [r.client for r in engine.receipts()] == [one, other]
    engine.forget_client(one)
    assert engine.receipt(one, 3) is None
    assert list(engine.receipts()) == [Receipt(other, 1023, 8, 1, 1)]


def test_a_slot_waits_for_the_checkpoint_and_for_the_reader() -> None:
    engine = Target().open()
    engine.apply([write(key(0), 0, b"old" * 5000)])
    engine.checkpoint()
    batch = engine.plan([(key(0), 0, CHUNK_SIZE)])
    engine.apply([write(key(0), 0, b"new" * 5000)])
    for _ in range(3):
        assert engine.space_info().reclaimable > 0
        engine.apply([write(key(1), 0, b"foe" * 5000)])
        engine.checkpoint()
    data = bytearray(15000)
    assert batch.plans[0].read_into(engine.disk, (data,), False)
    assert data == b"old" * 5000
    batch.release()
    batch.release()
    assert engine.space_info().reclaimable == 0
    check_invariants(engine)


def test_a_full_target_refuses_new_chunks_and_allows_the_rest() -> None:
    engine = Target(capacity=4 << 20).open()
    data = b"f" * CHUNK_SIZE
    count = 0
    with pytest.raises(StatusError) as caught:
        for count in range(100):
            engine.apply([write(key(count), 0, data)])
    assert caught.value.status is Status.NO_SPACE
    assert "add a target" in str(caught.value)
    assert count == 63  # one slot of 64 is kept for overwrites
    for n in range(10):
        engine.apply([write(key(n), 0, b"g" * CHUNK_SIZE)])  # each waits for the checkpoint of the one before
    assert engine.remove_range(key(0), key(5), 100) == (5, False)
    job = write(key(count), 0, data)
    assert status_of(engine.prepare, job) is Status.BUSY
    assert engine.wants_checkpoint
    engine.checkpoint()
    engine.apply([job])
    assert content(engine, key(9)) == b"g" * CHUNK_SIZE
    check_invariants(engine)


def test_a_full_disk_fails_the_update_and_nothing_else() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"x" * CHUNK_SIZE)])
    assert engine.space.capacity_now() == target.capacity
    target.disk.size_max = target.capacity // 16 + 3 * CHUNK_SIZE
    assert CHUNK_SIZE <= engine.space.capacity_now() <= 3 * CHUNK_SIZE  # it says so before anybody meets it
    with pytest.raises(StatusError) as caught:
        for n in range(1, 9):
            engine.apply([write(key(n), 0, b"x" * CHUNK_SIZE)])
    assert caught.value.status is Status.NO_SPACE
    assert not engine.failed
    check_invariants(engine)


def test_freed_space_goes_back_to_the_disk() -> None:
    target = Target(capacity=4 << 20)
    engine = target.open()
    engine.apply([write(key(n), 0, b"x" * CHUNK_SIZE) for n in range(40)])
    engine.remove_range(key(0), key(99), 100)
    for _ in range(2):
        engine.checkpoint()
    assert engine.space.warm_bytes <= (4 << 20) // 16
    assert "punch" in target.faults.seen
    engine.apply([write(key(n), 0, b"y" * CHUNK_SIZE) for n in range(40)])
    assert content(engine, key(39)) == b"y" * CHUNK_SIZE
    check_invariants(engine)


def test_a_disk_too_full_to_take_space_back_keeps_its_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hole may need a block for its description. What the checkpoint covers is durable all the same."""
    target = Target(capacity=4 << 20)
    engine = target.open()
    engine.apply([write(key(n), 0, b"x" * CHUNK_SIZE) for n in range(40)])
    engine.remove_range(key(0), key(39), 100)
    engine.checkpoint()
    warm = engine.space.warm_bytes

    def full(handle: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(target.disk, "punch", full)
    engine.checkpoint()
    assert not engine.failed
    assert engine.space.warm_bytes == warm
    check_invariants(engine)
    monkeypatch.undo()
    engine.checkpoint()
    assert engine.space.warm_bytes <= (4 << 20) // 16
    engine.apply([write(key(n), 0, b"y" * CHUNK_SIZE) for n in range(39)])
    assert content(engine, key(39)) == b"x" * CHUNK_SIZE
    check_invariants(engine)


def test_freed_space_goes_back_in_steps_unless_the_disk_is_short(monkeypatch) -> None:
    monkeypatch.setattr(space, "TRIM_BYTES", 4 * CHUNK_SIZE)
    monkeypatch.setattr(space, "PUNCH_BYTES", 2 * CHUNK_SIZE)
    target = Target(capacity=4 << 20)
    engine = target.open()
    engine.apply([write(key(n), 0, b"x" * CHUNK_SIZE) for n in range(40)])
    engine.remove_range(key(0), key(99), 100)
    engine.checkpoint()  # from here on they are free
    before = engine.space.warm_bytes
    engine.checkpoint()
    assert 4 * CHUNK_SIZE <= before - engine.space.warm_bytes <= 7 * CHUNK_SIZE
    assert target.faults.seen.count("punch") > 1
    assert engine.is_dirty  # so the next step comes without another write
    target.disk.size_max = target.disk.size_max - target.disk.free() + engine.space.excess - 1
    engine.checkpoint()
    assert not engine.space.excess and not engine.is_dirty
    check_invariants(engine)


def test_who_uses_slots_again_and_again_keeps_more_but_no_more_than_the_disk_has_left() -> None:
    target = Target(capacity=4 << 20)
    engine = target.open()
    engine.apply([write(key(n), 0, b"x" * CHUNK_SIZE) for n in range(40)])
    engine.remove_range(key(0), key(99), 100)
    engine.checkpoint()
    usual, kept = engine.space.excess, engine.space.warm_bytes
    engine.space.warm_bytes_max = 1 << 20
    assert usual > engine.space.excess == kept - (1 << 20)
    target.disk.size_max -= target.disk.free() - (512 << 10)
    assert engine.space.excess == kept - (512 << 10)
    target.disk.size_max -= 512 << 10
    assert engine.space.excess == usual


def test_what_is_not_in_memory_is_said_and_not_waited_for() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"x" * 9000)])
    target.disk.cold = True
    with engine.plan([(key(0), 0, 9000)]) as (plan,):
        data = bytearray(9000)
        assert not plan.read_into(engine.disk, (data,), False)
        assert plan.read_into(engine.disk, (data,), True)
        assert data == b"x" * 9000


def test_after_a_failed_sync_the_target_is_out_for_good() -> None:
    """An fdatasync error is never tried again: the kernel has dropped the pages and would say that all is well."""
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"x")])
    checkpoint = engine.begin_checkpoint()
    assert status_of(engine.begin_checkpoint) is Status.BUSY
    target.faults.at, target.faults.kind = target.faults.count + 1, 5
    checkpoint.run()
    assert status_of(engine.finish_checkpoint, checkpoint) is Status.TARGET_OFFLINE
    for call in (engine.checkpoint, lambda: engine.plan([]), lambda: engine.prepare(write(key(0), 0, b"y"))):
        assert status_of(call) is Status.TARGET_OFFLINE
    engine.close()
    found = target.open().found
    assert found.opened is Opened.POWER_LOSS
    assert (found.power_losses, found.fell_back) == (1, [key(0)])
    assert content(target.engine, key(0)) is None


def test_what_memory_alone_has_after_a_failed_sync_is_not_taken_for_durable() -> None:
    """A later fdatasync succeeds, and the page cache shows the bytes until it needs the room."""
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"old" * 3000)])
    engine.checkpoint()
    engine.apply([write(key(0), 0, b"new" * 3000)])
    target.faults.at, target.faults.kind = target.faults.count + 1, 5
    assert status_of(engine.checkpoint) is Status.TARGET_OFFLINE
    engine.close()
    assert content(target.open(), key(0)) == b"old" * 3000
    target.kill()
    assert target.open().found.opened is Opened.KILLED
    target.power_loss(random.Random(1))
    assert content(target.open(), key(0)) == b"old" * 3000


def test_a_sync_that_fails_while_a_target_is_opened_is_remembered() -> None:
    target = Target()
    target.open().apply([write(key(0), 0, b"x" * 9000)])
    target.kill()
    target.faults.at, target.faults.kind = target.faults.count + 1, 5
    with pytest.raises(OSError, match="Input/output"):
        target.open()
    target.kill()
    assert target.open().found.opened is Opened.POWER_LOSS
    assert content(target.engine, key(0)) is None


@pytest.mark.parametrize("broken", ["get", "get_many", "scan"])
def test_an_index_that_cannot_be_read_takes_the_target_out(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what lies there; RocksDB raises bare Exceptions."""
    engine: ChunkEngine = Target().open()
    engine.apply([write(key(0), 0, b"x")])
    engine.checkpoint()
    engine._rows.cached.drop(key(0))

    def unreadable(*asked: object, **more: object) -> None:
        raise Exception("Corruption: block checksum mismatch")

    looks = {"get": engine.info, "get_many": lambda chunk: engine.plan([(chunk, 0, 1)]), "scan": engine.query_last}
    monkeypatch.setattr(engine.index, broken, unreadable)
    assert status_of(looks[broken], key(0)) is Status.TARGET_OFFLINE
    assert "block checksum mismatch" in engine.failed
    monkeypatch.undo()
    assert status_of(engine.prepare, write(key(1), 0, b"y")) is Status.TARGET_OFFLINE
    engine.close()


def test_a_target_whose_end_cannot_be_written_is_closed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so as every other failure of the disk: whoever closes several targets goes on with the next."""
    engine: ChunkEngine = Target().open()
    engine.apply([write(key(0), 0, b"x")])
    engine.checkpoint()
    closed: list[str] = []
    engine.on_close(lambda: closed.append("lock"))

    def full(*asked: object, **more: object) -> None:
        raise Exception("IO error: No space left on device")

    checkpoint = engine.checkpoint
    monkeypatch.setattr(engine, "checkpoint", lambda: (checkpoint(), monkeypatch.setattr(engine.index, "write", full)))
    assert status_of(engine.close) is Status.TARGET_OFFLINE
    assert closed == ["lock"]


def test_whole_chunk_replace_takes_any_version() -> None:
    """In a resync the predecessor's state wins whole."""
    engine: ChunkEngine = Target().open()
    engine.apply([write(key(0), 0, b"x" * 9000, version=9, chain_version=4)])
    job = engine.prepare(write(key(0), 0, b"pending", version=10))
    job.run()
    engine.stage([job])
    engine.apply([write(key(0), 0, b"other", version=3, chain_version=5)._replace(kind=Kind.REPLACE)])
    info = engine.info(key(0))
    assert (info.version, info.chain_version, info.length, info.pending) == (3, 5, 5, 0)
    assert content(engine, key(0)) == b"other"
    check_invariants(engine)

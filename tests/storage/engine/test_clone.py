"""Clones: chunks that share slots, what that costs, and when a slot is free again."""

from __future__ import annotations

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.engine import Kind, Update
from emberfs.storage.engine.job import Shape
from emberfs.storage.engine.slots import CLASS_BYTES

from .harness import CHUNK_SIZE, Target, check_invariants, clone, content, key, write

SIZE = 40_000


def engine_with(*sizes: int):
    engine = Target().open()
    engine.apply([write(key(n), 0, bytes([n + 1]) * size) for n, size in enumerate(sizes)])
    return engine


def test_a_clone_takes_no_space_and_no_bytes() -> None:
    engine = engine_with(SIZE)
    used = engine.space_info().used
    job = engine.prepare(clone(key(0), key(1)))
    assert (job.shape, job.bytes_moved, job.fresh) == (Shape.NONE, 0, [])
    job.run()
    engine.stage([job], commit=True)
    info = engine.space_info()
    assert (info.used, info.chunks, info.content) == (used, 2, 2 * SIZE)
    assert content(engine, key(0)) == content(engine, key(1)) == bytes([1]) * SIZE
    assert engine.info(key(0)).checksum == engine.info(key(1)).checksum
    check_invariants(engine)


@pytest.mark.parametrize("writer", [0, 1])
def test_a_write_to_either_is_not_seen_in_the_other(writer: int) -> None:
    engine = engine_with(SIZE)
    engine.apply([clone(key(0), key(1))])
    before = bytes([1]) * SIZE
    for update, after in (
        (write(key(writer), SIZE, b"appended"), before + b"appended"),
        (write(key(writer), 100, b"patched"), before[:100] + b"patched" + before[107:] + b"appended"),
        (Update(Kind.TRUNCATE, key(writer), 107, chunk_size=CHUNK_SIZE), before[:100] + b"patched"),
    ):
        engine.apply([update])
        assert content(engine, key(writer)) == after
        assert content(engine, key(1 - writer)) == before
        check_invariants(engine)


def test_what_others_share_is_not_appended_to_in_place_until_they_are_gone_for_good() -> None:
    """A power failure may bring the other one back until a checkpoint has passed; a reader may still have it."""
    engine = engine_with(SIZE)
    engine.apply([clone(key(0), key(1))])
    engine.checkpoint()

    def shape_of_an_append() -> Shape:
        job = engine.prepare(write(key(0), SIZE, b"more"))
        engine.abandon(job)
        return job.shape

    assert shape_of_an_append() is not Shape.APPEND
    reader = engine.plan([(key(1), 0, SIZE)])
    engine.apply([Update(Kind.REMOVE, key(1))])
    assert shape_of_an_append() is not Shape.APPEND, "the remove is not durable"
    engine.checkpoint()
    assert shape_of_an_append() is not Shape.APPEND, "somebody reads the other one"
    reader.release()
    assert shape_of_an_append() is Shape.APPEND
    check_invariants(engine)


def test_a_slot_is_free_when_the_last_one_lets_go() -> None:
    engine = engine_with(SIZE)
    for n in (1, 2, 3):
        engine.apply([clone(key(n - 1), key(n))])
    size = engine.space_info().used
    for n in (0, 2, 3):
        engine.apply([Update(Kind.REMOVE, key(n))])
        assert engine.space_info().reclaimable == 0
        check_invariants(engine)
    engine.checkpoint()
    assert engine.space_info().used == size
    engine.apply([Update(Kind.REMOVE, key(1))])
    assert engine.space_info().reclaimable == size
    engine.checkpoint()
    assert engine.space_info().used == 0
    check_invariants(engine)


def test_a_clone_may_be_cut_and_keeps_what_lies_in_patches() -> None:
    engine = engine_with(SIZE)
    engine.apply([write(key(0), 100, b"patched")])
    expected = content(engine, key(0))
    for limit in (50, 4096, 5000, SIZE - 1, SIZE):
        engine.apply([clone(key(0), key(1), limit)])
        assert content(engine, key(1)) == expected[:limit]
        check_invariants(engine)
    engine.apply([clone(key(0), key(1))])
    engine.apply([clone(key(0), key(1))])  # again: it has these slots already
    check_invariants(engine)


@pytest.mark.parametrize("source", [None, key(7)])
def test_without_a_source_it_becomes_a_hole(source: bytes | None) -> None:
    engine = engine_with(SIZE)
    version = engine.info(key(0)).version
    engine.apply([clone(source, key(0))])
    assert content(engine, key(0)) is None
    engine.apply([write(key(0), 0, b"new")])
    assert engine.info(key(0)).version > version + 1
    check_invariants(engine)


def test_a_source_that_is_changed_meanwhile_is_refused_and_an_abandoned_clone_leaves_nothing() -> None:
    engine = engine_with(SIZE)
    job = engine.prepare(write(key(0), 0, b"x"))
    with pytest.raises(StatusError) as caught:
        engine.prepare(clone(key(0), key(1)))
    assert caught.value.status is Status.BUSY
    job.run()
    engine.stage([job])  # pending
    with pytest.raises(StatusError) as caught:
        engine.prepare(clone(key(0), key(1)))
    assert caught.value.status is Status.BUSY
    engine.commit([(key(0), job.version)])


@pytest.mark.parametrize("passed", [False, True])
@pytest.mark.parametrize("abandoned", [False, True])
def test_the_bytes_of_a_clone_that_has_begun_stay(passed: bool, abandoned: bool) -> None:
    """The machine keeps the source in line; the engine does not rely on that."""
    engine = engine_with(SIZE)
    begun = engine.prepare(clone(key(0), key(1)))
    engine.apply([Update(Kind.REMOVE, key(0))])
    check_invariants(engine, [begun])
    if passed:
        engine.checkpoint()
        check_invariants(engine, [begun])
    if abandoned:
        engine.abandon(begun)
    else:
        begun.run()
        engine.stage([begun], commit=True)
        assert content(engine, key(1)) == bytes([1]) * SIZE
        check_invariants(engine)
        engine.apply([Update(Kind.REMOVE, key(1))])
    check_invariants(engine)
    engine.checkpoint()
    assert engine.space_info().used == 0


def test_a_file_of_another_checksum_unit_cannot_be_shared() -> None:
    engine = engine_with(SIZE)
    with pytest.raises(StatusError) as caught:
        engine.prepare(clone(key(0), key(1), SIZE, chunk_size=4 << 20))
    assert caught.value.status is Status.INVALID
    check_invariants(engine)


def test_shared_slots_are_counted_again_when_the_target_is_opened() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"x" * SIZE)])
    engine.apply([clone(key(0), key(1))])
    job = engine.prepare(clone(key(0), key(2)))
    job.run()
    engine.stage([job])  # pending when the process is killed
    target.kill()
    engine = target.open()
    check_invariants(engine)
    assert engine.space_info().used == next(size for size in CLASS_BYTES if size >= SIZE)
    engine.apply([Update(Kind.REMOVE, key(0)), Update(Kind.REMOVE, key(1))])
    engine.checkpoint()
    assert bytes(engine.read(key(2), version=engine.info(key(2)).pending)) == b"x" * SIZE
    engine.discard([key(2)])
    engine.checkpoint()
    assert engine.space_info().used == 0


def test_a_shared_chunk_is_cut_where_it_lies() -> None:
    engine = engine_with(SIZE)
    engine.apply([clone(key(0), key(1))])
    used = engine.space_info().used
    engine.apply([Update(Kind.TRUNCATE, key(1), 100, chunk_size=CHUNK_SIZE)])
    assert engine.space_info().used == used
    assert content(engine, key(1)) == bytes([1]) * 100
    assert content(engine, key(0)) == bytes([1]) * SIZE
    check_invariants(engine)

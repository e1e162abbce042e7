"""What a row says of a chunk that is a block of the KV cache."""

from __future__ import annotations

import random

import pytest

from emberfs.proto.errors import StatusError
from emberfs.storage.engine.engine import ChunkEngine, Kind, Update
from emberfs.storage.engine.row import BLOCK_BYTES_MAX, CHUNK, ROW_VERSION, ROW_VERSION_BLOCK, decode_row, encode_row

from .harness import CHUNK_SIZE, Target, clone, key, write

BLOCK, OTHER = b"a block", b"what was said of it later"


def block_of(engine: ChunkEngine, chunk: bytes) -> bytes:
    info = engine.info(chunk)
    assert info is not None
    return info.block


def version_of(engine: ChunkEngine, chunk: bytes) -> int:
    value = engine.index.get(CHUNK + chunk)
    assert value is not None and encode_row(decode_row(value)) == value
    return value[0]


def reopened(target: Target) -> ChunkEngine:
    target.kill()
    return target.open()


def test_it_is_kept_in_the_row_and_rows_of_other_chunks_are_as_they_were() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK), write(key(2), 0, b"y" * 5000)])
    assert (version_of(engine, key(1)), version_of(engine, key(2))) == (ROW_VERSION_BLOCK, ROW_VERSION)
    engine = reopened(target)
    assert (block_of(engine, key(1)), block_of(engine, key(2))) == (BLOCK, b"")
    assert engine.read(key(1)) == b"x" * 5000


def test_a_block_with_pages_of_checksums() -> None:
    target = Target()
    engine = target.open()
    data = random.Random(1).randbytes(3 << 20)
    engine.apply([write(key(1), 0, data, chunk_size=64 << 20)._replace(block=BLOCK)])
    engine = reopened(target)
    assert block_of(engine, key(1)) == BLOCK
    assert engine.read(key(1), 1 << 20, 100_000) == data[1 << 20 :][:100_000]


def test_it_is_said_once_more_without_the_bytes() -> None:
    """Another life or pin: a truncate to the length that the block has."""
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK)])
    engine.apply([Update(Kind.TRUNCATE, key(1), 5000, chunk_size=CHUNK_SIZE, block=OTHER)])
    assert (block_of(engine, key(1)), engine.read(key(1))) == (OTHER, b"x" * 5000)
    assert block_of(reopened(target), key(1)) == OTHER


def test_it_stays_through_updates_and_goes_with_the_chunk() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK)])
    engine.apply([write(key(1), 100, b"z")])
    assert block_of(engine, key(1)) == BLOCK
    engine.apply([clone(key(1), key(2))])
    assert block_of(engine, key(2)) == b"", "a clone is no block"
    engine.apply([Update(Kind.REMOVE, key(1))])
    engine.apply([write(key(1), 0, b"new")])
    assert block_of(engine, key(1)) == b""
    engine.apply([write(key(3), 0, b"x")._replace(block=BLOCK)])
    engine.apply([Update(Kind.REPLACE, key(3), 0, b"y", 0, CHUNK_SIZE)])
    assert block_of(engine, key(3)) == b"", "what replaces a chunk says itself what it is"


def test_pending_committed_and_after_power_loss() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK)])
    engine.checkpoint()
    job = engine.prepare(Update(Kind.TRUNCATE, key(1), 5000, chunk_size=CHUNK_SIZE, block=OTHER))
    job.run()
    engine.stage([job])
    assert block_of(engine, key(1)) == BLOCK
    assert [state.block for _, state, _ in engine.unresolved()] == [OTHER]
    target.kill()
    target.power_loss(random.Random(3))
    engine = target.open()
    assert block_of(engine, key(1)) == BLOCK
    engine.discard([key(1)])
    assert block_of(engine, key(1)) == BLOCK


def test_too_much_of_it_is_refused() -> None:
    engine = Target().open()
    with pytest.raises(StatusError):
        engine.prepare(write(key(1), 0, b"x")._replace(block=bytes(BLOCK_BYTES_MAX + 1)))


@pytest.mark.parametrize("seed", range(8))
def test_after_a_power_loss_no_version_is_given_to_other_bytes(seed: int) -> None:
    """Somebody has read what the power loss took back, and knows its version."""
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK)])
    engine.checkpoint()
    engine.apply([Update(Kind.REMOVE, key(1))])
    engine.apply([write(key(1), 0, b"y" * 5000)._replace(block=BLOCK)])
    known = engine.info(key(1))
    assert known is not None
    target.power_loss(random.Random(seed))
    engine = target.open()
    there = engine.info(key(1))
    if there is not None and there.version == known.version:
        assert engine.read(key(1)) == b"y" * 5000
    engine.apply([Update(Kind.REMOVE, key(1))])
    engine.apply([write(key(1), 0, b"z" * 5000)._replace(block=BLOCK)])
    last = engine.info(key(1))
    assert last is not None and last.version > known.version


@pytest.mark.parametrize("seed", range(8))
def test_what_replaces_a_block_that_fell_back_has_a_version_of_its_own(seed: int) -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(1), 0, b"x" * 5000)._replace(block=BLOCK)])
    engine.checkpoint()
    engine.apply([replacing(b"y" * 5000)])
    known = engine.info(key(1))
    assert known is not None
    target.power_loss(random.Random(seed))
    engine = target.open()
    engine.apply([replacing(b"z" * 5000)])
    last = engine.info(key(1))
    assert last is not None and last.version > known.version
    assert engine.read(key(1)) == b"z" * 5000


def replacing(content: bytes) -> Update:
    return write(key(1), 0, content)._replace(kind=Kind.REPLACE, block=BLOCK)

"""New chunks and removals of many at once, beside the books of the target and a model, through kills and power losses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.checksum import crc32c
from emberfs.storage.engine.engine import ChunkEngine, Kind, Update
from emberfs.storage.engine.fresh import Bulk, FreshChunks
from emberfs.storage.engine.removal import Gone, remove_blocks
from emberfs.storage.engine.row import CHUNK, decode_row, encode_row

from .harness import Target, check_invariants, content, key, write

BLOCK = b"a block"


def fresh_of(
    engine: ChunkEngine,
    chunks: Sequence[bytes],
    contents: Sequence[bytes],
    checksums: Sequence[int] = (),
    private: bool = True,
) -> FreshChunks:
    lengths = [len(c) for c in contents]
    starts = [0, *accumulate(lengths)][:-1]
    data = Bulk(in_parts(b"".join(contents), 1 if private else 5), private=private)
    return FreshChunks(engine, chunks, data, starts, lengths, checksums or [crc32c(c) for c in contents], 1)


def in_parts(data: bytes, count: int) -> list[memoryview]:
    """As a client's memory may lie: in pieces that have nothing to do with chunks."""
    cuts = [len(data) * n // count for n in range(count + 1)]
    return [memoryview(data)[begin:end] for begin, end in pairwise(cuts)]


def put(engine: ChunkEngine, chunks: Sequence[bytes], contents: Sequence[bytes]) -> FreshChunks:
    fresh = fresh_of(engine, chunks, contents)
    fresh.run()
    fresh.stage([BLOCK] * len(chunks))
    return fresh


def gone(engine: ChunkEngine, chunks: Sequence[bytes]) -> list[Gone]:
    found = []
    for chunk in chunks:
        row = decode_row(engine.index.get(CHUNK + chunk) or b"")
        state = row.committed
        assert state is not None
        found.append(Gone(chunk, state.slot, state.version, state.length))
    return found


LENGTHS = (1, 4096, 4097, 8192, 16_384, 20_000, 65_536, 100_000, 1 << 20, (1 << 20) + 1, 3 << 20)


@pytest.mark.parametrize("private", [True, False])
def test_they_are_what_an_update_of_each_would_have_made(private: bool) -> None:
    contents = [random.Random(n).randbytes(length) for n, length in enumerate(LENGTHS)]
    mine, other = Target(), Target()
    engine, usual = mine.open(), other.open()
    fresh = fresh_of(engine, [key(n) for n in range(len(LENGTHS))], contents, private=private)
    fresh.run()
    fresh.stage([BLOCK] * len(LENGTHS))
    for n, data in enumerate(contents):
        size = 1 << 20 if len(data) <= 4096 else 64 << 20
        usual.apply([write(key(n), 0, data, chunk_size=size, chain_version=1)._replace(block=BLOCK)])
    assert list(engine.chunks(b"", b"\xff" * 17)) == list(usual.chunks(b"", b"\xff" * 17))
    for _, value in engine.index.scan(CHUNK, b"D"):
        assert encode_row(decode_row(value)) == value
    check_invariants(engine)
    for n, data in enumerate(contents):
        assert content(engine, key(n)) == data
        piece = engine.read(key(n), len(data) // 3, len(data) // 2 + 1)
        assert piece == data[len(data) // 3 :][: len(data) // 2 + 1]


def test_neighbours_are_written_together() -> None:
    target = Target()
    engine = target.open()
    put(engine, [key(n) for n in range(8)], [bytes([n]) * 4096 for n in range(8)])
    calls = []
    write_all = engine.disk.pwritev
    engine.disk.pwritev = lambda *a, **k: (calls.append(len(a[1])), write_all(*a, **k))[1]  # type: ignore[method-assign]
    put(engine, [key(n) for n in range(10, 18)], [bytes([n]) * 4096 for n in range(8)])
    put(engine, [key(n) for n in range(20, 24)], [bytes([n]) * 5000 for n in range(4)])
    assert len(calls) <= 8
    assert sum(calls[:-4]) <= 2, "what lies side by side in memory, too, is one piece"
    check_invariants(engine)


def test_a_damaged_one_is_left_out() -> None:
    engine = Target().open()
    fresh = fresh_of(engine, [key(1), key(2)], [b"x" * 5000, b"y" * 5000], [crc32c(b"x" * 5000), 5])
    fresh.run()
    fresh.stage([BLOCK, BLOCK])
    assert fresh.failed[1].status is Status.CHECKSUM
    assert (content(engine, key(1)), content(engine, key(2))) == (b"x" * 5000, None)
    check_invariants(engine)
    put(engine, [key(2)], [b"z"])


def test_all_or_none_and_abandoned() -> None:
    engine = Target(capacity=64 << 20).open()
    with pytest.raises(StatusError) as refused:
        put(engine, [key(n) for n in range(70)], [bytes(1 << 20)] * 70)
    assert refused.value.status is Status.NO_SPACE
    check_invariants(engine)
    fresh = fresh_of(engine, [key(1)], [b"x"])
    with pytest.raises(StatusError) as busy:
        fresh_of(engine, [key(0), key(1)], [b"x"] * 2)
    assert busy.value.status is Status.BUSY
    with pytest.raises(StatusError):
        engine.prepare(Update(Kind.WRITE, key(1), 0, b"x", crc32c(b"x")))
    fresh.abandon()
    check_invariants(engine)
    put(engine, [key(1)], [b"x"])


def test_a_version_is_never_given_twice() -> None:
    target = Target()
    engine = target.open()
    seen = set()
    for _ in range(3):
        seen.add(put(engine, [key(1)], [b"x" * 3000]).version)
        remove_blocks(engine, gone(engine, [key(1)]))
        target.kill()
        engine = target.open()
    assert len(seen) == 3
    check_invariants(engine)


def test_slots_come_back_with_the_next_checkpoint_and_after_readers() -> None:
    engine = Target().open()
    put(engine, [key(n) for n in range(10)], [bytes([n]) * 9000 for n in range(10)])
    with engine.plan([(key(3), 0, 9000)]) as (plan,):
        remove_blocks(engine, gone(engine, [key(n) for n in range(10)]))
        assert engine.space_info().reclaimable == engine.space_info().used > 0
        engine.checkpoint()
        put(engine, [key(n) for n in range(20, 30)], [bytes([n]) * 9000 for n in range(10)])
        data = bytearray(9000)
        plan.read_into(engine.disk, (data,), True)
        assert data == bytes([3]) * 9000
    engine.checkpoint()
    check_invariants(engine)
    assert engine.space_info().reclaimable == 0


@pytest.mark.parametrize("seed", range(12))
def test_kills_and_power_losses(seed: int) -> None:
    """What was staged survives a kill; what a checkpoint covered survives power loss, and the rest is what it was, or is not there."""
    chance = random.Random(seed)
    target = Target()
    engine = target.open()
    model: dict[bytes, bytes] = {}
    durable: dict[bytes, bytes] = {}
    versions: dict[bytes, set[bytes]] = {}
    for _ in range(40):
        what = chance.random()
        absent = [key(n) for n in range(24) if key(n) not in model]
        if what < 0.45 and absent:
            chunks = chance.sample(absent, min(len(absent), chance.randrange(1, 8)))
            contents = [chance.randbytes(chance.choice([100, 4096, 8192, 20_000, 1_200_000])) for _ in chunks]
            put(engine, chunks, contents)
            model.update(zip(chunks, contents, strict=True))
            for chunk, data in zip(chunks, contents, strict=True):
                versions.setdefault(chunk, set()).add(data)
        elif what < 0.65 and model:
            chunks = chance.sample(sorted(model), chance.randrange(1, len(model) + 1))
            remove_blocks(engine, gone(engine, chunks))
            for chunk in chunks:
                del model[chunk]
        elif what < 0.8:
            engine.checkpoint()
            durable = dict(model)
        elif what < 0.9:
            target.kill()
            engine = target.open()
            durable = dict(model)  # opening takes a checkpoint
        else:
            target.kill()
            target.power_loss(chance)
            engine = target.open()
            for chunk in {*model, *durable}:
                found = content(engine, chunk)
                if durable.get(chunk) == model.get(chunk):
                    assert found == durable.get(chunk), "a checkpoint covered it"
                else:
                    assert found is None or found in versions[chunk]
            model = {chunk: data for chunk in versions if (data := content(engine, chunk)) is not None}
            durable = dict(model)
        check_invariants(engine)
        assert {chunk: content(engine, chunk) for chunk in model} == model


@pytest.mark.parametrize("length", [4096, 20_480, 65_536, 1 << 20])
def test_what_changes_in_the_clients_memory_is_not_kept(length: int) -> None:
    """The bytes that were written are compared, not those that the client has now."""
    engine = Target().open()
    memory = bytearray(random.Random(1).randbytes(5 * length))
    contents = [bytes(memory[n * length : (n + 1) * length]) for n in range(5)]
    checksums = [crc32c(c) for c in contents]
    memory[2 * length + 7] ^= 1  # the client writes on
    memory[5 * length - 1] ^= 1
    starts = [n * length for n in range(5)]
    chunks = [key(n) for n in range(5)]
    fresh = FreshChunks(engine, chunks, Bulk([memoryview(memory)], private=False), starts, [length] * 5, checksums, 1)
    fresh.run()
    assert sorted(fresh.failed) == [2, 4]
    assert {failure.status for failure in fresh.failed.values()} == {Status.CHECKSUM}
    fresh.stage([BLOCK] * 5)
    memory[:] = bytes(len(memory))
    for n in (0, 1, 3):
        assert engine.read(chunks[n]) == contents[n]
    assert engine.info(chunks[2]) is None and engine.info(chunks[4]) is None
    check_invariants(engine)

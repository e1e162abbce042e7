"""What is pending: kept over a kill with what numbered it, readable, and known without a look at the index."""

from __future__ import annotations

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.storage.engine.engine import ChunkEngine, Kind, Receipt, Update

from .harness import CHUNK_SIZE, Target, key, write

CLIENT = b"c" * 16


def stage(engine: ChunkEngine, update: Update, receipt: Receipt | None = None, *, commit: bool = False) -> None:
    job = engine.prepare(update)
    job.run()
    job.receipt = receipt
    engine.stage([job], commit=commit)


def test_pending_updates_come_back_after_a_kill_with_their_numbers() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"one", version=1), write(key(1), 0, b"gone", version=1)])
    receipt = Receipt(CLIENT, 7, 42, 2, 6)
    stage(engine, write(key(0), 3, b"two", version=2, chain_version=3), receipt)
    stage(engine, Update(Kind.REMOVE, key(1), version=2))
    stage(engine, write(key(2), 0, b"three", version=1), commit=True)
    assert engine.pending == {key(0), key(1)}
    engine = target.open()  # killed
    assert engine.pending == {key(0), key(1)}
    (first, state, numbered), (second, removed, none) = engine.unresolved()
    assert (first, state.version, state.chain_version, state.length, numbered) == (key(0), 2, 3, 6, receipt)
    assert (second, removed.removed, none) == (key(1), True, None)
    assert engine.receipt(CLIENT, 7) == receipt
    assert bytes(engine.read(key(0), version=2)) == b"onetwo"
    assert bytes(engine.read(key(0))) == b"one"
    found = engine.content(key(0), (3, 2))
    assert found is not None and found.whole == state.whole
    assert engine.content(key(0), (2, 2)) is None  # the same number under another name
    engine.commit([(key(0), 2), (key(1), 2)])
    assert not engine.pending
    assert bytes(engine.read(key(0))) == b"onetwo"
    engine = target.open()
    assert not engine.unresolved()


def test_discarded_is_as_if_it_had_never_been() -> None:
    target = Target()
    engine = target.open()
    engine.apply([write(key(0), 0, b"one", version=1)])
    stage(engine, write(key(0), 0, b"two", version=2), Receipt(CLIENT, 7, 42, 2, 3))
    engine.discard(engine.pending.copy())
    assert not engine.pending
    engine = target.open()
    assert not engine.unresolved()
    assert bytes(engine.read(key(0))) == b"one"
    stage(engine, write(key(0), 0, b"three", version=2), commit=True)


def test_floors_bind_clients_and_not_what_the_head_has_decided() -> None:
    engine = Target().open()
    engine.apply([Update(Kind.TRUNCATE, key(0), 10, truncate_version=5, chunk_size=CHUNK_SIZE)])
    with pytest.raises(StatusError) as refused:
        engine.prepare(write(key(0), 0, b"old", truncate_version=4))
    assert refused.value.status is Status.STALE_TRUNCATE_VERSION
    engine.apply([write(key(0), 0, b"decided", truncate_version=4, version=9)])
    # What replaces a chunk may be what a truncate left of it: the floor comes along.
    content = write(key(0), 0, b"replaced", truncate_version=8, version=9)._replace(kind=Kind.REPLACE)
    engine.apply([content])
    assert engine.truncate_floor(key(0)) == 8


def test_the_predecessor_may_go_back() -> None:
    engine = Target().open()
    engine.apply([write(key(0), 0, b"newer", version=9), write(key(1), 0, b"newer", version=9)])
    content = write(key(0), 0, b"older", version=3)._replace(kind=Kind.REPLACE)
    engine.apply([content, Update(Kind.REMOVE, key(1), version=3)])
    info = engine.info(key(0))
    assert info is not None and info.version == 3
    assert engine.info(key(1)) is None
    assert engine.version_floor == 9
    with pytest.raises(StatusError):
        engine.prepare(write(key(0), 0, b"x", version=3))

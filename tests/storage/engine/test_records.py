"""Receipts and truncate floors in pages, as a resync carries them from one target to another."""

from __future__ import annotations

from emberfs.storage.engine.engine import ChunkEngine, Kind, Receipt, Update
from emberfs.storage.engine.records import Records

from .harness import CHUNK_SIZE, Target, key, write

ONE, OTHER = b"1" * 16, b"2" * 16


def everything(engine: ChunkEngine, limit: int) -> tuple[list[Receipt], list[tuple[bytes, int]], int]:
    """All receipts, all floors, and how many pages it took."""
    receipts, floors, pages, after = [], [], 0, b""
    while True:
        page = engine.records(after, limit)
        assert len(page.receipts) + len(page.floors) <= limit
        receipts += page.receipts
        floors += page.floors
        pages += 1
        if page.after is None:
            return receipts, floors, pages
        after = page.after


def filled(receipts: int, files: int) -> ChunkEngine:
    engine = Target().open()
    for n in range(files):
        engine.apply([write(key(0, inode=n + 1), 0, b"x" * 100)])
        engine.apply([Update(Kind.TRUNCATE, key(0, inode=n + 1), 50, truncate_version=n + 3, chunk_size=CHUNK_SIZE)])
    engine.apply([], receipts=[Receipt(ONE if n % 2 else OTHER, n, 10 + n, 1, 1) for n in range(receipts)])
    return engine


def test_pages_cover_all_receipts_then_all_floors() -> None:
    engine = filled(7, 5)
    receipts, floors, _ = everything(engine, 1000)
    assert [(r.client, r.channel) for r in receipts] == [(ONE, n) for n in (1, 3, 5)] + [
        (OTHER, n) for n in (0, 2, 4, 6)
    ]
    assert floors == [(key(0, inode=n + 1)[:10], n + 3) for n in range(5)]
    for limit in range(1, 14):
        assert everything(engine, limit)[:2] == (receipts, floors)


def test_nothing_is_one_empty_page() -> None:
    assert Target().open().records() == Records([], [], None)


def test_of_what_both_know_the_higher_value_stays() -> None:
    engine = filled(2, 2)
    engine.put_records(
        [Receipt(OTHER, 0, 9, 5, 5), Receipt(ONE, 1, 12, 6, 6), Receipt(ONE, 9, 1, 7, 7)],
        [(key(0, inode=1)[:10], 2), (key(0, inode=2)[:10], 9), (key(0, inode=77)[:10], 1)],
        40,
    )
    assert engine.receipt(OTHER, 0) == Receipt(OTHER, 0, 10, 1, 1)
    assert engine.receipt(ONE, 1) == Receipt(ONE, 1, 12, 6, 6)
    assert engine.receipt(ONE, 9) == Receipt(ONE, 9, 1, 7, 7)
    assert [engine.truncate_floor(key(0, inode=n)) for n in (1, 2, 77)] == [3, 9, 1]
    assert engine.version_floor == 40
    engine.put_records([], [], 7)
    assert engine.version_floor == 40


def test_what_was_put_survives_the_process() -> None:
    target = Target()
    engine = target.open()
    engine.put_records([Receipt(ONE, 1, 2, 3, 4)], [(key(0)[:10], 5)], 6)
    target.kill()
    engine = target.open()
    assert engine.receipt(ONE, 1) == Receipt(ONE, 1, 2, 3, 4)
    assert (engine.truncate_floor(key(0)), engine.version_floor) == (5, 6)


def test_records_from_before_a_resync_are_dropped_a_page_at_a_time() -> None:
    engine = filled(7, 5)
    while (page := engine.records(b"", 4)).receipts or page.floors:
        engine.forget_records(page)
    assert engine.receipt(ONE, 1) is None and engine.truncate_floor(key(0, inode=1)) == 0
    assert engine.records() == Records([], [], None)

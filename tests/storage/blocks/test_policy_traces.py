"""Hit ratios of the eviction policy on traces: one that is made here, and a recorded one where EMBERFS_KV_TRACE names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberfs.deploy.bench.kv_simulation import Belady, IdealLRU, Ours, PublishedS3Fifo, hit_ratio, rows
from emberfs.deploy.bench.kv_traces import Request, conversations, load, statistics

REQUESTS = 3_000
CAPACITIES = (500, 2_000, 5_000)  # blocks, of about 47,000


@pytest.fixture(scope="module")
def trace() -> list[Request]:
    return conversations(REQUESTS, seed=7)


def test_made_trace_is_like_the_recorded_one() -> None:
    """Of 12,031 requests: 288,500 references, 36.6 % of them hits without limits, 75.8 % of the blocks once, lengths 14 and 54."""
    made = statistics(conversations(4_000, seed=1, per_second=1.1))  # the same hour
    assert 20 < made["references"] / made["requests"] < 28
    assert 0.32 < made["hit_ratio_unlimited"] < 0.42
    assert 0.68 < made["blocks_once"] < 0.82
    assert 11 < made["length_p50"] < 18
    assert 45 < made["length_p90"] < 65


def test_a_seed_makes_one_trace() -> None:
    assert conversations(100, seed=3) == conversations(100, seed=3)
    assert conversations(100, seed=3) != conversations(100, seed=4)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_hit_ratio_is_between_lru_and_the_best(trace: list[Request], capacity: int) -> None:
    ours, lru = hit_ratio(Ours(capacity), trace), hit_ratio(IdealLRU(capacity), trace)
    assert ours > lru - 0.005
    assert ours <= hit_ratio(Belady(capacity, trace), trace)


def test_a_fixed_tenth_for_new_blocks_loses_on_conversations(trace: list[Request]) -> None:
    """Why the small queue finds its own share."""
    capacity = CAPACITIES[-1]
    assert hit_ratio(Ours(capacity), trace) > hit_ratio(PublishedS3Fifo(capacity), trace) + 0.005


def test_a_scan_beside_conversations(trace: list[Request]) -> None:
    """Every other request is of blocks that nobody asks for again, as where documents are read through."""
    mixed, fresh = [], 10**9
    for request in trace[:2_000]:
        mixed += [request, Request(request.at_ms, list(range(fresh, fresh + 24)))]
        fresh += 24
    assert hit_ratio(Ours(2_000), mixed) > 1.15 * hit_ratio(IdealLRU(2_000), mixed)


def test_recorded_trace() -> None:
    """At least one point above ideal LRU at 10,000 blocks, and never much below it."""
    path = os.environ.get("EMBERFS_KV_TRACE")
    if not path:
        pytest.skip("EMBERFS_KV_TRACE names no trace")
    found = {row["what"]: row for row in rows(load(Path(path)), (1_000, 10_000, 50_000))}
    assert all(row["ours"] > row["lru"] - 1 for row in found.values())
    assert found["prefix hits, 10,000 blocks, against ideal LRU"]["met"]


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "trace.jsonl").write_text('{"timestamp": 0}\n')
    with pytest.raises(Exception, match="is no trace"):
        load(tmp_path / "trace.jsonl")

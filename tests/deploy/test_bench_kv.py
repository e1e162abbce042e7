"""`bench kv` with next to nothing to do: every kind of row is made, and none with an error. How fast it is counts elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from emberfs.deploy.bench import kv, kv_loads, kv_peers
from emberfs.deploy.bench.kv_traces import conversations
from emberfs.deploy.bench.measure import MIB, temporary_cluster

SIZES = kv.QUICK._replace(
    rounds=1, bytes=MIB, middle_batches=2, small_batches=4, matches=4, replayed=60, replay_capacity=1_100
)


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(kv_loads, "POOL_BYTES", MIB)
    monkeypatch.setattr(kv_loads, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(kv, "BLOCK", 64 << 10)
    monkeypatch.setenv("EMBERFS_BENCH_DIR", str(tmp_path))


def test_rows_against_files_and_for_small_blocks() -> None:
    with temporary_cluster(port=0, kv_capacity=512 * MIB) as (cluster, folder), kv._client(cluster) as client:
        rows = [
            *kv._large(client, folder, SIZES),
            *kv._cpu(client, folder, SIZES, kv._storage_process(cluster)),
            *kv._matches(client, SIZES),
            *kv._small(client, SIZES, kv._storage_process(cluster)),
        ]
        assert not list(client.namespaces()), "every row cleans up after itself"
    assert all(row["value"] > 0 for row in rows)
    assert {"aim", "met", "ratio"} <= rows[0].keys()


def test_a_working_set_beyond_memory_is_all_there() -> None:
    rows = kv._beyond_memory(SIZES._replace(tier=8 * MIB))
    assert [row["what"].rsplit(", ", 1)[-1] for row in rows] == ["against files", "against files", "hit rate"]
    assert rows[-1]["value"] == 1.0


def test_a_replay_hits_what_the_simulation_hits() -> None:
    """Until the first eviction both have the same blocks."""
    hits, _ = kv._replay(conversations(60, seed=5), SIZES)
    assert abs(hits["value"] - hits["simulated"]) < 0.01


@pytest.mark.parametrize("start", [kv_peers.redis, kv_peers.memcached])
def test_peers_keep_what_they_are_given(start, tmp_path: Path) -> None:
    program = "redis-server" if start is kv_peers.redis else "memcached"
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    if start is kv_peers.redis:
        pytest.importorskip("redis")
    keys = [bytes([n]) * 32 for n in range(40)]
    values = [memoryview(bytes([n]) * (50_000 + n)) for n in range(40)]
    places = [memoryview(bytearray(len(value))) for value in values]
    with start(tmp_path, 64) as peer:
        peer.put(keys, values)
        peer.get(keys, places)
        assert start is kv_peers.redis or places == values
        with pytest.raises(Exception, match="a value is not there"):
            peer.get([b"x" * 32], places[:1])

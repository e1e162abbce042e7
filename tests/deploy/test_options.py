"""What `up` may be asked for, and what of it can change later."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from emberfs.deploy.directory import next_names, number_of, storage_names
from emberfs.deploy.options import ClusterOptions, differences, merged
from emberfs.proto.errors import Status, StatusError


def test_nodes_and_targets_follow_replicas() -> None:
    options = merged(None, 0, {"replicas": 3})
    assert (options.node_count, options.target_count, options.replicated) == (3, 3, True)
    options = merged(None, 0, {"nodes": 5, "replicas": 3, "targets": 1})
    assert (options.node_count, options.target_count) == (5, 1)
    assert not merged(None, 0, {"nodes": 4}).replicated


def test_targets_for_blocks_follow_their_own_replicas() -> None:
    assert (merged(None, 0, {"replicas": 3}).kv_target_count, merged(None, 0, {}).kv_replicated) == (1, False)
    options = merged(None, 0, {"kv_replicas": 2})
    assert (options.node_count, options.kv_target_count, options.kv_replicated) == (2, 2, True)
    options = merged(None, 0, {"kv_capacity": 0, "kv_replicas": 2})
    assert (options.node_count, options.kv_target_count, options.kv_replicated) == (1, 0, False)


def test_a_cluster_from_before_there_were_blocks_may_choose() -> None:
    kept = {name: value for name, value in asdict(ClusterOptions(nodes=3)).items() if not name.startswith("kv_")}
    assert merged(kept, 3, {}).kv_target_count == 1
    assert merged(kept, 3, {"kv_replicas": 2}).kv_replicated
    assert merged(kept, 3, {"kv_capacity": 0}).kv_target_count == 0
    none = asdict(merged(kept, 3, {"kv_capacity": 0}))
    assert merged(none, 3, {"kv_capacity": 1 << 30, "kv_replicas": 3}).kv_target_count == 3


def test_a_cluster_only_grows() -> None:
    kept = asdict(merged(None, 0, {"nodes": 4, "replicas": 2}))
    assert merged(kept, 4, {}).node_count == 4
    assert merged(kept, 3, {}).node_count == 3, "one has been removed: it does not come back"
    assert merged(kept, 4, {"nodes": 6, "replicas": 2, "targets": 2}).node_count == 6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"replicas": 3}, "keeps 2 copies of each chunk, which cannot change"),
        ({"nodes": 3}, "has 4 storage nodes.*node drain storage-4"),
        ({"targets": 7}, "each node began with 2 targets"),
        ({"kv_replicas": 2}, "keeps one copy of each KV block, which cannot change"),
        ({"kv_capacity": 0}, "have targets for KV blocks"),
    ],
)
def test_what_cannot_change(asked: dict[str, int], message: str) -> None:
    kept = asdict(merged(None, 0, {"nodes": 4, "replicas": 2}))
    with pytest.raises(StatusError, match=message) as raised:
        merged(kept, 4, asked)
    assert raised.value.status is Status.INVALID


def test_more_replicas_than_nodes() -> None:
    with pytest.raises(StatusError, match="3 replicas need 3 nodes, and 2 is asked for"):
        ClusterOptions(nodes=2, replicas=3)


def test_what_a_running_cluster_cannot_take_over() -> None:
    kept = asdict(ClusterOptions(port=1))
    assert differences(kept, {"port": 2, "nodes": 9, "direct": False}) == "--port 1"
    assert differences(kept, {"grpc": "127.0.0.1:1", "kv_memory": 1}) == "--grpc not set, --kv-memory not set"
    del kept["nodes"], kept["replicas"]  # of a cluster made before there were any
    assert differences(kept, {"replicas": 1}) == ""


def test_names_of_storage_nodes(tmp_path: Path) -> None:
    for name in ("storage-10", "storage-2", "storage-x", "meta"):
        (tmp_path / name).mkdir()
    assert storage_names(tmp_path) == ["storage-2", "storage-10"]
    assert next_names(["storage-10", "storage-2"], 4) == ["storage-1", "storage-2", "storage-3", "storage-10"]
    assert next_names(["storage-3"], 1) == ["storage-3"] and number_of("meta") == 0

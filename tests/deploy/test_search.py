"""Embedding search: the blocks of client/SEARCH.md as they stand, and the benchmark's ways of it, on a mount and without one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from emberfs_mount import can_mount

import emberfs
from emberfs.deploy.local import LocalCluster

from ..fuse.processes import mounted

pytestmark = pytest.mark.training
np = pytest.importorskip("numpy")
pytest.importorskip("usearch.index", reason="usearch is not here: ./deploy/test --training")

from emberfs.deploy.bench import search  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "client" / "SEARCH.md"
SIZES = search.Sizes(vectors=3_000, dimensions=32, queries=50, rounds=1)


@pytest.fixture(scope="module")
def data() -> search.Data:
    return search.make(SIZES)


def test_truth_is_what_comparing_all_with_all_says(data: search.Data) -> None:
    query = data.queries[7]
    expected = set(np.argsort(-(data.vectors @ query))[: search.NEIGHBOURS].tolist())
    assert set(data.truth[7].tolist()) == expected
    assert search.recall(data, data.truth) == 1.0
    assert search.recall(data, np.full_like(data.truth, SIZES.vectors)) == 0.0


def test_the_page(cluster: LocalCluster, data: search.Data) -> None:
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 3
    with mounted(cluster.url) as mount, emberfs.connect(cluster.url) as client:
        names = {"vectors": data.vectors, "queries": data.queries, "client": client, "mount": str(mount)}
        for block in blocks:
            exec(block, names)
        assert search.recall(data, names["found"]) > 0.8
        assert search.recall(data, names["exact"]) > 0.97
        del names["mapped"]
        client.remove_tree("/search", forever=True)


def test_in_a_cluster_and_on_the_disk_the_same_is_found(
    cluster: LocalCluster, data: search.Data, tmp_path: Path
) -> None:
    search._store(data, [tmp_path])
    content = (tmp_path / "index").read_bytes()
    with emberfs.connect(cluster.url) as client:
        client.write_bytes("/vectors", data.vectors)
        ours = search.exact(data, content, search.by_client(data, client, "/vectors"))()
        client.unlink("/vectors")
    bare = search.exact(data, content, search.by_mapping(data, tmp_path / "vectors"))()
    assert (ours == bare).all() and search.recall(data, ours) > 0.97

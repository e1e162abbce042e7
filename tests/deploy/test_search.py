"""Embedding search: the blocks of client/SEARCH.md as they stand, and the benchmark's ways of it, on a mount and without one."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from emberfs_mount import can_mount

import emberfs
from emberfs.deploy.local import LocalCluster
from emberfs.proto.errors import Status, StatusError

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


SEARCHES = """\
import sys
import numpy as np
from usearch.index import Index
index = Index.restore(sys.argv[1], view=True)
index.search(np.ones((100, index.ndim), np.float32), len(index))
"""


def test_a_damaged_index(fresh_cluster: LocalCluster, data: search.Data, tmp_path: Path) -> None:
    """usearch looks at lengths alone: over bytes that are wrong it crashes, or finds others. Here nobody gets to see them."""
    from usearch.index import Index

    search._store(data, [tmp_path])
    content = (tmp_path / "index").read_bytes()
    with emberfs.connect(fresh_cluster.url) as client:
        client.write_bytes("/index", content)
        client.write_bytes("/torn", content[: len(content) // 2])  # its writer was killed
        with pytest.raises(RuntimeError):
            Index.restore(client.read_bytes("/torn"))
        flip(Path(fresh_cluster.data), content[len(content) // 2 :][:64])
        with pytest.raises(StatusError) as damaged:
            client.read_bytes("/index")
        assert damaged.value.status is Status.CHECKSUM
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    with mounted(fresh_cluster.url) as mount:
        done = subprocess.run([sys.executable, "-c", SEARCHES, mount / "index"], check=False, timeout=60)
        assert done.returncode == -signal.SIGBUS


def flip(cluster: Path, needle: bytes) -> None:
    """Change a byte of these where they lie on disk."""
    found = 0
    for path in cluster.glob("storage-*/target-*/blocks/*"):
        with path.open("r+b") as file:
            at = file.read().find(needle)
            if at >= 0:
                file.seek(at)
                file.write(bytes([needle[0] ^ 1]))
                found += 1
    assert found, "the bytes are on no disk"

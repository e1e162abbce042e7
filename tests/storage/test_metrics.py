"""What a storage server tells Prometheus of replication, over two real processes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from emberfs.proto.errors import Status
from emberfs.proto.gen import cluster_pb2
from emberfs.proto.rpc import CLUSTER
from emberfs.storage.lease import LEASE_SECONDS_DEFAULT
from emberfs.storage.metrics import VALUES

from .processes import Client, running_cluster


def metrics(path: Path) -> dict[str, float]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        text = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("emberfs_"))
    return {name: float(value) for name, value in rows}


def test_what_replication_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "4")  # who loses its lease meanwhile is sent everything once more
    with running_cluster() as cluster:
        cluster.start_meta()
        told = {name: cluster.folder / f"{name}.metrics" for name in "ab"}
        cluster.start_storage("--spare", "--metrics", f"unix:{told['a']}")
        client = Client(cluster)
        second = ("--listen", f"unix:{cluster.folder / 'b.sock'}", "--meta", cluster.address, "--data")
        more = ("--spare", "--capacity", str(1 << 30), "--metrics", f"unix:{told['b']}")
        cluster._start("storage", *second, str(cluster.folder / "b"), *more)
        assert metrics(told["a"])['emberfs_target_chain{target="1"}'] == 0
        chain = cluster_pb2.ChainMembers(targets=[1, 2])
        client.call(cluster.address, CLUSTER.CreateChains, cluster_pb2.CreateChainsRequest(chains=[chain]))
        client.learn()
        assert client.write_surely(b"x" * 100_000, 0, 1) is Status.OK
        head, tail = metrics(told["a"]), metrics(told["b"])
        client.close()
    for found, target in ((head, 1), (tail, 2)):
        assert {name for name in found if name.startswith("emberfs_target")} == {
            f'emberfs_target_{name}{{target="{target}"}}' for name, _ in VALUES
        }
        assert 0 < found["emberfs_lease_seconds"] <= 4 * LEASE_SECONDS_DEFAULT
        for name, value in (("chain", 1), ("chain_version", 1), ("serving", 1), ("updates_under_way", 0)):
            assert found[f'emberfs_target_{name}{{target="{target}"}}'] == value
    assert head['emberfs_target_forwards{target="1"}'] >= 1
    assert head['emberfs_target_bytes_forwarded{target="1"}'] == 100_000
    assert tail['emberfs_target_forwards{target="2"}'] == 0
    assert tail['emberfs_target_bytes_written{target="2"}'] == 100_000

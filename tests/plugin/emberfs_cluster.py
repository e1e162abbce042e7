"""Fixtures: real clusters of server processes, on Unix sockets and ports that the kernel chooses."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

    MakeCluster = Callable[..., LocalCluster]

CAPACITY = 2 << 30  # bytes a target
REMOTE = {"port": 0, "tcp_only": True}  # storage is reached as from another host


@contextlib.contextmanager
def running_cluster(**options: Any) -> Iterator[LocalCluster]:
    """A cluster that is gone at the end. Options as of `LocalCluster`: `nodes`, `replicas`, `targets` (of each node), `port`, ...
    Where EMBERFS_TRANSPORT pins rdma, clients on this machine take that way too."""
    # Not tmp_path: a test's name in it would push the socket's path over what the kernel takes.
    from emberfs.deploy.local import LocalCluster

    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        defaults = {
            "capacity": CAPACITY,
            "trash": 0,
            **(REMOTE if os.environ.get("EMBERFS_TRANSPORT") == "rdma" else {}),
        }
        running = LocalCluster(Path(folder) / "data", bound=True, **{**defaults, **options})
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests that leave it as it is; each works in a directory of its own."""
    with running_cluster() as running:
        yield running


@pytest.fixture(scope="session")
def replicated_cluster() -> Iterator[LocalCluster]:
    """The same with three storage processes and one chain over all of them; none for KV blocks."""
    with running_cluster(nodes=3, replicas=3, targets=1, kv_capacity=0) as running:
        yield running


@pytest.fixture
def fresh_cluster() -> Iterator[LocalCluster]:
    """A cluster for one test, which may kill, stop or damage it."""
    with running_cluster() as running:
        yield running


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Makes clusters for one test: `make_cluster(nodes=3, replicas=3, targets=1)`."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(running_cluster(**options))

"""Fixtures: a real one-node cluster of server processes, on Unix sockets and ports that the kernel chooses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster


def _run() -> Iterator[LocalCluster]:
    # Not tmp_path: a test's name in it would push the socket's path over what the kernel takes.
    from emberfs.deploy.local import LocalCluster

    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        running = LocalCluster(Path(folder) / "data", capacity=2 << 30)
        try:
            running.start()
            yield running
        finally:
            running.stop()


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """One cluster for all tests that leave it as it is; each works in a directory of its own."""
    yield from _run()


@pytest.fixture
def fresh_cluster() -> Iterator[LocalCluster]:
    """A cluster for one test, which may kill, stop or damage it."""
    yield from _run()

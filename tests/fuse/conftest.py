"""Every test of what a mount shall do runs on the local file system as well: what is expected is what Linux does."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from emberfs_mount import can_mount

from .processes import mounted

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def mount(cluster: LocalCluster) -> Iterator[Path]:
    """A mount of a cluster, for all tests that leave it as it is; each works in a directory of its own."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    with mounted(cluster.url) as path:
        yield path


def _directory(parent: Path) -> Path:
    made = parent / f"test-{next(_numbers)}"
    made.mkdir()
    made.chmod(0o777)
    return made


@pytest.fixture
def place(mount: Path) -> Path:
    """A directory of the mount where everybody may do everything."""
    return _directory(mount)


@pytest.fixture(scope="session")
def local() -> Iterator[Path]:
    """A directory of the local file system that everybody reaches: pytest keeps its own to whoever runs it."""
    with tempfile.TemporaryDirectory(prefix="emberfs-local-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


@pytest.fixture(params=["mount", "local"])
def both(request: pytest.FixtureRequest) -> Path:
    """The same, and then one of the local file system."""
    if request.param == "local" and os.geteuid():
        pytest.skip("only root becomes other users")
    return _directory(request.getfixturevalue(request.param))

"""A mount against the local file system: the same system calls by the same users on both, and after each one the same outcome and the same
tree - names, types, modes, owners, links, lengths, extended attributes, ACLs, and which times moved. What the namespace is compared with
(tests/meta/namespace), with the kernel and its caches on our side, too."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from emberfs_mount import MountThread, can_mount
from hypothesis import settings
from hypothesis.stateful import initialize, run_state_machine_as_test
from hypothesis.strategies import sampled_from

from ..meta.namespace import test_posix_oracle as oracles
from ..meta.namespace.oracle import Local
from ..meta.namespace.test_posix_oracle import ALICE, ROOT, USERS, outcome

if TYPE_CHECKING:
    from emberfs.deploy.local import LocalCluster


class Mounted:
    """The other side, as the namespace is one there."""

    def __init__(self, local: Local) -> None:
        self.call = local.call

    def tree(self) -> list[dict[str, Any]]:
        """As `oracle.Calls.tree`."""
        rows: list[dict[str, Any]] = self.call(ROOT, "tree")
        return rows


class Both(oracles.Both):
    """Each rule does the same to both and compares the outcome."""

    mounted: Local

    @initialize(mode=sampled_from([0o777, 0o1777, 0o2777, 0o755]))
    def start(self, mode: int) -> None:
        for side in (self.local, self.mounted):
            side.call(ROOT, "reset", mode)
        self.ours = Mounted(self.mounted)  # type: ignore[assignment]
        self.plant()

    def teardown(self) -> None:
        pass


@pytest.fixture(scope="module")
def both(cluster: LocalCluster) -> Iterator[None]:
    """A directory of a mount where set-id bits and devices mean something, and one of the local file system."""
    if not can_mount():
        pytest.skip("mounting needs root and /dev/fuse")
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as place:
        mount = MountThread(cluster.url, place, flags=0)
        try:
            name = f"oracle-{time.monotonic_ns()}"  # a worker that takes over tests of others makes this once more
            (Path(place) / name).mkdir()
            Both.local, Both.mounted = Local(directory, USERS), Local(f"{place}/{name}", USERS)
            Both.local.call(ROOT, "reset", 0o777)
            try:
                Both.compares_times = Both.local.call(ROOT, "probe")
            except OSError as missing:
                pytest.skip(f"the local file system has no extended attributes or ACLs: {missing}")
            yield
            for side in (Both.mounted, Both.local):  # the helpers of the second have the pipes to the first
                side.call(ROOT, "reset", 0o777)
                side.close()
        finally:
            mount.close()


@pytest.mark.usefixtures("both")
def test_corners_of_paths() -> None:
    for side in (Both.local, Both.mounted):
        side.call(ROOT, "reset", 0o777)
    for corner in oracles.CORNERS:
        assert outcome(Both.mounted, ALICE, *corner) == outcome(Both.local, ALICE, *corner), corner


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("both")
def test_as_the_local_file_system() -> None:
    run_state_machine_as_test(
        Both, settings=settings(max_examples=60, stateful_step_count=40, derandomize=True, **oracles.ONCE)
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("both")
def test_as_the_local_file_system_for_long() -> None:
    run_state_machine_as_test(Both, settings=settings(max_examples=500, stateful_step_count=60, **oracles.ONCE))

"""Every store that the formats work on: a local directory, and a directory of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emberfs.client.loader.store import ClusterStore, Store, open_store

from ..world import World


@pytest.fixture(params=["directory", "cluster"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        made = open_store(tmp_path / "data")
        (tmp_path / "data").mkdir()
        yield made
        made.close()
        return
    world = World().start()
    try:
        client = world.client()
        client.mkdir("/data")
        made = ClusterStore("ember:///data", client=client)
        yield made
        made.close()
    finally:
        world.stop()

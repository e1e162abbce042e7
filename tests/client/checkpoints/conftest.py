"""Fixtures: a place for checkpoints, in the cluster and on the local disk."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from emberfs.client.checkpoints.folders import Folder, folder_of


@pytest.fixture(params=["cluster", "local"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL or path of a directory that is not there yet."""
    if request.param == "local":
        return str(tmp_path / "place")
    return f"{request.getfixturevalue('cluster').url.rstrip('/')}/checkpoints-{uuid.uuid4().hex}"


@pytest.fixture
def folder(where: str) -> Folder:
    made = folder_of(where)
    made.make()
    return made

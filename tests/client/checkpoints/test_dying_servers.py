"""Servers are killed in the middle of a save: it goes on when they are back, and fails cleanly where they stay away. The old or the new
checkpoint is there, whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import emberfs
from emberfs.client.checkpoints import catalog, folders, tensor_files
from emberfs.client.checkpoints.folders import Folder, folder_of
from emberfs.client.checkpoints.tensor_files import load_folder, save_folder

from .stepping import Stepping

STEPS = 16  # of a save, about: beyond, it is not interrupted


def tensors(version: int) -> dict[str, np.ndarray]:
    """Two files, too large to lie beside their inodes."""
    draw = np.random.default_rng(version)
    return {"version": np.array(version), **{f"w{i}": draw.standard_normal(50_000) for i in range(2)}}


def save(version: int, folder: Any) -> None:
    save_folder(tensors(version), folder, shard_bytes=500_000, threads=1)


def version_of(folder: Folder) -> int:
    """Which version is there, whole and right. Fails for a mixture."""
    found = load_folder(folder)
    wanted = tensors(int(found["version"]))
    assert found.keys() == wanted.keys()
    assert all((found[name] == value).all() for name, value in wanted.items())
    [seen] = catalog.checkpoints(folder)
    assert seen.whole and catalog.verify(seen) == []
    return int(found["version"])


def interrupted(cluster: Any, where: str, version: int, role: str, at: int) -> None:
    """A save before whose step `at` a server is killed, and started again."""

    def before(number: int) -> None:
        if number == at:
            cluster.kill(role)
            cluster.start()

    save(version, Stepping(folder_of(where), before))


def clean(where: str) -> bool:
    folder = folder_of(where)
    return set(folder.entries()) == {tensor_files.INDEX, *tensor_files.tensor_file_names(folder)}


def test_a_save_goes_on_when_the_server_is_back(fresh_cluster: Any) -> None:
    where = f"{fresh_cluster.url.rstrip('/')}/saved"
    save(1, folder_of(where))
    for version, (role, at) in enumerate([("storage-1", 6), ("meta", 9)], start=2):
        interrupted(fresh_cluster, where, version, role, at)
        assert version_of(folder_of(where)) == version and clean(where)


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("role", ["storage-1", "meta"])
def test_whatever_the_step(fresh_cluster: Any, role: str) -> None:
    where = f"{fresh_cluster.url.rstrip('/')}/saved"
    save(1, folder_of(where))
    for at in range(STEPS):
        interrupted(fresh_cluster, where, at + 2, role, at)
        assert version_of(folder_of(where)) == at + 2 and clean(where)


def test_a_save_fails_where_the_server_stays_away(fresh_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    where = f"{fresh_cluster.url.rstrip('/')}/saved"
    save(1, folder_of(where))
    version = 1
    for at in (4, 6):  # while tensors are written; while they are synced
        with emberfs.connect(fresh_cluster.url) as hasty:
            monkeypatch.setattr(folders, "_client_of", lambda _, client=hasty: client)

            def before(number: int, at: int = at, client: Any = hasty) -> None:
                if number == at:
                    fresh_cluster.kill("storage-1")
                    client.core.cluster.operation_seconds = client.core.cluster.attempt_seconds = 0.5

            with pytest.raises(OSError):
                save(version + 1, Stepping(folder_of(where), before))
            fresh_cluster.start()
        monkeypatch.undo()
        assert version_of(folder_of(where)) == version, "nothing has changed"
        version += 1
        save(version, folder_of(where))
        assert version_of(folder_of(where)) == version and clean(where)

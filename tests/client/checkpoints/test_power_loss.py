"""The power fails at each step of a save, and what was not synced is there or not, as chance has it: the old or the new checkpoint is
there, whole. An error at each step, of a disk that is full say, ends the save and costs nothing either."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from emberfs.client.checkpoints import catalog, tensor_files
from emberfs.client.checkpoints.folders import Folder, folder_of
from emberfs.client.checkpoints.tensor_files import load_folder, save_folder

from .power import MemoryDraft, MemoryFolder, PowerLoss
from .stepping import Stepping

DRAWS = 8  # of what survives, for each step


def tensors(version: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(version)
    return {"version": np.array(version), **{f"w{i}": draw.standard_normal(100 * (i + 1)) for i in range(4)}}


def version_of(folder: Folder) -> int:
    """Which version is there, whole and right; 0: none. Fails for a mixture."""
    try:
        found = load_folder(folder, threads=1)
    except FileNotFoundError:
        return 0
    version = int(found["version"])
    wanted = tensors(version)
    assert found.keys() == wanted.keys()
    assert all((found[name] == value).all() for name, value in wanted.items())
    [seen] = catalog.checkpoints(folder)
    assert seen.whole and catalog.verify(seen, threads=1) == []
    return version


def save(version: int, folder: Folder) -> None:
    save_folder(tensors(version), folder, shard_bytes=2000, threads=1)


def copy_of(folder: MemoryFolder, steps_left: int) -> MemoryFolder:
    made = MemoryFolder(steps_left)
    made.names = dict(folder.names)
    return made


def save_alone(version: int, folder: MemoryFolder) -> None:
    """As one file without an index, as `save_file` and others' programs do."""
    save_folder(tensors(version), folder, threads=1)
    [name] = tensor_files.tensor_file_names(folder)
    folder.names = {"model.safetensors": folder.names[name]}


@pytest.mark.parametrize("before, save_before", [(0, None), (1, save), (1, save_alone)])
def test_a_loss_of_power_leaves_the_old_or_the_new_files(
    before: int, save_before: Callable[[int, MemoryFolder], None] | None
) -> None:
    old = MemoryFolder()
    if save_before is not None:
        save_before(before, old)
    seen, steps, ended = set(), 0, False
    while not ended:
        for seed in range(DRAWS):
            folder = copy_of(old, steps)
            try:
                save(2, folder)
                ended = True
            except PowerLoss:
                pass
            survivor = folder.after_power_loss(random.Random(seed))
            came = version_of(survivor)
            assert came in (before, 2), f"step {steps}, seed {seed}"
            assert came == 2 or not ended, "a save that has ended survives"
            seen.add(came)
            save(3, survivor)  # whatever lies about
            assert version_of(survivor) == 3
            assert set(survivor.names) == {tensor_files.INDEX, *tensor_files.tensor_file_names(survivor)}
        steps += 1
    assert seen == {before, 2} and steps > 12


@pytest.mark.parametrize("forgets", ["fsync", "sync"])
def test_a_save_that_does_not_sync_would_be_noticed(forgets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof above is worth something: without one of the two kinds of syncs it fails."""
    if forgets == "fsync":
        monkeypatch.setattr(MemoryDraft, "fsync", lambda self: self.folder.step())
    else:
        monkeypatch.setattr(MemoryFolder, "sync", MemoryFolder.step)
    with pytest.raises((AssertionError, OSError, ValueError)):
        test_a_loss_of_power_leaves_the_old_or_the_new_files(1, save)


@pytest.mark.parametrize("code", [28, 122, 13, 5], ids=["no space", "quota", "permission", "io"])
def test_an_error_at_each_step(where: str, code: int) -> None:
    folder = folder_of(where)
    save(1, folder)
    old, steps = 1, 0
    while True:
        failure = OSError(code, "as planted")
        planted: list[int] = []

        def fail(number: int, at: int = steps, failure: OSError = failure, planted: list[int] = planted) -> None:
            if number == at:
                planted.append(number)
                raise failure

        try:
            save(old + 1, Stepping(folder_of(where), fail))
        except OSError as failed:
            assert failed is failure
        else:
            assert not planted, "an error that nobody heard of"
            break
        came = version_of(folder)
        assert came in (old, old + 1)
        old = came
        steps += 1
    assert version_of(folder) == old + 1 and steps > 8
    assert set(folder.entries()) == {tensor_files.INDEX, *tensor_files.tensor_file_names(folder)}, "leftovers"

"""Listing, verifying and pruning, without torch: what stands in a directory is made by hand where torch would have made it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberfs.client.checkpoints import catalog, manifest
from emberfs.client.checkpoints.catalog import Checkpoint, may_go
from emberfs.client.checkpoints.folders import Folder, LocalFolder, folder_of, write_all
from emberfs.client.checkpoints.manifest import Item, Manifest, Shard
from emberfs.client.checkpoints.tensor_files import save_folder
from emberfs.client.core.verify import crc32c
from emberfs.proto.errors import StatusError

from ...deploy.command import Command


def distributed(folder: Folder, save_id: str = "1", metadata: bytes = b"a pickle of torch's") -> None:
    """A checkpoint as the storage writer leaves it."""
    folder.make()
    data = os.urandom(100_000)
    write_all(folder, f"__0.{save_id}.0.distcp", data)
    items = (Item("weight", 0, 60_000, crc32c(data[:60_000])), Item("bias", 60_032, 39_968, crc32c(data[60_032:])))
    shards = (Shard(f"__0.{save_id}.0.distcp", len(data), items),)
    made = Manifest(save_id, len(metadata), crc32c(metadata), shards)
    write_all(folder, manifest.name_of(save_id), manifest.encode(made))
    write_all(folder, manifest.METADATA, metadata)


def damage(folder: Folder, name: str, offset: int) -> None:
    """Another byte at this place, written as any program would."""
    if isinstance(folder, LocalFolder):
        with open(f"{folder.path}/{name}", "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))
        return
    with folder.client.open(f"{folder.path}/{name}", "r+b") as file:  # type: ignore[attr-defined]
        file.pwrite(bytes([file.pread(1, offset)[0] ^ 1]), offset)


def test_a_whole_one_is_verified_and_a_flipped_bit_is_found(folder: Folder) -> None:
    distributed(folder)
    [found] = catalog.checkpoints(folder)
    assert (found.kind, found.whole, found.sums, found.tensors) == ("dcp", True, True, 2)
    read: list[int] = []
    assert catalog.verify(found, done=read.append) == []
    assert sum(read) == 99_968
    damage(folder, "__0.1.0.distcp", 60_032)
    [bad] = catalog.verify(found)
    assert (bad.file, bad.item) == ("__0.1.0.distcp", "bias")


def test_what_is_missing_or_cut_is_not_whole(folder: Folder) -> None:
    distributed(folder)
    folder.remove(["__0.1.0.distcp"])
    [found] = catalog.checkpoints(folder)
    assert found.problem == "__0.1.0.distcp is missing"
    write_all(folder, "__0.1.0.distcp", b"short")
    [found] = catalog.checkpoints(folder)
    assert "5 bytes instead of 100000" in found.problem
    assert catalog.verify(found)[0].what == found.problem
    folder.remove([manifest.METADATA])
    [found] = catalog.checkpoints(folder)
    assert "has not ended" in found.problem


def test_a_manifest_counts_for_its_own_metadata_only(folder: Folder) -> None:
    distributed(folder, "1")
    distributed(folder, "2", b"another pickle")
    [found] = catalog.checkpoints(folder)
    assert found.whole and found.save_id == "2"
    damage(folder, manifest.name_of("2"), 30)
    [found] = catalog.checkpoints(folder)
    assert not found.whole
    with pytest.raises(StatusError, match="damaged"):
        manifest.decode(b'{"manifest":{},"crc32c":1}', "somewhere")


def test_safetensors_are_checkpoints_too(folder: Folder) -> None:
    save_folder({"a": np.arange(1000), "b": np.ones(5, "f4")}, folder.child("model"), shard_bytes=100)
    [found] = catalog.checkpoints(folder)
    assert (found.name, found.kind, found.whole, found.sums, found.tensors) == ("model", "safetensors", True, True, 2)
    assert catalog.verify(found) == []
    [name] = [name for name, entry in found.folder.entries().items() if entry.size > 4000]
    damage(found.folder, name, found.folder.entries()[name].size - 1)
    [bad] = catalog.verify(found)
    assert (bad.file, bad.item) == (name, "a")
    found.folder.remove([name])
    [found] = catalog.checkpoints(folder)
    assert not found.whole


def a_checkpoint(name: str, saved: int, problem: str = "") -> Checkpoint:
    return Checkpoint(name, LocalFolder(f"/nowhere/{name}"), "dcp", saved, 1, 1, "", True, problem)


@pytest.mark.parametrize(
    "whole, keep, going",
    [
        ("+++", 1, [0, 1]),
        ("+++", 3, []),
        ("+++", 9, []),
        ("+--", 1, []),  # the only whole one
        ("-+-", 1, [0]),  # the last may be on its way
        ("++-", 1, [0]),
        ("++-", 2, []),
        ("+-+-+", 2, [0, 1]),
        ("---", 1, []),
        ("", 1, []),
    ],
)
def test_which_may_go(whole: str, keep: int, going: list[int]) -> None:
    found = [a_checkpoint(str(i), i, "" if sign == "+" else "broken") for i, sign in enumerate(whole)]
    assert [each.saved_ns for each in may_go(found[::-1], keep)] == going
    with pytest.raises(StatusError):
        may_go(found, 0)


@pytest.fixture
def run(cluster: Any) -> Command:
    return Command({"EMBERFS_URL": cluster.url})


def test_the_command_line(run: Command, cluster: Any, tmp_path: Path) -> None:
    runs = f"/runs-{uuid.uuid4().hex}"
    root = folder_of(cluster.url + runs[1:])
    for step in ("step-1", "step-2", "step-3"):
        distributed(root.child(step), step)
    assert [row["name"] for row in run("ckpt", "ls", runs, "--json").json] == ["step-1", "step-2", "step-3"]
    assert run("ckpt", "verify", runs).text.count("proven") == 3
    damage(root.child("step-3"), "__0.step-3.0.distcp", 5)
    assert "step-3: __0.step-3.0.distcp: weight: checksum" in run.fail(4, "ckpt", "verify", runs)
    assert "--yes" in run.fail(2, "ckpt", "prune", runs, "--keep", "1")
    assert run("ckpt", "prune", runs, "--keep", "1", "--verify", "--dry-run").text.split()[0] == "step-1"
    run("ckpt", "prune", runs, "--keep", "1", "--verify", "--yes")
    assert set(root.entries()) == {"step-2", "step-3"}
    run.fail(2, "ckpt", "prune", f"{runs}/step-3", "--keep", "1", "--yes")
    assert "no checkpoints" in run.fail(1, "ckpt", "ls", f"file://{tmp_path}")


def test_what_a_killed_removal_left_goes_with_the_next(tmp_path: Path) -> None:
    left, kept = tmp_path / ".one.0123456789abcdef.removed", tmp_path / ".one.removed"
    for made in (left, kept, tmp_path / "two"):
        made.mkdir()
        (made / "file").write_bytes(b"x")
    LocalFolder(str(tmp_path / "two")).remove_all()
    assert sorted(os.listdir(tmp_path)) == [kept.name]


def test_a_symlink_to_a_checkpoint_is_not_another_one(tmp_path: Path) -> None:
    """As "latest": it would take the place of one that is to be kept, and cannot be removed as one."""
    for number in range(3):
        distributed(LocalFolder(str(tmp_path / f"step-{number}")))
        os.utime(tmp_path / f"step-{number}" / manifest.METADATA, (number, number))
    (tmp_path / "latest").symlink_to("step-2")
    found = catalog.checkpoints(LocalFolder(str(tmp_path)))
    assert [each.name for each in found] == ["step-0", "step-1", "step-2"]
    assert [each.name for each in catalog.may_go(found, 2)] == ["step-0"]

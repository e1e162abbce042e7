"""safetensors files, in the cluster and on the local disk, with numpy alone; the format's own library is asked where it is installed."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from emberfs.client.checkpoints import tensor_files
from emberfs.client.checkpoints.folders import Folder, LocalFolder, Source, folder_of
from emberfs.client.checkpoints.tensor_files import Part, TensorFile, load_file, load_folder, save_file, save_folder
from emberfs.proto.errors import StatusError

from .dying import DyingFolder, lived


def some(seed: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "wide": draw.standard_normal((64, 96)).astype("f4"),
        "scalar": np.array(seed, "i8"),
        "empty": np.zeros((0, 7), "f8"),
        "odd": draw.integers(0, 255, 13, "u1"),
        "mask": draw.integers(0, 2, (5, 3)).astype(bool),
        "half": draw.standard_normal((3, 5, 7)).astype("f2"),
        "turned": draw.standard_normal((8, 16)).astype("f8").T,
        "complex": draw.standard_normal(9).astype("c8"),
    }


def same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert (found[name] == value).all(), name


def test_what_is_saved_is_loaded(folder: Folder) -> None:
    save_file(some(), f"{folder.url}/a.safetensors", {"step": "7"})
    same(load_file(f"{folder.url}/a.safetensors"), some())
    with TensorFile(f"{folder.url}/a.safetensors") as file:
        assert file.metadata == {"step": "7"}
        assert file.tensors["half"].shape == (3, 5, 7)
        same(file.load(names=["odd", "half"]), {name: some()[name] for name in ("odd", "half")})


@pytest.mark.training
def test_the_formats_own_library_agrees(tmp_path: Path) -> None:
    theirs = pytest.importorskip("safetensors.numpy", reason="safetensors is not here: ./deploy/test --training")
    save_file(some(), tmp_path / "ours.safetensors", {"who": "ä"})
    same(theirs.load_file(tmp_path / "ours.safetensors"), some())
    straight = {name: value.copy(order="C") for name, value in some().items()}
    theirs.save_file(straight, tmp_path / "theirs.safetensors", metadata={"who": "they"})
    same(load_file(tmp_path / "theirs.safetensors"), some())


def test_several_files_are_read_as_one(folder: Folder) -> None:
    save_folder(some(), folder.url, shard_bytes=100)
    names = tensor_files.tensor_file_names(folder)
    assert len(names) > 3
    same(load_folder(folder.url), some())
    save_folder(some(2), folder.url, shard_bytes=10**6)
    same(load_folder(folder.url), some(2))
    assert set(folder.entries()) == {tensor_files.INDEX, *tensor_files.tensor_file_names(folder)}


@pytest.mark.parametrize("run_bytes_min", [1, 1 << 20], ids=["runs", "rows"])
def test_a_rank_gets_its_part(folder: Folder, monkeypatch: pytest.MonkeyPatch, run_bytes_min: int) -> None:
    monkeypatch.setattr(tensor_files, "RUN_BYTES_MIN", run_bytes_min)
    monkeypatch.setattr(tensor_files, "PIECE_BYTES", 1000)  # of rows read at once
    value = np.arange(4 * 6 * 8, dtype="i4").reshape(4, 6, 8)
    save_file({"x": value, "y": value}, f"{folder.url}/x.safetensors")
    for dim, world in [(0, 2), (1, 3), (2, 4)]:
        for rank in range(world):
            found = load_file(
                f"{folder.url}/x.safetensors",
                part=lambda t, d=dim, r=rank, w=world: Part(d, r, w) if t.name == "x" else None,
            )
            same(found, {"x": np.split(value, world, dim)[rank], "y": value})
    with pytest.raises(StatusError, match="cannot be cut"):
        load_file(f"{folder.url}/x.safetensors", part=lambda _: Part(0, 0, 3))


def test_it_goes_to_the_callers_memory(folder: Folder) -> None:
    save_file(some(), f"{folder.url}/a.safetensors")
    mine = bytearray(1 << 20)
    found = load_file(f"{folder.url}/a.safetensors", into=mine)
    before = found["wide"][0, 0]
    mine[:] = bytes(len(mine))
    assert before != 0 and (found["wide"] == 0).all()
    with pytest.raises(StatusError, match="hold"):
        load_file(f"{folder.url}/a.safetensors", into=bytearray(100))


def test_larger_than_a_piece(folder: Folder) -> None:
    value = np.random.default_rng(3).integers(0, 255, (9 << 20) + 77, "u1")
    save_file({"a": value, "b": value[::-1]}, f"{folder.url}/big.safetensors")
    same(load_file(f"{folder.url}/big.safetensors"), {"a": value, "b": value[::-1]})


def test_what_it_cannot_write(folder: Folder) -> None:
    with pytest.raises(StatusError, match="does not have"):
        save_file({"a": np.array(["text"])}, f"{folder.url}/a.safetensors")
    with pytest.raises(StatusError, match="__metadata__"):
        save_file({"__metadata__": np.zeros(1)}, f"{folder.url}/a.safetensors")
    assert not folder.entries()


GOOD = {"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    "header, data",
    [
        (b"", b""),
        (b"no JSON!", b""),
        (b"[1,2,3] ", b""),
        (
            json.dumps({**GOOD, "y": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]}}).encode(),
            b"12345",
        ),  # overlap
        (json.dumps({"x": {"dtype": "U8", "shape": [4], "data_offsets": [1, 5]}}).encode(), b"12345"),  # gap
        (json.dumps(GOOD).encode(), b"12345"),  # bytes that belong to nobody
        (json.dumps(GOOD).encode(), b"123"),  # cut
        (json.dumps({"x": {"dtype": "U8", "shape": [5], "data_offsets": [0, 4]}}).encode(), b"1234"),
        (json.dumps({"x": {"dtype": "U9", "shape": [4], "data_offsets": [0, 4]}}).encode(), b"1234"),
        (json.dumps({"x": {"dtype": "U8", "shape": [-4], "data_offsets": [0, 4]}}).encode(), b"1234"),
        (json.dumps({"x": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}).encode(), b"1"),
        (json.dumps(GOOD).encode()[:-1] + b',"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"1234"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, header: bytes, data: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    with pytest.raises(StatusError, match=r"bad\.safetensors"):
        load_file(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + header + data)
    with pytest.raises(StatusError, match="no safetensors file"):
        load_file(path)


def test_a_save_that_is_killed_leaves_the_old_or_the_new_files(where: str) -> None:
    folder = folder_of(where)
    save_folder(some(1), folder, shard_bytes=4000, threads=1)
    old, seen_new, steps = 1, False, 0
    while True:
        new = old + 1
        # One step later each time, until it is never killed.
        ended = lived(lambda n=new, left=steps: save_folder(some(n), DyingFolder(folder_of(where), left), threads=1))
        found = load_folder(where)
        came = int(found["scalar"])
        assert came in (old, new)
        same(found, some(came))
        assert came == new or not ended
        seen_new = seen_new or came == new
        old = came
        if ended:
            break
        steps += 1
    assert steps > 10 and seen_new
    save_folder(some(1), folder, shard_bytes=4000)
    assert set(folder.entries()) == {tensor_files.INDEX, *tensor_files.tensor_file_names(folder)}, "leftovers"


def test_an_index_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    class Damaged(LocalFolder):
        def open(self, name: str) -> Source:
            if name == tensor_files.INDEX:
                raise OSError(errno.EIO, "its bytes are lost")
            return super().open(name)

    save_folder(some(1), tmp_path, shard_bytes=4000)
    save_folder(some(2), Damaged(str(tmp_path)))
    same(load_folder(tmp_path), some(2))
    assert len(LocalFolder(str(tmp_path)).entries()) == 2


def test_files_beside_a_set_stay(where: str) -> None:
    """As an optimizer's, or an adapter's: only the set itself is replaced, under whatever names its index has."""
    folder = folder_of(where)
    save_folder(some(1), folder, shard_bytes=4000)
    save_file({"step": np.array(7)}, f"{folder.url}/optimizer.safetensors")
    save_file(some(1), f"{folder.url}/model.safetensors")
    save_folder(some(2), folder)
    save_folder(some(3), folder)
    same(load_folder(where), some(3))
    assert int(load_file(f"{folder.url}/optimizer.safetensors")["step"]) == 7
    assert set(folder.entries()) == {
        tensor_files.INDEX,
        "optimizer.safetensors",
        *tensor_files.tensor_file_names(folder),
    }


def test_a_clean_name() -> None:
    with pytest.raises(StatusError, match="names no file"):
        save_file({}, "/tmp/")
    with pytest.raises(StatusError, match="neither"):
        save_file({}, "s3://bucket/name")
    assert folder_of("file:///tmp/x%20y").url == "/tmp/x y"
    assert folder_of("relative").url == os.path.abspath("relative")

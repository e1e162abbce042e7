"""What nobody should do to checkpoints and somebody does: absurd headers, damaged lists of files, two saves at once, odd names, files that
are replaced or removed while they are read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberfs.client.checkpoints import catalog, manifest, tensor_files
from emberfs.client.checkpoints.folders import Folder, LocalFolder, folder_of, write_all
from emberfs.client.checkpoints.manifest import Item, Manifest, Shard
from emberfs.client.checkpoints.tensor_files import TensorFile, load_file, load_folder, save_file, save_folder
from emberfs.client.core.verify import crc32c
from emberfs.proto.errors import Status, StatusError

from .stepping import Stepping


def tensors(version: int) -> dict[str, np.ndarray]:
    return {"version": np.array(version), "a": np.full(1000, version), "b": np.full(2000, version)}


def save(version: int, folder: Any) -> None:
    save_folder(tensors(version), folder, shard_bytes=10_000, threads=1)


def version_of(folder: Folder) -> int:
    found = load_folder(folder)
    version = int(found["version"])
    assert all((found[name] == value).all() for name, value in tensors(version).items())
    return version


@pytest.mark.parametrize(
    "header",
    [
        b'{"x":{"dtype":"U8","shape":[0,99999999999999999999999999],"data_offsets":[0,0]}}',
        b'{"x":{"dtype":"U8","shape":[9223372036854775808,0,2],"data_offsets":[0,0]}}',
        b'{"x":{"dtype":"U8","shape":[' + b"1," * 99 + b'1],"data_offsets":[0,1]}}',
        b'{"x":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}',
        b'{"x":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        b'{"x":{"dtype":["U8"],"shape":[1],"data_offsets":[0,1]}}',
        b'{"x":{"dtype":"U8","shape":"1","data_offsets":[0,1]}}',
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0]}}',
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}',
        b'{"x":[]}',
        b'{"__metadata__":[1]}',
        b'{"__metadata__":{"a":1}}',
        b'{"__metadata__":{"emberfs.crc32c":"[]"}}',
        b'{"__metadata__":{"emberfs.crc32c":"{\\"x\\":1}"}}',
        b"[" * 100_000,
        b'{"x":' + b'{"y":' * 50_000,
        b'{"x":' + b"9" * 5000 + b"}",
        b"\xff\xfe{}",
    ],
    ids=range(18),
)
def test_an_absurd_header_is_a_bad_format(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"1")
    with pytest.raises(StatusError) as refused:
        load_file(path)
    assert refused.value.status is Status.BAD_FORMAT
    [found] = catalog.checkpoints(LocalFolder(str(tmp_path)))
    assert not found.whole


def test_names_of_tensors_may_be_anything(folder: Folder) -> None:
    names = ["", " ", "a/b", "../c", "ä\u0000\n\u2028", '"\\', "__metadata__2", "💾" * 100]
    save_folder({name: np.array(i) for i, name in enumerate(names)}, folder)
    found = load_folder(folder)
    assert {name: int(value) for name, value in found.items()} == {name: i for i, name in enumerate(names)}


def test_a_tensor_that_two_files_have(folder: Folder) -> None:
    for name in ("one", "two"):
        save_file({"same": np.zeros(3)}, f"{folder.url}/{name}.safetensors")
    with pytest.raises(StatusError, match="which one counts"):
        load_folder(folder)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map":[]}', b'{"weight_map":{"a":[1]}}', b"[" * 100_000]
)
def test_a_damaged_index(folder: Folder, content: bytes) -> None:
    save(1, folder)
    write_all(folder, tensor_files.INDEX, content)
    with pytest.raises(StatusError, match="damaged"):
        load_folder(folder)
    assert not catalog.checkpoints(folder)[0].whole
    save(2, folder)
    assert version_of(folder) == 2


def test_lists_that_lead_elsewhere(folder: Folder) -> None:
    save(1, folder)
    write_all(folder, tensor_files.INDEX, b'{"weight_map":{"a":"../a.safetensors"}}')
    with pytest.raises(StatusError, match="outside its directory"):
        load_folder(folder)
    shard = Shard("../secret", 5, (Item("x", 0, 5, crc32c(b"bytes")),))
    encoded = manifest.encode(Manifest("1", 1, crc32c(b"m"), (shard,)))
    with pytest.raises(StatusError, match="outside its directory"):
        manifest.decode(encoded, "somewhere")
    strange = Shard("a", 5, (Item("x", 0, "5", 1),))  # type: ignore[arg-type]
    for damaged in (
        manifest.encode(Manifest("1", 1, 1, (strange,))),
        manifest.encode(Manifest("1", -1, 1, ())),
        encoded[:-9],
        encoded.replace(b"secret", b"Secret"),
        b"[" * 100_000,
        b"[1]",
        json.dumps({"manifest": 1}).encode(),
    ):
        with pytest.raises(StatusError, match="damaged"):
            manifest.decode(damaged, "somewhere")


def test_a_save_in_the_middle_of_another_one(where: str) -> None:
    """At each step but the one that replaces the index: one of the two counts, whole, and the other is told if it does not."""
    seen: list[int] = []
    save(1, Stepping(folder_of(where), seen.append))
    replaces = len(seen) - 3  # then the names are synced, and the old files go
    told = 0
    for at in range(replaces):

        def before(number: int, at: int = at) -> None:
            if number == at:
                save(3, folder_of(where))

        try:
            save(2, Stepping(folder_of(where), before))
        except OSError:
            told += 1
            assert version_of(folder_of(where)) == 3
        else:
            assert version_of(folder_of(where)) == 2
    assert told > 3 and replaces > 10


@pytest.mark.parametrize("name", ["a b", "50%", "%41", "#1", "why?", "ä🙂", "new\nline", "-", "a:b", "&=;"])
def test_odd_names_of_directories(where: str, name: str) -> None:
    parent = folder_of(where)
    parent.make()
    child = f"{where}/{name}"
    save(1, child)
    save(2, child)
    assert version_of(folder_of(child)) == 2
    [found] = catalog.checkpoints(parent)
    assert found.name == name and found.whole and catalog.verify(found) == []
    found.folder.remove_all(forever=True)
    assert parent.entries() == {}


def test_a_file_that_is_replaced_or_removed_while_it_is_open(folder: Folder) -> None:
    path = f"{folder.url}/model.safetensors"
    save_file(tensors(1), path)
    with TensorFile(path) as old:
        save_file(tensors(2), path)
        with TensorFile(path) as new:
            folder.remove(["model.safetensors"])
            assert int(new.load()["version"]) == 2
        found = old.load()
        assert all((found[name] == value).all() for name, value in tensors(1).items())


def test_a_load_while_the_set_is_replaced(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the index and the files that it names."""
    save(1, folder_of(where))
    names = tensor_files.tensor_file_names
    version = [1]

    def read_late(folder: Folder) -> list[str]:
        found = names(folder)
        if version[0] < 4:
            version[0] += 1
            save(version[0], folder_of(where))
        return found

    monkeypatch.setattr(tensor_files, "tensor_file_names", read_late)
    assert version_of(folder_of(where)) == 4


def test_files_that_are_gone(where: str) -> None:
    save(1, folder_of(where))
    folder = folder_of(where)
    folder.remove([tensor_files.tensor_file_names(folder)[0]])
    with pytest.raises(FileNotFoundError):
        load_folder(where)


def test_where_nobody_may_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(OSError):
        save(1, str(tmp_path / "file"))
    with pytest.raises(OSError):
        save(1, "/proc/nowhere")

"""Other formats through the same door: FFRecord, tar shards, Parquet row groups, plain files."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tarfile
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberfs.client.blocking import Client
from emberfs.client.loader import samples as module_of_samples
from emberfs.client.loader.ffrecord import BadFFRecord, write_ffrecord
from emberfs.client.loader.samples import open_samples
from emberfs.client.loader.store import ClusterStore, DirectoryStore, Store
from emberfs.proto.errors import Status, StatusError


def write(store: Store, path: str, data: bytes) -> None:
    with store.open(path, "wb") as file:
        file.write(data)


def payloads(count: int) -> list[bytes]:
    choose = random.Random(count)
    return [choose.randbytes(choose.choice((0, 5, 4096, 30_000))) for _ in range(count)]


def test_ffrecord_files(store: Store) -> None:
    wanted = payloads(40)
    # By hand, from the description: CRC32 of the rest of the header, count, CRC32s, offsets, samples.
    base = 4 + 8 + 12 * len(wanted)
    offsets = [base + sum(map(len, wanted[:i])) for i in range(len(wanted))]
    rest = struct.pack(f"<q{len(wanted)}I{len(wanted)}q", len(wanted), *map(zlib.crc32, wanted), *offsets)
    made = struct.pack("<I", zlib.crc32(rest)) + rest + b"".join(wanted)
    write(store, "a.ffr", made)
    assert write_ffrecord(store, "b.ffr", wanted[:7]) == 7
    samples = open_samples(store, verify=True)
    assert [bytes(sample) for sample in samples.read(range(47))] == wanted + wanted[:7]
    write(store, "a.ffr", made[:-1] + bytes([made[-1] ^ 1]))
    with pytest.raises(StatusError) as refused:
        open_samples(store, verify=True).read([39])
    assert refused.value.status is Status.CHECKSUM
    for broken in (made[:20] + b"\1" + made[21:], b"short", b"\0" * 4 + b"\xff" * 100):
        write(store, "a.ffr", broken)
        with pytest.raises(BadFFRecord):
            open_samples(store)


def tar_of(members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=format) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_shards(store: Store, format: int) -> None:
    long = "d" * 120  # its name takes a member of its own
    data = {f"{long if i == 3 else 'train'}/{i:04d}": (payloads(9)[i], str(i).encode()) for i in range(9)}
    members = [
        (f"{key}.{end}", part)
        for key, parts in data.items()
        for end, part in zip(("seg.png", "cls"), parts, strict=True)
    ]
    write(store, "0.tar", tar_of(members[:10], format))
    write(store, "1.tar", tar_of(members[10:], format))
    samples = open_samples(store)
    assert len(samples) == 9
    found = samples.decoded(samples.read([8, *range(8)]))
    for sample, (key, (image, label)) in zip(found[1:] + found[:1], data.items(), strict=True):
        assert sample["__key__"] == key
        assert bytes(sample["seg.png"]) == image and bytes(sample["cls"]) == label
    labels = open_samples(store, decode=lambda sample: int(bytes(sample["cls"])))
    assert labels[4] == 4
    write(store, "1.tar", b"x" * 2000)
    with pytest.raises(ValueError, match="no plain tar"):
        open_samples(store)


def test_parquet_row_groups(store: Store) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tables = []
    for number in range(2):
        table = pa.table(
            {"id": range(number * 1000, number * 1000 + 1000), "text": [f"row {i % 7}" for i in range(1000)]}
        )
        sink = io.BytesIO()
        parquet.write_table(table, sink, row_group_size=300)
        write(store, f"{number}.parquet", sink.getvalue())
        tables.append(table)
    samples = open_samples(store)
    assert len(samples) == 8
    found = samples.decoded(samples.read([7, 0]))
    assert found[1].equals(tables[0].slice(0, 300)) and found[0].equals(tables[1].slice(900))
    texts = pickle.loads(pickle.dumps(open_samples(store, columns=["text"]).decode))
    assert texts is not None
    only = open_samples(store, columns=["text"], decode=lambda table: table.to_pydict())
    assert only[1] == {"text": [f"row {i % 7}" for i in range(300, 600)]}
    for columns in (["missing"], ["text", "missing"], []):
        with pytest.raises(KeyError):
            open_samples(store, columns=columns)


def test_columns_of_parquet_with_dots(store: Store) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    nested = [{"a": i, "b": f"b{i}"} for i in range(50)]
    table = pa.table({"photo.bytes": [b"x" * i for i in range(50)], "image": nested, "more": range(50)})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    write(store, "a.parquet", sink.getvalue())
    assert open_samples(store, columns=["photo.bytes"])[0].equals(table.select(["photo.bytes"]))
    both = open_samples(store, columns=["more", "image"])[0]
    assert both.to_pylist() == table.select(["image", "more"]).to_pylist()
    part = open_samples(store, columns=["image.b"])[0]
    assert part.to_pylist() == [{"image": {"b": one["b"]}} for one in nested]


def test_files_as_samples(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {f"class{i % 3}/{i}.bin": data for i, data in enumerate(payloads(30))}
    for path, data in wanted.items():
        write(store, path, data)
    samples = open_samples(store, "files")
    assert dict(zip(samples.index.paths, map(bytes, samples.read(range(30))), strict=True)) == wanted
    assert len(open_samples(store, "files", suffix="7.bin")) == 3
    write(store, "class0/0.bin", b"longer now" * 1000)
    at = list(samples.index.paths).index("class0/0.bin")
    assert [bytes(sample) for sample in samples.read([at])] == [b"longer now" * 1000]
    monkeypatch.setattr(module_of_samples, "BATCH_BYTES_MAX", 1000)
    with pytest.raises(StatusError, match="fewer samples"):
        samples.read(range(30))


def test_what_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        open_samples(store)
    write(store, "a.records", b"")
    with pytest.raises(ValueError, match="there are records"):
        open_samples(store, "tfrecord")
    with pytest.raises(TypeError):
        open_samples(store, "ffrecord", paths=["a"], columns=["x"])


def test_a_shard_that_was_replaced_is_not_read_by_the_old_index(store: Store) -> None:
    from emberfs.client.loader.record_writer import RecordWriter

    def make(path: str, payload: bytes) -> None:
        with RecordWriter(store, path) as writer:
            for _ in range(5):
                writer.write(payload)

    make("a.records", b"a" * 100)
    early, late = open_samples(store), open_samples(store)
    assert bytes(early[0]) == b"a" * 100
    make("b.part", b"b" * 50)
    move(store, "b.part", "a.records")
    assert bytes(early[1]) == b"a" * 100  # an open file stays what it is
    for samples in (late, pickle.loads(pickle.dumps(early)) if isinstance(store, DirectoryStore) else early):
        store._files.clear()  # type: ignore[attr-defined]
        with pytest.raises(StatusError, match="was replaced") as refused:
            samples.read([0])
        assert refused.value.status is Status.STALE_HANDLE
    assert bytes(open_samples(store)[1]) == b"b" * 50


def move(store: Store, source: str, target: str) -> None:
    if isinstance(store, DirectoryStore):
        os.replace(store.path(source), store.path(target))
    else:
        assert isinstance(store, ClusterStore)
        store.client.rename(store.path(source), store.path(target))


def test_batches_are_views_of_one_piece_of_memory(store: Store) -> None:
    from emberfs.client.loader.record_writer import RecordWriter

    numbers = np.arange(12, dtype="<f4").reshape(6, 2)
    with RecordWriter(store, "a.records") as writer:
        for row in numbers:
            writer.write(row)
    batch = open_samples(store).read([5, 0, 3])
    assert np.array_equal(batch.stacked("<f4", (2,)), numbers[[5, 0, 3]])
    assert all(np.shares_memory(sample, batch.data) for sample in batch)
    assert batch[-1].tolist() == batch[2].tolist() and len(batch[0:2]) == 2
    again: Any = pickle.loads(pickle.dumps(batch))
    assert [bytes(sample) for sample in again] == [bytes(sample) for sample in batch]
    with RecordWriter(store, "a.records", append=True) as writer:
        writer.write(b"odd")
    with pytest.raises(ValueError, match="differ in size"):
        open_samples(store).read([0, 6]).stacked()


def test_a_directory_of_a_cluster_that_may_not_be_read_is_told(store: Store) -> None:
    """Without the samples in it, epochs would be shorter and nobody would know."""
    if not isinstance(store, ClusterStore):
        return
    write(store, "open/1", b"sample")
    write(store, "private/2", b"sample")
    store.client.chmod("/data/private", 0o700)
    somebody: Any = store.client.core.acting_for(4321, 4321)
    with pytest.raises(PermissionError, match="private"):
        open_samples(ClusterStore("ember:///data", client=Client(somebody)), "files")


def test_a_local_directory_that_may_not_be_read_is_told() -> None:
    with tempfile.TemporaryDirectory() as root:  # others may enter it, as they may not enter pytest's
        os.chmod(root, 0o755)
        for name in ("open", "private"):
            os.mkdir(os.path.join(root, name))
            Path(root, name, "1").write_bytes(b"sample")
        os.chmod(os.path.join(root, "private"), 0o000)
        me = os.geteuid()
        os.seteuid(me or 4321)
        try:
            with pytest.raises(PermissionError, match="private"):
                open_samples(root, "files")
            os.seteuid(me)
            os.rename(os.path.join(root, "private"), os.path.join(root, "lost+found"))
            os.seteuid(me or 4321)
            assert len(open_samples(root, "files")) == 1, "that of a disk of one's own has no samples"
        finally:
            os.seteuid(me)
            for name in ("private", "lost+found"):
                with suppress(FileNotFoundError):
                    os.chmod(os.path.join(root, name), 0o700)

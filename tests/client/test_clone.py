"""Clones on a real cluster: copy_file_range and whole files that share chunks."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import emberfs
from emberfs.client.core.whole import clone_file
from emberfs.proto.env import Call, drive
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen.storage_pb2 import SpaceRequest
from emberfs.proto.rpc import STORAGE

CHUNK = 64 << 10
MIB = 1 << 20


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with emberfs.connect(cluster.url) as made:
        yield made


@pytest.fixture
def folder(client: Any) -> Iterator[str]:
    path = f"/clone-{random.randrange(1 << 60):x}"
    client.mkdir(path)
    client.set_layout(path, chunk_size=CHUNK)
    yield path
    client.remove_tree(path)


def space(client: Any) -> tuple[int, int]:
    """(bytes in slots, bytes written by clients) of all targets, asked of them directly."""
    used = moved = 0
    table = client.core.cluster.table
    for node in {replica.node for chain in table.chains for replica in table.route(chain).serving}:
        address = client.core.cluster.node_address(node)
        reply = drive(client.core.env.call(Call(address, STORAGE.Space, SpaceRequest(), 10.0)))
        used, moved = used + sum(reply.used), moved + sum(reply.bytes_written)
    return used, moved


def test_a_clone_is_a_file_of_its_own(client: Any, folder: str) -> None:
    data = random.Random(1).randbytes(10 * CHUNK + 123)
    client.write_bytes(f"{folder}/a", data)
    made = client.clone(f"{folder}/a", f"{folder}/b")
    assert made.size == len(data)
    assert made.inode != client.stat(f"{folder}/a").inode
    assert client.read_bytes(f"{folder}/b") == data
    with client.open(f"{folder}/b", "r+b") as file:
        file.write(b"B's own")
    with client.open(f"{folder}/a", "ab") as file:
        file.write(b"A's own")
    assert client.read_bytes(f"{folder}/a") == data + b"A's own"
    assert client.read_bytes(f"{folder}/b") == b"B's own" + data[7:]
    client.unlink(f"{folder}/a")
    assert client.read_bytes(f"{folder}/b") == b"B's own" + data[7:]


def test_what_this_client_has_not_sent_yet_is_cloned(client: Any, folder: str) -> None:
    with client.open(f"{folder}/a", "wb") as file:
        file.write(b"not sent")
        assert client.clone(f"{folder}/a", f"{folder}/b").size == 8
    assert client.read_bytes(f"{folder}/b") == b"not sent"


def test_a_target_is_replaced_at_once_and_keeps_its_mode(client: Any, folder: str) -> None:
    client.write_bytes(f"{folder}/a", b"a" * CHUNK)
    client.write_bytes(f"{folder}/b", b"old")
    client.chmod(f"{folder}/b", 0o666)
    with client.open(f"{folder}/b") as reader:
        made = client.clone(f"{folder}/a", f"{folder}/b")
        assert reader.read() == b"old"
    assert made.mode & 0o777 == 0o666
    client.chmod(f"{folder}/a", 0o640)
    assert client.clone(f"{folder}/a", f"{folder}/c").mode & 0o777 == 0o640
    with pytest.raises(FileExistsError):
        client.clone(f"{folder}/a", f"{folder}/b", exclusive=True)
    with pytest.raises(StatusError) as caught:
        client.clone(f"{folder}/a", f"{folder}/a")
    assert caught.value.status is Status.INVALID
    with pytest.raises(FileNotFoundError):
        client.clone(f"{folder}/nothing", f"{folder}/d")
    with pytest.raises(IsADirectoryError):
        client.clone(f"{folder}/a", folder)
    assert sorted(client.listdir(folder)) == ["a", "b", "c"]


def test_holes_are_cloned_as_holes(client: Any, folder: str) -> None:
    with client.open(f"{folder}/a", "wb") as file:
        file.pwrite(b"begin", 0)
        file.pwrite(b"end", 500 * CHUNK)
    client.clone(f"{folder}/a", f"{folder}/b")
    with client.open(f"{folder}/b") as file:
        assert file.size == 500 * CHUNK + 3
        assert file.seek(5, os.SEEK_DATA) == 500 * CHUNK
        assert file.seek(0, os.SEEK_HOLE) == 5
        assert file.pread(3, 500 * CHUNK) == b"end"


def test_an_empty_file_and_one_of_another_chunk_size(client: Any, folder: str) -> None:
    client.write_bytes(f"{folder}/empty", b"")
    assert client.clone(f"{folder}/empty", f"{folder}/b").size == 0
    client.mkdir(f"{folder}/other")
    client.set_layout(f"{folder}/other", chunk_size=4 * MIB)
    data = random.Random(2).randbytes(3 * CHUNK)
    client.write_bytes(f"{folder}/a", data)
    made = client.clone(f"{folder}/a", f"{folder}/other/b")  # it takes the layout of its source, not the directory's
    assert made.size == len(data)
    assert client.read_bytes(f"{folder}/other/b") == data


def test_random_ranges_equal_a_model(client: Any, folder: str) -> None:
    """Files of one layout and of another one, ranges that fit and that do not, and writes in between."""
    chance = random.Random(3)
    names = [f"{folder}/{n}" for n in range(3)]
    model: dict[str, bytearray] = {name: bytearray() for name in names}
    files = {name: client.open(name, "w+b", chunk_size=CHUNK * (1 + (name[-1] == "2"))) for name in names}
    for step in range(120):
        name = chance.choice(names)
        content = model[name]
        if chance.random() < 0.4:
            offset = chance.choice([0, len(content), chance.randrange(20 * CHUNK)])
            data = chance.randbytes(chance.choice([10, CHUNK, 3 * CHUNK]))
            files[name].pwrite(data, offset)
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        else:
            source = chance.choice(names)
            start, begin, length = (chance.randrange(20) * CHUNK for _ in range(3))
            if chance.random() < 0.3:
                start, begin, length = start + chance.randrange(100), begin + chance.randrange(100), length + 77
            got = bytes(model[source][start : start + length])
            if source == name and start < begin + len(got) and begin < start + len(got):
                with pytest.raises(StatusError, match="overlap"):
                    files[name].copy_from(files[source], start, begin, length)
                continue
            assert files[name].copy_from(files[source], start, begin, length) == len(got)
            if got:
                content.extend(bytes(max(0, begin - len(content))))
                content[begin : begin + len(got)] = got
        assert files[name].size == len(content), step
        assert files[name].pread(len(content), 0) == content, step
    for name in names:
        files[name].close()
    for name in names:
        assert client.read_bytes(name) == model[name]


def test_what_lies_behind_the_range_stays(client: Any, folder: str) -> None:
    """A last chunk that ends with the source but not with the target is copied, not shared."""
    client.write_bytes(f"{folder}/a", b"a" * (CHUNK + 10))
    client.write_bytes(f"{folder}/b", b"b" * (2 * CHUNK))
    with client.open(f"{folder}/a") as source, client.open(f"{folder}/b", "r+b") as target:
        assert target.copy_from(source, 0, 0, 1 << 40) == CHUNK + 10
    assert client.read_bytes(f"{folder}/b") == b"a" * (CHUNK + 10) + b"b" * (CHUNK - 10)


def test_an_append_handle_takes_no_ranges(client: Any, folder: str) -> None:
    client.write_bytes(f"{folder}/a", b"a")
    with client.open(f"{folder}/a") as source, client.open(f"{folder}/b", "ab") as target:
        with pytest.raises(StatusError) as caught:
            target.copy_from(source, 0, 0, 1)
        assert caught.value.status is Status.BAD_HANDLE


def test_a_reader_with_the_old_layout_finds_the_new_chunks(cluster: Any, client: Any, folder: str) -> None:
    """The target was open, and empty, when it took the layout of its source."""
    data = random.Random(4).randbytes(4 * CHUNK)
    client.write_bytes(f"{folder}/a", data)
    client.write_bytes(f"{folder}/b", b"")
    with emberfs.connect(cluster.url) as other, other.open(f"{folder}/b") as reader:
        with client.open(f"{folder}/a") as source, client.open(f"{folder}/b", "r+b") as target:
            assert target.copy_from(source, 0, 0, len(data)) == len(data)
        reader.stat()
        assert reader.pread(len(data), 0) == data


def test_writers_of_both_files_while_it_is_cloned(cluster: Any, client: Any, folder: str) -> None:
    """A clone is atomic for each chunk, and never shows what was written to the other file afterwards."""
    stamps = [bytes([n]) * (8 * CHUNK) for n in range(1, 9)]
    client.write_bytes(f"{folder}/a", stamps[0])
    failures: list[BaseException] = []

    def write() -> None:
        try:
            with emberfs.connect(cluster.url) as other, other.open(f"{folder}/a", "r+b") as file:
                for stamp in stamps:
                    file.pwrite(stamp, 0)
                    file.flush()
        except BaseException as failure:
            failures.append(failure)

    writer = threading.Thread(target=write)
    writer.start()
    for n in range(10):
        client.clone(f"{folder}/a", f"{folder}/b{n}")
        taken = client.read_bytes(f"{folder}/b{n}")
        for at in range(0, len(taken), CHUNK):
            assert len(set(taken[at : at + CHUNK])) == 1
    writer.join()
    assert not failures
    assert client.read_bytes(f"{folder}/a") == stamps[-1]


def test_many_chunks_move_no_data(client: Any, folder: str) -> None:
    data = os.urandom(CHUNK) * 1200  # several windows of batches
    client.write_bytes(f"{folder}/a", data)
    before, moved = space(client)
    done: list[int] = []
    drive(clone_file(client.core, f"{folder}/a", f"{folder}/b", progress=done.append))
    assert sum(done) == len(data)
    used, since = space(client)
    assert since == moved
    assert used <= before  # less, where files of other tests are being removed
    assert client.read_bytes(f"{folder}/b") == data
    client.unlink(f"{folder}/a")
    assert client.read_bytes(f"{folder}/b") == data


def test_holes_are_copied_as_holes_where_nothing_can_be_shared(client: Any, folder: str) -> None:
    far = 1 << 36
    with client.open(f"{folder}/a", "wb") as file:
        file.pwrite(b"data" * CHUNK, 3 * CHUNK)
        file.truncate(far)
    client.open(f"{folder}/b", "wb", chunk_size=4 * CHUNK).close()
    assert client.copy_file(f"{folder}/a", f"{folder}/b").size == far
    with client.open(f"{folder}/b") as file:
        assert file.seek(0, os.SEEK_DATA) == 0  # it has larger chunks
        assert file.seek(8 * CHUNK, os.SEEK_HOLE) == 8 * CHUNK
        assert file.pread(8 * CHUNK, 0) == bytes(3 * CHUNK) + b"data" * CHUNK + bytes(CHUNK)

"""Small files beside their inodes, as a client uses them: two requests to write one, one to read it, and no chunk until it grows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

import emberfs
from emberfs.client.blocking import Client
from emberfs.deploy.local import LocalCluster
from emberfs.proto.rpc import META, STORAGE, Method

LIMIT = 4096


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with emberfs.connect(cluster.url) as made:
        yield made


@pytest.fixture
def folder(client: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/inline-{os.urandom(6).hex()}"
    client.mkdir(path)
    yield path
    client.remove_tree(path)


class Counted:
    """The requests of a client, by method."""

    def __init__(self, client: Client) -> None:
        self.methods: list[Method] = []
        env = client.core.env
        call, start = env.call, env.start

        def started(one):  # type: ignore[no-untyped-def]
            self.methods.append(one.method)
            return start(one)

        async def called(one):  # type: ignore[no-untyped-def]
            self.methods.append(one.method)
            return await call(one)

        env.call, env.start = called, started  # type: ignore[method-assign]

    def take(self) -> list[str]:
        found = [method.name for method in self.methods if method.service in (META.name, STORAGE.name)]
        self.methods.clear()
        return found


def test_two_requests_to_write_and_one_to_read(client: Client, folder: str) -> None:
    counted = Counted(client)
    client.write_bytes(f"{folder}/f", b"x" * LIMIT)
    assert counted.take() == ["Open", "Close"]
    assert client.read_bytes(f"{folder}/f") == b"x" * LIMIT
    assert counted.take() == ["Open"]
    client.write_bytes(f"{folder}/g", b"x" * (LIMIT + 1))
    assert "Write" in counted.take()
    names = [f"{folder}/{name}" for name in "fg"]
    assert client.read_ranges([(name, 10, 20) for name in names]) == [b"x" * 10] * 2
    assert counted.take().count("Read") == 1


def test_it_is_there_after_fsync(client: Client, folder: str, cluster: LocalCluster) -> None:
    with client.open(f"{folder}/f", "wb") as file:
        file.write(b"synced")
        file.fsync()
        with emberfs.connect(cluster.url) as other:
            assert other.read_bytes(f"{folder}/f") == b"synced"
        file.write(b" and more")
    assert client.read_bytes(f"{folder}/f") == b"synced and more"


def test_it_is_synced_with_one_request(client: Client, folder: str) -> None:
    with client.open(f"{folder}/file", "wb") as file:
        file.write(b"small")
        before = client.core.cluster.requests.last
        file.fsync()
        assert client.core.cluster.requests.last == before + 1
        assert file.handle.file.inlined


def test_others_see_what_is_written_and_keep_what_they_wrote(
    client: Client, folder: str, cluster: LocalCluster
) -> None:
    client.write_bytes(f"{folder}/f", b"." * 10)
    with emberfs.connect(cluster.url) as other:
        with client.open(f"{folder}/f", "r+b") as one, other.open(f"{folder}/f", "r+b") as two:
            one.pwrite(b"1", 0)
            two.pwrite(b"2", 9)
            one.flush()
            assert two.pread(1, 9) == b"2"
            two.flush()
            one.stat()
            assert one.pread(10, 0) == b"1........2"
            one.pwrite(b"x" * LIMIT, 10)  # it grows under the other's hands
            one.flush()
            two.pwrite(b"3", 5)
            two.flush()
        assert other.read_bytes(f"{folder}/f") == b"1....3...2" + b"x" * LIMIT


def test_a_hole_behind_it_is_zeros(client: Client, folder: str) -> None:
    client.write_bytes(f"{folder}/f", b"x")
    with client.open(f"{folder}/f", "r+b") as file:
        file.pwrite(b"far", 500_000)
        assert file.pread(10, 200_000) == bytes(10)
        assert file.pread(3, 0) == b"x\0\0"


@pytest.mark.parametrize("write_back", [0, 1 << 20])
def test_a_hole_that_a_small_file_grows_over_is_one_for_everybody(
    cluster: LocalCluster, folder: str, write_back: int
) -> None:
    """With the write that leaves it the small file's bytes move into chunks."""
    chunk, content = 64 << 10, b"small" + bytes(150_000) + b"y" * (80 << 10)
    with (
        emberfs.connect(cluster.url, write_back=write_back) as client,
        client.open(f"{folder}/f", "w+b", chunk_size=chunk) as file,
    ):
        file.write(b"small")
        file.flush()
        file.pwrite(content[150_005:], 150_005)
        assert file.pread(len(content), 0) == content
        file.flush()
        with emberfs.connect(cluster.url) as other:
            assert other.read_bytes(f"{folder}/f") == content


def test_growth_by_every_way(client: Client, folder: str) -> None:
    for name, grow in {
        "write": lambda f: f.pwrite(b"y", LIMIT + 100),
        "truncate": lambda f: f.truncate(LIMIT + 101),
        "allocate": lambda f: f.allocate(0, LIMIT + 101),
    }.items():
        path = f"{folder}/{name}"
        client.write_bytes(path, b"small")
        with client.open(path, "r+b") as file:
            file.pwrite(b"S", 0)
            grow(file)
        read = client.read_bytes(path)
        assert read[:5] == b"Small" and len(read) == LIMIT + 101 and set(read[5 : LIMIT + 100]) == {0}
    client.write_bytes(f"{folder}/log", b"begin ")
    with client.open(f"{folder}/log", "ab") as log:
        log.write(b"end")
    assert client.read_bytes(f"{folder}/log") == b"begin end"
    client.clone(f"{folder}/log", f"{folder}/copy")
    assert client.read_bytes(f"{folder}/copy") == b"begin end"


@pytest.mark.parametrize("seed", range(4))
def test_random_work_as_on_a_local_file(
    client: Client, folder: str, cluster: LocalCluster, seed: int, tmp_path
) -> None:  # type: ignore[no-untyped-def]
    chance = random.Random(seed)
    local = tmp_path / "f"
    local.write_bytes(b"")
    path = f"{folder}/f"
    client.write_bytes(path, b"")
    with emberfs.connect(cluster.url) as other:
        for _ in range(40):
            who = chance.choice((client, other))
            with who.open(path, chance.choice(("r+b", "r+b", "wb"))) as file, open(local, file.mode) as twin:
                for _ in range(chance.randrange(6)):
                    step = chance.randrange(6)
                    offset, length = chance.choice((0, 10, 3000, 4090, 5000)), chance.choice((1, 50, 1500))
                    if step < 3:
                        data = chance.randbytes(length)
                        file.pwrite(data, offset)
                        os.pwrite(twin.fileno(), data, offset)
                    elif step == 3:
                        file.truncate(offset)
                        os.ftruncate(twin.fileno(), offset)
                    elif step == 4 and file.readable():
                        assert file.pread(length, offset) == os.pread(twin.fileno(), length, offset)
                    else:
                        file.flush()
            assert chance.choice((client, other)).read_bytes(path) == local.read_bytes()

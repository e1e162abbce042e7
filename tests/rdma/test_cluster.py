"""A cluster whose storage servers and clients speak rdma alone: of one storage process, and of three with chains of three replicas."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
from emberfs_cluster import running_cluster

import emberfs

pytestmark = pytest.mark.rdma

MIB = 1 << 20


@pytest.fixture(scope="module", params=[1, pytest.param(3, marks=pytest.mark.soak)])
def cluster(request: pytest.FixtureRequest) -> Iterator[Any]:
    """`param`: storage processes, and replicas."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERFS_TRANSPORT", "rdma")  # or it fails: nothing falls back to another transport unseen
        with running_cluster(nodes=request.param, replicas=request.param, targets=1, kv_capacity=0) as running:
            yield running


def test_files_through_fsspec(cluster: Any) -> None:
    fs = fsspec.filesystem("ember", host=quote(str(cluster.data), safe=""))
    content = random.Random(1).randbytes(3 * MIB + 17)
    fs.makedirs("/smoke/inner")
    fs.pipe_file("/smoke/inner/file", content)
    assert fs.cat_file("/smoke/inner/file") == content
    assert fs.cat_file("/smoke/inner/file", start=MIB - 3, end=2 * MIB + 9) == content[MIB - 3 : 2 * MIB + 9]
    with fs.open("/smoke/inner/file", "r+b") as file:
        file.seek(1_000_001)
        file.write(b"odd" * 1000)
    changed = content[:1_000_001] + b"odd" * 1000 + content[1_003_001:]
    assert fs.cat_file("/smoke/inner/file") == changed
    fs.mv("/smoke/inner/file", "/smoke/moved")
    assert fs.find("/smoke") == ["/smoke/moved"]
    fs.rm("/smoke", recursive=True)
    assert not fs.exists("/smoke")


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("cluster", [3], indirect=True)
def test_a_storage_process_is_killed_while_files_are_written(cluster: Any) -> None:
    """Every acknowledged write is there, before and after the killed one is back."""
    written: dict[str, bytes] = {}
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        draw = random.Random(number)
        try:
            with emberfs.connect(cluster.url, timeout=120) as client:
                while not stop.is_set():
                    path, content = f"/kill/{number}-{len(written)}", draw.randbytes(draw.choice([10, 70_000, MIB + 1]))
                    client.write_bytes(path, content)
                    written[path] = content
        except BaseException as failed:
            failures.append(failed)

    with emberfs.connect(cluster.url, timeout=120) as client:
        client.mkdir("/kill")
        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            _until(lambda: len(written) > 4 or bool(failures))
            cluster.kill("storage-2")
            before = len(written)
            _until(lambda: len(written) > before + 6 or bool(failures))
            cluster.start()
            before = len(written)
            _until(lambda: len(written) > before + 6 or bool(failures))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not failures
        for path, content in written.items():
            assert client.read_bytes(path) == content, path


def _until(condition: Any, seconds: float = 300.0) -> None:
    from ..proto.pieces import eventually

    assert eventually(condition, seconds)

"""Clients against real server processes: forks, threads, kills, stops, damaged disks."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import emberfs
from emberfs.proto.errors import Status, StatusError

MIB = 1 << 20


@pytest.fixture
def client(cluster: Any) -> Iterator[Any]:
    with emberfs.connect(cluster.url) as made:
        yield made


@pytest.fixture
def folder(client: Any) -> str:
    path = f"/client-{random.randrange(1 << 60):x}"
    client.mkdir(path)
    return path


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its exit code (0: it did not raise)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_has_its_own_identity_and_the_parents_files(client: Any, folder: str) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    client.write_bytes(f"{folder}/data", data)
    reader = client.open(f"{folder}/data")
    assert reader.read(MIB) == data[:MIB]
    writer = client.open(f"{folder}/parent", "wb")
    writer.write(b"parent's")
    parent_id = client.core.env.client

    def child() -> None:
        assert client.core.env.client != parent_id
        assert reader.tell() == MIB
        assert reader.read() == data[MIB:]
        client.write_bytes(f"{folder}/child", b"child's")
        writer.seek(100)
        writer.write(b"from the child")
        writer.close()
        reader.close()

    assert in_child(child) == 0
    assert reader.read(10) == data[MIB : MIB + 10], "the child's position is its own"
    assert client.core.env.client == parent_id
    writer.close()
    assert client.read_bytes(f"{folder}/parent") == b"parent's" + bytes(92) + b"from the child"
    assert client.read_bytes(f"{folder}/child") == b"child's"
    reader.close()


def test_a_child_does_not_write_the_parents_dirty_bytes_again(cluster: Any, client: Any, folder: str) -> None:
    file = client.open(f"{folder}/f", "wb")
    file.write(b"once")
    assert in_child(file.close) == 0
    assert client.stat(f"{folder}/f").size == 4, "seen by its own client"
    with emberfs.connect(cluster.url) as other:
        assert other.stat(f"{folder}/f").size == 0
    file.close()
    assert client.read_bytes(f"{folder}/f") == b"once"


def test_workers_forked_while_threads_are_reading(client: Any, folder: str) -> None:
    """As a data loader does it: the parent's threads are in the middle of everything when the workers are forked."""
    data = random.Random(2).randbytes(2 * MIB)
    client.write_bytes(f"{folder}/data", data)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read_on() -> None:
        draw = random.Random()
        try:
            with client.open(f"{folder}/data") as file:
                while not stop.is_set():
                    at = draw.randrange(len(data))
                    assert file.pread(5000, at) == data[at : at + 5000]
                    client.write_bytes(f"{folder}/{threading.get_ident()}", data[at : at + 100])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=read_on) for _ in range(3)]
    for thread in threads:
        thread.start()

    def worker() -> None:
        draw = random.Random(3)
        with client.open(f"{folder}/data") as file:
            for _ in range(20):
                at = draw.randrange(len(data))
                assert file.pread(5000, at) == data[at : at + 5000]

    try:
        codes = [in_child(worker) for _ in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0, 0, 0, 0]
    assert not failures


def test_a_grandchild_works_too(client: Any, folder: str) -> None:
    client.write_bytes(f"{folder}/f", b"down the line")

    def child() -> None:
        assert client.read_bytes(f"{folder}/f") == b"down the line"
        assert in_child(lambda: client.write_bytes(f"{folder}/g", client.read_bytes(f"{folder}/f"))) == 0

    assert in_child(child) == 0
    assert client.read_bytes(f"{folder}/g") == b"down the line"


@pytest.mark.parametrize("role", ["storage-1", "meta"])
def test_a_killed_server_comes_back_and_nothing_acknowledged_is_lost(fresh_cluster: Any, role: str) -> None:
    client = emberfs.connect(fresh_cluster.url, timeout=120)
    stop = threading.Event()
    failures: list[BaseException] = []
    written: list[dict[str, bytes]] = [{}, {}]

    def work(number: int) -> None:
        draw = random.Random(number)
        try:
            with client.open(f"/stream{number}", "wb") as stream:
                while not stop.is_set():
                    name = f"/{number}-{len(written[number])}"
                    data = draw.randbytes(draw.choice((10, 5000, 300_000)))
                    client.write_bytes(name, data)
                    written[number][name] = data
                    stream.write(data)
                    stream.flush()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            while not failures and len(written[0]) % 7 != 6:
                stop.wait(0.001)
            fresh_cluster.kill(role)
            fresh_cluster.start()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    with emberfs.connect(fresh_cluster.url) as other:
        for number, files in enumerate(written):
            for name, data in files.items():
                assert other.read_bytes(name) == data
            assert other.read_bytes(f"/stream{number}") == b"".join(files.values())
    client.close()


@pytest.mark.parametrize("role", ["storage-1", "meta"])
def test_a_stopped_server_means_a_deadline_and_then_goes_on(fresh_cluster: Any, role: str) -> None:
    with emberfs.connect(fresh_cluster.url) as usual:
        usual.write_bytes("/f", b"x" * 100_000)
        with emberfs.connect(fresh_cluster.url, timeout=0.5) as hasty:
            reader = patiently(lambda: hasty.open("/f"))
            pid = fresh_cluster.servers[role].pid()
            os.kill(pid, signal.SIGSTOP)
            try:
                with pytest.raises(TimeoutError, match=r"gave up after 0.5 s"):
                    _ = reader.read() if role == "storage-1" else hasty.stat("/f")
            finally:
                os.kill(pid, signal.SIGCONT)
            assert usual.read_bytes("/f") == b"x" * 100_000
            assert patiently(reader.read) == b"x" * 100_000
            patiently(reader.close)


def patiently(work: Callable[[], Any]) -> Any:
    """Again, while a busy machine does not do it in the time that a hasty client has."""
    for _ in range(100):
        with contextlib.suppress(TimeoutError):
            return work()
    return work()


def test_no_server_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(StatusError) as nobody:
        emberfs.connect("ember://127.0.0.1:9/", connect_timeout=0.2)
    assert nobody.value.status is Status.UNAVAILABLE and "127.0.0.1:9" in str(nobody.value)
    with pytest.raises(FileNotFoundError, match="emberfs up"):
        emberfs.connect(f"ember://{str(tmp_path).replace('/', '%2F')}/")


def test_another_cluster_is_refused(fresh_cluster: Any, cluster: Any) -> None:
    import json

    record = json.loads((fresh_cluster.data / "cluster.json").read_text())
    record["addresses"] = json.loads((cluster.data / "cluster.json").read_text())["addresses"]
    (fresh_cluster.data / "cluster.json").write_text(json.dumps(record))
    with pytest.raises(StatusError) as refused:
        emberfs.connect(fresh_cluster.url)
    assert refused.value.status is Status.WRONG_CLUSTER


def test_a_flipped_byte_on_the_disk_is_an_error_that_names_chunk_and_target(fresh_cluster: Any) -> None:
    needle = random.Random(9).randbytes(64)
    with emberfs.connect(fresh_cluster.url) as client:
        client.write_bytes("/f", bytes(500_000) + needle + bytes(500_000))
        client.write_bytes("/healthy", needle * 100)
        inode = client.stat("/f").inode
        client.sync()
        flipped = 0
        for path in (fresh_cluster.data / "storage-1").rglob("*"):
            if path.is_file() and path.suffix != ".sst":
                flipped += _flip(path, bytes(64) + needle + bytes(64))
        assert flipped >= 1
        with pytest.raises(StatusError) as damaged:
            client.read_bytes("/f")
        assert damaged.value.status is Status.CHECKSUM
        assert f"chunk {inode:x}.0" in str(damaged.value) and "target 1" in str(damaged.value)
        assert client.read_bytes("/healthy") == needle * 100


def _flip(path: Path, needle: bytes) -> int:
    data = path.read_bytes()
    at = data.find(needle)
    if at < 0:
        return 0
    with open(path, "r+b") as file:
        file.seek(at + 64)
        file.write(bytes([data[at + 64] ^ 1]))
    return 1


def test_many_threads(client: Any, folder: str) -> None:
    def work(i: int) -> int:
        path = f"{folder}/t{i}"
        data = bytes([i % 256]) * (100_000 + i)
        client.write_bytes(path, data)
        with client.open(path, "r+b") as file:
            file.pwrite(b"head", 0)
            assert file.pread(4, 0) == b"head"
        assert client.read_bytes(path) == b"head" + data[4:]
        return i

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(work, range(100))) == 4950
    assert len(client.listdir(folder)) == 100


def test_an_idle_client_is_small(cluster: Any) -> None:
    program = (
        f"import emberfs\nclient = emberfs.connect({cluster.url!r})\nclient.listdir('/')\n"
        "print([line for line in open('/proc/self/status') if line.startswith('VmRSS')][0].split()[1])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=True, cwd="/")
    assert int(done.stdout) < 80_000, "kB resident"


def test_connecting_loads_nothing_heavy(cluster: Any) -> None:
    program = (
        f"import emberfs, sys\nemberfs.connect({cluster.url!r}).close()\n"
        "heavy = {'asyncio', 'grpc', 'fsspec', 'typer', 'structlog', 'pydantic', 'rocksdict', 'prometheus_client', 'uvloop'}\n"
        "raise SystemExit(', '.join(heavy & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def test_a_sync_after_the_storage_server_lost_power(fresh_cluster: Any) -> None:
    """As a machine that was reset would leave its target: whose session record is of another boot."""
    from emberfs.storage.engine.index import RocksIndex
    from emberfs.storage.engine.recovery import session_record

    with emberfs.connect(fresh_cluster.url) as client:
        late, synced = client.open("/late", "wb"), client.open("/synced", "wb")
        for file in (late, synced):
            file.write(bytes(MIB))
            file.flush()
        synced.fsync()
        fresh_cluster.kill("storage-1")
        for path in (fresh_cluster.data / "storage-1").glob("target-*/index"):
            index = RocksIndex(str(path))
            index.write([session_record("another boot", clean=False)], sync=True)
            index.close()
        fresh_cluster.start()
        with pytest.raises(StatusError, match="lost power") as lost:
            late.fsync()
        assert lost.value.status is Status.LOST_DATA and lost.value.errno == 5
        synced.fsync()
        late.pwrite(bytes(MIB), 0)
        late.fsync()
        late.close()
        synced.close()

"""A cluster whose storage servers and clients speak rdma alone: of one storage process, and of three with chains of three replicas; a mount
of it, and what `emberfs status` and `emberfs doctor` say of it."""

from __future__ import annotations

import filecmp
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
from emberfs_cluster import running_cluster

import emberfs
from emberfs.proto.errors import Status

from ..deploy.command import Command
from ..proto.pieces import eventually

pytestmark = pytest.mark.rdma

MIB = 1 << 20
SECONDS = 300.0  # for servers to notice one another, in a machine that is emulated
THREE = pytest.param(3, marks=[pytest.mark.soak, pytest.mark.timeout(1500)])  # four processes take a while to start
of_three = pytest.mark.parametrize("cluster", [THREE], indirect=True)


@pytest.fixture(scope="module", params=[1, THREE])
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


@of_three
def test_status_and_doctor_say_what_is_spoken_and_why(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Command(cluster.environment)
    with emberfs.connect(cluster.url, timeout=SECONDS) as client:
        client.write_bytes("/spoken", bytes(10 * MIB))
    rows = run("status", "--json").json["transports"]
    spoken = {(row["from"], row["to"]): (row["transport"], row["reason"]) for row in rows if "storage" in row["to"]}
    nodes = ["storage-1", "storage-2", "storage-3"]
    here = [("here", node) for node in nodes]
    between = [pair for pair in spoken if pair[0] in nodes]
    assert set(here) < set(spoken) and len(between) >= 2, "a chain of three forwards twice"
    assert {transport for transport, _ in spoken.values()} == {"rdma"}, spoken
    assert all(reason.startswith("over rxe") for _, reason in spoken.values())
    assert "over rxe" in run("status").text
    found = run.any("doctor", "--json", "--data", str(cluster.data)).json
    ports = {finding["check"]: finding for finding in found if finding["check"].startswith("rdma ")}
    assert set(ports) == {"rdma rxe0:1", "rdma rxe1:1"} and {port["state"] for port in ports.values()} == {"ok"}
    assert any("transport: rdma (over rxe" in f"{one['check']}: {one['found']}" for one in found)
    # The same cluster, from a client that is told to keep to TCP.
    monkeypatch.setenv("EMBERFS_TRANSPORT", "tcp")
    rows = run("status", "--json").json["transports"]
    mine = {(row["transport"], row["reason"]) for row in rows if row["from"] == "here" and row["to"] in nodes}
    assert mine == {("tcp", "EMBERFS_TRANSPORT says tcp")}
    assert {row["transport"] for row in rows if row["from"] in nodes and row["to"] in nodes} == {"rdma"}


@of_three
def test_a_mount(cluster: Any, tmp_path: Path) -> None:
    """Programs that know nothing of any of this."""
    run, place = Command(cluster.environment), tmp_path / "mount"
    place.mkdir()
    (tmp_path / "source").write_bytes(random.Random(7).randbytes(5 * MIB + 77))
    run("mount", str(place))
    try:
        subprocess.run(["cp", str(tmp_path / "source"), str(place / "copy")], check=True)
        subprocess.run(["mv", str(place / "copy"), str(place / "moved")], check=True)
        with open(place / "moved", "r+b") as file, open(tmp_path / "source", "r+b") as same:
            for each in (file, same):
                each.seek(2_000_003)
                each.write(b"odd" * 20_000)
        run("umount", str(place))
        run("mount", str(place))  # what it reads now comes from the servers
        assert filecmp.cmp(place / "moved", tmp_path / "source", shallow=False)
        with emberfs.connect(cluster.url, timeout=SECONDS) as client:
            assert client.read_bytes("/moved") == (tmp_path / "source").read_bytes()
        subprocess.run(["rm", str(place / "moved")], check=True)
    finally:
        run("umount", str(place))


@of_three
def test_what_a_member_missed_comes_to_it(cluster: Any) -> None:
    """A storage process is killed, files are written, changed and removed meanwhile, and it is synced when it is back."""
    from ..storage.replicas import Watcher  # its import takes a while, and others do without

    watcher, draw = Watcher(cluster), random.Random(11)
    files = {f"/missed-{number}": draw.randbytes(draw.choice([100, 70_000, 2 * MIB + 1])) for number in range(12)}
    with emberfs.connect(cluster.url, timeout=SECONDS) as client:
        watcher.serving(3, SECONDS)
        for path, content in list(files.items())[:6]:
            client.write_bytes(path, content[::-1])
        client.write_bytes("/removed", bytes(MIB))
        cluster.kill("storage-2")
        for path, content in files.items():
            client.write_bytes(path, content)
        client.unlink("/removed")
        watcher.serving(2, SECONDS)
        cluster.start()
        watcher.serving(3, SECONDS)
        for path, content in files.items():
            inode, first = client.stat(path).inode, content[:MIB]
            for member in watcher.chain.members if len(content) >= 70_000 else ():  # smaller ones lie with their inode
                status, data = watcher.read(member.target, inode, 0, len(content))
                assert (status, data[: len(first)]) == (Status.OK, first), (path, member.target)
    watcher.close()


@of_three
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


def _until(condition: Any, seconds: float = SECONDS) -> None:
    assert eventually(condition, seconds)

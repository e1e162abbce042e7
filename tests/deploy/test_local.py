"""`up`, `down`, `status`: idempotent, back after a kill, and clear about what is in the way."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

import emberfs
from emberfs.deploy.directory import prepare
from emberfs.deploy.local import META, STORAGE, LocalCluster
from emberfs.proto.errors import Status, StatusError

from .command import Command


def pids(cluster: LocalCluster) -> dict[str, int | None]:
    return {role: cluster.servers[role].pid() for role in cluster.roles}


class TestLife:
    def test_up_is_idempotent(self, fresh_cluster: LocalCluster) -> None:
        before = pids(fresh_cluster)
        assert all(before.values())
        assert fresh_cluster.start() is False
        assert LocalCluster(fresh_cluster.data).start() is False
        assert pids(fresh_cluster) == before

    def test_up_starts_only_what_is_missing(self, fresh_cluster: LocalCluster) -> None:
        before = pids(fresh_cluster)
        fresh_cluster.kill(STORAGE)
        assert fresh_cluster.start() is True
        after = pids(fresh_cluster)
        assert after[META] == before[META] and after[STORAGE] not in (None, before[STORAGE])
        with emberfs.connect(fresh_cluster.url) as client:
            client.write_bytes("/x", b"y")

    def test_what_cannot_be_deleted_of_a_removed_server_is_in_nobodys_way(
        self, fresh_cluster: LocalCluster, tmp_path: Path
    ) -> None:
        """As where it lies on a disk that fails, or was put on another one by a symlink."""
        fresh_cluster.stop()
        (fresh_cluster.data / "storage-2.removed").symlink_to(tmp_path)
        assert LocalCluster(fresh_cluster.data).start() is True

    def test_down_cleans_up_and_keeps_the_data(self, fresh_cluster: LocalCluster) -> None:
        with emberfs.connect(fresh_cluster.url) as client:
            client.write_bytes("/kept", b"k" * 3_000_000)
        cluster_id = fresh_cluster.cluster_id
        assert fresh_cluster.stop() == [], "all stopped cleanly"
        assert [name for name in os.listdir(fresh_cluster.data / "run") if name.endswith((".pid", ".sock"))] == []
        assert fresh_cluster.stop() == []
        assert fresh_cluster.status()["running"] is False
        fresh_cluster.start()
        assert fresh_cluster.cluster_id == cluster_id
        with emberfs.connect(fresh_cluster.url) as client:
            assert client.read_bytes("/kept") == b"k" * 3_000_000

    def test_kill_of_all_loses_nothing_acknowledged(self, fresh_cluster: LocalCluster) -> None:
        acknowledged: dict[str, bytes] = {}
        stop = threading.Event()

        def write() -> None:
            with emberfs.connect(fresh_cluster.url, timeout=60) as client:
                number = 0
                while not stop.is_set():
                    data = os.urandom(1000 + 70_000 * (number % 20))
                    try:
                        client.write_bytes(f"/f{number}", data)
                    except OSError:
                        return
                    acknowledged[f"/f{number}"] = data
                    number += 1
                    if number == 60:
                        enough.set()

        enough = threading.Event()
        thread = threading.Thread(target=write)
        thread.start()
        assert enough.wait(100)
        fresh_cluster.kill()
        stop.set()  # what is under way waits for the servers
        assert not any(pids(fresh_cluster).values())
        fresh_cluster.start()
        thread.join(100)
        assert not thread.is_alive()
        with emberfs.connect(fresh_cluster.url) as client:
            assert {path: client.read_bytes(path) for path in acknowledged} == acknowledged

    def test_two_at_once(self, fresh_cluster: LocalCluster) -> None:
        """Two `up` at the same moment: one starts the servers, the other finds them."""
        fresh_cluster.kill()
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(LocalCluster(fresh_cluster.data).start())) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(250)
        assert sorted(results) == [False, True]

    def test_who_connects_waits_for_a_server_that_stands_still(self, fresh_cluster: LocalCluster) -> None:
        """It listens: that is not nobody."""
        content: list[bytes] = []

        def read() -> None:
            with emberfs.connect(fresh_cluster.url, connect_timeout=0.05, timeout=100) as client:
                client.write_bytes("/x", b"there")
                content.append(client.read_bytes("/x"))

        pid = fresh_cluster.servers[META].pid()
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            reader = threading.Thread(target=read)
            reader.start()
            reader.join(1.0)
            assert reader.is_alive()
        finally:
            os.kill(pid, signal.SIGCONT)
        reader.join(100)
        assert content == [b"there"]

    def test_a_lost_cluster_file_is_written_anew(self, fresh_cluster: LocalCluster) -> None:
        cluster_id = fresh_cluster.cluster_id
        (fresh_cluster.data / "cluster.json").write_text("{ torn")
        fresh_cluster.start()
        assert fresh_cluster.cluster_id == cluster_id
        (fresh_cluster.data / "cluster.json").unlink()
        fresh_cluster.start()
        assert fresh_cluster.cluster_id == cluster_id

    def test_options_are_remembered_and_do_not_change_under_way(self, fresh_cluster: LocalCluster) -> None:
        assert fresh_cluster.record["options"]["capacity"] == 2 << 30
        with pytest.raises(StatusError, match="emberfs down") as raised:
            LocalCluster(fresh_cluster.data, port=0).start()
        assert raised.value.status is Status.BUSY_RESOURCE
        fresh_cluster.stop()
        LocalCluster(fresh_cluster.data, port=0).start()
        assert fresh_cluster.tcp_url.startswith("ember://127.0.0.1:")
        assert fresh_cluster.record["options"]["capacity"] == 2 << 30

    def test_a_directory_too_long_for_a_socket(self, tmp_path: Path) -> None:
        cluster = LocalCluster(tmp_path / ("long" * 20) / ("longer" * 10), capacity=1 << 30)
        try:
            cluster.start()
            with emberfs.connect(cluster.url) as client:
                client.write_bytes("/x", b"y")
        finally:
            cluster.stop()


class TestOverTcp:
    def test_another_host_reaches_it(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cluster = LocalCluster(tmp_path_factory.mktemp("t"), port=0, tcp_only=True, capacity=1 << 30)
        try:
            cluster.start()
            monkeypatch.setenv("EMBERFS_SECRET_FILE", str(cluster.data / "secret"))
            with emberfs.connect(cluster.tcp_url) as client:
                client.write_bytes("/x", b"tcp" * 1_000_000)
                assert client.read_bytes("/x") == b"tcp" * 1_000_000
            wrong = cluster.data / "wrong-secret"
            wrong.write_text("0" * 64 + "\n")
            monkeypatch.setenv("EMBERFS_SECRET_FILE", str(wrong))
            with pytest.raises(OSError) as raised:
                emberfs.connect(cluster.tcp_url)
            assert getattr(raised.value, "status", None) is Status.UNAUTHENTICATED
        finally:
            cluster.stop()

    def test_a_taken_port(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(StatusError, match=f"port {port} .*--port") as raised:
                LocalCluster(tmp_path / "d", port=port).start()
        assert raised.value.status is Status.BUSY_RESOURCE
        assert not any(pids(LocalCluster(tmp_path / "d")).values())


class TestRefusals:
    def test_a_directory_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for place in (tmp_path / "file" / "below", Path("/proc/emberfs")):
            with pytest.raises(StatusError, match=r"cannot keep a cluster in .*--data"):
                LocalCluster(place).start()

    @pytest.mark.parametrize("version", [0, 2, "x"])
    def test_a_cluster_of_another_version(self, tmp_path: Path, version: object) -> None:
        (tmp_path / "cluster.json").write_text(
            json.dumps({"version": version, "software": "9.9", "cluster": "c", "servers": {}})
        )
        with pytest.raises(StatusError, match=r"made by emberfs 9.9.*Use that version") as raised:
            LocalCluster(tmp_path).start()
        assert raised.value.status is Status.BAD_FORMAT

    def test_a_directory_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("")
        with pytest.raises(StatusError, match=r"'thesis.tex' is there.*--data"):
            LocalCluster(tmp_path).start()
        assert os.listdir(tmp_path) == ["thesis.tex"]

    def test_servers_of_two_clusters(self, fresh_cluster: LocalCluster) -> None:
        """A storage directory of another cluster is refused, and what was started for it is stopped again."""
        fresh_cluster.stop()
        record = fresh_cluster.record
        record["cluster"] = "0" * len(record["cluster"])
        (fresh_cluster.data / "cluster.json").write_text(json.dumps(record))
        with pytest.raises(StatusError, match="belongs to cluster") as raised:
            fresh_cluster.start()
        assert raised.value.status is Status.WRONG_CLUSTER
        assert not any(pids(fresh_cluster).values())
        (fresh_cluster.data / "cluster.json").unlink()
        shutil.rmtree(fresh_cluster.data / "meta")
        with pytest.raises(StatusError, match="meta restore"):
            fresh_cluster.start()
        assert not any(pids(fresh_cluster).values())

    @pytest.mark.parametrize(
        "options",
        [
            {"nodes": 2, "replicas": 3},
            {"nodes": 0},
            {"replicas": 0},
            {"targets": 0},
            {"nodes": 1000},
            {"port": 70000},
            {"capacity": 1},
            {"kv_capacity": 1},
            {"kv_memory": -1},
            {"nodes": 1, "kv_replicas": 2},
        ],
    )
    def test_impossible_options(self, tmp_path: Path, options: dict[str, int]) -> None:
        with pytest.raises(StatusError) as raised:
            LocalCluster(tmp_path, **options)  # type: ignore[arg-type]
        assert raised.value.status is Status.INVALID


class TestCommands:
    def test_a_life(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        data = tmp_path_factory.mktemp("c") / "data"
        run = Command({"EMBERFS_DATA": str(data), "EMBERFS_URL": ""})
        try:
            assert "emberfs put" in run("up", "--capacity", "1G").text
            assert "is running already" in run("up").text
            run("put", "-", "/x", data=b"1")
            found = run("status", "--json").json
            assert found["running"] and {s["name"] for s in found["servers"]} == {META, STORAGE}
            assert found["targets"][0]["capacity"] == 1 << 30 and found["chains"][0]["members"][0]["state"] == "SERVING"
            assert "SERVING" in run("status").text
            LocalCluster(data).kill(STORAGE)
            assert "emberfs up" in run.fail(3, "status")
            assert run.any("status", "--json").json["running"] is False
            run("up")
            assert run("cat", "/x").out == b"1"
            assert "Stopped" in run("down").text
            assert "was not running" in run("down").text
            run.fail(3, "status")
        finally:
            LocalCluster(data).stop()

    def test_refusals(self, tmp_path: Path) -> None:
        run = Command({"EMBERFS_DATA": str(tmp_path / "d"), "EMBERFS_URL": ""})
        assert "3 replicas need 3 nodes" in run.fail(1, "up", "--nodes", "2", "--replicas", "3")
        assert "make the directory first" in run.fail(1, "up", "--mount", "/mnt/nowhere")
        assert "is no size" in run.fail(2, "up", "--capacity", "many")
        assert "--data" in run.fail(1, "up", "--data", "/proc/nowhere")
        assert "emberfs up" in run.fail(3, "down")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            assert "choose another with --port" in run.fail(1, "up", "--port", str(taken.getsockname()[1]))


def test_a_secret_that_was_not_finished_is_in_nobodys_way(tmp_path: Path) -> None:
    """Its maker was killed, or the disk was full; and the next one has the same process id, as in a container."""
    left = tmp_path / f"secret.{os.getpid()}"
    (tmp_path / "run").mkdir()
    left.write_bytes(b"half")
    prepare(tmp_path)
    assert len((tmp_path / "secret").read_bytes()) == 65 and not left.exists()
    (tmp_path / "secret").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(StatusError):
            prepare(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("secret*"))

"""The metadata server as a real process: start, kill, restart, refusals, clean stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from emberfs.proto.datadir import read_json, write_json
from emberfs.proto.drivers.aio import AioEnvironment
from emberfs.proto.env import Call
from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import cluster_pb2, meta_pb2
from emberfs.proto.gen.common_pb2 import FILE_TYPE_DIRECTORY
from emberfs.proto.routing import RoutingTable
from emberfs.proto.rpc import CLUSTER, META, Method

SECONDS = 60.0


class Server:
    """One start of the server over a data directory."""

    def __init__(self, data: Path, *options: str) -> None:
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "emberfs.meta.server", "--data", str(data), "--ready-fd", str(write_end)]
        self.process = subprocess.Popen(
            [*command, *options], stderr=subprocess.PIPE, pass_fds=[write_end], cwd="/", text=True
        )
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            self.report: dict[str, Any] = json.loads(pipe.readline() or '{"error": "no report"}')
        self.addresses: list[str] = self.report.get("addresses", [])

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, list[dict[str, Any]]]:
        """Signal it and wait: exit code and log."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, list[dict[str, Any]]]:
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, [json.loads(line) for line in log.splitlines()]


class Home:
    """A data directory on a short path, and the servers that were started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "meta"
        self.servers: list[Server] = []

    def start(self, *options: str) -> Server:
        self.servers.append(Server(self.data, *options))
        return self.servers[-1]


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="emberfs-") as folder:
        made = Home(Path(folder))
        yield made
        for server in made.servers:
            server.process.kill()
            with contextlib.suppress(ValueError):
                server.process.communicate()


@contextlib.asynccontextmanager
async def connected(**options: Any) -> Any:
    env = AioEnvironment(pool_bytes=1 << 16, **options)
    try:
        yield env
    finally:
        await env.close()


async def ask(env: AioEnvironment, address: str, method: Method, request: Any) -> Any:
    return await env.call(Call(address, method, request, SECONDS))


def place(path: str) -> meta_pb2.Place:
    return meta_pb2.Place(path=path.encode())


async def make(env: AioEnvironment, address: str, *paths: str) -> None:
    entries = [meta_pb2.NewEntry(place=place(p), type=FILE_TYPE_DIRECTORY, mode=0o755) for p in paths]
    reply = await ask(env, address, META.Create, meta_pb2.CreateRequest(request_id=1, entries=entries))
    assert not any(reply.statuses)


async def stat(env: AioEnvironment, address: str, *paths: str) -> list[int]:
    """The inodes; 0 for what is not there."""
    reply = await ask(env, address, META.Stat, meta_pb2.StatRequest(places=[place(p) for p in paths]))
    return [0 if status else a.inode for status, a in zip(reply.statuses, reply.attributes, strict=True)]


async def test_it_serves_the_root_and_stops_cleanly(home: Home) -> None:
    socket = home.folder / "m.sock"
    server = home.start("--listen", f"unix:{socket}", "--listen", "tcp:127.0.0.1:0", "--name", "m1")
    assert server.report["pid"] == server.process.pid and server.report["node"] == 1
    assert server.addresses[0] == f"unix:{socket}" and not server.addresses[1].endswith(":0")
    async with connected(cluster=server.report["cluster"]) as env, connected(cluster=server.report["cluster"]) as tcp:
        for each, address in zip((env, tcp), server.addresses, strict=True):  # over TCP without a secret one is nobody
            assert await stat(each, address, "", "nothing") == [1, 0]
        shown = await ask(env, server.addresses[0], CLUSTER.Status, cluster_pb2.StatusRequest())
        assert shown.inodes == 1 and shown.primary.startswith("m1")
        assert [list(n.addresses) for n in shown.routing.nodes] == [server.addresses]
    code, log = server.end()
    assert code == 0 and log[-1]["event"] == "stopped"
    assert not [line for line in log if line["level"] not in ("info", "debug")]
    assert not socket.exists()


async def test_it_listens_in_its_data_directory_unless_told_otherwise(home: Home) -> None:
    server = home.start()
    assert server.addresses == [f"unix:{home.data}/meta.sock"]


async def test_names_survive_a_kill(home: Home) -> None:
    first = home.start()
    async with connected() as env:
        await make(env, first.addresses[0], *(f"d{i}" for i in range(50)))
        before = await stat(env, first.addresses[0], *(f"d{i}" for i in range(50)))
    first.end(signal.SIGKILL)
    second = home.start()
    assert [second.report[k] for k in ("cluster", "node")] == [first.report[k] for k in ("cluster", "node")]
    async with connected(cluster=first.report["cluster"]) as env:
        assert await stat(env, second.addresses[0], *(f"d{i}" for i in range(50))) == before and all(before)
        await make(env, second.addresses[0], "after")
        assert (await stat(env, second.addresses[0], "after"))[0] not in before


async def test_a_second_server_on_the_same_data_is_refused(home: Home) -> None:
    first = home.start()
    second = home.start("--listen", f"unix:{home.folder}/other.sock")
    assert str(home.data) in second.report["error"] and str(first.process.pid) in second.report["error"]
    assert second.wait()[0] == 1
    async with connected() as env:
        assert await stat(env, first.addresses[0], "") == [1]


async def test_a_socket_that_is_taken_is_refused(home: Home) -> None:
    home.start("--listen", f"unix:{home.folder}/m.sock")
    other = Server(home.folder / "other", "--listen", f"unix:{home.folder}/m.sock")
    home.servers.append(other)
    assert "m.sock" in other.report["error"]
    assert other.wait()[0] == 1


async def test_a_client_of_another_cluster_is_refused(home: Home) -> None:
    server = home.start()
    async with connected(cluster="ffffffffffffffff") as env:
        with pytest.raises(StatusError) as refused:
            await stat(env, server.addresses[0], "")
        assert refused.value.status is Status.WRONG_CLUSTER


def test_data_of_a_newer_version_or_of_another_server_is_refused(home: Home) -> None:
    home.start().end()
    record = read_json(home.data / "format.json")
    write_json(home.data / "format.json", {**record, "format": 99, "software": "emberfs 9"})
    assert "emberfs 9" in home.start().report["error"]
    write_json(home.data / "format.json", {**record, "kind": "storage"})
    assert "storage" in home.start().report["error"]


def test_an_engine_of_another_cluster_is_refused(home: Home) -> None:
    home.start().end()
    mixed = home.start("--kv", f"rocksdb://{home.folder}/kv2")
    assert "belongs to cluster" in mixed.report["error"] and "--kv" in mixed.report["error"]


def test_no_network_without_a_secret(home: Home) -> None:
    server = home.start("--listen", "tcp:0.0.0.0:0")
    assert "--secret-file" in server.report["error"]
    assert server.wait()[0] == 1


async def test_tcp_with_the_secret(home: Home) -> None:
    secret = home.folder / "secret"
    secret.write_text("0123456789abcdef0123\n")
    secret.chmod(0o600)
    server = home.start("--listen", "tcp:127.0.0.1:0", "--secret-file", str(secret))
    async with connected(secret=b"0123456789abcdef0123") as env:
        assert await stat(env, server.addresses[0], "") == [1]
    for wrong in (b"", b"another secret of 26 bytes"):
        async with connected(secret=wrong) as env:
            with pytest.raises(StatusError) as refused:
                await stat(env, server.addresses[0], "")
            assert refused.value.status is Status.UNAUTHENTICATED


async def test_routing_is_pushed_to_who_watches(home: Home) -> None:
    server = home.start()
    address = server.addresses[0]
    async with connected() as env:
        table = RoutingTable()
        table.apply(await ask(env, address, CLUSTER.GetRouting, cluster_pb2.GetRoutingRequest()))
        watcher = await env.subscribe(address, "routing", table.version)
        node = cluster_pb2.Node(kind=cluster_pb2.NODE_KIND_STORAGE, process=5, name="s", addresses=["unix:/s"])
        request = cluster_pb2.RegisterNodeRequest(node=node, targets=[cluster_pb2.Target(incarnation=7, path="/t")])
        reply = await ask(env, address, CLUSTER.RegisterNode, request)
        assert reply.node == 2 and len(reply.routing.capability_key) == 32
        notice = await watcher.next(SECONDS)
        assert not notice.resync
        delta = cluster_pb2.Routing.FromString(notice.body)
        assert delta.since == table.version and not delta.capability_key
        table.apply(delta)
        assert table.head(1).node == 2 and table.table(1) == (1,)


def test_metrics(home: Home) -> None:
    server = home.start("--metrics", "tcp:127.0.0.1:0")
    assert server.process.stderr is not None
    log = (json.loads(line) for line in server.process.stderr)
    address = next(line["address"] for line in log if line["event"] == "metrics")
    with urllib.request.urlopen(f"http://{address.removeprefix('tcp:')}/metrics", timeout=SECONDS) as reply:
        text = reply.read().decode()
    assert "emberfs_clients 0.0" in text and "emberfs_kv_retries_total" in text


async def test_grpc_beside_the_wire(home: Home) -> None:
    import grpc

    server = home.start("--grpc", "127.0.0.1:0")
    assert server.process.stderr is not None
    log = (json.loads(line) for line in server.process.stderr)
    address = next(line["address"] for line in log if line["event"] == "grpc")
    async with grpc.aio.insecure_channel(address.removeprefix("tcp:")) as channel:
        stub = channel.unary_unary("/emberfs.v1.Meta/Stat", lambda m: m.SerializeToString(), META.Stat.reply.FromString)
        reply = await stub(meta_pb2.StatRequest(places=[place("")]), timeout=SECONDS)
        assert [a.inode for a in reply.attributes] == [1]
    assert server.end()[0] == 0


async def test_a_silent_client_is_ended_and_everybody_hears_of_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERFS_CLIENT_LEASE", "3")
    server = home.start()
    monkeypatch.delenv("EMBERFS_CLIENT_LEASE")
    address = server.addresses[0]
    async with connected() as silent, connected() as watching:
        renewed = await ask(silent, address, CLUSTER.RenewClient, cluster_pb2.RenewClientRequest(name="silent"))
        assert renewed.lease_ms == 3000
        watcher = await watching.subscribe(address, "routing", renewed.routing.version)
        notice = await watcher.next(SECONDS)
        assert list(cluster_pb2.Routing.FromString(notice.body).ended_clients) == [silent.client]
        with pytest.raises(StatusError) as ended:
            await ask(silent, address, CLUSTER.RenewClient, cluster_pb2.RenewClientRequest(name="silent"))
        assert ended.value.status is Status.SESSION_ENDED
        fresh = await ask(watching, address, CLUSTER.RenewClient, cluster_pb2.RenewClientRequest(name="watching"))
        assert list(fresh.routing.ended_clients) == [silent.client]

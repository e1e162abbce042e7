"""Several metadata servers over one PostgreSQL, as processes: `emberfs up --metas N --kv URL`, and what clients notice of a kill."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import emberfs
from emberfs.deploy.cli.status import collect
from emberfs.deploy.local import LocalCluster
from emberfs.meta.kv.open import open_engine
from emberfs.meta.namespace.check import check
from emberfs.proto.env import drive
from emberfs.proto.errors import Status, StatusError

Make = Callable[..., LocalCluster]
FAIL_OVER_SECONDS_MAX = (
    2.0  # of the best of several: a tenth of a second where nothing else runs, and all may stop for a moment
)
ROUNDS = 4  # kills


def leader(cluster: LocalCluster) -> str:
    """The metadata server that leads, once one does."""
    while True:
        found = collect(str(cluster.data))
        names = [node["name"] for node in found["nodes"] if node["state"] == "leads"]
        if names and cluster.servers[names[0]].pid() is not None:
            return str(names[0])


async def healthy(url: str) -> None:
    """No invariant is broken. The servers' own work goes on meanwhile: what is found while it changes something says nothing."""
    engine = open_engine(url)
    try:
        while True:
            moment = await engine.begin().commit()
            if not (found := await check(engine)):
                return
            assert await engine.begin().commit() != moment, found
    finally:
        await engine.close()


def test_options_that_cannot_be(tmp_path: Path) -> None:
    for options in ({"metas": 2}, {"metas": 2, "kv": "rocksdb:///somewhere"}, {"metas": 0}, {"metas": 99}):
        with pytest.raises(StatusError) as refused:
            LocalCluster(tmp_path / "d", **options).start()  # type: ignore[arg-type]
        assert refused.value.status is Status.INVALID


async def test_up_down_more_of_them(make_cluster: Make, postgres_url: str) -> None:
    cluster = make_cluster(kv=postgres_url)
    assert cluster.metas == ["meta"]
    with emberfs.connect(cluster.url) as client:
        client.write_bytes("/a", b"a" * 100_000)
        more = LocalCluster(cluster.data, metas=3, bound=True)
        more.start()
        try:
            assert more.metas == ["meta", "meta-2", "meta-3"]
            found = collect(str(cluster.data))
            states = {node["name"]: node["state"] for node in found["nodes"]}
            assert set(states) == {"meta", "meta-2", "meta-3", "storage-1"} and found["running"]
            assert sorted(states.values()) == ["leads", "up", "up", "up"]
            for name in more.metas:  # each serves, also what another one has made
                [address] = more.record["servers"][name]["addresses"]
                stay_with(client, address)
                client.mkdir(f"/{name}")
                assert client.read_bytes("/a") == b"a" * 100_000
            assert sorted(client.listdir("/")) == ["a", "meta", "meta-2", "meta-3"]
            with pytest.raises(StatusError) as refused:
                LocalCluster(cluster.data, kv=postgres_url + "&application_name=other").start()
            assert refused.value.status is Status.INVALID
        finally:
            assert more.stop() == []
    cluster = LocalCluster(cluster.data, bound=True)
    cluster.start()
    try:
        with emberfs.connect(cluster.url) as client:
            assert len(client.listdir("/")) == 4 and client.read_bytes("/a") == b"a" * 100_000
    finally:
        cluster.stop()
    await healthy(postgres_url)


def stay_with(client: Any, address: str) -> None:
    cluster = client.core.cluster
    while address not in cluster._meta_addresses:  # it has not heard of the new ones yet
        drive(cluster.refresh())
    cluster._meta_turn = cluster._meta_addresses.index(address)


class User(threading.Thread):
    """Changes names in a directory of its own until it is stopped, and knows what must be there."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self.url, self.number = url, number
        self.chance = random.Random(number)
        self.stopped = threading.Event()
        self.gate = threading.Lock()  # held during each step
        self.files: dict[str, bytes] = {}
        self.worst = 0.0
        self.done = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with emberfs.connect(self.url, name=f"user {self.number}") as client:
                client.mkdir(f"/u{self.number}")
                while not self.stopped.is_set():
                    with self.gate:
                        began = time.monotonic()
                        self._step(client)
                        self.worst = max(self.worst, time.monotonic() - began)
                    self.done += 1
        except BaseException as failed:
            self.failure = failed

    def _step(self, client: Any) -> None:
        name, other = (f"/u{self.number}/{self.chance.randrange(8)}" for _ in range(2))
        what = self.chance.choice(["write", "write", "rename", "unlink", "look"])
        if what == "write":
            self.files[name] = self.chance.randbytes(self.chance.randrange(1, 5000))
            client.write_bytes(name, self.files[name])
        elif what == "rename" and name in self.files:
            client.rename(name, other)
            self.files[other] = self.files.pop(name)
        elif what == "unlink" and name in self.files:
            client.unlink(name)
            del self.files[name]
        else:
            assert client.exists(name) == (name in self.files)

    def check(self, client: Any) -> None:
        assert self.failure is None, self.failure
        found = {f"/u{self.number}/{name}" for name in client.listdir(f"/u{self.number}")}
        assert found == set(self.files)
        for name, data in self.files.items():
            assert client.read_bytes(name) == data


async def test_clients_go_on_when_a_server_is_killed(make_cluster: Make, postgres_url: str) -> None:
    """In the middle of their operations, the leader and the others in turn; nothing is lost, done twice or left half done."""
    cluster = make_cluster(kv=postgres_url, metas=3)
    users = [User(cluster.url, number) for number in range(3)]
    worst: list[float] = []  # of each kill
    for user in users:
        user.start()
    chance = random.Random(5)
    try:
        for turn in range(ROUNDS):
            first = leader(cluster)
            victim = first if turn % 2 == 0 else chance.choice([name for name in cluster.metas if name != first])
            done = [user.done for user in users]
            for user in users:
                with user.gate:
                    user.worst = 0.0
            cluster.kill(victim)
            for user, before in zip(users, done, strict=True):
                while user.is_alive() and user.done < before + 20:
                    user.join(0.01)
            with ExitStack() as stack:
                for user in users:
                    stack.enter_context(user.gate)
                worst.append(max(user.worst for user in users))
                await healthy(postgres_url)
            cluster.start()
    finally:
        for user in users:
            user.stopped.set()
        for user in users:
            user.join()
    with emberfs.connect(cluster.url) as client:
        for user in users:
            user.check(client)
    assert min(worst) < FAIL_OVER_SECONDS_MAX, worst
    await healthy(postgres_url)


async def test_clients_go_on_when_a_server_hangs(make_cluster: Make, postgres_url: str) -> None:
    """Its connections stay open, and it answers nothing; what it got before it stopped counts once when it goes on."""
    cluster = make_cluster(kv=postgres_url, metas=2)
    took = []
    for name in cluster.metas:
        with emberfs.connect(cluster.url) as client:
            [address] = cluster.record["servers"][name]["addresses"]
            stay_with(client, address)
            client.mkdir(f"/{name}")
            pid = cluster.servers[name].pid()
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                client.mkdir(f"/{name}/while")
                took.append(time.monotonic() - began)
                client.rename(f"/{name}/while", f"/{name}/renamed")
            finally:
                os.kill(pid, signal.SIGCONT)
            stay_with(client, address)
            assert client.listdir(f"/{name}") == ["renamed"]
    assert min(took) < FAIL_OVER_SECONDS_MAX, took
    await healthy(postgres_url)


async def test_the_next_leader_settles_what_the_last_one_left(
    make_cluster: Make, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tree is removed, the leader is killed at once: another one frees everything."""
    monkeypatch.setenv("EMBERFS_TIME_SCALE", "0.5")
    cluster = make_cluster(kv=postgres_url, metas=2)
    with emberfs.connect(cluster.url, timeout=300) as client:
        client.mkdir("/t")
        for begin in range(0, 500, 50):  # an attempt has less time here, and takes as long
            client.create_many([f"/t/{i}" for i in range(begin, begin + 50)])
        first = leader(cluster)
        client.remove_tree("/t")
        cluster.kill(first)
        while (status := client.status()).gc_pending or status.inodes > 1:
            pass
        assert leader(cluster) != first
    await healthy(postgres_url)

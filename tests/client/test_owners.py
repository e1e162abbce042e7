"""Several metadata servers: clients meet at the owner of an inode, any other server is as right, and one that goes takes nothing along."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from emberfs.client.blocking import Client
from emberfs.meta.namespace.check import check
from emberfs.meta.namespace.namespace import Namespace
from emberfs.meta.namespace.service import MetaService
from emberfs.proto.gen.cluster_pb2 import NODE_KIND_META
from emberfs.proto.rendezvous import owner_of

from .world import World


class Servers(World):
    """The world with a second server of the namespace over the same engine."""

    second: Namespace

    async def _start(self) -> None:
        await super()._start()
        first = self.namespace
        self.second = Namespace(first.engine, first.chunks, self.manager, self.manager, self._env)
        await self.second.start()
        self.network.serve("meta-2", [MetaService(self.second)])
        await self._register(NODE_KIND_META, "local:meta-2", [])

    def stop(self) -> None:
        for client in self.clients:  # what it keeps open at this server ends, too
            self.loop.call_soon_threadsafe(self.second.client_ended, client.core.env.client)
        super().stop()

    async def _stop(self) -> None:
        await self.second.close()
        await super()._stop()


@pytest.fixture
def world() -> Iterator[Servers]:
    made = Servers()
    made.start()
    yield made
    assert made.run(check(made.namespace.engine)) == []
    made.stop()


def file_owned_by(client: Client, address: str) -> str:
    """The path of a new file whose owner this is."""
    for number in range(100):
        path = f"/f{number}"
        client.write_bytes(path, b"")
        if client.core.cluster.owner_address(client.stat(path).inode) == address:
            return path
    raise AssertionError("the second server owns nothing")


def test_clients_meet_at_the_owner(world: Servers) -> None:
    first, second = world.client(), world.client()
    path = file_owned_by(first, "local:meta-2")
    with first.open(path, "r+b") as a, second.open(path, "r+b") as b, ThreadPoolExecutor(1) as pool:
        fastest = 60.0  # of several, one of which no other process may have held up
        for _ in range(3):
            a.lock()
            there = pool.submit(b.lock)
            wait_for(lambda: world.second.locking.waiters.count == 1)
            began = time.monotonic()
            a.unlock()
            there.result(60)
            fastest = min(fastest, time.monotonic() - began)
            b.unlock()
        assert fastest < 0.5, "woken, not found by the look each second"
    with first.open(path, "ab") as a, second.open(path, "ab") as b:
        for number in range(20):
            (a, b)[number % 2].write(b"%02d" % number)
    assert first.read_bytes(path) == b"".join(b"%02d" % number for number in range(20))


def test_an_owner_that_goes_takes_no_lock_and_no_token_along(world: Servers) -> None:
    first, second = world.client(), world.client()
    path = file_owned_by(first, "local:meta-2")
    with first.open(path, "r+b") as a, second.open(path, "r+b") as b, ThreadPoolExecutor(1) as pool:
        a.lock(0, 10)
        with first.open(path, "ab") as log:
            log.write(b"0123456789")
            there = pool.submit(b.lock)
            wait_for(lambda: world.second.locking.waiters.count == 1)
            world.network.stop("meta-2")
            with second.open(path, "r+b") as third, pytest.raises(BlockingIOError):
                third.lock(owner=9, blocking=False)
            with second.open(path, "ab") as other:
                other.write(b"more")
                other.flush()
                assert first.read_bytes(path) == b"0123456789more"
        a.unlock()
        there.result(60)
        assert b.read() == b"0123456789more"


def test_everybody_agrees_on_the_owner_and_few_inodes_move() -> None:
    nodes = [3, 5, 8, 13]
    owners = {inode: owner_of(inode, nodes) for inode in range(4000)}
    counts = [list(owners.values()).count(node) for node in nodes]
    assert min(counts) > 800, "about a quarter each"
    assert all(owner_of(inode, reversed(nodes)) == owner for inode, owner in owners.items())
    left = [3, 5, 13]
    assert all(owner_of(inode, left) == owner for inode, owner in owners.items() if owner != 8)
    with pytest.raises(ValueError, match="empty"):
        owner_of(1, [])


def wait_for(found: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        threading.Event().wait(0.005)

"""Blocks over several chains and storage processes, and what happens to them when a process or a chain goes."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from emberfs_cluster import running_cluster

from emberfs.deploy.administration import Administration
from emberfs.kvcache.keys import Placement
from emberfs.proto.blocks import TABLE_OF_BLOCKS

from .contract import Contract, Open
from .faces import PATIENCE_SECONDS, blocks_of, keys_of, opened, spec_of, usage_of_all
from .test_contract import face_opener

NODES = 3
BLOCK = 30_000
COUNT = 60
SECONDS_MAX = 60.0


@pytest.fixture(scope="module")
def wide() -> Iterator[Any]:
    """Three storage processes, each with a chain of its own."""
    with running_cluster(nodes=NODES, kv_capacity=256 << 20) as running:
        yield running


class TestSeveralChains(Contract):
    identities = ({"salt": "another"},)
    many = 1000

    @pytest.fixture
    def open_subject(self, wide: Any) -> Open:
        return face_opener("blocking", wide.url, "slots")


@pytest.fixture(params=["blocking", "asyncio"])
def face(request: pytest.FixtureRequest, wide: Any) -> Iterator[Any]:
    with opened(request.param, wide.url) as made:
        yield made


def test_every_chain_has_its_share(face: Any) -> None:
    namespace, keys = face.namespace(spec_of(None)), keys_of(COUNT)
    blocks = [bytes([row]) * (row + 1) * 100 for row in range(COUNT)]
    assert face.put_from(namespace, keys, blocks).tolist() == [len(block) for block in blocks]
    buffers = [bytearray(len(block)) for block in blocks]
    missing = keys_of(3)
    statuses = face.get_into(namespace, [*keys, *missing], [*buffers, *(bytearray(9) for _ in missing)]).tolist()
    assert statuses == [len(block) for block in blocks] + [-errno.ENOENT] * 3
    assert buffers == blocks
    assert face.match(namespace, keys).lengths.tolist() == [len(block) for block in blocks]
    found = list(face.list(namespace))
    assert sorted(block.key for block in found) == sorted(keys)
    usage = usage_of_all(face)
    assert (usage.servers, usage.servers_silent, usage.namespaces[namespace.id].blocks) == (NODES, 0, COUNT)
    lease = face.match(namespace, keys, lease_ms=100_000).lease
    assert len(lease.parts) == NODES
    assert set(face.delete(namespace, keys)) == {-errno.EBUSY}
    face.release(lease)
    assert set(face.delete(namespace, keys)) == {0}


def expected(kv: Any, keys: list[bytes], away: int) -> list[int]:
    """What each key answers while one node is away, by the routing of before."""
    table = kv.core.cluster.table
    chains = Placement(table.table(TABLE_OF_BLOCKS)).chains_of(b"".join(keys))
    node = {chain: table.chains[chain].members[0].node for chain in set(chains)}
    return [-errno.EAGAIN if node[chain] == away else BLOCK for chain in chains]


def test_one_of_three_dies(wide: Any) -> None:
    """Its keys are a miss at once, and nobody else's; restarted, it has them again."""
    cluster = wide
    with opened("blocking", cluster.url) as kv:
        namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(COUNT)
        blocks = blocks_of(keys, BLOCK)
        assert set(kv.put_from(namespace, keys, blocks)) == {BLOCK}
        away = cluster.record["servers"]["storage-2"]["node"]
        new = keys_of(COUNT)
        known, unknown = expected(kv, keys, away), expected(kv, new, away)
        assert set(known) == {BLOCK, -errno.EAGAIN}, "each of three has some of sixty"
        cluster.kill("storage-2")
        began = time.monotonic()
        buffers = [bytearray(BLOCK) for _ in keys]
        assert kv.get_into(namespace, keys, buffers).tolist() == known
        assert time.monotonic() - began < PATIENCE_SECONDS / 2, "an engine would wait for it"
        assert all(buffer == block for buffer, block, status in zip(buffers, blocks, known, strict=True) if status > 0)
        assert kv.put_from(namespace, new, blocks_of(new, BLOCK)).tolist() == unknown
        usage = kv.usage()
        assert (usage.servers, usage.servers_silent) == (NODES, 1)
        cluster.start()
        deadline = time.monotonic() + SECONDS_MAX
        while kv.match(namespace, keys).n < COUNT:
            assert time.monotonic() < deadline


def test_blocks_are_found_where_an_older_table_places_them(make_cluster: Any) -> None:
    """DECISION: "After a change, match/get look in the previous version too; puts go to the new one; delete addresses every chain"."""
    cluster = make_cluster(nodes=2, kv_capacity=128 << 20)
    with opened("blocking", cluster.url) as kv, Administration(cluster.url) as administration:
        namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(COUNT)
        blocks = blocks_of(keys, BLOCK)
        assert set(kv.put_from(namespace, keys, blocks)) == {BLOCK}
        before = kv.core.cluster.table.table(TABLE_OF_BLOCKS)
        leaving = next(n.id for n in kv.core.cluster.table.nodes.values() if n.name.endswith("storage-2"))
        administration.set_node(leaving, draining=True)
        deadline = time.monotonic() + SECONDS_MAX
        while len(kv.core.cluster.table.table(TABLE_OF_BLOCKS)) != 1:
            assert time.monotonic() < deadline
            kv.namespaces()  # asks for the routing
        [left] = kv.core.cluster.table.table(TABLE_OF_BLOCKS)
        assert set(before) > {left}
        assert kv.match(namespace, keys).n == COUNT
        buffers = [bytearray(BLOCK) for _ in keys]
        assert set(kv.get_into(namespace, keys, buffers)) == {BLOCK}
        assert buffers == blocks
        assert set(kv.touch(namespace, keys)) == {0}
        new = keys_of(20)
        assert set(kv.put_from(namespace, new, blocks_of(new, BLOCK))) == {BLOCK}
        listed = [block.key for block in kv.list(namespace)]
        assert sorted(listed) == sorted([*keys, *new])
        assert set(kv.delete(namespace, keys)) == {0}
        assert kv.match(namespace, keys).total == 0
        cluster.kill("storage-2")
        began = time.monotonic()
        assert kv.match(namespace, keys).statuses == [-errno.ENOENT] * COUNT, "what has left the table is a miss"
        assert time.monotonic() - began < PATIENCE_SECONDS / 2, "nobody waits for who has left"


def test_a_server_that_does_not_answer(make_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was being moved into shared memory is waited for; then that memory is dead until its server has ended that request."""
    cluster = make_cluster()
    with opened("blocking", cluster.url) as kv:
        namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(4)
        assert set(kv.put_from(namespace, keys, blocks_of(keys, BLOCK))) == {BLOCK}
        pool, private = kv.allocate(4 * BLOCK), [bytearray(BLOCK) for _ in keys]
        slots = (pool, [row * BLOCK for row in range(4)], BLOCK)
        assert set(kv.get_into(namespace, keys, slots)) == {BLOCK}
        server = cluster.servers["storage-1"].pid()
        os.kill(server, signal.SIGSTOP)
        try:
            monkeypatch.setenv(
                "EMBERFS_TIME_SCALE", "0.1"
            )  # of this process: 5 s beyond the deadline are half a second
            began = time.monotonic()
            assert set(kv.get_into(namespace, keys, slots, deadline_ms=2000).tolist()) == {-errno.ETIMEDOUT}
            assert set(kv.get_into(namespace, keys, private, deadline_ms=2000).tolist()) <= {
                -errno.ETIMEDOUT,
                -errno.EAGAIN,
            }
            assert time.monotonic() - began < PATIENCE_SECONDS / 2, "no longer than their deadlines"
            assert pool.dead
            assert set(kv.get_into(namespace, keys, slots).tolist()) == {-errno.EFAULT}
            assert set(kv.put_from(namespace, keys_of(4), slots).tolist()) == {-errno.EFAULT}
        finally:
            monkeypatch.undo()
            os.kill(server, signal.SIGCONT)
        deadline = time.monotonic() + SECONDS_MAX
        while set(kv.get_into(namespace, keys, slots)) != {BLOCK}:
            assert time.monotonic() < deadline
        assert not pool.dead
        pool.region.dead = True  # as long as its server does not end it
        anew = kv.register(pool.view)
        assert set(kv.get_into(namespace, keys, (anew, slots[1], BLOCK))) == {BLOCK}
        assert anew.view[:BLOCK] == blocks_of(keys, BLOCK)[0]

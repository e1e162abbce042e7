"""What goes wrong: servers that die in the middle of a batch, bytes that change on a disk, blocks that are evicted while they are read.

Whatever happens, a block that comes is the block that was put, and one that was acknowledged is there until it is evicted.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emberfs_cluster import running_cluster

from emberfs.proto.settings import time_scale

from .faces import blocks_of, keys_of, opened, spec_of

MIB = 1 << 20
BLOCK = 100_000
CAPACITY = 64 * MIB  # of the target for blocks
SECONDS_MAX = 100.0
ACKNOWLEDGED_MAX = 200  # of one phase: what two put stays below what is evicted

# What a batch may answer while a server is away.
AWAY = {-errno.EAGAIN, -errno.ETIMEDOUT, -errno.ENOENT, -errno.EIO}


@pytest.fixture(scope="module")
def damaged() -> Iterator[Any]:
    """A cluster that tests here may kill and damage, one after the other."""
    with running_cluster(kv_capacity=CAPACITY) as running:
        yield running


def flip(cluster: Any, needle: bytes, node: str = "storage-*") -> None:
    """Change the first byte of these bytes wherever they lie in the files of targets for blocks."""
    found = 0
    for path in Path(cluster.data).glob(f"{node}/kv-*/blocks/*"):
        with path.open("r+b") as file:
            at = file.read().find(needle)
            if at >= 0:
                file.seek(at)
                file.write(bytes([needle[0] ^ 1]))
                found += 1
    assert found, "the block is on no disk"


def holds(cluster: Any, needle: bytes, node: str) -> bool:
    return any(needle in path.read_bytes() for path in Path(cluster.data).glob(f"{node}/kv-*/blocks/*"))


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_flipped_byte_is_a_miss_and_not_an_answer(damaged: Any, kind: str) -> None:
    with opened(kind, damaged.url) as face:
        namespace = face.namespace(spec_of(BLOCK))
        keys = keys_of(3)
        blocks = blocks_of(keys, BLOCK)
        assert set(face.put_from(namespace, keys, blocks)) == {BLOCK}
        flip(damaged, blocks[1][5000:5100])
        buffers = [bytearray(BLOCK) for _ in keys]
        assert face.get_into(namespace, keys, buffers).tolist() == [BLOCK, -errno.EBADMSG, BLOCK]
        assert (buffers[0], buffers[2]) == (blocks[0], blocks[2])
        deadline = time.monotonic() + SECONDS_MAX
        while face.exists(namespace, keys).tolist() != [True, False, True]:  # reported, and dropped
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert face.put(namespace, keys[1], blocks[1]) == BLOCK
        assert face.get(namespace, keys[1]) == blocks[1]


def test_a_flipped_byte_is_found_in_parts_too(damaged: Any) -> None:
    with opened("blocking", damaged.url) as kv:
        namespace = kv.namespace(spec_of(BLOCK))
        [key] = keys_of(1)
        [block] = blocks_of([key], BLOCK)
        kv.put(namespace, key, block)
        flip(damaged, block[50_000:50_100])
        part = bytearray(1000)
        assert kv.get_into(namespace, [key], [part], ranges=[(0, 1000)]).tolist() == [1000]
        assert part == block[:1000]
        assert kv.get_into(namespace, [key], [part], ranges=[(49_999, 1000)])[0] in (-errno.EBADMSG, -errno.ENOENT)


@pytest.mark.parametrize("kind", ["blocking", "asyncio", "tickets"])
def test_killed_in_the_middle_of_batches(damaged: Any, kind: str) -> None:
    acknowledged: dict[bytes, bytes] = {}
    statuses: set[int] = set()
    stop, room = threading.Event(), ACKNOWLEDGED_MAX
    with opened(kind, damaged.url) as face:
        namespace = face.namespace(spec_of(BLOCK))

        def work() -> None:
            while not stop.is_set():
                if len(acknowledged) < room:
                    keys = keys_of(8)
                    blocks = blocks_of(keys, BLOCK)
                else:  # the same again
                    keys = random.sample(list(acknowledged), 8)
                    blocks = [acknowledged[key] for key in keys]
                for key, block, status in zip(keys, blocks, face.put_from(namespace, keys, blocks), strict=True):
                    statuses.add(int(status))
                    if status == BLOCK:
                        acknowledged[key] = block
                buffers = [bytearray(BLOCK) for _ in keys]
                for block, buffer, status in zip(blocks, buffers, face.get_into(namespace, keys, buffers), strict=True):
                    statuses.add(int(status))
                    assert status != BLOCK or buffer == block
                stop.wait(0.01 if statuses & AWAY else 0)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            while len(acknowledged) < 16 and worker.is_alive():
                time.sleep(0.01)
            damaged.kill("storage-1")
            before = len(acknowledged)
            room = before + ACKNOWLEDGED_MAX
            damaged.start()
            deadline = time.monotonic() + SECONDS_MAX
            while len(acknowledged) < before + 16 and worker.is_alive():
                assert time.monotonic() < deadline, statuses
                time.sleep(0.01)
        finally:
            stop.set()
            worker.join(SECONDS_MAX)
        assert statuses <= {BLOCK} | AWAY, statuses
        keys = list(acknowledged)
        match = face.match(namespace, keys)
        assert match.total == len(keys), "what was acknowledged is there after kill -9"
        for key in keys[::5]:
            assert face.get(namespace, key) == acknowledged[key]
        face.drop(namespace)


def test_nobody_waits_again_for_a_server_that_is_away(damaged: Any) -> None:
    """The first batch finds out. Those behind it are misses soon, so that an engine goes on as if it had no cache."""
    with opened("blocking", damaged.url) as kv:
        namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(4)
        blocks = blocks_of(keys, BLOCK)
        assert set(kv.put_from(namespace, keys, blocks)) == {BLOCK}
        server = damaged.servers["storage-1"].pid()
        os.kill(server, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for _ in range(40):
                assert set(kv.match(namespace, keys, deadline_ms=5000).statuses) <= AWAY
            assert time.monotonic() - began < SECONDS_MAX * time_scale(), "as long as twenty of them may take"
        finally:
            os.kill(server, signal.SIGCONT)
        buffers = [bytearray(BLOCK) for _ in keys]
        assert set(kv.get_into(namespace, keys, buffers)) == {BLOCK}, "who has more time is given it"
        assert buffers == blocks
        assert kv.match(namespace, keys).n == len(keys)


@pytest.mark.timeout(300)
def test_eviction_while_blocks_are_read(damaged: Any) -> None:
    """Three times what fits is put while old and new blocks are read: hits are right, and the others are misses."""
    stop, wrong = threading.Event(), []
    with opened("blocking", damaged.url) as kv:
        namespace = kv.namespace(spec_of(BLOCK))
        there: list[bytes] = []
        hits = 0

        def read() -> None:
            nonlocal hits
            draw = random.Random(1)
            while not stop.is_set():
                keys = draw.sample(there, min(len(there), 6))
                buffers = [bytearray(BLOCK) for _ in keys]
                for key, buffer, status in zip(keys, buffers, kv.get_into(namespace, keys, buffers), strict=True):
                    hits += status == BLOCK
                    if status not in (BLOCK, -errno.ENOENT) or (
                        status == BLOCK and buffer != blocks_of([key], BLOCK)[0]
                    ):
                        wrong.append((key, int(status)))

        reader = threading.Thread(target=read)
        reader.start()
        put = refused = 0
        deadline = time.monotonic() + SECONDS_MAX
        while put * BLOCK < 3 * CAPACITY and time.monotonic() < deadline:
            keys = keys_of(16)
            statuses = kv.put_from(namespace, keys, blocks_of(keys, BLOCK)).tolist()
            assert set(statuses) <= {BLOCK, -errno.EAGAIN}
            there.extend(key for key, status in zip(keys, statuses, strict=True) if status == BLOCK)
            put += statuses.count(BLOCK)
            refused += statuses.count(-errno.EAGAIN)
            if refused:
                stop.wait(0.005)
        stop.set()
        reader.join(SECONDS_MAX)
        assert not wrong
        assert hits
        assert put * BLOCK >= 3 * CAPACITY, f"{put} put, {refused} refused"
        assert kv.usage().namespaces[namespace.id].evictions > 0
        assert kv.match(namespace, there[-16:]).total > 0, "the newest are there"
        kv.drop(namespace)


def test_one_of_two_replicas_is_killed(make_cluster: Any) -> None:
    cluster = make_cluster(nodes=2, kv_replicas=2)
    with opened("blocking", cluster.url) as kv:
        namespace = kv.namespace(spec_of(BLOCK))
        keys = keys_of(12)
        blocks = blocks_of(keys, BLOCK)
        assert set(kv.put_from(namespace, keys, blocks)) == {BLOCK}
        for block in blocks:  # all of one server: of some chain it is the one that is asked first
            flip(cluster, block[3000:3100], "storage-1")
        assert [kv.get(namespace, key) for key in keys] == blocks, "the other one is right"
        deadline = time.monotonic() + SECONDS_MAX
        while not any(holds(cluster, block[3000:3100], "storage-1") for block in blocks):
            assert time.monotonic() < deadline, "nobody repaired it"
            time.sleep(0.05)
        cluster.kill("storage-1")
        buffers = [bytearray(BLOCK) for _ in keys]
        assert set(kv.get_into(namespace, keys, buffers)) == {BLOCK}, "the other replica has them all"
        assert buffers == blocks
        new = keys_of(4)
        fresh = blocks_of(new, BLOCK)
        deadline = time.monotonic() + SECONDS_MAX
        while set(kv.put_from(namespace, new, fresh)) != {BLOCK}:  # when the manager has noticed
            assert time.monotonic() < deadline
        assert [kv.get(namespace, key) for key in new] == fresh

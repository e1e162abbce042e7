"""What each face of the API answers beyond the contract: statuses, parts of blocks, times to live, pins, leases, quotas, lists."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from emberfs.kvcache import NamespaceSpec
from emberfs.proto.blocks import TABLE_OF_BLOCKS
from emberfs.proto.drivers.waiting import Ticket
from emberfs.proto.errors import Status, StatusError, error
from emberfs.proto.transport.shm import REGIONS_PER_CLIENT_MAX

from .faces import blocks_of, keys_of, opened, spec_of, usage_of_all

BLOCK = 40_000
COUNT = 6
SECONDS_MAX = 60.0


def stored(
    face: Any, count: int = COUNT, length: int = BLOCK, spec: NamespaceSpec | None = None, mode: int = 0o600, **how: Any
) -> Any:
    """A namespace with blocks: namespace, keys, blocks."""
    namespace = face.namespace(spec or spec_of(length), mode=mode)
    keys = keys_of(count)
    blocks = blocks_of(keys, length)
    assert set(face.put_from(namespace, keys, blocks, **how)) == {length}
    return namespace, keys, blocks


def until(condition: Any) -> None:
    """Wait for what the servers do in the background."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def test_statuses_are_int32_in_the_order_of_the_keys(face: Any) -> None:
    namespace, keys, _ = stored(face)
    statuses = face.get_into(namespace, [*keys[:2], bytes(32), *keys[2:]], [bytearray(BLOCK) for _ in range(COUNT + 1)])
    assert statuses.dtype == np.int32
    assert statuses.tolist() == [BLOCK, BLOCK, -errno.ENOENT, BLOCK, BLOCK, BLOCK, BLOCK]


def test_wrong_size_is_a_status_and_moves_nothing(face: Any) -> None:
    """R2: mismatch → EMSGSIZE miss, never a copy."""
    namespace, keys, blocks = stored(face)
    small, right, large = bytearray(BLOCK - 1), bytearray(BLOCK), bytearray(BLOCK + 1)
    statuses = face.get_into(namespace, keys[:3], [small, right, large])
    assert statuses.tolist() == [-errno.EMSGSIZE, BLOCK, -errno.EMSGSIZE]
    assert (small, large) == (bytearray(BLOCK - 1), bytearray(BLOCK + 1))
    assert right == blocks[1]
    new = keys_of(3)
    assert face.put_from(namespace, new, [small, blocks[0], large]).tolist() == [
        -errno.EMSGSIZE,
        BLOCK,
        -errno.EMSGSIZE,
    ]
    assert face.exists(namespace, new).tolist() == [False, True, False]


def test_parts_of_blocks(face: Any) -> None:
    namespace, keys, blocks = stored(face)
    ranges = [(0, 100), (4095, 2), (BLOCK - 7, 7), (1, BLOCK - 1), (8192, 4096), (0, BLOCK)]
    parts = [bytearray(length) for _, length in ranges]
    assert face.get_into(namespace, keys, parts, ranges=ranges).tolist() == [length for _, length in ranges]
    assert parts == [block[at : at + length] for block, (at, length) in zip(blocks, ranges, strict=True)]
    parts = [bytearray(10) for _ in keys]
    assert set(face.get_into(namespace, keys, parts, ranges=(20, 10))) == {10}
    assert parts == [block[20:30] for block in blocks]
    assert face.get_into(namespace, keys[:1], [bytearray(8)], ranges=[(BLOCK - 7, 8)]).tolist() == [-errno.EMSGSIZE]


def test_blocks_of_any_length(face: Any) -> None:
    namespace = face.namespace(spec_of(None))
    keys = keys_of(3)
    blocks = [b"x", bytes(range(256)) * 40, b"y" * 100_000]
    assert face.put_from(namespace, keys, blocks).tolist() == [1, 10_240, 100_000]
    assert face.match(namespace, keys).lengths.tolist() == [1, 10_240, 100_000]
    assert [face.get(namespace, key) for key in keys] == blocks
    assert face.get_into(namespace, keys[:2], [bytearray(1), bytearray(20_000)]).tolist() == [1, -errno.EMSGSIZE]
    assert face.put(namespace, bytes(32), b"") == -errno.EMSGSIZE


def test_match_tells_the_prefix(face: Any) -> None:
    namespace, keys, _ = stored(face)
    absent = keys_of(2)
    match = face.match(namespace, [keys[0], keys[1], absent[0], keys[2], keys[3], absent[1]])
    assert (match.n, match.total, len(match)) == (2, 4, 2)
    assert match.present.tolist() == [True, True, False, True, True, False]
    assert face.match(namespace, [absent[0], *keys]).n == 0
    assert face.match(namespace, [keys[0], absent[0], keys[1], keys[2], absent[1]], trailing=2).n == 4
    assert face.match(namespace, [keys[0], keys[1], absent[0]], trailing=9).n == 2


def test_stop_on_miss(face: Any) -> None:
    namespace, keys, _ = stored(face)
    buffers = [bytearray(BLOCK) for _ in range(4)]
    statuses = face.get_into(namespace, [keys[0], bytes(32), keys[1], keys[2]], buffers, stop_on_miss=True)
    assert statuses.tolist() == [BLOCK, -errno.ENOENT, -errno.ECANCELED, -errno.ECANCELED]


def test_delete(face: Any) -> None:
    namespace, keys, _ = stored(face)
    assert face.delete(namespace, [*keys[:2], bytes(32)]).tolist() == [0, 0, -errno.ENOENT]
    assert face.exists(namespace, keys).tolist() == [False, False, True, True, True, True]
    assert face.get(namespace, keys[0]) is None


def test_a_deleted_block_may_be_put_anew(face: Any) -> None:
    namespace, keys, blocks = stored(face, 1)
    face.delete(namespace, keys)
    assert face.put(namespace, keys[0], blocks[0][::-1]) == BLOCK
    assert face.get(namespace, keys[0]) == blocks[0][::-1]


def test_time_to_live(face: Any) -> None:
    namespace, keys, _ = stored(face, ttl_s=1)
    until(lambda: not any(face.exists(namespace, keys)))
    assert face.get(namespace, keys[1]) is None


def test_a_time_to_live_may_be_changed(face: Any) -> None:
    namespace, keys, blocks = stored(face, ttl_s=1000)
    assert set(face.set_ttl(namespace, keys[1:], 1)) == {0}
    until(lambda: face.exists(namespace, keys).tolist() == [True] + [False] * (COUNT - 1))

    def in_time() -> bool:
        """Whether one that would have gone in a second was given more within that second."""
        assert face.put_from(namespace, keys[1:2], blocks[1:2], ttl_s=1).tolist() == [BLOCK]
        return bool(face.set_ttl(namespace, keys[1:2], 1000).tolist() == [0])

    until(in_time)
    assert face.put_from(namespace, keys[2:3], blocks[2:3], ttl_s=1).tolist() == [BLOCK]
    until(lambda: not face.exists(namespace, keys[2:3])[0])
    assert face.get(namespace, keys[1]) == blocks[1]


def test_the_namespaces_time_to_live(face: Any) -> None:
    namespace = face.namespace(spec_of(100), ttl_s=1)
    assert namespace.ttl_s == 1
    face.put(namespace, bytes(32), bytes(100))
    until(lambda: not face.exists(namespace, [bytes(32)])[0])


def test_pins_and_touches(face: Any) -> None:
    namespace, keys, _ = stored(face)
    missing = bytes(32)
    for said in (face.touch, face.prefetch, face.unpin, face.pin):
        assert said(namespace, [*keys, missing]).tolist() == [0] * COUNT + [-errno.ENOENT]
    assert face.pin(namespace, keys[:1], 60).tolist() == [0]
    assert {block.key for block in face.list(namespace) if block.pinned} == set(keys)


def test_a_lease_holds_blocks_and_ends(face: Any) -> None:
    namespace, keys, _ = stored(face)
    match = face.match(namespace, keys[:2], lease_ms=30_000)
    assert match.lease is not None
    assert face.renew(match.lease, 30_000)
    face.release(match.lease)
    assert not face.renew(match.lease, 1000), "it was given back"
    short = face.match(namespace, keys[:2], lease_ms=1).lease
    until(lambda: not face.renew(short, 1))
    assert face.match(namespace, [bytes(32)], lease_ms=1000).lease is None, "nothing is there"


def test_a_list_of_blocks(face: Any) -> None:
    namespace, keys, _ = stored(face, ttl_s=1000, depth=7)
    found = list(face.list(namespace))
    assert [block.key for block in found] == sorted(keys)
    assert {block.key: block.depth for block in found} == {key: 7 + row for row, key in enumerate(keys)}
    assert {block.length for block in found} == {BLOCK}
    assert all(0 < block.ttl_s <= 1000 for block in found)


def test_usage_by_namespace_and_tenant(face: Any) -> None:
    tenant = f"tenant-{os.urandom(4).hex()}"
    namespace, keys, _ = stored(face, spec=spec_of(BLOCK, tenant=tenant))
    face.get(namespace, keys[0])
    face.get(namespace, bytes(32))
    usage = usage_of_all(face)
    found = usage.namespaces[namespace.id]
    assert (found.blocks, found.bytes, found.puts, found.hits, found.misses) == (COUNT, COUNT * BLOCK, COUNT, 1, 1)
    assert usage.tenants[tenant] == found
    assert usage.used >= COUNT * BLOCK


def test_a_quota_evicts_the_tenants_own_blocks(face: Any) -> None:
    tenant, other = (f"tenant-{os.urandom(4).hex()}" for _ in range(2))
    theirs, their_keys, _ = stored(face, spec=spec_of(BLOCK, tenant=other))
    face.set_quota(tenant, 10 * BLOCK)
    namespace = face.namespace(spec_of(BLOCK, tenant=tenant))
    put = 0
    for _ in range(20):
        keys = keys_of(5)
        statuses = face.put_from(namespace, keys, blocks_of(keys, BLOCK))
        assert set(statuses.tolist()) <= {BLOCK, -errno.EDQUOT, -errno.EAGAIN}
        put += int((statuses == BLOCK).sum())
    until(lambda: face.usage().tenants[tenant].bytes <= 10 * BLOCK)
    assert put > 0
    assert face.usage().quotas[tenant] == 10 * BLOCK
    assert face.match(theirs, their_keys).n == COUNT, "never another's"
    face.set_quota(tenant, 0)
    assert tenant not in face.usage().quotas


def test_a_namespace_is_found_again(face: Any) -> None:
    spec = spec_of(BLOCK)
    first = face.namespace(spec)
    assert face.namespace(spec) == first
    assert [found.spec for found in face.namespaces() if found.id == first.id] == [spec]


def test_a_dropped_namespace_is_empty(face: Any) -> None:
    namespace, keys, blocks = stored(face)
    face.drop(namespace)
    assert face.match(namespace, keys).n == 0
    assert face.get_into(namespace, keys, [bytearray(BLOCK) for _ in keys]).tolist() == [-errno.ENOENT] * COUNT
    assert face.put_from(namespace, keys, blocks).tolist() == [-errno.ENOENT] * COUNT
    anew = face.namespace(namespace.spec)
    assert anew.id != namespace.id
    assert face.match(anew, keys).n == 0


def test_durable_puts(face: Any) -> None:
    namespace, keys, blocks = stored(face, ack="durable")
    assert face.get(namespace, keys[0]) == blocks[0]


def test_without_verification(face: Any) -> None:
    namespace, keys, blocks = stored(face)
    buffers = [bytearray(BLOCK) for _ in keys]
    assert set(face.get_into(namespace, keys, buffers, verify=False)) == {BLOCK}
    assert buffers == blocks


@pytest.mark.parametrize(
    ("call", "failure"),
    [
        (lambda face, ns: face.get_into(ns, [bytes(31)], [bytearray(BLOCK)]), ValueError),
        (lambda face, ns: face.get_into(ns, [bytes(32)], []), ValueError),
        (lambda face, ns: face.get_into(ns, [bytes(32)], [b"read-only"]), ValueError),
        (lambda face, ns: face.get_into(ns, [bytes(32)], (bytearray(10), [0], BLOCK)), ValueError),
        (lambda face, ns: face.get_into(ns, [bytes(32)], [object()]), TypeError),
        (lambda face, ns: face.get_into(ns, [bytes(32)], [bytearray(5)], ranges=[(0, 6)]), ValueError),
        (lambda face, ns: face.put_from(ns, [bytes(32)], [bytes(BLOCK)], depth=-1), ValueError),
        (lambda face, ns: face.put_from(ns, [bytes(32)], [bytes(BLOCK)], ttl_s=-1), ValueError),
        (lambda face, ns: face.put_from(ns, [bytes(32)], [bytes(BLOCK)], ack="perhaps"), ValueError),
        (lambda face, ns: face.namespace({"model": "m"}), TypeError),
    ],
    ids=range(10),
)
def test_programming_errors_are_raised_before_anything_is_sent(face: Any, call: Any, failure: type[Exception]) -> None:
    namespace = face.namespace(spec_of(BLOCK))
    with pytest.raises(failure):
        call(face, namespace)


def test_after_closing(face: Any) -> None:
    namespace, keys, _ = stored(face)
    face.close()
    assert face.get_into(namespace, keys, [bytearray(BLOCK) for _ in keys]).tolist() == [-errno.ECANCELED] * COUNT
    with pytest.raises(StatusError):
        face.namespace(spec_of())


def test_threads_share_a_cache(kv: Any) -> None:
    namespace, keys, blocks = stored(kv, 24)
    wrong: list[int] = []

    def read(first: int) -> None:
        for turn in range(30):
            rows = [(first + turn * 7 + i) % 24 for i in range(5)]
            buffers = [bytearray(BLOCK) for _ in rows]
            kv.get_into(namespace, [keys[row] for row in rows], buffers)
            wrong.extend(row for row, buffer in zip(rows, buffers, strict=True) if buffer != blocks[row])

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_goes_on(kv: Any) -> None:
    """The child has connections of its own; what the parent shares with servers stays the parent's."""
    namespace, keys, blocks = stored(kv)
    pool = kv.allocate(COUNT * BLOCK)
    offsets = [row * BLOCK for row in range(COUNT)]
    kv.get_into(namespace, keys, (pool, offsets, BLOCK))
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def child() -> None:
        assert not pool.shared
        private = [bytearray(BLOCK) for _ in keys]
        kv.get_into(namespace, keys, private)
        shared = kv.register(kv.allocate(COUNT * BLOCK).view)
        statuses = kv.get_into(namespace, keys, (shared, offsets, BLOCK))
        ticket = kv.submit_get(namespace, keys, (pool, offsets, BLOCK))
        answers.put(
            (private == blocks, statuses.tolist(), ticket.result(SECONDS_MAX).tolist(), bytes(shared.view[:BLOCK]))
        )
        kv.close()

    process = context.Process(target=child)
    process.start()
    right, statuses, later, first = answers.get(timeout=SECONDS_MAX)
    process.join(SECONDS_MAX)
    assert process.exitcode == 0
    assert (right, statuses, later, first) == (True, [BLOCK] * COUNT, [BLOCK] * COUNT, blocks[0])
    assert pool.shared
    assert set(kv.get_into(namespace, keys, (pool, offsets, BLOCK))) == {BLOCK}


def test_an_engines_own_pool_is_reached_without_a_copy(kv: Any) -> None:
    """A memfd without leave to seal, as SGLang makes its host pool."""
    import mmap

    descriptor = os.memfd_create("engine")
    os.ftruncate(descriptor, 4 * COUNT * BLOCK)
    memory = mmap.mmap(descriptor, 4 * COUNT * BLOCK)
    pool = np.frombuffer(memory, "u1")
    buffer = kv.register(pool)
    assert buffer.shared
    namespace, keys, blocks = stored(kv)
    slots = [2 * row * BLOCK + 5 for row in range(COUNT)]
    assert set(kv.get_into(namespace, keys, [pool[at : at + BLOCK] for at in slots])) == {BLOCK}
    assert [pool[at : at + BLOCK].tobytes() for at in slots] == blocks
    new = keys_of(COUNT)
    assert set(kv.put_from(namespace, new, (buffer, np.array(slots), BLOCK))) == {BLOCK}
    assert [kv.get(namespace, key) for key in new] == blocks
    os.close(descriptor)


def test_memory_may_be_registered_anew_without_end(kv: Any) -> None:
    """As an engine does each time that a server has not answered. Servers know so many regions of a client, and no more."""
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(1)
    assert set(kv.put_from(namespace, keys, blocks_of(keys, BLOCK))) == {BLOCK}
    pool = kv.allocate(BLOCK)
    for _ in range(REGIONS_PER_CLIENT_MAX + 1):
        assert set(kv.get_into(namespace, keys, (pool, [0], BLOCK))) == {BLOCK}
        pool.region.dead = True
        pool = kv.register(pool.view)
        assert pool.shared


def test_over_tcp(make_cluster: Any) -> None:
    """Bytes that pass through a socket go to and from the caller's memory, whatever it is. (Root is nobody there.)"""
    with opened("blocking", make_cluster(tcp_only=True, port=0).url) as kv:
        namespace, keys, blocks = stored(kv, 12, 700_000, mode=0o666)
        buffers = [bytearray(700_000) for _ in keys]
        asked, into = [*keys[:5], bytes(32), *keys[5:]], [*buffers[:5], bytearray(700_000), *buffers[5:]]
        assert kv.get_into(namespace, asked, into).tolist().index(-errno.ENOENT) == 5
        assert buffers == blocks
        pool = kv.allocate(12 * 700_000)
        offsets = [row * 700_000 for row in range(12)]
        assert set(kv.get_into(namespace, keys[::-1], (pool, offsets, 700_000))) == {700_000}
        assert pool.view == b"".join(blocks[::-1])


def test_memory_that_dies_in_the_middle_of_a_batch_is_dead_over_tcp_too(
    make_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of this host has not answered, and may still write there. What another host's would bring now could be lost again."""
    with opened("blocking", make_cluster(tcp_only=True, port=0).url) as kv:
        namespace, keys, _ = stored(kv, 1, mode=0o666)
        start = kv.core.env.start
        for whole in (True, False):
            pool = kv.allocate(BLOCK)

            def silent(call: Any, pool: Any = pool) -> Ticket:
                monkeypatch.undo()
                pool.region.dead = True
                return Ticket(None, None, error(Status.UNAVAILABLE, "it did not answer"))

            monkeypatch.setattr(kv.core.env, "start", silent)
            into = (pool, [0], BLOCK) if whole else [pool.view]
            assert kv.get_into(namespace, keys, into).tolist() == [-errno.EFAULT]
            assert kv.core.env.start == start
        assert kv.get_into(namespace, keys, [bytearray(BLOCK)]).tolist() == [BLOCK]


def test_nothing_is_deleted_by_halves(kv: Any) -> None:
    """While an older version of the table cannot be had, nobody knows where blocks may lie: what was not reached must not seem deleted."""
    namespace, keys, _ = stored(kv)
    table = kv.core.cluster.table
    table.namespaces[namespace.id].older_versions.append(1_000_000)
    assert set(kv.delete(namespace, keys)) == {-errno.EAGAIN}
    assert kv.match(namespace, keys).n == COUNT
    assert set(kv.delete(namespace, keys)) == {-errno.EAGAIN}, "the newest version alone was kept as all there is"
    table.tables[TABLE_OF_BLOCKS, 1_000_000] = table.table(TABLE_OF_BLOCKS)
    assert set(kv.delete(namespace, keys)) == {0}
    assert kv.match(namespace, keys).total == 0

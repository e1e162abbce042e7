"""Batches in the background: tickets, their descriptors, cancelling, and what a client tells of itself."""

from __future__ import annotations

import asyncio
import errno
import itertools
import select
import threading
import time
from typing import Any

import pytest

from emberfs.kvcache import AsyncKVCache, tickets
from emberfs.kvcache.core.batch import WINDOWS_IN_FLIGHT_MAX
from emberfs.kvcache.tickets import PUTTERS_MAX, SUBMITTED_MAX, WORKERS_MAX
from emberfs.proto.env import drive
from emberfs.proto.gen.kvcache_pb2 import ListBlocksReply

from .faces import PATIENCE_SECONDS, blocks_of, keys_of, opened, spec_of

BLOCK = 4096
SECONDS_MAX = 60.0


def readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_a_ticket_is_done_and_its_descriptor_says_so(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(3)
    blocks = blocks_of(keys, BLOCK)
    put = kv.submit_put(namespace, keys, blocks)
    assert readable(put.fileno(), SECONDS_MAX)
    assert put.done()
    assert put.result().tolist() == [BLOCK] * 3
    assert put.result().tolist() == [BLOCK] * 3, "as often as one likes"
    match = kv.submit_match(namespace, keys)
    assert match.result(SECONDS_MAX).n == 3
    assert readable(match.fileno(), 0), "asked for after it was done"


def test_completed_gives_each_ticket_once(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(8)
    blocks = blocks_of(keys, BLOCK)
    event = kv.fileno()
    assert not readable(event, 0)
    assert kv.completed() == []
    tickets = {kv.submit_put(namespace, [key], [block]) for key, block in zip(keys, blocks, strict=True)}
    found: list[Any] = []
    while len(found) < len(tickets):
        assert readable(event, SECONDS_MAX)
        found += kv.completed()
    assert set(found) == tickets
    assert len(found) == 8
    assert not readable(event, 0)
    assert kv.match(namespace, keys).n == 8


def test_who_never_asks_for_what_is_done_keeps_little_of_it(kv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "SUBMITTED_MAX", 4)
    kv._submitter._begin()
    namespace = kv.namespace(spec_of(BLOCK))
    for _ in range(3):
        for ticket in [kv.submit_match(namespace, keys_of(1)) for _ in range(4)]:
            assert ticket.result(SECONDS_MAX).n == 0
    assert len(kv._submitter._done) <= 4
    kv.completed()
    last = []
    for _ in range(8):
        last.append(kv.submit_match(namespace, keys_of(1)))
        last[-1].result(SECONDS_MAX)
    assert readable(kv.fileno(), SECONDS_MAX)
    found: set[Any] = set()
    while found != set(last):  # a ticket is done a moment before it is among them
        found |= set(kv.completed())


def test_wrong_arguments_are_raised_at_once(kv: Any) -> None:
    namespace = kv.namespace(spec_of(BLOCK))
    with pytest.raises(ValueError, match="read-only"):
        kv.submit_get(namespace, keys_of(1), [b"read-only"])
    with pytest.raises(ValueError, match="32"):
        kv.submit_match(namespace, [b"short"])
    with pytest.raises(TypeError, match="unknown"):
        kv.submit_get(namespace, keys_of(1), [bytearray(BLOCK)], unknown=3).result(SECONDS_MAX)


def test_what_waits_for_a_thread_can_be_cancelled_and_is_limited(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(1)
    core, entered, leave = kv.core, threading.Semaphore(0), threading.Event()

    async def held(*args: Any, **how: Any) -> Any:
        entered.release()
        leave.wait(SECONDS_MAX)
        return [0]

    submitter = kv._submitter
    running = [submitter.submit(held, namespace, keys, {}) for _ in range(WORKERS_MAX)]
    for _ in running:
        assert entered.acquire(timeout=SECONDS_MAX)
    waiting = [kv.submit_get(namespace, keys, [bytearray(BLOCK)]) for _ in range(SUBMITTED_MAX)]
    assert kv.submit_match(namespace, keys).result(0).statuses == [-errno.EAGAIN]
    with pytest.raises(TimeoutError):
        waiting[0].result(0.01)
    waiting[3].cancel()
    leave.set()
    assert waiting[3].result(SECONDS_MAX).tolist() == [-errno.ECANCELED]
    assert waiting[-1].result(SECONDS_MAX).tolist() == [-errno.ENOENT]
    assert all(ticket.result(SECONDS_MAX)[0] == 0 for ticket in running)
    assert core.counters.misses >= 1


def test_a_get_finds_a_thread_whatever_is_being_put(kv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine stores much at once, and waits for what it loads."""
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(1)
    entered, leave = threading.Semaphore(0), threading.Event()

    async def held(*args: Any, **how: Any) -> Any:
        entered.release()
        leave.wait(SECONDS_MAX)
        return [BLOCK]

    monkeypatch.setattr(kv.core, "put_from", held)
    puts = [kv.submit_put(namespace, keys, [bytes(BLOCK)]) for _ in range(2 * WORKERS_MAX)]
    for _ in range(PUTTERS_MAX):
        assert entered.acquire(timeout=SECONDS_MAX)
    assert kv.submit_get(namespace, keys, [bytearray(BLOCK)]).result(SECONDS_MAX).tolist() == [-errno.ENOENT]
    assert not any(put.done() for put in puts)
    leave.set()
    assert {int(put.result(SECONDS_MAX)[0]) for put in puts} == {BLOCK}


def test_a_cancelled_get_ends_between_windows(kv: Any) -> None:
    """What is on its way is waited for; what was not sent is -ECANCELED."""
    length = 8 << 20
    namespace, keys = kv.namespace(spec_of(length)), keys_of(WINDOWS_IN_FLIGHT_MAX + 3)
    ticket = kv.submit_get(namespace, keys, [bytearray(length) for _ in keys])
    ticket.cancel()
    assert set(ticket.result(SECONDS_MAX).tolist()) <= {-errno.ENOENT, -errno.ECANCELED}


def test_closing_ends_what_waits(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(4)
    tickets = [kv.submit_get(namespace, keys, [bytearray(BLOCK) for _ in keys]) for _ in range(50)]
    kv.close()
    for ticket in tickets:
        assert set(ticket.result(SECONDS_MAX).tolist()) <= {-errno.ENOENT, -errno.ECANCELED, -errno.EAGAIN}
    assert set(kv.submit_match(namespace, keys).result(0).statuses) == {-errno.ECANCELED}
    assert not any(worker.is_alive() for worker in kv._submitter._workers)
    kv.close()


def test_a_ticket_is_not_done_while_it_is_under_way_whoever_closes(kv: Any) -> None:
    """Its memory is the cache's until then. Here the cache is closed right after the ticket was taken in."""
    submitter, namespace = kv._submitter, kv.namespace(spec_of(BLOCK))
    entered, leave, caller = threading.Event(), threading.Event(), threading.current_thread()

    async def held(*args: Any, **how: Any) -> Any:
        entered.set()
        leave.wait(SECONDS_MAX)
        return [BLOCK]

    class ClosedBehind:
        """The submitter's lock; when this thread gives it back for the first time, the cache is closed."""

        def __init__(self, lock: Any) -> None:
            self.lock = lock

        def __enter__(self) -> None:
            self.lock.acquire()

        def __exit__(self, *_: object) -> None:
            self.lock.release()
            if threading.current_thread() is not caller or submitter._lock is self.lock:
                return
            submitter._lock = self.lock
            assert entered.wait(SECONDS_MAX)
            submitter.stop()

    submitter._lock = ClosedBehind(submitter._lock)
    ticket = submitter.submit(held, namespace, keys_of(1), {})
    assert not ticket.done(), "it is at work"
    leave.set()
    assert ticket.result(SECONDS_MAX).tolist() == [BLOCK]
    assert kv.submit_match(namespace, keys_of(1)).result(0).statuses == [-errno.ECANCELED]


def test_events_tell_what_this_client_stores_and_deletes(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(4)
    blocks = blocks_of(keys, BLOCK)
    kv.put_from(namespace, keys[:1], blocks[:1])
    with kv.events() as events:
        kv.put_from(namespace, keys, blocks, depth=10)
        stored = events.next(0)
        assert (stored.kind, stored.namespace, stored.keys) == ("stored", namespace, tuple(keys[1:]))
        assert stored.depths == (11, 12, 13), "the first was there before"
        kv.put_from(namespace, keys, blocks)
        assert events.next(0) is None, "nothing new"
        kv.delete(namespace, [keys[2], bytes(32)])
        removed = events.next(0)
        assert (removed.kind, removed.keys) == ("removed", (keys[2],))
    kv.put_from(namespace, keys[2:3], blocks[2:3])
    assert list(events) == [], "closed"


def test_a_namespace_is_watched(kv: Any, cluster: Any) -> None:
    """Whoever puts, deletes or evicts."""
    with opened("blocking", cluster.url) as other:
        namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(3)
        noise = kv.namespace(spec_of(BLOCK))
        events = kv.watch(namespace, wait=0.05)
        assert next(events) is None
        other.put_from(noise, keys, blocks_of(keys, BLOCK))
        other.put_from(namespace, keys, blocks_of(keys, BLOCK), depth=5)
        other.delete(namespace, keys[:1])
        assert set(other.set_ttl(namespace, keys[1:], 1)) == {0}
        found: list[Any] = []
        deadline = time.monotonic() + SECONDS_MAX
        while sum(len(event.keys) for event in found) < 6:
            assert time.monotonic() < deadline, found
            found += [event for event in itertools.islice(events, 1) if event is not None]
        assert {event.namespace for event in found} == {namespace}
        assert [(event.kind, event.keys, event.depths) for event in found[:2]] == [
            ("stored", tuple(keys), (5, 6, 7)),
            ("removed", (keys[0],), ()),
        ]
        assert {key for event in found[2:] for key in event.keys} == set(keys[1:]), "their time was over"


def test_a_list_is_whole_while_a_chain_changes(kv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has not heard of the chain's version yet gives no page: that is not the end of the list."""
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(3)
    kv.put_from(namespace, keys, blocks_of(keys, BLOCK))
    asked, ask = [], kv.core._ask

    async def behind(node: int, method: Any, request: Any) -> Any:
        asked.append(method)
        return ListBlocksReply(more=True) if len(asked) < 3 else await ask(node, method, request)

    monkeypatch.setattr(kv.core, "_ask", behind)
    assert {block.key for block in kv.list(namespace)} == set(keys)


def test_who_watches_too_late_is_told(kv: Any) -> None:
    namespace = kv.namespace(spec_of(BLOCK))
    seen: dict[int, int] = {}
    assert drive(kv.core.block_events(namespace, seen)) == ([], False)
    assert drive(kv.core.block_events(namespace, seen)) == ([], False)
    [node] = seen
    seen[node] = 1
    assert drive(kv.core.block_events(namespace, seen)) == ([], True)


def test_what_a_client_counts(kv: Any) -> None:
    namespace, keys = kv.namespace(spec_of(BLOCK)), keys_of(4)
    blocks = blocks_of(keys, BLOCK)
    kv.put_from(namespace, keys[:3], blocks[:3])
    kv.put_from(namespace, [*keys[:2], keys[3]], [*blocks[:2], b"short"])
    kv.get_into(namespace, keys, [bytearray(BLOCK), bytearray(BLOCK), bytearray(BLOCK - 1), bytearray(BLOCK)])
    found = kv.stats()
    assert (found.puts, found.puts_existing, found.puts_refused) == (3, 2, 1)
    assert (found.hits, found.misses, found.failures, found.bytes_read) == (2, 1, 1, 2 * BLOCK)


async def test_a_cancelled_task_leaves_memory_alive(cluster: Any) -> None:
    """It ends when what is on its way has ended: registered memory is not dead afterwards."""
    length = 4 << 20
    async with AsyncKVCache(cluster.url, timeout=PATIENCE_SECONDS) as kv:
        namespace, keys = await kv.namespace(spec_of(length)), keys_of(6)
        pool = kv.allocate(6 * length)
        slots = (pool, [row * length for row in range(6)], length)
        assert set(await kv.put_from(namespace, keys, slots)) == {length}
        task = asyncio.ensure_future(kv.get_into(namespace, keys, slots))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not pool.dead
        assert set(await kv.get_into(namespace, keys, slots)) == {length}


async def test_a_task_that_is_cancelled_again_still_leaves_memory_alone(cluster: Any, monkeypatch: Any) -> None:
    """A time-out cancels it, and so does a loop that ends: until bytes no longer arrive, its memory is not its own."""
    async with AsyncKVCache(cluster.url, timeout=PATIENCE_SECONDS) as kv:
        namespace, keys, memory = await kv.namespace(spec_of(BLOCK)), keys_of(1), bytearray(BLOCK)
        arrive, get_into = asyncio.Event(), kv.core.get_into

        async def late(*args: Any, **how: Any) -> list[int]:
            await arrive.wait()
            return await get_into(*args, **how)

        (block,) = blocks_of(keys, BLOCK)
        assert await kv.put(namespace, keys[0], block) == BLOCK
        monkeypatch.setattr(kv.core, "get_into", late)
        task = asyncio.ensure_future(kv.get_into(namespace, keys, [memory]))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done(), "what it asked for is still to come"
        arrive.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not kv._running


async def test_closing_waits_for_what_is_on_its_way(cluster: Any) -> None:
    """What is in its caller's memory afterwards stays as it is."""
    length = 4 << 20
    kv = await AsyncKVCache(cluster.url, timeout=PATIENCE_SECONDS).connect()
    namespace, keys = await kv.namespace(spec_of(length)), keys_of(6)
    pool = kv.allocate(6 * length)
    slots = (pool, [row * length for row in range(6)], length)
    assert set(await kv.put_from(namespace, keys, slots)) == {length}
    tasks = [asyncio.ensure_future(kv.get_into(namespace, keys, slots)) for _ in range(4)]
    await asyncio.sleep(0)
    await kv.close()
    assert not kv._running
    for statuses in await asyncio.gather(*tasks):
        assert set(statuses.tolist()) <= {length, -errno.ECANCELED, -errno.EAGAIN}


async def test_many_batches_at_once_on_a_loop(cluster: Any) -> None:
    async with AsyncKVCache(cluster.url, timeout=PATIENCE_SECONDS) as kv:
        namespace, keys = await kv.namespace(spec_of(BLOCK)), keys_of(32)
        blocks = blocks_of(keys, BLOCK)
        puts = [kv.put_from(namespace, [key], [block]) for key, block in zip(keys, blocks, strict=True)]
        assert {int(statuses[0]) for statuses in await asyncio.gather(*puts)} == {BLOCK}
        assert await asyncio.gather(*(kv.get(namespace, key) for key in keys)) == blocks

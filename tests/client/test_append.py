"""O_APPEND from many clients: nothing lost, nothing torn, in the order in which each wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from emberfs.client.blocking import Client
from emberfs.client.core.append import Tokens
from emberfs.meta import keys
from emberfs.meta.namespace.check import check
from emberfs.proto.env import drive

from .world import World


@pytest.fixture
def world() -> Iterator[World]:
    made = World().start()
    yield made
    assert made.run(check(made.namespace.engine)) == []
    made.stop()


def eventually(found: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        threading.Event().wait(0.005)


def tokens(world: World) -> int:
    begin, end = keys.prefix_range(keys.APPEND_TOKEN)
    return len(world.run(world.namespace.engine.begin().scan(begin, end, 10, snapshot=True)))


def appended(client: Client, path: str, who: int, records: int, size: int) -> None:
    """Records of `size` bytes that say who wrote them and which they are."""
    with client.open(path, "ab") as file:
        for number in range(records):
            file.write(record(who, number, size))


def record(who: int, number: int, size: int) -> bytes:
    return (b"%02d %06d " % (who, number)).ljust(size - 1, b"%d" % (who % 10)) + b"\n"


def check_records(content: bytes, writers: int, records: int, size: int) -> None:
    assert len(content) == writers * records * size
    last = [-1] * writers
    for at in range(0, len(content), size):
        line = content[at : at + size]
        who, number = int(line[:2]), int(line[3:9])
        assert line == record(who, number, size), f"a torn record at {at}"
        assert number == last[who] + 1, f"writer {who}: {number} after {last[who]}"
        last[who] = number


@pytest.mark.parametrize("size", [100, 70_000])
def test_many_clients_append_at_once(world: World, size: int) -> None:
    clients = [world.client() for _ in range(4)]
    clients[0].write_bytes("/log", b"")
    count = 200 if size == 100 else 20
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(appended, client, "/log", who, count, size) for who, client in enumerate(clients)]
        for future in done:
            future.result(60)
    check_records(clients[0].read_bytes("/log"), 4, count, size)
    assert tokens(world) == 0, "who closed gave it back"


def test_records_of_changing_sizes_over_chunk_borders(world: World) -> None:
    clients = [world.client() for _ in range(3)]
    clients[0].open("/log", "wb", chunk_size=64 << 10).close()

    def work(who: int) -> None:
        with clients[who].open("/log", "ab") as file:
            for number in range(60):
                size = (7919 * (number + 1) * (who + 1)) % 90_000 + 16
                file.write(b"%01d%06d%08d" % (who, number, size) + bytes([65 + who]) * (size - 15))
                if number % 20 == who:
                    file.fsync()

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work, who) for who in range(3)]:
            future.result(60)
    content = clients[1].read_bytes("/log")
    at, seen = 0, [0, 0, 0]
    while at < len(content):
        who, number, size = int(content[at : at + 1]), int(content[at + 1 : at + 7]), int(content[at + 7 : at + 15])
        assert number == seen[who]
        assert content[at + 15 : at + size] == bytes([65 + who]) * (size - 15)
        seen[who] += 1
        at += size
    assert seen == [60, 60, 60]


def test_the_token_is_kept_while_nobody_asks_and_handed_over_soon(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/log", "ab") as a, second.open("/log", "ab") as b:
        a.write(b"one ")
        asked = world.namespace.appending.waiters
        for _ in range(10):
            a.write(b"more ")
        assert tokens(world) == 1
        fastest = 60.0  # of several, one of which no other process may have held up
        for _ in range(3):
            began = time.monotonic()
            b.write(b"two ")
            fastest = min(fastest, time.monotonic() - began)
            assert b.handle.file.token is not None
            assert a.handle.file.token is None
            b.flush()
            a.write(b"three ")
            a.flush()
        assert fastest < 1.0, "an idle holder hears of it"
        assert first.read_bytes("/log") == b"one " + 10 * b"more " + 3 * b"two three "
        assert asked.count == 0


def test_who_appends_after_a_flush_sees_where_others_have_moved_the_end(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/log", "ab") as a:
        a.write(b"abc")
        a.flush()
        second.truncate("/log", 1)
        with second.open("/log", "r+b") as b:
            b.pwrite(b"XYZ", 1)
        a.write(b"!")
    assert second.read_bytes("/log") == b"aXYZ!"


def test_a_truncate_comes_after_what_was_appended_before_it(world: World) -> None:
    """As logs are rotated: copied, then cut, while their writers go on."""
    first, second = world.client(), world.client()
    with first.open("/log", "ab") as a:
        a.write(b"old")
        second.truncate("/log", 0)
        a.write(b"new ")
        second.open("/log", "wb").close()
        a.write(b"newest")
        second.truncate("/log", 3)
        a.flush()
        first.truncate("/log", 2)  # its own token is no obstacle
        a.write(b"!")
    assert second.read_bytes("/log") == b"ne!"


def test_a_truncate_does_not_wait_for_ever(world: World) -> None:
    first, second = world.quiet(), world.client()
    a = first.open("/log", "ab")
    a.write(b"old")
    first.core.tokens = Tokens(first.core)  # deaf, as one that was stopped
    second.truncate("/log", 10)
    a.close()
    assert second.stat("/log").size == 10


def test_a_client_that_is_gone_while_it_appends(world: World) -> None:
    """Its length is settled from the chunks before the next one may append."""
    first, second = world.quiet(), world.client()
    a = first.open("/log", "ab")
    a.write(b"x" * 1000)
    drive(a.handle.file.write_back.drain())  # the data arrives, the length does not
    first.core.tokens = Tokens(first.core)  # deaf, as one that was stopped
    with second.open("/log", "ab") as b, ThreadPoolExecutor(1) as pool:
        done = pool.submit(b.write, b"y" * 10)
        eventually(lambda: world.namespace.appending.waiters.count == 1)
        world.run(world.manager.end_client(first.core.env.client))
        first.core.lease.end()
        done.result(60)
    assert second.read_bytes("/log") == b"x" * 1000 + b"y" * 10
    with pytest.raises(OSError, match="lease"):
        a.flush()


def test_a_grant_that_nobody_waited_for_is_given_back_when_it_is_wanted(world: World) -> None:
    first, second = world.client(), world.client()
    with first.open("/log", "ab") as a, second.open("/log", "ab") as b:
        a.write(b"1")
        a.flush()
        first.core.tokens.forget(a.handle.file)  # as if the answer had never come
        b.write(b"2")
        b.flush()
        a.write(b"3")
    assert second.read_bytes("/log") == b"123"

"""The stream of the rdma transport, without a device: credits, and how bytes become SENDs. What needs a device is in test_transports.py
and tests/rdma."""

from __future__ import annotations

import os
import random
import select
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.transport.rdma.credits import RESERVED, Credits
from emberfs.proto.transport.rdma.socket import RdmaSocket

# --- credits ------------------------------------------------------------------------------------------------------------------------


class Side:
    """One end in the model: what it would send, what has arrived and was not taken, and its receives."""

    def __init__(self, receives: int, group: int, peer: int) -> None:
        self.credits = Credits(peer, receives)
        self.posted, self.group, self.receives = receives, group, receives
        self.taken = 0  # of the group that is not complete
        self.to_send = 0
        self.got = 0
        self.wire: deque[tuple[int, bool]] = deque()  # on the way to this side: credits told, whether with data
        self.arrived: deque[bool] = deque()

    def send(self, other: Side) -> bool:
        if self.to_send and self.credits.may_send:
            self.to_send -= 1
            other.wire.append((self.credits.sent(), True))
        elif self.credits.update_due:
            other.wire.append((self.credits.sent(), False))
        else:
            return False
        return True

    def receive(self) -> bool:
        if not self.wire:
            return False
        assert self.posted, "receiver not ready: a SEND found no receive"
        self.posted -= 1
        told, data = self.wire.popleft()
        self.credits.received(told)
        self.arrived.append(data)
        return True

    def take(self) -> bool:
        if not self.arrived:
            return False
        self.got += self.arrived.popleft()
        self.taken += 1
        if self.taken == self.group:
            self.taken = 0
            self.posted += self.group
            self.credits.posted(self.group)
        return True


@pytest.mark.parametrize("seed", range(20))
def test_no_send_finds_the_receiver_not_ready_and_both_always_get_on(seed: int) -> None:
    chance = random.Random(seed)
    group = chance.choice([1, 4, 8])
    sizes = [group * chance.randint(-(-4 // group), 6) for _ in range(2)]
    one, two = Side(sizes[0], group, sizes[1]), Side(sizes[1], group, sizes[0])
    if group * 2 > min(sizes):  # half of the receives must be whole groups, as they are in the endpoint
        return
    wanted = [chance.randint(0, 150) for _ in range(2)]
    one.to_send, two.to_send = wanted
    for _ in range(4_000):
        side, other = chance.sample([one, two], 2)
        chance.choice([lambda: side.send(other), side.receive, side.take])()
    while any([one.send(two), two.send(one), one.receive(), two.receive(), one.take(), two.take()]):
        pass
    assert (one.to_send, two.to_send) == (0, 0), "both wait for each other"
    assert (two.got, one.got) == (wanted[0], wanted[1])


def test_a_peer_that_gives_back_more_than_was_used_breaks_the_protocol() -> None:
    credits = Credits(32, 32)
    credits.sent()
    credits.received(1)
    with pytest.raises(StatusError) as raised:
        credits.received(1)
    assert raised.value.status is Status.PROTOCOL
    with pytest.raises(StatusError):
        Credits(RESERVED, 32)


def test_a_peer_that_sends_without_credits_breaks_the_protocol() -> None:
    credits = Credits(8, 4)
    for _ in range(3):
        credits.received(0)
    credits.posted(2)
    assert credits.sent() == 2
    for _ in range(3):
        credits.received(0)
    credits.posted(2)  # which the peer was not told of
    with pytest.raises(StatusError) as raised:
        credits.received(0)
    assert raised.value.status is Status.PROTOCOL


# --- the stream ---------------------------------------------------------------------------------------------------------------------


class End:
    """An endpoint in memory: credits, slots and completions as the device would have them; SENDs arrive when the other end looks."""

    receives, group, payload_max = 8, 4, 100

    def __init__(self) -> None:
        self.credits = Credits(self.receives, self.receives)
        self.other: End = self
        self.failed = ""
        self.arrived: deque[memoryview] = deque()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self.sends: list[int] = []  # sizes
        self._slot = bytearray(self.payload_max)
        self._wire: deque[tuple[int, bytes]] = deque()
        self._freed = 0

    pending = False

    @property
    def may_send(self) -> bool:
        return self.credits.may_send

    def slot(self) -> memoryview:
        return memoryview(self._slot)

    def send(self, length: int) -> None:
        self.sends.append(length)
        self.other._wire.append((self.credits.sent(), bytes(self._slot[:length])))
        os.eventfd_write(self.other.descriptor, 1)

    def post(self) -> None:
        """It has left already."""

    arm = post

    def poll(self) -> None:
        while self._wire:
            told, data = self._wire.popleft()
            self.credits.received(told)
            if data:
                self.arrived.append(memoryview(data))
            else:
                self._took()

    def take(self, buffer: memoryview) -> int:
        filled = 0
        while self.arrived and filled < len(buffer):
            part = self.arrived[0][: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            self.arrived[0] = self.arrived[0][len(part) :]
            if not self.arrived[0]:
                self.arrived.popleft()
                self._took()
        return filled

    def _took(self) -> None:
        self._freed += 1
        if self._freed == self.group:
            self._freed = 0
            self.credits.posted(self.group)

    def disarm(self) -> bool:
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return False
        return True

    def give_credits(self) -> None:
        if self.credits.update_due:
            self.send(0)

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def stream() -> Iterator[tuple[RdmaSocket, RdmaSocket, End, End]]:
    ends: list[Any] = [End(), End()]
    ends[0].other, ends[1].other = ends[1], ends[0]
    one, two = (RdmaSocket(end, sock) for end, sock in zip(ends, socket.socketpair(), strict=True))
    try:
        yield one, two, ends[0], ends[1]
    finally:
        one.close()
        two.close()


def readable(sock: RdmaSocket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@pytest.mark.parametrize("seed", range(4))
def test_a_stream_is_cut_into_sends_and_arrives_whole_both_ways(seed: int) -> None:
    chance = random.Random(seed)
    with stream() as (one, two, _, _):
        sides = [(one, two), (two, one)]
        data = [chance.randbytes(chance.randint(0, 12_000)) for _ in sides]
        sent, got = [0, 0], [bytearray(), bytearray()]
        for _ in range(60_000):
            way = chance.randrange(2)
            source, target = sides[way]
            if chance.random() < 0.5:
                pieces = [memoryview(data[way])[a:b] for a, b in pairwise(sorted(chance.choices(range(500), k=4)))]
                rest = [memoryview(data[way])[sent[way] : sent[way] + sum(map(len, pieces))]]
                try:
                    sent[way] += source.sendmsg(rest) if rest[0] else 0
                except BlockingIOError:
                    assert not source.endpoint.may_send
            elif readable(target):
                buffer = memoryview(bytearray(chance.choice([1, 50, 5000])))
                with suppress(BlockingIOError):  # only credits came
                    got[way] += buffer[: target.recv_into(buffer)]
            if sent == [len(d) for d in data] and [len(g) for g in got] == sent:
                break
        assert got == data, "in order, and nobody waits for ever"


def test_small_frames_share_a_send_and_what_is_left_is_told() -> None:
    with stream() as (one, two, end, _):
        assert one.sendmsg([b"a" * 30, b"b" * 30, b"c" * 30]) == 90
        assert end.sends == [90]
        assert one.send(memoryview(b"x" * 10_000)) == 600, "seven credits of which one is kept"
        with pytest.raises(BlockingIOError):
            one.send(b"more")
        buffer = memoryview(bytearray(64))
        assert two.recv_into(buffer) == 64
        assert readable(two), "the rest is here, and the descriptor says so"
        whole = memoryview(bytearray(2000))
        assert two.recv_into(whole) == 626
        assert not readable(two)
        one.endpoint.poll()
        assert one.send(b"more") == 4, "with the credits that came back"


def test_the_end_comes_after_all_that_was_sent() -> None:
    with stream() as (one, two, _, _):
        one.send(b"last")
        one.shutdown(socket.SHUT_WR)
        buffer = memoryview(bytearray(10))
        assert readable(two) and two.recv_into(buffer) == 4
        assert readable(two) and two.recv_into(buffer) == 0

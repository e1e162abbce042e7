"""No wake-up is lost: two ends over a device that takes its time, and nobody looks unless the descriptor says that there is something.

The device is a model: work requests are carried out one by one, in an order of chance between the two queue pairs, each is acknowledged
some time after it has arrived, and the channel tells only who asked. When it has nothing left to do and neither end is readable, everything
must have come.
"""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberfs.proto.copying import address_of
from emberfs.proto.transport.rdma import memory
from emberfs.proto.transport.rdma.endpoint import Endpoint
from emberfs.proto.transport.rdma.socket import RdmaSocket

from . import memory_verbs
from .memory_verbs import INLINE, PORT, QP, SEND, SIGNALED, soft_device

LENGTH = struct.Struct("<I")
MESSAGES = 40


class Device:
    """Carries out what was posted when it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch, chance: random.Random) -> None:
        self._chance = chance
        self._posted: dict[QP, deque[Any]] = {}
        self._arrived: dict[QP, deque[Any]] = {}  # not acknowledged
        self._inline: list[Any] = []  # copies of what was posted inline, as long as somebody may read them

        def post_send(pair: QP, request: Any) -> None:
            self._post(pair, request)

        patch.setattr(QP, "post_send", post_send)

    def _post(self, pair: QP, request: Any) -> None:
        while request is not None:
            entry = SimpleNamespace(addr=request.sg_list.addr, length=request.sg_list.length, lkey=request.sg_list.lkey)
            if request.send_flags & INLINE:
                copy = bytearray(memory_verbs.ctypes.string_at(entry.addr, entry.length))
                self._inline.append(copy)
                entry.addr = address_of(memoryview(copy))
            kept = {name: getattr(request, name) for name in ("opcode", "send_flags", "wr_id", "key", "remote")}
            self._posted.setdefault(pair, deque()).append(SimpleNamespace(sg_list=entry, **kept))
            request = request.next_wr

    def step(self) -> bool:
        """One thing; whether there was any."""
        work = [(self._arrive, pair) for pair, waiting in self._posted.items() if waiting]
        work += [(self._acknowledge, pair) for pair, waiting in self._arrived.items() if waiting]
        if not work:
            return False
        act, pair = self._chance.choice(work)
        act(pair)
        return True

    def _arrive(self, pair: QP) -> None:
        request = self._posted[pair].popleft()
        peer = memory_verbs._pairs[pair.peer]
        status = pair._deliver(request, peer) if request.opcode == SEND else pair._move(request, peer)
        assert not status, "a SEND without a receive, or a move that is not allowed"
        self._arrived.setdefault(pair, deque()).append(request)

    def _acknowledge(self, pair: QP) -> None:
        request = self._arrived[pair].popleft()
        if request.send_flags & SIGNALED:
            pair.queue.add(SimpleNamespace(wr_id=request.wr_id, status=0, byte_len=0), False)


class Loop:
    """Of an end: what is to be called next. Timers never fire."""

    def __init__(self) -> None:
        self.due: deque[Callable[[], None]] = deque()

    def call_soon(self, work: Callable[[], None]) -> None:
        self.due.append(work)


class Side:
    """One end as a driver or a server uses it: looks when it is readable, and keeps what could not leave."""

    def __init__(self, endpoint: Endpoint, tcp: socket.socket, chance: random.Random, loop: Loop | None) -> None:
        self.sock = RdmaSocket(endpoint, tcp)
        self.chance = chance
        self.loop = loop  # a server's; without, what is left is tried again after each look
        self.out: deque[memoryview] = deque()
        self.received = bytearray()
        self.messages: list[bytes] = []
        self._poll = select.poll()
        self._poll.register(self.sock, select.POLLIN)

    @property
    def readable(self) -> bool:
        return bool(self._poll.poll(0))

    def say(self, message: bytes) -> None:
        data = LENGTH.pack(len(message)) + message
        if self.out or self.loop:
            self.out.append(memoryview(data))
            if self.loop and len(self.out) > 1:
                return
            self.flush()
            return
        sent = 0
        with suppress(BlockingIOError):
            sent = self.sock.send(data)
        if sent < len(data):  # not asked again: the descriptor has to tell all the same
            self.out.append(memoryview(data)[sent:])

    def flush(self) -> None:
        try:
            while self.out:
                sent = self.sock.sendmsg(list(self.out))
                while sent:
                    part = min(sent, len(self.out[0]))
                    sent -= part
                    self.out[0] = self.out[0][part:]
                    if not self.out[0]:
                        self.out.popleft()
        except BlockingIOError:
            if self.loop:
                self.sock.when_writable(self.loop, self.flush)  # type: ignore[arg-type]

    def look(self) -> None:
        buffer = memoryview(bytearray(self.chance.choice([1, 4, 8188, 16376, 65536])))
        with suppress(BlockingIOError):
            self.received += buffer[: self.sock.recv_into(buffer)]
        while len(self.received) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self.received)[0]
            if len(self.received) < end:
                break
            self.messages.append(bytes(self.received[LENGTH.size : end]))
            del self.received[:end]
        if self.loop:
            while self.loop.due:
                self.loop.due.popleft()()
        elif self.out:
            self.flush()


@pytest.fixture
def verbs(tmp_path: Path) -> Iterator[None]:
    with soft_device(tmp_path):
        yield


@pytest.mark.parametrize("seed", range(6))
def test_everything_comes_when_nobody_looks_without_being_told(
    seed: int, verbs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    before = memory_verbs.alive()
    device = Device(monkeypatch, chance)
    ends = Endpoint(PORT, serves=False), Endpoint(PORT, serves=True)
    ends[0].connect(ends[1].queue())
    ends[1].connect(ends[0].queue())
    client, server = (
        Side(end, tcp, chance, loop) for end, tcp, loop in zip(ends, socket.socketpair(), (None, Loop()), strict=True)
    )
    theirs, own = (memoryview(bytearray(1 << 16)) for _ in ends)
    there = ends[0].device.pin(theirs, memory.WRITABLE)
    here = ends[1].device.pin(own, memory.LOCAL)
    place = (address_of(own), 64, here.lkey, address_of(theirs), there.rkey)
    moves: list[bool] = []
    answered = 0

    def answer(message: bytes) -> None:
        for _ in range(chance.choice([0, 1, 3, 300])):
            ends[1].write(*place, None)
        server.say(message[::-1])

    def serve(message: bytes) -> None:
        if chance.random() < 0.5:
            answer(message)
            return

        def fetched(whole: bool) -> None:
            moves.append(whole)
            assert server.loop is not None
            server.loop.call_soon(lambda: answer(message))

        count = chance.choice([1, 2, 300])
        for i in range(count):
            ends[1].read(*place, fetched if i == count - 1 else None)
        ends[1].post()

    waiting = [chance.randbytes(chance.choice([1, 100, 8000, 40_000, 200_000])) for _ in range(MESSAGES)]
    said: list[bytes] = []
    while True:
        sides = [side for side in (client, server) if side.readable]
        may_say = waiting and len(said) - len(client.messages) < 8
        if chance.random() < 0.1 and may_say:
            said.append(waiting.pop())
            client.say(said[-1])
        elif sides and chance.random() < 0.5:
            chance.choice(sides).look()
            while answered < len(server.messages):
                answered += 1
                serve(server.messages[answered - 1])
        elif not device.step() and not sides:
            if not may_say:
                break
            said.append(waiting.pop())
            client.say(said[-1])
    assert not waiting and sorted(client.messages) == sorted(message[::-1] for message in said), "somebody still waits"
    assert all(moves) and not client.out and not server.out
    for side in (client, server):
        side.sock.close()
    there.close()
    here.close()
    assert memory_verbs.alive() == before


def test_the_path_is_tried_as_long_as_that_may_take_and_no_longer(verbs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TCP socket has a time-out of its own while a connection is made, and nothing comes on it."""
    device = Device(monkeypatch, random.Random(0))
    ends = Endpoint(PORT, serves=False), Endpoint(PORT, serves=True)
    ends[0].connect(ends[1].queue())
    ends[1].connect(ends[0].queue())
    own, theirs = socket.socketpair()
    own.settimeout(3600)
    sock = RdmaSocket(ends[0], own)
    ends[0].probe()
    begin = time.monotonic()
    assert not sock.settled(0.01)
    assert time.monotonic() - begin < 600
    while device.step():
        pass
    assert sock.settled(60)
    sock.close()
    ends[1].close()
    theirs.close()

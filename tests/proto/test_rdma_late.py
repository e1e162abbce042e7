"""A device that takes its time: what memory is for meanwhile. The server's queue pairs of `memory_verbs` carry nothing out until they are
let go, so each test stands at a moment that a real device leaves within microseconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emberfs.proto.region import Slice
from emberfs.proto.transport.rdma.sinks import RemoteRegions

from . import memory_verbs
from .memory_verbs import QP, soft_device
from .pieces import READ, SECRET, WRITE, Pair, eventually, face, read, running, write

MIB = 1 << 20


class Late:
    """What the server has asked of the device, and was not carried out yet."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[QP, Any]] = []
        self.stopped = False
        self._post = QP.post_send

        def post(pair: QP, request: Any) -> None:  # a function is bound to its queue pair
            self._take(pair, request)

        patch.setattr(QP, "post_send", post)

    def _take(self, pair: QP, request: Any) -> None:
        if not self.stopped or pair.access:  # a client's
            self._post(pair, request)
            return
        while request is not None:
            entry = request.sg_list
            kept = SimpleNamespace(
                **{name: getattr(request, name) for name in ("opcode", "key", "remote", "wr_id", "send_flags")},
                sg_list=SimpleNamespace(addr=entry.addr, length=entry.length, lkey=entry.lkey),
                next_wr=None,
            )
            self.waiting.append((pair, kept))
            request = request.next_wr

    @property
    def asked(self) -> list[int]:
        return [
            request.opcode for _, request in self.waiting if request.opcode != memory_verbs.SEND or request.send_flags
        ]

    def let_go(self) -> None:
        """Everything is carried out, in order, except on queue pairs that are gone."""
        self.stopped = False
        waiting, self.waiting = self.waiting, []
        with memory_verbs._lock:
            for pair, request in waiting:
                if pair.qp_num in memory_verbs._pairs:
                    self._post(pair, request)


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Late]:
    with soft_device(tmp_path):
        yield Late(monkeypatch)


@pytest.fixture
def pair(kind: str, late: Late) -> Iterator[Pair]:
    with running("tcp:127.0.0.1:0", secret=SECRET) as server, face(kind, secret=SECRET) as client:
        found = Pair(client, server.addresses[0], server.service, "rdma", server)
        client.call(found.address, READ, read((0, MIB)), target=[client.env.pool.take(MIB)])  # connects, registers
        assert eventually(lambda: in_use(found) == 0)
        yield found
        late.let_go()


def in_use(pair: Pair) -> int:
    """Bytes of the server's registered memory that are not free."""
    assert pair.running is not None
    registered = pair.running.server.buffers._registered
    return 0 if registered is None else int(registered.used)


def test_a_servers_memory_is_not_used_again_before_its_bytes_have_left(pair: Pair, late: Late) -> None:
    target = pair.client.env.pool.take(MIB)
    late.stopped = True
    ticket = pair.client.start(pair.address, READ, read((11, MIB)), target=[target])
    assert eventually(lambda: bool(late.waiting))
    assert late.asked == [memory_verbs.WRITE, memory_verbs.SEND], "the reply says that the bytes are there"
    assert in_use(pair) >= MIB
    late.let_go()
    pair.client.collect(ticket)
    assert target.view == pair.service.data[11 : 11 + MIB]
    assert eventually(lambda: in_use(pair) == 0)


def test_a_write_is_handled_when_all_of_its_bytes_are_fetched(pair: Pair, late: Late) -> None:
    source = pair.client.env.pool.take(MIB)
    source.view[:] = os.urandom(MIB)
    before = bytes(pair.service.data)
    late.stopped = True
    ticket = pair.client.start(pair.address, WRITE, write(17), source=[source])
    assert eventually(lambda: bool(late.waiting))
    assert late.asked == [memory_verbs.READ] and pair.service.data == before
    late.let_go()
    pair.client.collect(ticket)
    assert pair.service.data[17 : 17 + MIB] == source.view


def test_what_a_client_has_back_is_never_written_to(pair: Pair, late: Late) -> None:
    """A request is given up while the server's device is about to write. A blocking client has destroyed the queue pair and may use the
    memory at once; one with a loop keeps it aside."""
    pool = pair.client.env.pool
    target = pool.take(MIB)
    late.stopped = True
    ticket = pair.client.start(pair.address, READ, read((0, MIB)), target=[target])
    assert eventually(lambda: memory_verbs.WRITE in late.asked)
    pair.client.abandon(ticket)
    pool.give(target)
    revoked = pair.client.kind == "blocking"
    assert pool.held == (0 if revoked else MIB)
    if revoked:
        target.view[:] = b"\xaa" * MIB
    late.let_go()
    if revoked:
        assert target.view == b"\xaa" * MIB
    assert eventually(lambda: pool.held == 0)


def test_a_region_that_is_given_up_stays_registered_while_bytes_may_come(pair: Pair, late: Late) -> None:
    env = pair.client.env
    region = env.register(bytearray(MIB))
    whole = [Slice(region, 0, MIB)]
    pair.client.call(pair.address, READ, read((0, MIB)), target=whole)
    late.stopped = True
    ticket = pair.client.start(pair.address, READ, read((1, MIB)), target=whole)
    assert eventually(lambda: memory_verbs.WRITE in late.asked)
    unregister(pair, region)
    late.let_go()
    pair.client.collect(ticket)
    assert region.view == pair.service.data[1 : 1 + MIB], "it was not taken away under the device"
    before = memory_verbs.alive()[1]
    unregister(pair, env.register(bytearray(10)))  # who asks next finds that nothing moves any more
    assert memory_verbs.alive()[1] == before - 1


def test_the_server_forgets_a_region_with_the_next_request(pair: Pair) -> None:
    assert pair.running is not None
    server, env = pair.running.server, pair.client.env

    def known() -> int:
        return sum(len(found._memory.by_id) for found in server.connections if isinstance(found._memory, RemoteRegions))

    before = pair.running.thread.do(known)
    for _ in range(3):
        region = env.register(bytearray(MIB))
        pair.client.call(pair.address, READ, read((0, MIB)), target=[Slice(region, 0, MIB)])
        unregister(pair, region)
    pair.client.call(pair.address, READ, read((0, MIB)), target=[env.pool.take(MIB)])
    assert pair.running.thread.do(known) == before


def unregister(pair: Pair, region: Any) -> None:
    if pair.client.loop:
        pair.client.loop.do(lambda: pair.client.env.unregister(region))
    else:
        pair.client.env.unregister(region)

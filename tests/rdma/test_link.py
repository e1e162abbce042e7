"""The wire between a client and a server breaks, or the peer does: an error for the caller, never other bytes, and the next call finds a
way. A module by itself, for these run in a guest of their own: `test_vm.py`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from emberfs.proto.errors import StatusError
from emberfs.proto.transport.rdma import devices

from ..proto.pieces import READ, Face, Process, eventually, face, pinned, process, read
from .wire import BROKEN, CLIENT, SERVER, cut, losing, need_wire

pytestmark = pytest.mark.rdma

MIB = 1 << 20
DATA = bytes(range(256)) * (4 * MIB // 256)  # what a server process holds
NOWHERE_SECONDS = 10.0  # of a call that cannot get anywhere, before scaling


def works(client: Face, address: str, seconds: float = 60.0) -> bool:
    """Whether a read brings the right bytes within so many seconds (before scaling)."""
    pool = client.env.pool
    target = pool.take(300_001)
    try:
        client.call(address, READ, read((7, 300_001)), seconds, target=[target])
        return target.view == DATA[7:300_008]
    except StatusError as failure:
        assert failure.status in BROKEN, failure
        return False
    finally:
        pool.give(target)


class Across:
    """A server process and a client on different devices, with a wire between them."""

    def __init__(self, stack: ExitStack, kind: str, transport: str) -> None:
        need_wire()
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.enter_context(pinned(transport))
        patch.setenv("EMBERFS_RDMA_DEVICES", SERVER)
        self.server: Process = stack.enter_context(process("tcp:127.0.0.1:0"))
        patch.setenv("EMBERFS_RDMA_DEVICES", CLIENT)
        patch.setattr(devices, "_looked", (-devices.LOOK_SECONDS, []))
        self.client: Face = stack.enter_context(face(kind))
        self.address = self.server.addresses[0]

    def under_way(self, count: int, seconds: float = 60.0) -> list[tuple[Any, Any]]:
        """So many reads of 1 MiB that were started, and where to; with so many seconds each (before scaling)."""
        targets = [self.client.env.pool.take(MIB) for _ in range(count)]
        return [
            (self.client.start(self.address, READ, read((number, MIB)), seconds, target=[target]), target)
            for number, target in enumerate(targets)
        ]

    def outcomes(self, started: list[tuple[Any, Any]]) -> int:
        """How many of them failed. Whatever came is right, and what did not may be tried again."""
        failed = 0
        for number, (ticket, target) in enumerate(started):
            try:
                self.client.collect(ticket)
                assert target.view == DATA[number : number + MIB]
            except StatusError as failure:
                assert failure.status in BROKEN, failure
                failed += 1
            self.client.env.pool.give(target)
        return failed


@pytest.fixture
def across(kind: str) -> Iterator[Across]:
    with ExitStack() as stack:
        yield Across(stack, kind, "rdma")


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["down", "silent"])
def test_a_link_that_goes_down_in_the_middle_of_transfers(across: Across, how: str) -> None:
    assert works(across.client, across.address)
    started = across.under_way(12, NOWHERE_SECONDS)  # a client that waits for replies hears nothing of a silent link
    with cut(how):
        across.outcomes(started)
        assert not works(across.client, across.address, NOWHERE_SECONDS)
    assert eventually(lambda: works(across.client, across.address), 90.0)
    assert across.outcomes(across.under_way(12)) == 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_link_that_is_away_for_a_moment_costs_nothing_but_time(across: Across) -> None:
    """The device sends again what was not acknowledged."""
    assert across.outcomes(across.under_way(4)) == 0  # connections are there: a new one would not be made meanwhile
    with cut("silent"):
        started = across.under_way(4)
    assert across.outcomes(started) == 0


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_link_that_loses_packets(across: Across) -> None:
    with losing(0.5):
        for _ in range(4):
            across.outcomes(across.under_way(8))
    assert eventually(lambda: works(across.client, across.address), 90.0)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_where_rdma_gets_nowhere_tcp_is_spoken(kind: str) -> None:
    """Connections are agreed on over TCP, and then the network swallows every RDMA packet."""
    with ExitStack() as stack:
        across = Across(stack, kind, "auto")
        with cut("silent"):
            assert eventually(lambda: works(across.client, across.address), 120.0)
            assert across.client.env.spoken()[across.address].transport == "tcp"


def test_a_server_that_is_killed_in_the_middle_of_transfers(across: Across) -> None:
    assert works(across.client, across.address)
    started = across.under_way(8)
    across.server.signal(signal.SIGKILL)
    across.outcomes(started)
    assert not works(across.client, across.address, NOWHERE_SECONDS)
    with process(across.address):
        assert eventually(lambda: works(across.client, across.address), 60.0)

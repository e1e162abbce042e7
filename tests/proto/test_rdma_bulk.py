"""How bulk becomes work requests of the rdma transport, within what a client offered; without a device. What needs one is in
test_transports.py and tests/rdma."""

from __future__ import annotations

import pytest

from emberfs.proto.errors import Status, StatusError
from emberfs.proto.gen import rpc_pb2
from emberfs.proto.region import Region, Slice
from emberfs.proto.transport.rdma import sinks
from emberfs.proto.transport.rdma.memory import REGISTRATIONS_MAX, WINDOW_BYTES_MIN, Registration, window_bytes
from emberfs.proto.transport.rdma.sinks import RemoteRegion, RemoteRegions

MIB = 1 << 20


def test_windows_of_a_region_are_few_and_not_small() -> None:
    for size in (1, MIB, 16 * MIB, 16 * MIB + 1, 256 * MIB, 300 * MIB, 100 << 30):
        window = window_bytes(size)
        assert window >= WINDOW_BYTES_MIN and not window & (window - 1)
        assert -(-size // window) <= 16


class OwnDevice:
    """A device that has registered all that it is asked for."""

    name = "rxe0"

    def cover(self, region: Region, offset: int, length: int, access: int) -> Registration:
        made = Registration(region)
        made.local_keys = [100 + index for index in range(len(made.local_keys))]
        return made


class OwnEnd:
    device = OwnDevice()


def offered(identity: int, size: int, windows: int) -> rpc_pb2.RdmaRegion:
    return rpc_pb2.RdmaRegion(
        id=identity, address=1 << 40, length=size, window=16 * MIB, index=windows, key=7 + windows
    )


def test_bulk_becomes_work_requests_that_stay_within_windows_and_pieces() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    for index in range(3):
        regions.offer(offered(5, 40 * MIB, index))
    region = regions.by_id[5]
    local = Region(memoryview(bytearray(40 * MIB)))
    pieces = [(region, 15 * MIB, 2 * MIB), (region, 0, 10), (region, 30 * MIB, 9 * MIB)]
    spans = [(MIB // 2, MIB), (2 * MIB + 4, MIB + 6)]
    moves = sinks._moves(OwnEnd(), pieces, spans, Slice(local, 15 * MIB, 12 * MIB))  # type: ignore[arg-type]
    assert sum(length for _, length, _, _, _ in moves) == sum(length for _, length in spans)
    base = region.address
    assert [(length, there - base, key) for _, length, _, there, key in moves] == [
        (MIB // 2, 15 * MIB + MIB // 2, 7),
        (MIB // 2, 16 * MIB, 8),
        (6, 4, 7),
        (MIB, 30 * MIB, 8),
    ]
    for here, length, key, _, _ in moves:
        first = here - Registration(local).address
        assert key == 100 + first // (16 * MIB) == 100 + (first + length - 1) // (16 * MIB)


def test_a_server_hears_of_as_many_regions_as_a_client_may_register() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    for identity in range(1, REGISTRATIONS_MAX + 1):
        regions.offer(offered(identity, 4096, 0))
    with pytest.raises(StatusError) as raised:
        regions.offer(offered(REGISTRATIONS_MAX + 1, 4096, 0))
    assert raised.value.status is Status.PROTOCOL
    regions.withdraw(rpc_pb2.RdmaWithdraw(id=[1]))
    regions.offer(offered(REGISTRATIONS_MAX + 1, 4096, 0))


def test_what_a_client_never_offered_is_refused() -> None:
    regions = RemoteRegions(OwnEnd())  # type: ignore[arg-type]
    regions.offer(offered(5, 40 * MIB, 0))
    table = sinks.SLICE.pack
    local = Slice(Region(memoryview(bytearray(4096))), 0, 4096)
    for bad in (table(6, 0, 1), table(5, 40 * MIB - 1, 2)):
        with pytest.raises(StatusError) as raised:
            regions.resolve(bad)
        assert raised.value.status is Status.REGION_DEAD
    with pytest.raises(StatusError) as raised:  # its second window
        sinks._moves(OwnEnd(), regions.resolve(table(5, 20 * MIB, 4096)), [(0, 4096)], local)  # type: ignore[arg-type]
    assert raised.value.status is Status.REGION_DEAD
    regions.withdraw(rpc_pb2.RdmaWithdraw(id=[5]))
    with pytest.raises(StatusError):
        regions.resolve(table(5, 0, 1))
    for message in (
        rpc_pb2.RdmaRegion(id=1, address=0, length=4096, window=1),
        rpc_pb2.RdmaRegion(id=1, address=0, length=1 << 40, window=16 * MIB),  # a table of 65,536 windows
        rpc_pb2.RdmaRegion(id=1, address=(1 << 64) - 1, length=4096, window=16 * MIB),
        rpc_pb2.RdmaRegion(id=1, address=0, length=0, window=16 * MIB),
    ):
        with pytest.raises(StatusError) as raised:
            RemoteRegion(message)
        assert raised.value.status is Status.PROTOCOL
    with pytest.raises(StatusError) as raised:
        regions.offer(offered(7, 16 * MIB, 1))
    assert raised.value.status is Status.PROTOCOL

"""The server's side of bulk: private, registered memory, and one-sided moves between it and the client's.

A read's bytes are put into a slice of the server's pool by the handler, and from there into the client's memory by the device; the reply
leaves behind them on the same queue pair, and the slice is free when the device says that the bytes have arrived. A write's bytes are
fetched into a slice before the handler sees them, so nobody changes them while they are checked.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import ClassVar

from ...errors import Status, error
from ...frame import SLICE
from ...gen import rpc_pb2
from ...region import Slice
from ...rpc import BULK_BYTES_MAX
from ..buffers import Buffers
from ..shm import REGION_BYTES_MAX
from ..tcp import Scratch
from .endpoint import Endpoint
from .memory import LOCAL, REGISTRATIONS_MAX, WINDOW_BYTES_MIN, WINDOWS_MAX

MOVE_BYTES_MAX = 1 << 30  # of one work request (devices take 2 GiB)


class RemoteRegion:
    """Memory of the client, as it offered it."""

    __slots__ = ("address", "keys", "size", "window")
    view = None  # never seen from here

    def __init__(self, message: rpc_pb2.RdmaRegion) -> None:
        if not 0 < message.length <= REGION_BYTES_MAX or message.window < max(
            WINDOW_BYTES_MIN, message.length // WINDOWS_MAX
        ):
            raise error(Status.PROTOCOL, f"a region of {message.length} bytes in windows of {message.window}")
        if message.address + message.length > 1 << 64:
            raise error(Status.PROTOCOL, f"a region of {message.length} bytes at {message.address:#x} is not in memory")
        self.address: int = message.address
        self.size: int = message.length
        self.window: int = message.window
        self.keys: dict[int, int] = {}  # of windows that were offered

    def release(self) -> None:
        """Nothing is held: the client's device refuses what is not registered any more."""


Piece = tuple[RemoteRegion, int, int]  # region, offset, length


class RemoteRegions:
    """The regions that one client offered on one connection."""

    remote: ClassVar[bool] = True

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.by_id: dict[int, RemoteRegion] = {}

    def offer(self, message: rpc_pb2.RdmaRegion) -> None:
        """Raises PROTOCOL."""
        region = self.by_id.get(message.id)
        if region is None:
            if not message.id or len(self.by_id) >= REGISTRATIONS_MAX:
                raise error(Status.PROTOCOL, f"more than {REGISTRATIONS_MAX} regions of one connection")
            region = self.by_id[message.id] = RemoteRegion(message)
        if message.index * region.window >= region.size:
            raise error(Status.PROTOCOL, f"window {message.index} of a region of {region.size} bytes")
        region.keys[message.index] = message.key

    def withdraw(self, message: rpc_pb2.RdmaWithdraw) -> None:
        for number in message.id:
            self.by_id.pop(number, None)

    def resolve(self, table: bytes) -> list[Piece]:
        """The pieces that a request names. Raises REGION_DEAD, TOO_LARGE."""
        pieces: list[Piece] = []
        for number, offset, length in SLICE.iter_unpack(table):
            region = self.by_id.get(number)
            if region is None:
                raise error(Status.REGION_DEAD, f"region {number} was never offered, or withdrawn; register it anew")
            if offset + length > region.size:
                raise error(
                    Status.REGION_DEAD,
                    f"bytes {offset} to {offset + length} are outside a region of {region.size} bytes",
                )
            pieces.append((region, offset, length))
        if sum([piece[2] for piece in pieces]) > BULK_BYTES_MAX:
            raise error(Status.TOO_LARGE, f"more than {BULK_BYTES_MAX} bytes of bulk in one request; send less at once")
        return pieces

    def sink(self, pieces: Sequence[Piece], length: int, buffers: Buffers) -> RdmaSink:
        return RdmaSink(self.endpoint, pieces, length, buffers)

    async def fetch(self, pieces: Sequence[Piece], into: Slice | None) -> memoryview:
        """RDMA READ of the pieces, one after the other, into the pool. Raises REGION_DEAD when the connection breaks over it."""
        if into is None:
            return memoryview(b"")
        await _fetch(self.endpoint, pieces, into)
        return into.view


class RdmaSink(Scratch):
    """A slice of the server's pool that plays the client's memory until the handler is done."""

    remote = True

    def __init__(self, endpoint: Endpoint, pieces: Sequence[Piece], length: int, buffers: Buffers) -> None:
        self.length = length
        self._endpoint = endpoint
        self._pieces = pieces
        self._buffers = buffers
        self._slice = buffers.take_registered(length) if length else None
        self._view = self._slice.view if self._slice else memoryview(b"")
        self._spans: list[tuple[int, int]] = []

    def move(self, arrived: Callable[[], None]) -> None:
        """Queue the moves of what was filled; they leave with the reply. `arrived` is called when the memory here is free again."""
        moves = _moves(self._endpoint, self._pieces, self._spans, self._slice)
        if not moves:
            arrived()
            return

        def done(_whole: bool) -> None:
            arrived()  # the peer learns from the end of the connection where they have not

        last = len(moves) - 1
        for i, move in enumerate(moves):
            self._endpoint.write(*move, done if i == last else None)

    def release(self) -> None:
        if self._slice is not None:
            self._buffers.give_shared(self._slice)
            self._slice = None


async def _fetch(endpoint: Endpoint, pieces: Sequence[Piece], into: Slice) -> None:
    moves = _moves(endpoint, pieces, [(0, into.length)], into)
    arrived: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def done(whole: bool) -> None:
        if not arrived.done():
            arrived.set_result(whole)

    last = len(moves) - 1
    for i, move in enumerate(moves):
        endpoint.read(*move, done if i == last else None)
    try:
        endpoint.post()
        whole = await arrived
    except BaseException:
        endpoint.close()  # nothing may come into memory that is given back
        raise
    if not whole:
        raise error(Status.REGION_DEAD, f"the bytes could not be fetched: {endpoint.failed}")


_Move = tuple[int, int, int, int, int]  # address here, length, key here, address there, key there


def _moves(
    endpoint: Endpoint, pieces: Sequence[Piece], spans: Sequence[tuple[int, int]], local: Slice | None
) -> list[_Move]:
    """Work requests for these spans of all pieces, taken as one; their bytes are, or come, in `local`. Raises REGION_DEAD, BUSY."""
    if local is None or not spans:
        return []
    own = endpoint.device.cover(local.region, local.offset, local.length, LOCAL)
    if own is None:
        device = endpoint.device
        device.unfit = f"{device.name} does not register the server's pool; its log says why"
        endpoint.give_up(device.unfit)  # and the client comes back over TCP
        raise error(Status.BUSY, device.unfit)
    moves: list[_Move] = []
    starts = list(accumulate([length for _, _, length in pieces], initial=0))
    for begin, length in spans:
        end = begin + length
        for i in range(max(bisect_right(starts, begin) - 1, 0), len(pieces)):
            (region, offset, size), start = pieces[i], starts[i]
            if start >= end:
                break
            first, last = max(begin, start), min(end, start + size)
            while first < last:
                here, there = local.offset + first, offset + first - start
                index, within = divmod(there, region.window)
                own_index, own_within = divmod(here, own.window)
                key = region.keys.get(index)
                if key is None:
                    raise error(Status.REGION_DEAD, f"byte {there} is in a part of the region that was never offered")
                part = min(last - first, region.window - within, own.window - own_within, MOVE_BYTES_MAX)
                moves.append((own.address + here, part, own.local_keys[own_index], region.address + there, key))
                first += part
    return moves

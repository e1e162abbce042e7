"""The client's memory on one connection: what the server was told of."""

from __future__ import annotations

from collections.abc import Callable

from ... import frame as wire
from ...env import Call
from ...gen import rpc_pb2
from .endpoint import Endpoint
from .memory import READABLE, WRITABLE, Registration

INLINE_BYTES_MAX = (
    4096  # to the server: so few travel in the stream, which spares the server a fetch and the wait for it
)


class Link:
    """`send` takes a frame that is to leave before the next request."""

    def __init__(self, endpoint: Endpoint, send: Callable[[bytes], None]) -> None:
        self.endpoint = endpoint
        self._send = send
        self._device = endpoint.device
        self._offered: dict[int, dict[int, int]] = {}  # region id -> window -> the key that the server was told
        self._version = self._device.version

    def shares(self, call: Call) -> bool:
        """Whether the server may move this call's bulk itself: its regions are registered, and the server has been told of them. Memory
        that is a region for one request only is not worth that: its bytes travel in the stream."""
        slices, access = call.target, WRITABLE
        if not slices:
            slices, access = call.source, READABLE
            if sum([slice_.length for slice_ in slices]) <= INLINE_BYTES_MAX:
                return False
        if self._version != self._device.version:
            self._withdraw()
        for region, offset, length in slices:
            if not length:
                continue
            found = self._device.cover(region, offset, length, access) if region.kept else None
            if found is None:
                return False
            told = self._offered.get(region.id)
            if told is None:
                told = self._offered[region.id] = {}
            for index in range(offset // found.window, (offset + length - 1) // found.window + 1):
                if told.get(index) != found.keys[index]:
                    told[index] = found.keys[index]
                    self._tell(found, index)
        return True

    def _tell(self, found: Registration, index: int) -> None:
        message = rpc_pb2.RdmaRegion(
            id=found.region.id,
            address=found.address,
            length=found.region.size,
            window=found.window,
            index=index,
            key=found.keys[index],
        )
        self._send(wire.encode(0, wire.RDMA_REGION, 0, message.SerializeToString()))

    def _withdraw(self) -> None:
        """Regions were given up meanwhile: the server is to forget them, and its limit counts the living."""
        self._version = self._device.version
        gone = [number for number in self._offered if not self._device.knows(number)]
        for number in gone:
            del self._offered[number]
        if gone:
            self._send(wire.encode(0, wire.RDMA_WITHDRAW, 0, rpc_pb2.RdmaWithdraw(id=gone).SerializeToString()))

"""One request as its handler sees it, on the server's side of the wire."""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from .errors import Status, error
from .frame import SLICE, TABLE, Frame
from .region import Slice
from .rpc import BULK_BYTES_MAX, PeerInfo
from .transport.buffers import Buffers
from .transport.shm import INLINE, MappedSink, Regions, WrittenSink, pull, pull_mapped
from .transport.tcp import InlineSink, Scratch

if TYPE_CHECKING:
    from .transport.rdma.sinks import RemoteRegions

PULL_INLINE_BYTES_MAX = 4 << 20  # larger copies are made by a thread, so that the loop goes on

BulkSink = Scratch | MappedSink | WrittenSink


class Request:
    """The Context of one request. The connection makes it, finishes its sink, and releases what it held."""

    __slots__ = (
        "_deadline",
        "_pieces",
        "_private",
        "_shared",
        "buffers",
        "bulk_held",
        "cancelled",
        "frame",
        "listening",
        "peer",
        "regions",
        "reserve",
        "sink_made",
        "stopping",
    )

    def __init__(
        self,
        frame: Frame,
        peer: PeerInfo,
        regions: Regions | RemoteRegions,
        buffers: Buffers,
        reserve: Callable[[int], bool],
    ) -> None:
        self.frame = frame
        self.peer = peer
        self.cancelled = False
        self.stopping = False
        self.listening = False
        self.regions = regions
        self.buffers = buffers
        self.reserve = reserve  # counts bulk bytes held for this peer; False at the limit
        self.sink_made: BulkSink | None = None
        self.bulk_held = 0  # bytes reserved
        self._deadline = time.monotonic() + frame.deadline_ms / 1000
        self._pieces: list[Any] | None = None  # (region, offset, length) each
        self._private: bytearray | None = None
        self._shared: Slice | None = None  # or this

    def remaining(self) -> float:
        return self._deadline - time.monotonic()

    def sink(self, length: int) -> BulkSink:
        if self.sink_made is not None:
            raise error(Status.INTERNAL, "a handler asked for two sinks")
        if not 0 <= length <= BULK_BYTES_MAX:
            raise error(Status.TOO_LARGE, f"{length} bytes of bulk: at most {BULK_BYTES_MAX}; ask for less at once")
        pieces = self._resolve()
        offered = self._inline_length() if pieces is None else sum([piece[2] for piece in pieces])
        if offered < length:
            raise error(
                Status.INVALID, f"the reply has {length} bytes of bulk, the client offered memory for {offered}"
            )
        if pieces is not None and not self.regions.remote and all(piece[0].view is not None for piece in pieces):
            self.sink_made = MappedSink(pieces, length)
            return self.sink_made
        self._hold(length)
        if pieces is not None:
            self.sink_made = self.regions.sink(pieces, length, self.buffers)
        else:  # a socket takes parts of files; SENDs are filled from memory
            self.sink_made = (Scratch if self.regions.remote else InlineSink)(length, self.buffers)
        return self.sink_made

    async def pull(self) -> memoryview:
        if self._private is not None or self._shared is not None:
            raise error(Status.INTERNAL, "a handler pulled its bulk twice")
        if self.frame.bulk is not None:
            return self.frame.bulk[0]
        pieces = self._resolve()
        if not pieces:
            return memoryview(b"")
        length = sum([piece[2] for piece in pieces])
        self._hold(length)
        if not isinstance(self.regions, Regions):
            self._shared = self.buffers.take_registered(length) if length else None
            return await self.regions.fetch(pieces, self._shared)
        view = self._private_memory(length)
        if length > PULL_INLINE_BYTES_MAX:
            await asyncio.get_running_loop().run_in_executor(None, pull, pieces, view)
        elif self.peer.identity.trusted and all(piece[0].view is not None for piece in pieces):
            pull_mapped(pieces, view)
        else:
            pull(pieces, view)
        return view

    def lent(self) -> Sequence[memoryview] | None:
        pieces = self._resolve()
        if not pieces or self.regions.remote or any(piece[0].view is None for piece in pieces):
            return None
        return [region.view[offset : offset + length] for region, offset, length in pieces]

    def _private_memory(self, length: int) -> memoryview:
        self._shared = self.buffers.take_shared(length)
        if self._shared is not None:
            return self._shared.view
        self._private = self.buffers.take(length)
        return memoryview(self._private)[:length]

    def subscribe(self, subscription: int, topic: str) -> Any:
        raise error(Status.UNSUPPORTED, "subscriptions are made by the connection itself")

    def _resolve(self) -> list[Any] | None:
        """The shared pieces that the request names, held until `release`; None where its bulk travels behind the frames."""
        if self._pieces is None and self.frame.flags & TABLE and SLICE.unpack_from(self.frame.table)[0] != INLINE:
            self._pieces = self.regions.resolve(self.frame.table)
        return self._pieces

    def _inline_length(self) -> int:
        return int(SLICE.unpack_from(self.frame.table)[2]) if self.frame.table else 0

    def _hold(self, length: int) -> None:
        if not self.reserve(length):
            raise error(Status.BUSY, "too many bytes are in flight for this client; let earlier requests finish")
        self.bulk_held += length

    def release(self) -> None:
        """The handler is done and nothing moves any more."""
        if self._pieces:
            for region, _, _ in self._pieces:
                region.release()
            self._pieces = None
        if self._private is not None:
            self.buffers.give(self._private)
            self._private = None
        if self._shared is not None:
            self.buffers.give_shared(self._shared)
            self._shared = None


@types.coroutine
def resume(coro: Coroutine[Any, Any, Message], waits_for: Any) -> Generator[Any, Any, Message]:
    """Go on with a coroutine whose first step has been run by hand and gave `waits_for`."""
    try:
        while True:
            try:
                value = yield waits_for
            except BaseException as raised:
                waits_for = coro.throw(raised)
            else:
                waits_for = coro.send(value)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]

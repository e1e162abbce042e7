"""Bytes to frames and back; no I/O.

    header (32 bytes, little-endian)
      magic u32 | version u8 | flags u8 | method u16 | request id u64 | deadline ms u32 | message bytes u32 | bulk bytes u32
      | CRC32C of the 28 bytes before u32
    message area: the protobuf message; with TABLE also a table of 24-byte slices (requests) or 8-byte spans (replies) and,
      as its last 4 bytes, the length of that table
    bulk area: bytes that follow the frame because they do not travel through shared memory

A request's table says where its bulk lies or belongs: (region id, offset, length) each; region 0 means behind the frame. A reply's
table says which parts of the target the bulk fills: (position, length) each, in order. Every request gets exactly one reply, also
a cancelled one, and never before its last byte was moved: the reply is what ends a quarantine. The deadline is what remains,
in milliseconds: no clocks are compared. Lengths are checked against the limits before any memory is taken for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from crc32c import crc32c

from .errors import Status, error
from .rpc import BULK_BYTES_MAX, MESSAGE_BYTES_MAX

MAGIC = 0x52424D45  # "EMBR"
FRAME_VERSION = 1  # of this layout; what the messages mean is agreed in the hello

_HEAD = struct.Struct("<IBBHQIII")
_HEAD_AND_CRC = struct.Struct("<IBBHQIIII")
_CRC = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
SLICE = struct.Struct("<QQQ")  # region id, offset, length
SPAN = struct.Struct("<II")  # position, length
HEADER_BYTES = _HEAD.size + _CRC.size

REPLY = 1
FAILURE = 2  # a reply whose message is a Failure
TABLE = 4
_FLAGS_KNOWN = REPLY | FAILURE | TABLE

# Methods of service 0, the RPC's own.
HELLO = 1
PROOF = 2
CANCEL = 3  # no reply of its own: the cancelled request's reply follows
SUBSCRIBE = 4
UNSUBSCRIBE = 5
NOTICE = 6  # one-way, from the server
GOODBYE = 7  # one-way: a Failure that says why the sender closes the connection
RDMA_CONNECT = 8  # a client's queue pair, after the hello; the reply has the server's
RDMA_REGION = 9  # one-way: memory of the client
RDMA_WITHDRAW = 10  # one-way

SCRATCH_BYTES = 64 << 10  # what one receive takes at most, unless a large message or bulk is awaited


class Frame:
    """One frame. `bulk` is where its bulk bytes were put, None if there were none or nobody wanted them."""

    __slots__ = ("bulk", "bulk_bytes", "deadline_ms", "flags", "message", "method", "request_id", "table")

    def __init__(self, flags: int, method: int, request_id: int, deadline_ms: int, bulk_bytes: int) -> None:
        self.flags = flags
        self.method = method
        self.request_id = request_id
        self.deadline_ms = deadline_ms
        self.bulk_bytes = bulk_bytes
        self.message = b""
        self.table = b""
        self.bulk: Sequence[memoryview] | None = None


def encode(
    flags: int,
    method: int,
    request_id: int,
    message: bytes,
    *,
    deadline_ms: int = 0,
    table: bytes = b"",
    bulk_bytes: int = 0,
) -> bytes:
    """Header and message area of a frame; the caller sends its bulk behind. Raises TOO_LARGE over a limit."""
    if table:
        flags |= TABLE
        message = b"".join((message, table, _LENGTH.pack(len(table))))
    size = len(message)
    if size > MESSAGE_BYTES_MAX:
        raise error(Status.TOO_LARGE, f"a message of {size} bytes: at most {MESSAGE_BYTES_MAX}; send less at once")
    if bulk_bytes > BULK_BYTES_MAX:
        raise error(Status.TOO_LARGE, f"bulk of {bulk_bytes} bytes: at most {BULK_BYTES_MAX}; send less at once")
    head = _HEAD.pack(MAGIC, FRAME_VERSION, flags, method, request_id, deadline_ms, size, bulk_bytes)
    return b"".join((head, _CRC.pack(crc32c(head)), message))


Place = Callable[[Frame], "Sequence[memoryview] | None"]


def _nowhere(_frame: Frame) -> None:
    return None


class Decoder:
    """Takes bytes as they come and gives whole frames.

    The reader receives into `buffer()` and tells `received(count)`. Bulk goes straight to the buffers that `place(frame)` names
    as soon as the message area is there; they must hold exactly `frame.bulk_bytes`. None: the bytes are dropped.
    """

    def __init__(self, place: Place = _nowhere, *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._place = place
        self.message_bytes_max = message_bytes_max
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))
        self._window = self._scratch  # holds the head of the frame in progress; larger than scratch for a large message
        self._start = 0
        self._end = 0
        self._frame: Frame | None = None  # whose bulk is awaited
        self._places: list[memoryview] = []  # where the rest of it goes, next one last
        self._drop = 0  # bytes of bulk that nobody wants

    @property
    def idle(self) -> bool:
        """Whether everything received so far was whole frames."""
        return self._frame is None and self._start == self._end

    def buffer(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._frame is not None:
            return self._places[-1] if self._places else self._scratch[: self._drop]
        return self._window[self._end :] if self._end else self._window

    def received(self, count: int) -> list[Frame]:
        """Frames completed by `count` more bytes in `buffer()`. Raises PROTOCOL; the connection is then of no more use."""
        frames: list[Frame] = []
        if self._frame is not None:
            if self._bulk_received(count):
                frames.append(self._frame)
                self._frame = None
            return frames
        self._end += count
        while self._end - self._start >= HEADER_BYTES:
            frame = self._next()
            if frame is None:
                break
            if frame.bulk_bytes and not self._bulk_begun(frame):
                self._frame = frame
                break
            frames.append(frame)
        self._compact()
        return frames

    def forget(self, request_id: int) -> None:
        """Nobody waits for this request's reply any more: what is still to come of its bulk, if it has begun, is dropped."""
        if self._frame is not None and self._frame.request_id == request_id:
            self._drop += sum(map(len, self._places))
            self._places = []

    def _next(self) -> Frame | None:
        """The frame at the start of the window, without its bulk; None if it is not all there."""
        start = self._start
        window = self._window
        magic, version, flags, method, number, deadline_ms, size, bulk_bytes, crc = _HEAD_AND_CRC.unpack_from(
            window, start
        )
        if crc32c(window[start : start + _HEAD.size]) != crc:
            raise self._bad_header(magic, version)
        if magic != MAGIC or version != FRAME_VERSION or flags & ~_FLAGS_KNOWN:
            raise self._bad_header(magic, version)
        if size > self.message_bytes_max or bulk_bytes > BULK_BYTES_MAX:
            raise error(
                Status.PROTOCOL,
                f"a frame announces {size} bytes of message and {bulk_bytes} of bulk; at most {self.message_bytes_max}, {BULK_BYTES_MAX}",
            )
        begin = start + HEADER_BYTES
        end = begin + size
        if end > self._end:
            self._make_room(HEADER_BYTES + size)
            return None
        frame = Frame(flags, method, number, deadline_ms, bulk_bytes)
        if flags & TABLE:
            end = self._split_table(frame, begin, end)
        frame.message = bytes(window[begin:end])
        self._start = begin + size
        return frame

    def _split_table(self, frame: Frame, begin: int, end: int) -> int:
        """Cut the table off the message area; returns where the message ends."""
        end -= _LENGTH.size
        length = _LENGTH.unpack_from(self._window, end)[0] if end >= begin else -1
        record = SPAN.size if frame.flags & REPLY else SLICE.size
        if not 0 < length <= end - begin or length % record:
            raise error(Status.PROTOCOL, "a frame's table does not fit into it; is the peer of another version?")
        frame.table = bytes(self._window[end - length : end])
        return end - length

    @staticmethod
    def _bad_header(magic: int, version: int) -> Exception:
        if magic != MAGIC:
            return error(
                Status.PROTOCOL, f"this is no emberfs frame (it begins with {magic:#010x}); is the address right?"
            )
        if version != FRAME_VERSION:
            return error(
                Status.PROTOCOL,
                f"the peer speaks frame version {version}, this software {FRAME_VERSION}: upgrade the older of the two",
            )
        return error(Status.PROTOCOL, "a frame's header was damaged on the way (checksum or flags do not fit)")

    def _make_room(self, size: int) -> None:
        if size > len(self._window):
            window = memoryview(bytearray(size))
            held = self._end - self._start
            window[:held] = self._window[self._start : self._end]
            self._window, self._start, self._end = window, 0, held

    def _compact(self) -> None:
        held = self._end - self._start
        if not held:
            self._start = self._end = 0
            self._window = self._scratch
        elif self._start:
            rest = bytes(self._window[self._start : self._end])
            if self._window is not self._scratch and held < SCRATCH_BYTES:
                self._window = self._scratch
            self._window[:held] = rest
            self._start, self._end = 0, held

    def _bulk_begun(self, frame: Frame) -> bool:
        """Find a place for the bulk and move what is here already; True if that was all of it."""
        frame.bulk = self._place(frame)
        here = min(self._end - self._start, frame.bulk_bytes)
        if frame.bulk is None:
            self._start += here
            self._drop = frame.bulk_bytes - here
            return not self._drop
        self._places = [view for view in reversed(frame.bulk) if len(view)]
        if sum(map(len, self._places)) != frame.bulk_bytes:
            raise error(
                Status.PROTOCOL, f"{frame.bulk_bytes} bytes of bulk do not fit the place that was offered for them"
            )
        while here:
            part = min(here, len(self._places[-1]))
            self._places[-1][:part] = self._window[self._start : self._start + part]
            self._start += part
            here -= part
            self._advance(part)
        return not self._places

    def _bulk_received(self, count: int) -> bool:
        if self._places:
            self._advance(count)
        else:
            self._drop -= count
        return not self._places and not self._drop

    def _advance(self, count: int) -> None:
        view = self._places.pop()
        if count < len(view):
            self._places.append(view[count:])

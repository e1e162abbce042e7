"""What the blocking and the asyncio driver do alike: a call becomes a frame, a frame becomes a reply or an error."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from socket import gaierror
from typing import Any

from google.protobuf.message import DecodeError

from .. import frame as wire
from ..env import Call
from ..errors import Status, StatusError, error
from ..frame import SLICE, SPAN, Frame
from ..hello import failure_error
from ..region import Region, Slice, parts, starts_of
from ..rpc import DEADLINE_MS_MAX
from ..settings import time_scale
from ..transport.shm import INLINE, is_sealed

CONNECT_SECONDS_MAX = 5.0  # until the hello is complete; scaled by EMBERFS_TIME_SCALE
REGION_WAIT_SECONDS = 5.0  # beyond a deadline, for a registered region's fate to be known; scaled
BACKOFF_SECONDS_MIN = 0.01  # after a failed connect: no other attempt before
BACKOFF_SECONDS_MAX = 0.5


class Pending:
    """A request that was posted. `frame` is its reply once that is here."""

    __slots__ = ("call", "deadline", "end", "failure", "frame", "shared")

    def __init__(self, call: Call, deadline: float, shared: bool) -> None:
        self.call = call
        self.deadline = deadline  # on the driver's clock
        self.shared = shared  # the server moves its bulk through shared memory
        self.end = 0  # position in the connection's stream behind its last byte
        self.frame: Frame | None = None
        self.failure: StatusError | None = None

    @property
    def slices(self) -> Sequence[Slice]:
        return self.call.source or self.call.target

    def place(self, frame: Frame) -> list[memoryview]:
        """Where the spans of an inline reply belong. Raises PROTOCOL for spans outside the target."""
        targets = self.call.target
        if len(targets) == 1:
            view = targets[0].view
            places = [view[position : position + length] for position, length in SPAN.iter_unpack(frame.table)]
        else:
            places, starts = [], starts_of(targets)
            for position, length in SPAN.iter_unpack(frame.table):
                places += parts(targets, position, length, starts)
        if sum(map(len, places)) != frame.bulk_bytes:
            raise error(Status.PROTOCOL, f"{self.call.address} sent bulk that does not fit what was asked for")
        return places

    def result(self) -> Any:
        """The reply message. Raises the server's error, or how the connection failed."""
        if self.failure is not None:
            raise self.failure
        frame = self.frame
        assert frame is not None
        if frame.flags & wire.FAILURE:
            raise failure_error(frame.message, self.call.address)
        try:
            return self.call.method.reply.FromString(frame.message)
        except DecodeError as bad:
            raise error(Status.PROTOCOL, f"{self.call.address} sent a reply that cannot be read: {bad}") from bad

    def too_late(self) -> StatusError:
        method = self.call.method
        return error(
            Status.DEADLINE,
            f"{method.service}.{method.name} at {self.call.address}: no answer within {self.call.timeout:g} s",
        )

    def broke(self, sent: bool, reason: str) -> StatusError:
        """The connection is gone; `sent`: all of the request had left."""
        method = self.call.method
        if sent:
            return error(
                Status.MAYBE_COMMITTED,
                f"{method.service}.{method.name} at {self.call.address}: {reason} before the answer came",
            )
        return error(
            Status.UNAVAILABLE,
            f"{method.service}.{method.name} at {self.call.address}: {reason} before the request was sent",
        )


def is_shared(call: Call) -> bool:
    """Whether the server can move this call's bulk itself, over a Unix socket. Raises INVALID, REGION_DEAD."""
    slices = call.source or call.target
    if not slices:
        return False
    if call.source and call.target:
        raise error(Status.INVALID, "a call has bulk in one direction only")
    shared = call.address.startswith("unix:")
    for slice_ in slices:
        region = slice_.region
        if region.dead:
            raise error(
                Status.REGION_DEAD,
                "a request that was never answered may still write into this region; register new memory",
            )
        if region.fd < 0:
            shared = False
    return shared


def encode_call(call: Call, request_id: int, shared: bool, seconds: float) -> tuple[bytes, list[memoryview]]:
    """The frame of a request and the bulk that follows it. Raises TOO_LARGE."""
    table = b""
    bulk: list[memoryview] = []
    size = 0
    if shared:
        table = slice_table(call.source or call.target)
    elif call.source:
        bulk = [slice_.view for slice_ in call.source if slice_.length]
        size = sum(map(len, bulk))
    elif call.target:
        table = SLICE.pack(INLINE, 0, sum([slice_.length for slice_ in call.target]))
    deadline_ms = min(max(int(seconds * 1000), 1), DEADLINE_MS_MAX)
    message = call.request.SerializeToString()
    head = wire.encode(
        0, call.method.number, request_id, message, deadline_ms=deadline_ms, table=table, bulk_bytes=size
    )
    return head, bulk


def slice_table(slices: Sequence[Slice]) -> bytes:
    """The slices for the wire; neighbours are joined."""
    if len(slices) == 1:
        region, offset, length = slices[0]
        return SLICE.pack(region.id, offset, length)
    rows = []
    last, start, end = slices[0].region, slices[0].offset, slices[0].offset
    for region, offset, length in slices:
        if region is last and offset == end:
            end += length
            continue
        rows.append(SLICE.pack(last.id, start, end - start))
        last, start, end = region, offset, offset + length
    rows.append(SLICE.pack(last.id, start, end - start))
    return b"".join(rows)


def unreachable(address: str, reason: Exception | str) -> StatusError:
    """The error of a connect that failed: nothing was sent."""
    if (
        isinstance(reason, OSError)
        and reason.errno in (errno.ENOENT, errno.ECONNREFUSED)
        and address.startswith("unix:")
    ):
        text = "nobody listens there; 'emberfs up' starts the servers of this machine"
    elif isinstance(reason, gaierror):
        text = f"{(reason.strerror or str(reason)).lower()}; is the host's name right?"
    elif isinstance(reason, OSError) and reason.errno == errno.EACCES:
        text = "permission denied; the socket belongs to another user"
    elif isinstance(reason, TimeoutError):
        text = "it does not answer the hello; is it stopped or overloaded?"
    elif isinstance(reason, OSError):
        text = f"{(reason.strerror or str(reason)).lower()}; is the server running?"
    else:
        text = str(reason)
    return error(Status.UNAVAILABLE, f"{address} cannot be reached: {text}")


class Backoff:
    """Keeps everybody in this process from trying a dead address again at once."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float, StatusError]] = {}  # until when, after which wait, why

    def check(self, address: str, now: float) -> None:
        """Raises the last failure again shortly after it."""
        entry = self._until.get(address)
        if entry is not None and now < entry[0]:
            raise error(entry[2].status, entry[2].strerror or "")

    def failed(self, address: str, now: float, chance: float, reason: StatusError) -> None:
        """The next attempt is due after a time that doubles; `chance` in [0, 1) spreads clients out."""
        last = self._until[address][1] if address in self._until else 0.0
        wait = min(max(last * 2, BACKOFF_SECONDS_MIN), BACKOFF_SECONDS_MAX)
        self._until[address] = (now + wait * (0.5 + chance / 2), wait, reason)

    def succeeded(self, address: str) -> None:
        self._until.pop(address, None)


def connect_seconds(timeout: float) -> float:
    return min(timeout, CONNECT_SECONDS_MAX * time_scale())


def make_region(buffer: Any, descriptor: int = -1) -> Region:
    """A region over the caller's memory. `descriptor`: of the memfd or tmpfs file that `buffer` maps from its beginning, if any:
    servers on this host then move bytes into it themselves. Raises INVALID for memory that is read-only or not contiguous."""
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise error(Status.INVALID, "a region must be writable and contiguous memory")
    sealed = descriptor >= 0 and is_sealed(descriptor)
    return Region(view.cast("B"), os.dup(descriptor) if descriptor >= 0 else -1, sealed, kept=True)

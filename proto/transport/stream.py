"""A non-blocking socket on an event loop that speaks frames: what server connections and asyncio clients share.

The socket stays ours instead of becoming a transport of the loop: descriptors can arrive on it, bulk is received where it belongs
and sent from where it lies, and all replies to what one receive brought leave in one system call.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import StatusError
from ..frame import Decoder, Frame

if TYPE_CHECKING:
    from .rdma.socket import RdmaSocket

RECEIVES_MAX = 8  # per wake-up, so that one busy peer does not starve the others
PIECES_MAX = 512  # per sendmsg (the kernel takes 1024)
PIECES_EARLY = 8  # queued: they leave at once, so that the peer begins to work while we still do
OUT_BYTES_HIGH = 16 << 20  # unsent: a server reads no more requests
OUT_BYTES_LOW = 4 << 20  # unsent: reading goes on
LINGER_SECONDS = 1.0  # for the peer to read our last frame before its socket is reset

Buffer = bytes | memoryview
_Out = tuple[Buffer, Callable[[], None] | None]


class Stream:
    """Subclasses say what frames, the end and a drained queue mean to them."""

    out_bytes_high: float = OUT_BYTES_HIGH  # unsent: reading stops

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.loop = loop
        self.sock: socket.socket | RdmaSocket = sock
        self.rdma: RdmaSocket | None = None  # the same, once the connection goes on over RDMA
        self.decoder = Decoder(self.place)
        self.closed = False
        self._out: deque[_Out] = deque()
        self._out_bytes = 0
        self.posted = 0  # bytes ever queued
        self.taken = 0  # bytes that the socket has taken
        self._flush_due = False  # a flush will come by itself
        self._writing = False  # the loop tells when the socket takes more
        self._reading = False
        self._ended = False  # the peer sends no more
        self.lingers = False  # the last frame is on its way, or the peer has not closed its end yet

    def begin(self) -> None:
        """Start reading."""
        self._resume()

    def go_on_over(self, rdma: RdmaSocket) -> None:
        """From now on frames travel over RDMA. It has taken over the socket, on which neither side says anything any more."""
        self._pause()
        self.sock = self.rdma = rdma
        self.out_bytes_high = float(
            "inf"
        )  # who does not receive gets no credits back either, and could never send again
        self._resume()

    # What subclasses define.

    def place(self, frame: Frame) -> Sequence[memoryview] | None:
        """Where this frame's bulk goes."""
        return None

    def frame_received(self, frame: Frame) -> None:
        raise NotImplementedError

    def broken(self, reason: StatusError) -> None:
        """The peer broke the protocol. Must close, now or after a last frame."""
        raise NotImplementedError

    def ended(self) -> None:
        """The peer sends no more. It may still read."""
        raise NotImplementedError

    def lost(self) -> None:
        """The socket is closed; called once."""

    def drained(self) -> None:
        """Everything was sent."""

    # Sending.

    def send(self, data: Buffer, sent: Callable[[], None] | None = None, *, at_once: bool = False) -> None:
        """Queue; it leaves at the end of this turn of the loop, or when some have come together, or `at_once`. `sent` is called when the
        socket has taken it, or never."""
        if self.closed:
            return
        size = len(data)
        self._out.append((data, sent))
        self._out_bytes += size
        self.posted += size
        if not self._flush_due and not self._writing:
            self._flush_due = True
            self.loop.call_soon(self._flush)
        if (at_once or len(self._out) >= PIECES_EARLY) and not self._writing:
            data = b""  # as in `_sent`
            try:
                self._push()
            except (BlockingIOError, InterruptedError):
                self._wait_writable()
            except OSError:
                pass  # the flush that is due finds out, and closes

    @property
    def unsent(self) -> int:
        """Bytes queued."""
        return self._out_bytes

    def _flush(self) -> None:
        self._flush_due = False
        if self.closed:
            return
        out = self._out
        try:
            self._push()
        except (BlockingIOError, InterruptedError):
            self._wait_writable()
        except OSError:
            self.close()
            return
        if not out:
            self.drained()
        if not self._reading and not self._ended and self._out_bytes < OUT_BYTES_LOW:
            self._resume()

    def _push(self) -> None:
        out = self._out
        while out:
            if len(out) == 1:
                count = self.sock.send(out[0][0])
            else:
                count = self.sock.sendmsg([data for data, _ in islice(out, PIECES_MAX)])
            self._sent(count)

    def send_now(self, data: Buffer) -> bool:
        """Queue, and send what the socket takes at once. Whether it took everything, so that more may go around the queue."""
        if self.closed:
            return False
        self._out.append((data, None))
        self._out_bytes += len(data)
        self.posted += len(data)
        try:
            self._push()
        except (BlockingIOError, InterruptedError):
            self._wait_writable()
        except OSError:
            self.close()
        return not self._out and not self.closed

    def send_file(self, descriptor: int, offset: int, length: int) -> int:
        """After `send_now` took everything: how many of these bytes the socket takes at once, straight from the page cache."""
        sent = 0
        try:
            while sent < length and (
                count := os.sendfile(self.sock.fileno(), descriptor, offset + sent, length - sent)
            ):
                sent += count
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
        self.posted += sent
        self.taken += sent
        return sent

    def _sent(self, count: int) -> None:
        out = self._out
        self._out_bytes -= count
        self.taken += count
        while count or (out and not len(out[0][0])):
            data, sent = out[0]
            if count < len(data):
                out[0] = (memoryview(data)[count:], sent)
                return
            count -= len(data)
            out.popleft()
            data = b""  # the callback may want the buffer back, and nobody may look into it then
            if sent is not None:
                sent()

    def _wait_writable(self) -> None:
        if not self._writing:
            self._writing = True
            if self.rdma is None:
                self.loop.add_writer(self.sock.fileno(), self._writable)
            else:
                self.rdma.when_writable(self.loop, self._writable)
        if self._reading and self._out_bytes > self.out_bytes_high:
            self._pause()

    def _writable(self) -> None:
        self._writing = False
        if self.closed:
            return
        self.loop.remove_writer(self.sock.fileno())
        self._flush()

    # Receiving.

    def _resume(self) -> None:
        if not self._reading and not self.closed and not self._ended:
            self._reading = True
            self.loop.add_reader(self.sock.fileno(), self._readable)

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self.loop.remove_reader(self.sock.fileno())

    def receive(self, buffer: memoryview) -> int:
        """One receive; a subclass may look at what comes beside the bytes."""
        return self.sock.recv_into(buffer)

    def _readable(self) -> None:
        due, self._flush_due = self._flush_due, True  # replies wait for each other and leave together
        try:
            self._receive_some()
        except (BlockingIOError, InterruptedError):
            pass
        except StatusError as reason:
            self._pause()
            self._ended = True
            self.broken(reason)
        except OSError:
            self.close()
        except Exception as bug:
            self.loop.call_exception_handler(
                {"message": "a connection was closed: a frame could not be handled", "exception": bug}
            )
            self.close()
        if self.closed:
            return
        self._flush_due = due
        if self._out and not self._writing:
            self._flush()

    def _receive_some(self) -> None:
        decoder = self.decoder
        for _ in range(RECEIVES_MAX):
            buffer = decoder.buffer()
            count = self.receive(buffer)
            if not count:
                self._pause()
                self._ended = True
                self.ended()
                return
            for frame in decoder.received(count):
                self.frame_received(frame)
            if count < len(buffer) or self._ended or self.closed:
                return

    # Closing.

    def close(self) -> None:
        """At once; what was not sent is lost."""
        if self.closed:
            return
        self.closed = True
        self._pause()
        if self._writing:
            self._writing = False
            self.loop.remove_writer(self.sock.fileno())
        self._out.clear()
        self._out_bytes = 0
        self.sock.close()
        self.lost()

    def close_gently(self, last: bytes, seconds: float | None = LINGER_SECONDS) -> None:
        """Send a last frame and give the peer time to read it and to close its end (None: as long as it takes): closing with bytes
        unread would reset the connection."""
        if self.closed:
            return
        self._pause()
        self._ended = self.lingers = True
        self._out.append((last, self._half_close))
        self._out_bytes += len(last)
        if seconds is not None:
            self.loop.call_later(seconds, self.close)
        if not self._writing:
            self._flush()
        if self.rdma is not None and self._out and not self.closed:
            self._swallow_more()  # credits to send with come with what is received

    def _half_close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        if not self.closed:
            self._swallow_more()

    def _swallow_more(self) -> None:
        self.loop.add_reader(self.sock.fileno(), self._swallow)
        self._reading = True  # so that close() removes it

    def _swallow(self) -> None:
        try:
            while self.sock.recv(65536):
                pass
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()

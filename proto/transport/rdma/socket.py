"""What drivers and servers need of a socket, over an endpoint: a stream of bytes, a descriptor to wait for, an end.

The descriptor is an epoll of the completion channel, of the TCP socket that the connection began on, and of an event that stands for
bytes which have arrived and were not taken: it is readable while there is something to take in, like a socket's. It is never writable:
who could not send everything is told by `when_writable`, or tries again after taking something in.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from .endpoint import Endpoint, Gone

REAP_SECONDS = 0.005  # that memory of a reply may be held longer than it takes to arrive

Buffer = bytes | memoryview
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_Waiter = tuple[asyncio.AbstractEventLoop, Callable[[], None]] | None


class RdmaSocket:
    """Takes over both. One thread at a time; nothing here waits."""

    def __init__(self, endpoint: Endpoint, tcp: socket.socket) -> None:
        self.endpoint = endpoint
        self.tcp = tcp
        tcp.setblocking(False)  # a socket with a time-out waits for it whatever the flags of recv(2) say
        self._ready = select.epoll()
        self._ready.register(endpoint.descriptor, select.EPOLLIN)
        self._ready.register(tcp, select.EPOLLIN | select.EPOLLRDHUP)
        self._more = -1  # eventfd, made when it is first needed
        self._more_set = False
        self._ended = False  # the TCP socket has
        self._blocked: _Waiter = None  # for room to send
        self._settling: _Waiter = None  # for the end of all that was sent
        self._half_closing = False
        self._reaping = False  # a look at what has completed is due

    def fileno(self) -> int:
        return self._ready.fileno()

    # Sending.

    def send(self, data: Buffer, flags: int = 0) -> int:
        """As much as credits allow, at least one SEND. Raises BlockingIOError, OSError."""
        return self.sendmsg((data,))

    def sendmsg(self, pieces: Sequence[Buffer], ancillary: Sequence[object] = (), flags: int = 0) -> int:
        """The same for several buffers, which share SENDs where they are small. Who is not rid of everything is told by the descriptor,
        also when he does not ask again."""
        endpoint = self.endpoint
        if endpoint.failed:
            raise ConnectionResetError(endpoint.failed)
        if not endpoint.may_send and not self._room_came():
            raise BlockingIOError
        sent = 0
        slot = memoryview(b"")
        filled = 0
        for piece in pieces:
            data = memoryview(piece)
            while data:
                if not filled:
                    if not endpoint.may_send:
                        endpoint.post()
                        if not self._room_came():
                            return sent
                    slot = endpoint.slot()
                part = min(len(data), len(slot) - filled)
                slot[filled : filled + part] = data[:part]
                data = data[part:]
                filled += part
                sent += part
                if filled == len(slot):
                    endpoint.send(filled)
                    filled = 0
        if filled:
            endpoint.send(filled)
        endpoint.post()
        return sent

    def _room_came(self) -> bool:
        """Look whether something may be sent again; if not, the descriptor will tell."""
        self.endpoint.poll()
        if not self.endpoint.may_send:
            self.endpoint.arm()
            self.endpoint.poll()
        return self.endpoint.may_send

    def when_writable(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        """Call this on the loop as soon as something may be sent again: noticed while bytes are received."""
        self._blocked = (loop, ready)

    @property
    def pending(self) -> bool:
        """Whether something was sent that has not reached the peer for sure. To receive goes on meanwhile: that brings the news."""
        endpoint = self.endpoint
        with suppress(OSError):
            if endpoint.pending:
                endpoint.settle()
                endpoint.poll()
                endpoint.arm()
                endpoint.poll()
        return endpoint.pending and not endpoint.failed

    def reap_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take in what completes within a moment, if nothing comes in earlier: memory here waits for it. To be woken for it would cost as
        much as to answer a request."""
        if not self._reaping:
            self._reaping = True
            loop.call_later(REAP_SECONDS, self._reap, loop)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reaping = False
        with suppress(OSError):  # who receives finds out
            self.endpoint.poll()
            self._news()
            if self.endpoint.holds:
                self.reap_soon(loop)

    def when_settled(self, loop: asyncio.AbstractEventLoop, ready: Callable[[], None]) -> None:
        """Call this as soon as nothing is `pending`."""
        self._settling = (loop, ready)
        self._news()

    def settled(self, seconds: float) -> bool:
        """Wait so long until nothing is `pending`; whether everything has reached the peer. For who has no loop."""
        ready = select.poll()
        ready.register(self, select.POLLIN)
        end = time.monotonic() + seconds
        while self.pending and not self._has_ended():
            remaining = end - time.monotonic()
            if remaining <= 0 or not ready.poll(remaining * 1000 + 1):
                return False
            self.endpoint.disarm()
        self._say_more(bool(self.endpoint.arrived))  # what came meanwhile, nobody tells of any more
        return not self.endpoint.failed and not self._ended

    # Receiving.

    def recv_into(self, buffer: memoryview, size: int = 0, flags: int = 0) -> int:
        """What has arrived; 0 at the end of the connection. Raises BlockingIOError, OSError."""
        endpoint = self.endpoint
        filled = 0
        try:
            endpoint.poll()
            filled = endpoint.take(buffer)
            while filled < len(buffer):
                endpoint.disarm()
                endpoint.arm()
                endpoint.poll()  # what came before it was armed, nobody tells of
                if not endpoint.arrived:
                    break
                filled += endpoint.take(buffer[filled:])
            endpoint.give_credits()
        except Gone as gone:
            if not filled:
                self._news()
                raise ConnectionResetError(*gone.args) from gone
        self._say_more(bool(endpoint.arrived))
        self._news()
        if not filled:
            if self._has_ended():
                return 0
            raise BlockingIOError
        return filled

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Whether there is something to take in, or the connection has ended (b""); for what is not awaited any more it is dropped."""
        if flags & socket.MSG_PEEK:
            self.endpoint.poll()
            if self.endpoint.arrived:
                return b"\0"
            if self._has_ended():
                return b""
            raise BlockingIOError
        buffer = memoryview(bytearray(size))
        return bytes(buffer[: self.recv_into(buffer)])

    def _has_ended(self) -> bool:
        if not self._ended:
            try:
                self.tcp.recv(1, _PEEK)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError:
                pass
            self._ended = True  # nothing is ever said on it
        return True

    def _say_more(self, more: bool) -> None:
        """Keep the descriptor readable while bytes wait here."""
        if more == self._more_set:
            return
        if self._more < 0:
            self._more = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._ready.register(self._more, select.EPOLLIN)
        self._more_set = more
        if more:
            os.eventfd_write(self._more, 1)
        else:
            os.eventfd_read(self._more)

    def _news(self) -> None:
        """Tell those who wait for what completions bring."""
        endpoint = self.endpoint
        if self._blocked is not None and (endpoint.may_send or endpoint.failed):
            (loop, ready), self._blocked = self._blocked, None
            loop.call_soon(ready)
        if (self._settling is not None or self._half_closing) and (endpoint.failed or not endpoint.pending):
            if self._half_closing:
                self._half_closing = False
                self.tcp.shutdown(socket.SHUT_WR)
            if self._settling is not None:
                (loop, ready), self._settling = self._settling, None
                loop.call_soon(ready)

    # The end.

    def shutdown(self, how: int) -> None:
        """Nothing more is sent. The peer is told when it has everything."""
        if how == socket.SHUT_WR and self.pending:
            self._half_closing = True
        else:
            self.tcp.shutdown(how)

    def settimeout(self, seconds: float | None) -> None:
        """Nothing here ever waits."""

    def close(self) -> None:
        """The queue pair is gone and the peer is told."""
        self.endpoint.close()
        self._ready.close()
        if self._more >= 0:
            os.close(self._more)
            self._more = -1
        self.tcp.close()

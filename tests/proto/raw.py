"""A peer that sends whatever a test likes."""

from __future__ import annotations

import socket

from emberfs.proto import frame as wire
from emberfs.proto import hello as hellos
from emberfs.proto.errors import StatusError
from emberfs.proto.frame import Decoder, Frame
from emberfs.proto.hello import ClientHello, Credentials

from .pieces import (
    SECRET,
)


class Raw:
    """A peer that sends whatever the test likes."""

    def __init__(self, address: str) -> None:
        kind, _, rest = address.partition(":")
        if kind == "unix":
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(rest)
        else:
            host, port = rest.rsplit(":", 1)
            self.sock = socket.create_connection((host, int(port)))
        self.sock.settimeout(60)
        self.decoder = Decoder(lambda frame: [memoryview(bytearray(frame.bulk_bytes))])
        self.frames: list[Frame] = []

    def hello(self, address: str) -> Raw:
        greeting = ClientHello(Credentials(secret=SECRET), address)
        self.sock.sendall(greeting.first)
        while greeting.reply is None:
            if answer := greeting.received(self.next()):
                self.sock.sendall(answer)
        return self

    def next(self) -> Frame:
        """The next frame. Raises EOFError at the end."""
        while not self.frames:
            count = self.sock.recv_into(self.decoder.buffer())
            if not count:
                raise EOFError
            self.frames += self.decoder.received(count)
        return self.frames.pop(0)

    def farewell(self) -> StatusError:
        """The error in the last frame, after which the connection has ended."""
        last = None
        try:
            while True:
                last = self.next()
        except EOFError:
            assert last is not None and last.flags & wire.FAILURE
            return hellos.failure_error(last.message, "the server")
        finally:
            self.sock.close()

"""The descriptor of /dev/fuse: requests come in, replies and notifications go out. No event loop, no knowledge of operations.

One read gives one request, one write one reply. The descriptor does not block: the session reads until nothing is there. Requests
are read into buffers of one size; a WRITE keeps its buffer until it was answered (`lend`, `take_back`), so that its payload is never
copied on the way. A few are kept for the next ones. There are `BUFFERS_MAX` of them, which is memory only as far as they are filled: where
storage does not answer, writers wait in so many before nothing else is read any more, and the kernel holds what comes.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence

from .protocol import OUT_HEADER, OUT_HEADER_BYTES

BUFFERS_MAX = 256  # of about 1 MiB
BUFFERS_KEPT = 16  # for reuse
ERRNO_END = 512  # from here on the kernel refuses a reply, and its request would never end
IOV_MAX = 1024  # pieces of one writev

Body = bytes | Sequence[bytes | memoryview] | None  # what follows a reply's header; None: there is no reply

logger = logging.getLogger(__name__)

# What a read says when there was a request but it went away, or when there is none.
_AGAIN = frozenset((errno.EINTR, errno.ENOENT))
# What a write says when nobody waits any more: the request was aborted, or the file system unmounted.
_NOBODY = frozenset((errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPERM, errno.EBADF))


class Unmounted(Exception):
    """The kernel has ended the connection: unmounted, or aborted."""


class Device:
    """One descriptor of one mount, which it does not own: whoever opened it closes it."""

    def __init__(self, fd: int, buffer_bytes: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.buffer_bytes = buffer_bytes
        self._free: list[memoryview] = []  # given back
        self._made = 0
        self.buffer = self._make()  # where the next request goes
        self._vector = (self.buffer,)

    def _make(self) -> memoryview:
        self._made += 1
        return memoryview(bytearray(self.buffer_bytes))

    # --- requests -----------------------------------------------------------------------------------------------------------------

    def receive(self) -> int:
        """Read a request into `buffer`; its length, or 0 when there is none now. Raises Unmounted."""
        while True:
            try:
                return os.readv(self.fd, self._vector)
            except BlockingIOError:
                return 0
            except OSError as failure:
                if failure.errno in (errno.ENODEV, errno.ECONNABORTED):
                    raise Unmounted from None
                if failure.errno not in _AGAIN:
                    raise

    @property
    def can_lend(self) -> bool:
        """Whether there is a buffer for the request after the next one, should that be a WRITE."""
        return bool(self._free) or self._made < BUFFERS_MAX

    def lend(self) -> memoryview:
        """Take the buffer of the request that was just read away from the device, which goes on with another one."""
        lent = self.buffer
        self.buffer = self._free.pop() if self._free else self._make()
        self._vector = (self.buffer,)
        return lent

    def take_back(self, buffer: memoryview) -> None:
        """What was lent. Its request was answered."""
        if len(self._free) < BUFFERS_KEPT:
            self._free.append(buffer)
        else:
            self._made -= 1

    # --- replies ------------------------------------------------------------------------------------------------------------------

    def reply(self, unique: int, body: bytes | Sequence[bytes | memoryview]) -> bool:
        """Answer a request. False: nobody waits for it any more, so that what it opened is nobody's.

        A reply that the kernel cannot take becomes EIO.
        """
        try:
            if isinstance(body, bytes):
                os.write(self.fd, OUT_HEADER.pack(OUT_HEADER_BYTES + len(body), 0, unique) + body)
            else:
                self._reply_pieces(unique, body)
        except OSError as failure:
            if failure.errno in _NOBODY:
                return False
            logger.error("a reply was refused: %s", failure)
            self.refuse(unique, errno.EIO)
            return False
        return True

    def _reply_pieces(self, unique: int, pieces: Sequence[bytes | memoryview]) -> None:
        size = OUT_HEADER_BYTES
        for piece in pieces:
            size += len(piece)
        if len(pieces) >= IOV_MAX:
            pieces = (b"".join(pieces),)
        os.writev(self.fd, (OUT_HEADER.pack(size, 0, unique), *pieces))

    def refuse(self, unique: int, number: int) -> bool:
        """Answer a request with an errno. False: nobody waits for it any more."""
        if not 0 < number < ERRNO_END:
            logger.error("errno %d is none that the kernel would take: EIO instead", number)
            number = errno.EIO
        try:
            os.write(self.fd, OUT_HEADER.pack(OUT_HEADER_BYTES, -number, unique))
        except OSError as failure:
            if failure.errno not in _NOBODY:
                logger.error("errno %d was refused as a reply: %s", number, failure)
            return False
        return True

    def notify(self, frame: bytes) -> int:
        """Tell the kernel something; 0, or the errno: ENOENT where it does not know the inode or name. This may block for as long as
        the kernel waits for replies of ours: never from the thread that gives them."""
        try:
            os.write(self.fd, frame)
        except OSError as failure:
            return failure.errno or errno.EIO
        return 0

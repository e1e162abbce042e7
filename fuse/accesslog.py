"""The access log of a mount: a line for every operation, while somebody reads `.ember/accesslog`, and no work at all while nobody does.

    2026-11-22 15:40:12.123456 [uid:1000,gid:100,pid:4403] lookup (1,data) OK <0.000123>
    2026-11-22 15:40:12.124001 [uid:1000,gid:100,pid:4403] read (1a,131072,4096) ENODATA <0.000501>

In brackets who asked, in parentheses the inode and what else says which operation it was (names, offset and length), then the result and
the seconds from the kernel's request to the answer.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from struct import Struct
from typing import TYPE_CHECKING

from .protocol import Opcode
from .structs import FALLOCATE_IN, READ_IN

if TYPE_CHECKING:
    from .session import Request, Watcher

LINES_MAX = 10_000  # that a slow reader is behind; older ones are dropped, and he is told how many
QUIET_SECONDS = (
    1.0  # then a reader gets an empty line, so that programs that look for an end of their own have their turn
)
QUIET_LINE = b"#\n"

_NAMES = {opcode.value: opcode.name.lower() for opcode in Opcode}
# Where the names begin in the body, and how many there are.
_NAMED: dict[int, tuple[int, int]] = {
    Opcode.LOOKUP: (0, 1),
    Opcode.UNLINK: (0, 1),
    Opcode.RMDIR: (0, 1),
    Opcode.SYMLINK: (0, 2),
    Opcode.MKDIR: (8, 1),
    Opcode.MKNOD: (16, 1),
    Opcode.LINK: (8, 1),
    Opcode.CREATE: (16, 1),
    Opcode.RENAME: (8, 2),
    Opcode.RENAME2: (16, 2),
    Opcode.GETXATTR: (8, 1),
    Opcode.REMOVEXATTR: (0, 1),
}
_RANGES: dict[int, Struct] = {Opcode.READ: READ_IN, Opcode.WRITE: READ_IN, Opcode.FALLOCATE: FALLOCATE_IN}


def line(request: Request, number: int, seconds: float, now: datetime) -> bytes:
    """One operation, as it ended."""
    name = _NAMES.get(request.opcode, f"operation {request.opcode}")
    result = errno.errorcode.get(number, str(number)) if number else "OK"
    arguments = ",".join((f"{request.node:x}", *_arguments(request)))
    who = f"[uid:{request.uid},gid:{request.gid},pid:{request.pid}]"
    return f"{now:%Y-%m-%d %H:%M:%S.%f} {who} {name} ({arguments}) {result} <{seconds:.6f}>\n".encode()


def _arguments(request: Request) -> list[str]:
    if (where := _NAMED.get(request.opcode)) is not None:
        start, count = where
        found = bytes(request.body[start:]).split(b"\0")[:count]
        return [part.decode("utf-8", "backslashreplace").encode("unicode_escape").decode() for part in found]
    layout = _RANGES.get(request.opcode)
    if layout is not None and len(request.body) >= layout.size:
        _, offset, length = layout.unpack_from(request.body)[:3]
        return [str(offset), str(length)]
    return []


class Reader:
    """Somebody who has the log open."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._rest = b""
        self._some = asyncio.Event()

    def add(self, text: bytes) -> None:
        if len(self._lines) >= LINES_MAX:
            self._lines.popleft()
            self._dropped += 1
        self._lines.append(text)
        self._some.set()

    async def read(self, size: int) -> bytes:
        """What there is, at least a line; waits for it."""
        if not self._rest and not self._lines:
            self._some.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._some.wait(), QUIET_SECONDS)
        parts, length = [self._rest], len(self._rest)
        if self._dropped:
            parts.append(b"# %d lines were dropped\n" % self._dropped)
            self._dropped = 0
        while self._lines and length < size:
            parts.append(self._lines.popleft())
            length += len(parts[-1])
        whole = b"".join(parts) or QUIET_LINE
        self._rest = whole[size:]
        return whole[:size]


class AccessLog:
    """All readers. `watch` sets what the session tells of each answer; None while there are none."""

    def __init__(self, watch: Callable[[Watcher | None], None]) -> None:
        self._watch = watch
        self._readers: dict[int, Reader] = {}

    def reader(self, fh: int) -> Reader:
        """The reader with this handle, who may have opened it at a daemon before this one."""
        if fh not in self._readers:
            self._readers[fh] = Reader()
            self._watch(self._note)
        return self._readers[fh]

    def close(self, fh: int) -> None:
        self._readers.pop(fh, None)
        if not self._readers:
            self._watch(None)

    def _note(self, request: Request, number: int, seconds: float) -> None:
        text = line(request, number, seconds, datetime.now().astimezone())
        for reader in self._readers.values():
            reader.add(text)

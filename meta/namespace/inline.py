"""Small files lie beside their inodes (keys.py, INLN): creating, writing and reading one asks no storage server.

A file becomes inlined when its only writer settles an empty file with the bytes themselves instead of chunks, and it is from then on
read with its open, and written by settlements: each carries what was written, and several writers' are applied one after the other.
While it is inlined no chunk of it counts.

It grows into chunks when somebody wants it longer than the server allows (`Grow`), and never comes back, unless it is cut to nothing. The
bytes go into chunk 0 first, under a new truncate version, and in the transaction that checks that nothing changed meanwhile the file
stops being inlined. So a growth that failed half-way leaves an inlined file, and a chunk that the next growth, or the removal of
the file, takes away; and of two servers that let it grow, the chunk of the later one stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import Status, error
from ...proto.gen.meta_pb2 import InlineWrites
from .. import keys
from ..kv.engine import Transaction
from . import inode as inodes
from . import quota
from .attempt import Attempt, Detour, Task, layout_of
from .inode import Inode

if TYPE_CHECKING:
    from .namespace import Namespace

VERSION = 1
BYTES_DEFAULT = 4096
BYTES_MAX = 64 << 10  # that a server may be told to keep: a value of the smallest engine holds it
PIECES_MAX = 1024  # of one settlement

_VERSION_BYTE = bytes([VERSION])


def unpack(data: bytes) -> bytes:
    """The bytes of a record. Raises BAD_FORMAT for one of a newer version."""
    if data[:1] > _VERSION_BYTE:
        raise keys.refused("an inlined file", data[0])
    return data[1:]


async def content(txn: Transaction, inode: Inode, *, snapshot: bool = False) -> bytes:
    """The bytes of an inlined file."""
    data = await txn.get(keys.inline_key(inode.id), snapshot=snapshot)
    return unpack(data) if data is not None else b""


def put(txn: Transaction, inode: Inode, data: bytes) -> None:
    """The file has these bytes, beside its inode; the caller writes that."""
    quota.resize(txn, inode, len(data))
    inode.flags |= inodes.INLINE
    txn.put(keys.inline_key(inode.id), _VERSION_BYTE + data)


def drop(txn: Transaction, inode: Inode) -> None:
    """The bytes beside the inode go."""
    inode.flags &= ~inodes.INLINE
    txn.delete(keys.inline_key(inode.id))


async def write(attempt: Attempt, inode: Inode, writes: InlineWrites) -> None:
    """Apply what a writer reports. Raises NOT_INLINE where the file lies in chunks, may have some, or would become too long."""
    limit = attempt.namespace.inline_max()
    if len(writes.offsets) != len(writes.pieces) or len(writes.pieces) > PIECES_MAX:
        raise error(
            Status.INVALID,
            f"{len(writes.offsets)} offsets and {len(writes.pieces)} pieces: as many, at most {PIECES_MAX}",
        )
    end = max((offset + len(piece) for offset, piece in zip(writes.offsets, writes.pieces, strict=True)), default=0)
    if not inode.flags & inodes.INLINE and not await may_begin(attempt, inode):
        raise error(Status.NOT_INLINE, f"inode {inode.id:x} lies in chunks")
    if end > limit:
        raise error(Status.NOT_INLINE, f"inode {inode.id:x}: {end} bytes, and at most {limit} are kept beside an inode")
    data = bytearray(await content(attempt.txn, inode) if inode.flags & inodes.INLINE else b"")
    data.extend(bytes(max(0, end - len(data))))
    for offset, piece in zip(writes.offsets, writes.pieces, strict=True):
        data[offset : offset + len(piece)] = piece
    put(attempt.txn, inode, bytes(data))


async def may_begin(attempt: Attempt, inode: Inode, *, sessions: int = 1) -> bool:
    """Whether an empty file may become inlined: nobody but the caller, who has so many, has a session on it, and no chunk is on its way
    out."""
    if inode.length or inode.flags & inodes.TRIMMING or not attempt.namespace.inline_max():
        return False
    return len(await attempt.txn.scan(*keys.session_range(inode.id), sessions + 1)) <= sessions


async def resize(attempt: Attempt, inode: Inode, length: int) -> None:
    """Cut or extend an inlined file; the caller writes the inode. Raises the detour where it becomes too long."""
    if length > attempt.namespace.inline_max():
        raise Grow(inode.id)
    data = await content(attempt.txn, inode)
    put(attempt.txn, inode, data[:length].ljust(length, b"\0"))


class Grow(Detour):
    """The bytes of an inlined file have to come into a chunk first. `asked`: that is what the request wants, and its reply will tell."""

    def __init__(self, inode: int, *, asked: bool = False) -> None:
        super().__init__(inode)
        self.inode = inode
        self.asked = asked

    async def take(self, namespace: Namespace, task: Task) -> None:
        await grow(namespace, self.inode, task if self.asked else None)


async def grow(namespace: Namespace, number: int, task: Task | None = None) -> None:
    """Move the bytes of an inlined file into chunk 0, for the `task` that asked for it; nothing to do is fine. Raises what storage raises:
    the file stays inlined then."""
    while True:

        async def begin(txn: Transaction) -> tuple[Inode, bytes] | None:
            inode = inodes.existing(number, await txn.get(keys.inode_key(number)))
            if not inode.flags & inodes.INLINE:
                return None
            # Whatever another server, or an earlier attempt, does to the chunk under an older version is refused from now on.
            inode.truncate_version += 1
            txn.put(keys.inode_key(number), inode.pack())
            return inode, await content(txn, inode)

        found = await namespace.transact(begin, task)
        if found is None:
            return
        inode, data = found
        await namespace.engine.sync()
        layout = layout_of(inode)
        await namespace.chunks.truncate(number, layout, len(data), 0, inode.truncate_version)
        if data:
            await namespace.chunks.write_first(number, layout, data, inode.truncate_version)

        async def finish(txn: Transaction, inode: Inode = inode, data: bytes = data) -> bool:
            now = inodes.existing(number, await txn.get(keys.inode_key(number)))
            if not now.flags & inodes.INLINE:
                return True
            if now.truncate_version != inode.truncate_version or await content(txn, now) != data:
                return False
            drop(txn, now)
            now.touched(namespace.clock.wall_ns())
            txn.put(keys.inode_key(number), now.pack())
            return True

        if await namespace.transact_if(finish, task):
            return

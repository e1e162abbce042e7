"""Replies and notifications whose length varies: directory entries, statx, errors, what we tell the kernel unasked. No I/O.

Fixed replies need no function: the device puts the header in front of `structs.X_OUT.pack(…)`. Data is never copied into a frame:
`data_header` is what goes in front of it in a writev.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from . import structs
from .protocol import OUT_HEADER, OUT_HEADER_BYTES, Notify

_PADS = tuple(bytes(-length % 8) for length in range(8))  # after a name, by its length modulo 8


def error(unique: int, errno: int) -> bytes:
    """A whole reply that refuses. `errno` is positive."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, -errno, unique)


def data_header(unique: int, data_bytes: int = 0) -> bytes:
    """What goes in front of `data_bytes` of data; with none, a whole reply that says that it worked."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES + data_bytes, 0, unique)


def dirent_bytes(name: bytes) -> int:
    """What an entry with this name takes in a READDIR reply."""
    return (structs.DIRENT.size + len(name) + 7) & ~7


def direntplus_bytes(name: bytes) -> int:
    """What an entry with this name takes in a READDIRPLUS reply."""
    return structs.ENTRY_OUT.size + dirent_bytes(name)


def pack_dirent(ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """One entry of READDIR. `offset` is where the listing goes on after it, `kind` the file type (mode >> 12)."""
    return structs.DIRENT.pack(ino, offset, len(name), kind) + name + _PADS[len(name) & 7]


def pack_direntplus(entry: bytes, ino: int, offset: int, kind: int, name: bytes) -> bytes:
    """One entry of READDIRPLUS. `entry` is a packed ENTRY_OUT: it counts as a lookup unless its node is 0 ("." and ".." and names
    that cannot be looked up)."""
    return entry + structs.DIRENT.pack(ino, offset, len(name), kind) + name + _PADS[len(name) & 7]


NO_ENTRY = bytes(structs.ENTRY_OUT.size)  # in READDIRPLUS: a name only, nothing about its inode


def _notification(code: Notify, layout: Struct, *fields: int, tail: bytes = b"") -> bytes:
    size = OUT_HEADER_BYTES + layout.size + len(tail)
    return b"".join((OUT_HEADER.pack(size, code, 0), layout.pack(*fields), tail))


def notify_inval_inode(node: int, offset: int = 0, length: int = 0) -> bytes:
    """The kernel drops the attributes and the pages of the range; length 0: to the end; offset -1: attributes only.

    Never written from where a request on a page of this inode waits for us: the kernel waits for that page's lock.
    """
    return _notification(Notify.INVAL_INODE, structs.NOTIFY_INVAL_INODE_OUT, node, offset, length)


def notify_inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """The kernel drops a name. It takes the directory's lock: never written from within a request that holds it."""
    layout = structs.NOTIFY_INVAL_ENTRY_OUT
    return _notification(Notify.INVAL_ENTRY, layout, parent, len(name), flags, tail=name + b"\0")


def notify_delete(parent: int, child: int, name: bytes) -> bytes:
    """The kernel drops a name and tells watchers (inotify) that it was deleted, if it still leads to `child`. Locks as above."""
    return _notification(Notify.DELETE, structs.NOTIFY_DELETE_OUT, parent, child, len(name), tail=name + b"\0")


def notify_store_header(node: int, offset: int, size: int) -> bytes:
    """What goes in front of `size` bytes that the kernel shall put into its page cache."""
    total = OUT_HEADER_BYTES + structs.NOTIFY_STORE_OUT.size + size
    return OUT_HEADER.pack(total, Notify.STORE, 0) + structs.NOTIFY_STORE_OUT.pack(node, offset, size)


def notify_retrieve(notify_unique: int, node: int, offset: int, size: int) -> bytes:
    """The kernel answers with NOTIFY_REPLY, whose unique is `notify_unique`, and what it has of the range."""
    return _notification(Notify.RETRIEVE, structs.NOTIFY_RETRIEVE_OUT, notify_unique, node, offset, size)


def notify_poll(kh: int) -> bytes:
    """Wakes the poll(2) that POLL came from."""
    return _notification(Notify.POLL, structs.NOTIFY_POLL_OUT, kh)


def notify_plain(code: Notify) -> bytes:
    """RESEND or INC_EPOCH: a header is all."""
    return OUT_HEADER.pack(OUT_HEADER_BYTES, code, 0)


def notify_prune(nodes: Sequence[int]) -> bytes:
    """The kernel drops these inodes where nothing uses them."""
    tail = Struct(f"={len(nodes)}Q").pack(*nodes)
    return _notification(Notify.PRUNE, structs.NOTIFY_PRUNE_OUT, len(nodes), tail=tail)

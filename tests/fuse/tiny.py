"""A file system in a dictionary that answers every request of the kernel: what stands behind /dev/fuse while requests are recorded.

It decides nothing interesting; permissions, lookup counts and link counts are nobody's business here. Inode numbers and handles
follow from the name that a file was made with, so that a recording is the same every time.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable
from typing import NamedTuple

from emberfs.fuse import negotiation, replies, requests, structs
from emberfs.fuse.protocol import (
    IN_HEADER_BYTES,
    NO_REPLY,
    ROOT_NODE,
    Header,
    Opcode,
    OpenReply,
    check,
)

FH = 1 << 40  # a handle is its node plus this
TIME = 1_000_000_000  # of everything that nobody set
TIME_NS = 123_456_789
READY = b"ready"  # is there from the start, with READY_BYTES
READY_BYTES = bytes(range(256)) * 64
SLOW = b"user.slow"  # reading this attribute is answered when its caller has had a signal
PUSH = b"user.push"  # reading this one makes us push: the names in its value's list vanish from the kernel's cache
RETRIEVE = b"user.retrieve"  # reading this one makes us ask for cached pages
RETRIEVE_UNIQUE = 0xCAFE


def node_of(name: bytes) -> int:
    """The inode number of what was made with this name."""
    return zlib.crc32(name) | 1 << 32


class Attr(NamedTuple):
    """The attributes of an inode in the order of `structs.ATTR`: `ENTRY_OUT.pack(node, …, *attr)`."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int = 0


class Node:
    """One inode."""

    def __init__(self, number: int, mode: int, *, uid: int = 0, gid: int = 0, rdev: int = 0) -> None:
        self.number = number
        self.mode = mode
        self.uid, self.gid, self.rdev = uid, gid, rdev
        self.times = [TIME, TIME, TIME, TIME_NS, TIME_NS, TIME_NS]  # as in Attr
        self.data = bytearray()
        self.names: dict[bytes, Node] = {}
        self.xattrs: dict[bytes, bytes] = {}

    @property
    def attr(self) -> Attr:
        size = len(self.data)
        own = (self.mode, 1, self.uid, self.gid, self.rdev, 4096)
        return Attr(self.number, size, -(-size // 512), *self.times, *own)


class Refused(Exception):
    """A request is answered with this errno."""


class Tiny:
    """Requests in, replies out; no I/O. `push` is what to write to the device after the next reply."""

    def __init__(self, wanted: negotiation.Wanted) -> None:
        self.wanted = wanted
        self.agreement: negotiation.Agreement | None = None
        root, ready = Node(ROOT_NODE, stat.S_IFDIR | 0o777), Node(node_of(READY), stat.S_IFREG | 0o666)
        ready.data[:] = READY_BYTES
        root.names[READY] = ready
        self.nodes = {node.number: node for node in (root, ready)}
        self.locks: dict[int, requests.Lock] = {}
        self.slow: int | None = None  # the request that waits for a signal
        self.push: list[bytes] = []

    def answer(self, frame: memoryview) -> bytes | None:
        """The whole reply, None if there is none (yet)."""
        header = Header(*check(frame, len(frame)))
        body = frame[IN_HEADER_BYTES : header.length - 8 * header.extension_words]
        requests.Extensions.parse(frame[header.length - 8 * header.extension_words :])
        if header.opcode == Opcode.INTERRUPT:
            (unique,) = structs.INTERRUPT_IN.unpack_from(body)
            assert unique == self.slow
            return replies.error(unique, errno.EINTR)
        if header.opcode in NO_REPLY:
            if header.opcode == Opcode.BATCH_FORGET:
                requests.forgets(body)
            return None
        handler: Callable[[Header, memoryview], bytes | None] | None
        handler = getattr(self, "do_" + Opcode(header.opcode).name.lower(), None)
        if handler is None:
            return replies.error(header.unique, errno.ENOSYS)
        try:
            reply = handler(header, body)
        except Refused as refused:
            return replies.error(header.unique, refused.args[0])
        return None if reply is None else replies.data_header(header.unique, len(reply)) + reply

    # --- what replies are made of ---------------------------------------------------------------------------------------------

    def entry(self, node: Node) -> bytes:
        return structs.ENTRY_OUT.pack(node.number, 1, 1, 0, 500_000_000, 0, *node.attr)

    def attributes(self, node: Node) -> bytes:
        return structs.ATTR_OUT.pack(0, 0, *node.attr)

    def make(self, header: Header, name: bytes, mode: int, rdev: int = 0) -> Node:
        node = Node(node_of(name), mode, uid=header.uid, gid=header.gid, rdev=rdev)
        self.nodes[node.number] = node
        self.nodes[header.node].names[name] = node
        return node

    def child(self, header: Header, name: bytes) -> Node:
        try:
            return self.nodes[header.node].names[name]
        except KeyError:
            raise Refused(errno.ENOENT) from None

    # --- names ----------------------------------------------------------------------------------------------------------------

    def do_init(self, _header: Header, body: memoryview) -> bytes:
        kernel = requests.InitIn.parse(body)
        self.agreement = negotiation.negotiate(kernel, self.wanted, max_pages_limit=256)
        return self.agreement.reply

    def do_lookup(self, header: Header, body: memoryview) -> bytes:
        return self.entry(self.child(header, requests.name(body)))

    def do_mkdir(self, header: Header, body: memoryview) -> bytes:
        mode, _umask, name = requests.Mkdir.parse(body)
        return self.entry(self.make(header, name, stat.S_IFDIR | mode))

    def do_mknod(self, header: Header, body: memoryview) -> bytes:
        mode, rdev, _umask, name = requests.Mknod.parse(body)
        return self.entry(self.make(header, name, mode, rdev))

    def do_symlink(self, header: Header, body: memoryview) -> bytes:
        name, target = requests.Symlink.parse(body)
        node = self.make(header, name, stat.S_IFLNK | 0o777)
        node.data[:] = target
        return self.entry(node)

    def do_readlink(self, header: Header, _body: memoryview) -> bytes:
        return bytes(self.nodes[header.node].data)

    def do_link(self, header: Header, body: memoryview) -> bytes:
        node, name = requests.Link.parse(body)
        self.nodes[header.node].names[name] = self.nodes[node]
        return self.entry(self.nodes[node])

    def do_unlink(self, header: Header, body: memoryview) -> bytes:
        self.child(header, requests.name(body))
        del self.nodes[header.node].names[requests.name(body)]
        return b""

    do_rmdir = do_unlink

    def do_rename(self, header: Header, body: memoryview) -> bytes:
        return self._rename(header, requests.Rename.parse(body))

    def do_rename2(self, header: Header, body: memoryview) -> bytes:
        return self._rename(header, requests.Rename.parse2(body))

    def _rename(self, header: Header, request: requests.Rename) -> bytes:
        node = self.nodes[header.node].names.pop(request.name)
        self.nodes[request.new_parent].names[request.new_name] = node
        return b""

    def do_readdir(self, header: Header, body: memoryview) -> bytes:
        return self._listing(header, body, plus=False)

    def do_readdirplus(self, header: Header, body: memoryview) -> bytes:
        return self._listing(header, body, plus=True)

    def _listing(self, header: Header, body: memoryview, *, plus: bool) -> bytes:
        _fh, offset, size, *_ = structs.READ_IN.unpack_from(body)
        listing = b""
        for at, (name, node) in enumerate(list(self.nodes[header.node].names.items())[offset:], offset + 1):
            one: tuple[int, int, int, bytes] = (node.number, at, node.mode >> 12, name)
            packed = replies.pack_direntplus(self.entry(node), *one) if plus else replies.pack_dirent(*one)
            if len(listing) + len(packed) > size:
                break
            listing += packed
        return listing

    # --- attributes -----------------------------------------------------------------------------------------------------------

    def do_getattr(self, header: Header, _body: memoryview) -> bytes:
        return self.attributes(self.nodes[header.node])

    def do_statx(self, header: Header, body: memoryview) -> bytes:
        mask = requests.Statx.parse(body).mask
        node = self.nodes[header.node]
        attr = node.attr
        seconds = (attr.atime, attr.atime_ns, 77, 7, attr.ctime, attr.ctime_ns, attr.mtime, attr.mtime_ns)
        head = (mask, 4096, 0, 1, attr.uid, attr.gid, attr.mode, attr.ino, attr.size, attr.blocks, 0)
        return structs.STATX_OUT.pack(0, 0, 0, *head, *seconds, *structs.decode_device(attr.rdev), 0, 0)

    def do_setattr(self, header: Header, body: memoryview) -> bytes:
        request, node = requests.Setattr.parse(body), self.nodes[header.node]
        if request.valid & 1:
            node.mode = request.mode
        if request.valid & 2:
            node.uid = request.uid
        if request.valid & 4:
            node.gid = request.gid
        if request.valid & 8:
            node.data[:] = node.data[: request.size].ljust(request.size, b"\0")
        if request.valid & 16:
            node.times[0], node.times[3] = request.atime, request.atime_ns
        if request.valid & 32:
            node.times[1], node.times[4] = request.mtime, request.mtime_ns
        return self.attributes(node)

    def do_access(self, _header: Header, _body: memoryview) -> bytes:
        return b""

    def do_statfs(self, _header: Header, _body: memoryview) -> bytes:
        return structs.STATFS_OUT.pack(1000, 900, 800, 70, 60, 4096, 255, 512)

    def do_setxattr(self, header: Header, body: memoryview) -> bytes:
        assert self.agreement
        request = requests.Setxattr.parse(body, self.agreement.flags)
        self.nodes[header.node].xattrs[request.name] = request.value
        return b""

    def do_getxattr(self, header: Header, body: memoryview) -> bytes | None:
        size, name = requests.Getxattr.parse(body)
        node = self.nodes[header.node]
        if name == SLOW:
            self.slow = header.unique
            return None
        if name == PUSH:
            self.push += [replies.notify_inval_entry(ROOT_NODE, gone) for gone in node.xattrs[PUSH].split(b",")]
        elif name == RETRIEVE:
            self.push.append(replies.notify_retrieve(RETRIEVE_UNIQUE, header.node, 0, 64))
        elif name not in node.xattrs:
            raise Refused(errno.ENODATA)
        return self._sized(node.xattrs.get(name, b""), size)

    def do_listxattr(self, header: Header, body: memoryview) -> bytes:
        (size,) = structs.GETXATTR_IN.unpack_from(body)
        return self._sized(b"".join(name + b"\0" for name in self.nodes[header.node].xattrs), size)

    def _sized(self, value: bytes, size: int) -> bytes:
        if not size:
            return structs.GETXATTR_OUT.pack(len(value))
        if len(value) > size:
            raise Refused(errno.ERANGE)
        return value

    def do_removexattr(self, header: Header, body: memoryview) -> bytes:
        del self.nodes[header.node].xattrs[requests.name(body)]
        return b""

    # --- files ----------------------------------------------------------------------------------------------------------------

    def do_open(self, header: Header, _body: memoryview) -> bytes:
        return structs.OPEN_OUT.pack(header.node + FH, OpenReply.KEEP_CACHE, 0)

    do_opendir = do_open

    def do_create(self, header: Header, body: memoryview) -> bytes:
        request = requests.Create.parse(body)
        node = self.make(header, request.name, request.mode)
        entry = (node.number, 1, 1, 0, 0, 0, *node.attr)
        return structs.CREATE_OUT.pack(*entry, node.number + FH, 0, 0)

    do_tmpfile = do_create

    def do_read(self, header: Header, body: memoryview) -> bytes:
        _fh, offset, size, *_ = structs.READ_IN.unpack_from(body)
        return bytes(self.nodes[header.node].data[offset : offset + size])

    def do_write(self, header: Header, body: memoryview) -> bytes:
        _fh, offset, size, *_ = structs.WRITE_IN.unpack_from(body)
        data = self.nodes[header.node].data
        data[:] = data.ljust(offset, b"\0")
        data[offset : offset + size] = requests.payload(body, structs.WRITE_IN.size, size)
        return structs.WRITE_OUT.pack(size)

    def do_nothing(self, _header: Header, _body: memoryview) -> bytes:
        return b""

    do_flush = do_release = do_releasedir = do_fsync = do_fsyncdir = do_nothing

    def do_fallocate(self, header: Header, body: memoryview) -> bytes:
        request = requests.Fallocate.parse(body)
        data = self.nodes[header.node].data
        if not request.mode & 1:
            data[:] = data.ljust(request.offset + request.length, b"\0")
        return b""

    def do_lseek(self, header: Header, body: memoryview) -> bytes:
        request = requests.Lseek.parse(body)
        end = len(self.nodes[header.node].data)
        return structs.LSEEK_OUT.pack(request.offset if request.whence == os.SEEK_DATA else end)

    def do_copy_file_range_64(self, header: Header, body: memoryview) -> bytes:
        return structs.COPY_FILE_RANGE_OUT.pack(self._copied(header, body))

    def do_copy_file_range(self, header: Header, body: memoryview) -> bytes:
        return structs.WRITE_OUT.pack(self._copied(header, body))

    def _copied(self, header: Header, body: memoryview) -> int:
        request = requests.CopyFileRange.parse(body)
        piece = self.nodes[header.node].data[request.offset_in : request.offset_in + request.length]
        self.nodes[request.node_out].data[request.offset_out : request.offset_out + len(piece)] = piece
        return len(piece)

    def do_getlk(self, header: Header, body: memoryview) -> bytes:
        asked = requests.Lock.parse(body)
        held = self.locks.get(header.node)
        if held is None or held.owner == asked.owner:
            return structs.LK_OUT.pack(asked.start, asked.end, 2, 0)  # F_UNLCK
        return structs.LK_OUT.pack(held.start, held.end, held.type, held.pid)

    def do_setlk(self, header: Header, body: memoryview) -> bytes:
        self.locks[header.node] = requests.Lock.parse(body)
        return b""

    do_setlkw = do_setlk

    def do_ioctl(self, _header: Header, body: memoryview) -> bytes:
        request = requests.Ioctl.parse(body)
        return structs.IOCTL_OUT.pack(0, 0, 0, 0) + request.data[::-1].ljust(request.out_size, b"\0")

    def do_poll(self, _header: Header, body: memoryview) -> bytes:
        _, kh, flags, events = structs.POLL_IN.unpack_from(body)
        if flags:
            self.push.append(replies.notify_poll(kh))
        return structs.POLL_OUT.pack(events & 1)

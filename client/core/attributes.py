"""What the faces show of an inode and of the file system: plain data, made from messages."""

from __future__ import annotations

from dataclasses import dataclass

from ...proto.gen import common_pb2, meta_pb2

TYPE_NAMES: dict[int, str] = {
    common_pb2.FILE_TYPE_REGULAR: "file",
    common_pb2.FILE_TYPE_DIRECTORY: "directory",
    common_pb2.FILE_TYPE_SYMLINK: "symlink",
    common_pb2.FILE_TYPE_FIFO: "fifo",
    common_pb2.FILE_TYPE_SOCKET: "socket",
    common_pb2.FILE_TYPE_CHARACTER: "character device",
    common_pb2.FILE_TYPE_BLOCK: "block device",
}


@dataclass(slots=True)
class Stat:
    """An inode's attributes. Times are nanoseconds since the epoch, sizes bytes."""

    inode: int
    type: str  # "file", "directory", "symlink", "fifo", "socket", "character device", "block device"
    mode: int  # permission bits with suid, sgid and sticky (07777)
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    change: int  # grows with every change of the content or the attributes: equal means unchanged
    chunk_size: int  # of a file; of a directory: what its new files get
    rdev: int  # device number of a special file
    target: str  # of a symlink
    extended: bool = False  # has extended attributes or ACLs

    @property
    def is_file(self) -> bool:
        return self.type == "file"

    @property
    def is_dir(self) -> bool:
        return self.type == "directory"

    @property
    def is_symlink(self) -> bool:
        return self.type == "symlink"


@dataclass(slots=True)
class StatFs:
    """Space of the whole file system, in bytes, and how many inodes are in use."""

    total: int
    free: int
    used: int
    inodes: int


def stat_of(a: common_pb2.Attributes) -> Stat:
    """The attributes of a reply as a `Stat`."""
    return Stat(
        a.inode,
        TYPE_NAMES.get(a.type, "unknown"),
        a.mode,
        a.uid,
        a.gid,
        a.nlink,
        a.length,
        a.atime_ns,
        a.mtime_ns,
        a.ctime_ns,
        a.birth_ns,
        a.change,
        a.layout.chunk_size,
        a.rdev,
        a.target.decode("utf-8", "surrogateescape") if a.target else "",
        a.extended,
    )


def statfs_of(reply: meta_pb2.StatFsReply) -> StatFs:
    """The reply as a `StatFs`."""
    return StatFs(reply.bytes_total, reply.bytes_free, reply.bytes_total - reply.bytes_free, reply.inodes_used)

"""The layout of each request's and reply's body, as compiled structures.

`X_IN` is what the kernel sends: `READ_IN.unpack_from(buffer, IN_HEADER_BYTES)` gives its fields, padding left out. `X_OUT` is the
body of a reply. The comment of each names its
fields in order. `seconds, nanoseconds` pairs are points in time since 1970 or, in the replies' `*_valid`, durations for which
the kernel may believe what we said. Sizes and offsets are bytes; `blocks` are 512 bytes; uid, gid, mode and rdev are as in stat(2),
rdev in the kernel's 32-bit form (`encode_device`).
"""

from __future__ import annotations

from struct import Struct

# --- requests -----------------------------------------------------------------------------------------------------------------

FORGET_IN = Struct("=Q")  # nlookup: lookups to take back
BATCH_FORGET_IN = Struct("=I4x")  # count; that many FORGET_ONE follow
FORGET_ONE = Struct("=QQ")  # node, nlookup
GETATTR_IN = Struct("=I4xQ")  # getattr_flags, fh
# valid (SetAttr), fh, size, lock_owner, atime, mtime, ctime (seconds), atime_ns, mtime_ns, ctime_ns, mode, uid, gid
SETATTR_IN = Struct("=I4xQQQqqqIIII4xII4x")
MKNOD_IN = Struct("=III4x")  # mode, rdev, umask; name follows
MKDIR_IN = Struct("=II")  # mode, umask; name follows
RENAME_IN = Struct("=Q")  # new parent; old name, new name follow
RENAME2_IN = Struct("=QI4x")  # new parent, flags (RenameFlag); old name, new name follow
LINK_IN = Struct("=Q")  # node that gets another name; the new name follows (the header's node is the parent)
OPEN_IN = Struct("=II")  # flags (O_*), open_flags
CREATE_IN = Struct("=IIII")  # flags (O_*), mode, umask, open_flags; name follows. Also TMPFILE.
RELEASE_IN = Struct("=QIIQ")  # fh, flags (O_*), release_flags, lock_owner. Also RELEASEDIR.
FLUSH_IN = Struct("=Q8xQ")  # fh, lock_owner
READ_IN = Struct("=QQIIQI4x")  # fh, offset, size, read_flags, lock_owner, flags (O_*). Also READDIR, READDIRPLUS.
WRITE_IN = Struct("=QQIIQI4x")  # fh, offset, size, write_flags, lock_owner, flags (O_*); the data follows
FSYNC_IN = Struct("=QI4x")  # fh, fsync_flags. Also FSYNCDIR.
# size of the value, flags (XATTR_*), setxattr_flags; name, value follow; with Init.SETXATTR_EXT
SETXATTR_IN = Struct("=III4x")
SETXATTR_IN_SHORT = Struct("=II")  # size of the value, flags (XATTR_*); name, value follow; without it
# size of the caller's buffer, 0 to ask for the size; name follows. Also LISTXATTR, without name.
GETXATTR_IN = Struct("=I4x")
LK_IN = Struct("=QQQQIII4x")  # fh, owner, start, end (inclusive; OFFSET_MAX: to the end), type (F_*LCK), pid, lk_flags
ACCESS_IN = Struct("=I4x")  # mask (R_OK | W_OK | X_OK)
INIT_IN = Struct("=IIII")  # major, minor, max_readahead, flags; kernels from 7.36 send 64 bytes
INIT_IN_FLAGS2 = Struct("=I")  # at offset 16, if flags have INIT_EXT
INTERRUPT_IN = Struct("=Q")  # unique of the request whose caller has had a signal
BMAP_IN = Struct("=QI4x")  # block, blocksize
IOCTL_IN = Struct("=QIIQII")  # fh, flags (IoctlFlag), cmd, arg, in_size, out_size; in_size bytes follow
POLL_IN = Struct("=QQII")  # fh, kh (the kernel's handle for Notify.POLL), flags, events
FALLOCATE_IN = Struct("=QQQI4x")  # fh, offset, length, mode (FallocateMode)
LSEEK_IN = Struct("=QQI4x")  # fh, offset, whence (SEEK_DATA or SEEK_HOLE)
# fh_in, offset_in, node_out, fh_out, offset_out, length, flags; the header's node is the source
COPY_FILE_RANGE_IN = Struct("=QQQQQQQ")
STATX_IN = Struct("=I4xQII")  # getattr_flags, fh, sx_flags (AT_STATX_*), sx_mask (STATX_*)
SETUPMAPPING_IN = Struct("=QQQQQ")  # fh, file offset, length, flags, window offset
REMOVEMAPPING_IN = Struct("=I")  # count; that many REMOVEMAPPING_ONE follow
REMOVEMAPPING_ONE = Struct("=QQ")  # window offset, length
SYNCFS_IN = Struct("=8x")
# offset, size; the data follows. The header's unique is that of our notification.
NOTIFY_RETRIEVE_IN = Struct("=8xQI20x")

# Extensions of creations.
# size with this header, type; or size and number of labels where it is a list of security labels
EXTENSION = Struct("=II")
SECURITY_LABEL = Struct("=I4x")  # size of the label; the attribute's name with NUL and the label follow
GROUPS_HEAD = Struct("=I")  # count; that many 32-bit gids follow

# --- replies ------------------------------------------------------------------------------------------------------------------

_ATTR = "QQQqqqIIIIIIIIII"
# ino, size, blocks, atime, mtime, ctime (seconds), atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, blksize, flags
ATTR = Struct("=" + _ATTR)
# attr_valid seconds, attr_valid nanoseconds; then the fields of ATTR
ATTR_OUT = Struct("=QI4x" + _ATTR)
# node, generation, entry_valid seconds, attr_valid seconds, entry_valid nanoseconds, attr_valid nanoseconds; the fields of ATTR.
# node 0: there is no such name, and the kernel may remember that for entry_valid.
ENTRY_OUT = Struct("=QQQQII" + _ATTR)
OPEN_OUT = Struct("=QIi")  # fh, flags (OpenReply), backing_id (0 without PASSTHROUGH)
# The fields of ENTRY_OUT, then those of OPEN_OUT; the reply to CREATE and TMPFILE
CREATE_OUT = Struct(ENTRY_OUT.format + OPEN_OUT.format.lstrip("="))
WRITE_OUT = Struct("=I4x")  # size: bytes taken. Also COPY_FILE_RANGE.
COPY_FILE_RANGE_OUT = Struct("=Q")  # bytes copied; COPY_FILE_RANGE_64
STATFS_OUT = Struct("=QQQQQIII4x24x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize
GETXATTR_OUT = Struct("=I4x")  # size of the value or list, when the request's size was 0. Also LISTXATTR.
LK_OUT = Struct("=QQII")  # start, end, type (F_UNLCK: free), pid
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran (nanoseconds), max_pages,
# map_alignment, flags2, max_stack_depth, request_timeout (seconds)
INIT_OUT = Struct("=IIIIHHIIHHIIH22x")
BMAP_OUT = Struct("=Q")  # block
IOCTL_OUT = Struct("=iIII")  # result, flags, in_iovs, out_iovs; the output bytes follow
IOCTL_IOVEC = Struct("=QQ")  # base, length
POLL_OUT = Struct("=I4x")  # revents
LSEEK_OUT = Struct("=Q")  # offset
# ino, offset of the next entry, length of the name, type (mode >> 12); name, padded to 8 bytes
DIRENT = Struct("=QQII")
# attr_valid seconds, attr_valid nanoseconds, flags; then mask (STATX_*), blksize, attributes (STATX_ATTR_*), nlink, uid, gid, mode,
# ino, size, blocks, attributes_mask, then seconds and nanoseconds of atime, btime, ctime, mtime, then rdev major, rdev minor,
# dev major, dev minor
STATX_OUT = Struct("=QII16x" + "IIQIIIH2xQQQQ" + "qI4x" * 4 + "IIII112x")

# --- notifications ------------------------------------------------------------------------------------------------------------

NOTIFY_POLL_OUT = Struct("=Q")  # kh
NOTIFY_INVAL_INODE_OUT = Struct("=Qqq")  # node, offset (negative: attributes only), length (0 or less: to the end)
NOTIFY_INVAL_ENTRY_OUT = Struct("=QII")  # parent, length of the name, flags; name and NUL follow
NOTIFY_DELETE_OUT = Struct("=QQI4x")  # parent, child, length of the name; name and NUL follow
NOTIFY_STORE_OUT = Struct("=QQI4x")  # node, offset, size; the data follows
NOTIFY_RETRIEVE_OUT = Struct("=QQQI4x")  # notify_unique (comes back as unique), node, offset, size
NOTIFY_PRUNE_OUT = Struct("=I12x")  # count; that many 64-bit nodes follow

BACKING_MAP = Struct("=iI8x")  # fd, flags; argument of DEV_IOC_BACKING_OPEN
CLONE_ARGUMENT = Struct("=I")  # descriptor of the connection; argument of DEV_IOC_CLONE


def encode_device(major: int, minor: int) -> int:
    """The kernel's 32-bit form of a device number (`new_encode_dev`), as in `rdev`. 12 bits of major, 20 of minor."""
    return (minor & 0xFF) | ((major & 0xFFF) << 8) | ((minor & 0xFFF00) << 12)


def decode_device(rdev: int) -> tuple[int, int]:
    """(major, minor) of the kernel's 32-bit form."""
    return (rdev >> 8) & 0xFFF, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00)

"""LOOKUP and GETATTR answered without asking, from metadata leases; and what other clients change, told to the kernel at once.

What is known under a lease (`client/core/leases.py`) is kept in the form that the kernel wants, so that an answer is packed in a
microsecond or two. The kernel may believe it for as long as its time-outs say, but no longer than the leases hold without another word
from the server: both caches in a row promise no more than one of them.

**May a cached answer be given to anybody?** What the server would check before it tells where a name leads is the right to search the
directory, and the kernel has checked that before it asks (default_permissions, ACLs included), by attributes that are at most a second
old and come from the same leases: when somebody changes them, both hear of it. Attributes of an inode that one holds need no right at
all. What comes with a change or an open is never answered from here. Who may search by a capability of his (CAP_DAC_READ_SEARCH)
without being root sees names that the server would not tell him, as the administrator of this machine wants it.
"""

from __future__ import annotations

from struct import Struct
from time import monotonic
from typing import TYPE_CHECKING

from ..client.core.leases import MISSING
from .entries import BLOCK_BYTES, SET_ID_BITS, encoded, missing_for
from .protocol import INVAL_EXPIRE_ONLY
from .replies import notify_inval_entry, notify_inval_inode
from .structs import ATTR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..client.core.attributes import Stat
    from ..client.core.inode import Inode
    from ..client.core.touched import Name
    from .filesystem import FileSystem

_KEPT = Struct(f"={ATTR.size}sQB")  # ATTR, the version, what more there is to know
_EXTENDED, _SET_ID = 1, 2
_ENTRY_HEAD = Struct("=QQQQII")  # of ENTRY_OUT, up to the attributes
_ATTR_HEAD = Struct("=QI4x")  # of ATTR_OUT
_TIMES, _TIMES_AT = Struct("=qq"), 32  # mtime and ctime in ATTR: seconds,
_FRACTIONS, _FRACTIONS_AT = Struct("=II"), 52  # and nanoseconds
_OWNER, _OWNER_AT = Struct("=IIII"), 60  # mode, links, user, group
_LINKS, _LINKS_AT = Struct("=I"), 64
_SIZE, _SIZE_AT = Struct("=QQ"), 8  # size and blocks
_ATIME, _ATIME_AT = Struct("=q"), 24  # its seconds,
_ATIME_FRACTION, _ATIME_FRACTION_AT = Struct("=I"), 48  # and nanoseconds
ATTRIBUTES_ONLY = -1  # the offset that spares the pages
_SECOND_NS = 1_000_000_000


class Believed:
    """Of one mount."""

    def __init__(self, fs: FileSystem) -> None:
        self._fs = fs
        self._leases = fs.core.hold_leases(self._keep, advanced)
        self._leases.listen(self._changed)

    def _keep(self, stat: Stat) -> bytes:
        more = (stat.extended and _EXTENDED) | (bool(stat.mode & SET_ID_BITS) and _SET_ID)
        return _KEPT.pack(ATTR.pack(*encoded(self._fs, stat)), stat.change, more)

    # --- answers --------------------------------------------------------------------------------------------------------------------

    def attr(self, inode: int) -> bytes | None:
        """The reply to GETATTR; None where the server has to be asked."""
        left = self._leases.remaining()
        if left <= 0 or (kept := self._leases.attributes(inode)) is None:
            return None
        if (fields := self._fields(inode, kept, looked_up=False)) is None:
            return None
        return _ATTR_HEAD.pack(*self._shortened(self._fs.attr_timeout, left)) + fields

    def keeps(self, inode: int) -> bool:
        """Whether its attributes are leased."""
        return self._leases.attributes(inode) is not None

    def is_bare(self, inode: int) -> bool:
        """Whether it is known to have neither extended attributes nor ACLs."""
        kept = self._leases.attributes(inode) if self._leases.remaining() > 0 else None
        return kept is not None and not kept[-1] & _EXTENDED

    def plain_owner(self, inode: int) -> tuple[int, int, int] | None:
        """Mode (without the type), user and group; None where the server has to be asked, or where there is anything that a chown takes
        away: set-id bits, file capabilities."""
        kept = self._leases.attributes(inode) if self._leases.remaining() > 0 else None
        if kept is None or kept[-1]:
            return None
        mode, _, uid, gid = _OWNER.unpack_from(kept, _OWNER_AT)
        return mode & 0o7777, uid, gid

    def entry(self, directory: int, name: bytes) -> bytes | None:
        """The reply to LOOKUP; None where the server has to be asked. Raises NOT_FOUND, as `entries.missing`."""
        left = self._leases.remaining()
        if left <= 0 or (inode := self._leases.entry(directory, name)) is None:
            return None
        fs = self._fs
        if inode == MISSING:
            return missing_for(*self._shortened(fs.negative_timeout, left))
        kept = self._leases.attributes(inode)
        return None if kept is None else self._entry(inode, kept, left)

    def _entry(self, inode: int, kept: bytes, left: float) -> bytes | None:
        fs = self._fs
        fields = self._fields(inode, kept, looked_up=True)
        if fields is None:
            return None
        entry_seconds, entry_ns = self._shortened(fs.entry_timeout, left)
        attr_seconds, attr_ns = self._shortened(fs.attr_timeout, left)
        node = fs.node(inode)
        return _ENTRY_HEAD.pack(node, 0, entry_seconds, attr_seconds, entry_ns, attr_ns) + fields

    def _fields(self, inode: int, kept: bytes, *, looked_up: bool) -> bytes | None:
        """The fields of ATTR, with what was written here and is not settled, and a note that the kernel is told them. None where there are
        pages of an older version, which have to go before."""
        fs = self._fs
        fields, change, more = _KEPT.unpack(kept)
        nodes = fs.nodes
        if nodes.has_pages(inode) and nodes.told(inode) != change:
            return None
        if (opened := fs.core.inodes.get(inode)) is not None and opened.unsettled:
            opened.seen_change = max(opened.seen_change, change)
            fields = _written(fields, opened)
        if looked_up:
            nodes.looked_up(inode, change)
        else:
            nodes.tell(inode, change)
        fs.bare.told(inode, monotonic(), extended=bool(more & _EXTENDED))
        if more & _SET_ID:
            fs.set_ids.add(inode)
        return fields  # type: ignore[no-any-return]

    @staticmethod
    def _shortened(timeout: tuple[int, int], left: float) -> tuple[int, int]:
        """A time-out in seconds and nanoseconds, of at most so many seconds."""
        seconds, nanoseconds = timeout
        if seconds + nanoseconds / _SECOND_NS <= left:
            return timeout
        return int(left), int(left % 1 * _SECOND_NS)

    # --- questions ------------------------------------------------------------------------------------------------------------------

    def asked(self) -> int:
        """As `Leases.asked`."""
        return self._leases.asked()

    def learn(self, began: int, directory: int, name: bytes, stat: Stat) -> bytes | None:
        """A page of a directory says so, that was asked for then and is leased, as the server sees it. What is kept of it, if it may be."""
        kept = self._leases.learn_inode(began, stat)
        self._leases.learn_name(began, directory, name, stat.inode)
        return kept

    def listed(self, began: int, directory: int, name: bytes, stat: Stat) -> bytes | None:
        """As `learn`. The entry for READDIRPLUS; None where it has to be made in another way."""
        kept = self.learn(began, directory, name, stat)
        left = self._leases.remaining()
        return None if kept is None or left <= 0 else self._entry(stat.inode, kept, left)

    # --- what others change ---------------------------------------------------------------------------------------------------------

    def _changed(self, inodes: Iterable[int], names: Iterable[Name]) -> None:
        """The kernel asks again for what it holds of these. A file's pages go as well: its content may be what has changed."""
        fs = self._fs
        nodes, post, root = fs.nodes, fs.notifier.post, fs.root
        for inode in inodes:
            if inode == root or inode in nodes:
                post(notify_inval_inode(fs.node(inode), 0 if nodes.has_pages(inode) else ATTRIBUTES_ONLY))
        if fs.entry_timeout == (0, 0) and fs.negative_timeout == (0, 0):
            return
        for directory, name in names:
            if directory == root or directory in nodes:
                post(notify_inval_entry(fs.node(directory), name, INVAL_EXPIRE_ONLY))


def _written(fields: bytes, file: Inode) -> bytes:
    """The fields of ATTR of a file that is written here, as `Core.seen` shows them."""
    shown = bytearray(fields)
    size = file.length
    _SIZE.pack_into(shown, _SIZE_AT, size, (size + BLOCK_BYTES - 1) // BLOCK_BYTES)
    (mtime, ctime), (mtime_ns, ctime_ns) = (
        _TIMES.unpack_from(fields, _TIMES_AT),
        _FRACTIONS.unpack_from(fields, _FRACTIONS_AT),
    )
    if not file.only_times:
        mtime, mtime_ns = divmod(file.written_ns, _SECOND_NS)
    ctime, ctime_ns = max((ctime, ctime_ns), divmod(file.ctime_ns, _SECOND_NS))
    _TIMES.pack_into(shown, _TIMES_AT, mtime, ctime)
    _FRACTIONS.pack_into(shown, _FRACTIONS_AT, mtime_ns, ctime_ns)
    if file.atime_set_ns is not None:
        atime, atime_ns = divmod(file.atime_set_ns, _SECOND_NS)
        _ATIME.pack_into(shown, _ATIME_AT, atime)
        _ATIME_FRACTION.pack_into(shown, _ATIME_FRACTION_AT, atime_ns)
    return bytes(shown)


def advanced(kept: bytes, when_ns: int, subdirectories: int) -> bytes:
    """What is kept of a directory, changed at this time, with so many subdirectories more: its version is its ctime, which never goes
    back."""
    fields, change, more = _KEPT.unpack(kept)
    moved = bytearray(fields)
    if subdirectories:
        _LINKS.pack_into(moved, _LINKS_AT, _LINKS.unpack_from(fields, _LINKS_AT)[0] + subdirectories)
    if when_ns > change:
        seconds, nanoseconds = divmod(when_ns, _SECOND_NS)
        _TIMES.pack_into(moved, _TIMES_AT, seconds, seconds)
        _FRACTIONS.pack_into(moved, _FRACTIONS_AT, nanoseconds, nanoseconds)
        change = when_ns
    return _KEPT.pack(bytes(moved), change, more)

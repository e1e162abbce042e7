"""POSIX access control lists: entries, what they permit, how they are inherited, the kernel's form and the record. Pure functions.

An ACL has an entry for the owner, one for the group, one for all others, any number for named users and groups, and, when there is a
named one, a mask that bounds all entries but the owner's and the others'. An access ACL is stored beside the inode's mode, and the
mode stays what chmod and stat know: its middle bits are the mask. So only the group's own entry and the named ones count in the
stored access ACL; owner, mask and others are always those of the mode (`shown`), and chmod need not touch it. An ACL that says no more
than a mode is not stored at all. A directory's default ACL is what its new entries get, instead of mode and umask.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...proto.errors import Status, error
from .. import keys

VERSION = 1
ENTRIES_MAX = 8000  # of one ACL: its record must fit a value, its kernel form an extended attribute

# Tags of linux/posix_acl.h, in the order in which entries come.
USER_OBJ = 0x01
USER = 0x02
GROUP_OBJ = 0x04
GROUP = 0x08
MASK = 0x10
OTHER = 0x20

NO_ID = 0xFFFFFFFF  # of entries that name nobody
KERNEL_VERSION = 2  # POSIX_ACL_XATTR_VERSION

_KERNEL_HEAD = struct.Struct("<I")
_KERNEL_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_HEAD = struct.Struct(">BBBBBHH")  # version, owner, group, other, mask or NO_MASK, named users, named groups
_NAMED = struct.Struct(">IB")
_NO_MASK = 0xFF

Named = tuple[tuple[int, int], ...]  # (id, permissions), in the order of ids


class Acl(NamedTuple):
    """Permissions are READ 4, WRITE 2, EXECUTE 1."""

    owner: int
    group: int
    other: int
    mask: int | None
    users: Named = ()
    groups: Named = ()

    @property
    def mode(self) -> int:
        """The permission bits of a mode that says the same, or of the inode that has this ACL."""
        middle = self.group if self.mask is None else self.mask
        return self.owner << 6 | middle << 3 | self.other

    @property
    def says_more_than_mode(self) -> bool:
        return self.mask is not None

    def shown(self, mode: int) -> Acl:
        """A stored access ACL as its reader sees it: with what the mode has of it."""
        return self._replace(owner=mode >> 6 & 7, mask=mode >> 3 & 7, other=mode & 7)


def permits(acl: Acl, mode: int, gid: int, uid: int, gids: tuple[int, ...], want: int) -> bool:
    """What the entries of an access ACL say to somebody who is not the owner: a named user's entry decides for him; of the groups
    that he is in (`gids`), one that grants all of `want` is enough; who is in none is one of the others."""
    mask = mode >> 3 & 7
    for user, bits in acl.users:
        if user == uid:
            return bits & mask & want == want
    member = gid in gids
    if member and acl.group & want == want:
        return acl.group & mask & want == want
    for group, bits in acl.groups:
        if group in gids:
            member = True
            if bits & want == want:
                return bits & mask & want == want
    return not member and mode & want == want


def inherit(default: Acl, mode: int) -> tuple[int, Acl | None]:
    """(mode, access ACL or None) of something new in a directory with this default ACL: nobody gets more than `mode` says."""
    owner, middle, other = mode >> 6 & 7, mode >> 3 & 7, mode & 7
    made = default._replace(owner=default.owner & owner, other=default.other & other)
    if default.mask is None:
        made = made._replace(group=default.group & middle)
    else:
        made = made._replace(mask=default.mask & middle)
    return mode & ~0o777 | made.mode, made if made.says_more_than_mode else None


# --- the kernel's form ------------------------------------------------------------------------------------------------------------


def to_kernel(acl: Acl) -> bytes:
    """The value of `system.posix_acl_access` and `_default` (linux/posix_acl_xattr.h)."""
    rows = [(USER_OBJ, acl.owner, NO_ID), *((USER, bits, uid) for uid, bits in acl.users)]
    rows += [(GROUP_OBJ, acl.group, NO_ID), *((GROUP, bits, gid) for gid, bits in acl.groups)]
    if acl.mask is not None:
        rows.append((MASK, acl.mask, NO_ID))
    rows.append((OTHER, acl.other, NO_ID))
    return _KERNEL_HEAD.pack(KERNEL_VERSION) + b"".join(_KERNEL_ENTRY.pack(*row) for row in rows)


def from_kernel(value: bytes) -> Acl | None:
    """The ACL of such a value; None for one without entries, which removes it. Raises INVALID for what is no ACL, UNSUPPORTED for
    another version, NO_SPACE for more than ENTRIES_MAX entries."""
    if len(value) < _KERNEL_HEAD.size:
        raise _invalid(f"{len(value)} bytes are no list of entries")
    (version,) = _KERNEL_HEAD.unpack_from(value)
    if version != KERNEL_VERSION:
        raise error(Status.UNSUPPORTED, f"an ACL of version {version}: only {KERNEL_VERSION} is known")
    if (len(value) - _KERNEL_HEAD.size) % _KERNEL_ENTRY.size:
        raise _invalid(f"{len(value)} bytes are no list of entries")
    rows = list(_KERNEL_ENTRY.iter_unpack(value[_KERNEL_HEAD.size :]))
    if len(rows) > ENTRIES_MAX:
        raise error(Status.NO_SPACE, f"an ACL of {len(rows)} entries: at most {ENTRIES_MAX}")
    return from_rows(rows) if rows else None


def from_rows(rows: list[tuple[int, int, int]]) -> Acl:
    """The ACL of entries (tag, permissions, id). Raises INVALID."""
    # The order of tags is part of the form; that of ids within one tag is not, but nobody may be named twice.
    tags = [tag for tag, _, _ in rows]
    if tags != sorted(tags) or any(bits > 7 for _, bits, _ in rows):
        raise _invalid("entries out of order, or permissions beyond rwx")
    single: dict[int, int] = {}
    named: dict[int, dict[int, int]] = {USER: {}, GROUP: {}}
    for tag, bits, number in rows:
        if tag in named:
            if number == NO_ID or number in named[tag]:
                raise _invalid(f"id {number} is named twice, or is nobody's")
            named[tag][number] = bits
        elif tag not in (USER_OBJ, GROUP_OBJ, MASK, OTHER) or tag in single:
            raise _invalid(f"tag {tag:#x} is unknown or comes twice")
        else:
            single[tag] = bits
    users, groups = tuple(sorted(named[USER].items())), tuple(sorted(named[GROUP].items()))
    if not {USER_OBJ, GROUP_OBJ, OTHER} <= single.keys() or ((users or groups) and MASK not in single):
        raise _invalid("owner, group and others are needed, and a mask beside named entries")
    return Acl(single[USER_OBJ], single[GROUP_OBJ], single[OTHER], single.get(MASK), users, groups)


def _invalid(why: str) -> Exception:
    return error(Status.INVALID, f"not an access control list: {why}")


# --- the record -------------------------------------------------------------------------------------------------------------------


def pack(acl: Acl) -> bytes:
    mask = _NO_MASK if acl.mask is None else acl.mask
    head = _HEAD.pack(VERSION, acl.owner, acl.group, acl.other, mask, len(acl.users), len(acl.groups))
    return head + b"".join(_NAMED.pack(*row) for row in (*acl.users, *acl.groups))


def unpack(data: bytes) -> Acl:
    """The ACL of a record. Raises BAD_FORMAT for one of a newer version or a damaged one."""
    if data[:1] > bytes([VERSION]):
        raise keys.refused("an ACL", data[0])
    try:
        _, owner, group, other, mask, users, groups = _HEAD.unpack_from(data)
        named = tuple(_NAMED.iter_unpack(data[_HEAD.size :]))
    except struct.error as damage:
        raise error(Status.BAD_FORMAT, "the record of an ACL is damaged: run 'emberfs fsck'") from damage
    if len(named) != users + groups:
        raise error(Status.BAD_FORMAT, "the record of an ACL is damaged: run 'emberfs fsck'")
    return Acl(owner, group, other, None if mask == _NO_MASK else mask, named[:users], named[users:])

"""What lies beside an inode's record: extended attributes and ACLs. The record's flags say whether to look, so an inode without them
costs nothing more."""

from __future__ import annotations

from .. import keys
from ..kv.engine import Transaction
from . import acl as acls
from . import inode as inodes
from .acl import Acl
from .inode import Inode

CAPABILITY = b"security.capability"  # rights of a program, as suid is: whoever changes the file takes them away


async def load_acls(txn: Transaction, inode: Inode, *, snapshot: bool) -> None:
    """Read the ACLs that the flags speak of."""
    access, default = await txn.get_many([keys.acl_key(inode.id), keys.default_acl_key(inode.id)], snapshot=snapshot)
    inode.acl = acls.unpack(access) if access is not None else None
    inode.default_acl = acls.unpack(default) if default is not None else None


def put_acl(txn: Transaction, inode: Inode, acl: Acl | None) -> None:
    """Set or remove the access ACL. The inode's record is the caller's to write."""
    inode.acl = acl
    _put(txn, inode, keys.acl_key(inode.id), inodes.ACL, acl)


def put_default_acl(txn: Transaction, inode: Inode, acl: Acl | None) -> None:
    """Set or remove a directory's default ACL. The inode's record is the caller's to write."""
    inode.default_acl = acl
    _put(txn, inode, keys.default_acl_key(inode.id), inodes.DEFAULT_ACL, acl)


def _put(txn: Transaction, inode: Inode, key: bytes, flag: int, acl: Acl | None) -> None:
    if acl is not None:
        inode.flags |= flag
        txn.put(key, acls.pack(acl))
    elif inode.flags & flag:
        inode.flags &= ~flag
        txn.delete(key)


def lose_capability(txn: Transaction, inode: Inode) -> None:
    """Somebody wrote to the file or changed its owner."""
    if inode.flags & inodes.XATTRS:
        txn.delete(keys.xattr_key(inode.id, CAPABILITY))


def erase(txn: Transaction, inode: int) -> None:
    """The inode ceases to exist, and it has one of the flags EXTENDED."""
    txn.delete_range(*keys.xattr_range(inode))
    txn.delete(keys.acl_key(inode))
    txn.delete(keys.default_acl_key(inode))

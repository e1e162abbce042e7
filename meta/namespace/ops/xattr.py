"""Extended attributes, and the two that are ACLs. Who may do what, and the order in which errors come, are Linux's (fs/xattr.c,
fs/posix_acl.c): `user.` asks the mode, and exists on files and directories only; `trusted.` is root's and hidden from others;
`security.` is read by all and changed by root; `system.` knows the two ACLs, which the owner changes."""

from __future__ import annotations

from ....proto.errors import Status, StatusError, error
from ....proto.gen import meta_pb2
from ... import keys
from .. import acl as acls
from .. import extended, path
from .. import inode as inodes
from ..access import READ, SGID, STICKY, WRITE, Credentials, require, require_owner
from ..attempt import Attempt
from ..happenings import CHANGED
from ..inode import Inode
from .attributes import begin_change, end_change

NAME_BYTES_MAX = 255  # with the namespace
VALUE_BYTES_MAX = 1 << 16
NAMES_BYTES_MAX = 1 << 16  # all names of an inode, each with a NUL, as listxattr(2) gives them
INODE_BYTES_MAX = 1 << 20  # all names and values of an inode: what one change reads
COUNT_MAX = NAMES_BYTES_MAX // 7  # no name is shorter: "user.", a byte and a NUL

CREATE = 1  # flags of setxattr(2)
REPLACE = 2

USER = b"user."
TRUSTED = b"trusted."
SECURITY = b"security."
_NAMESPACES = (USER, TRUSTED, SECURITY)
ACCESS_ACL = b"system.posix_acl_access"
DEFAULT_ACL = b"system.posix_acl_default"
_ACLS = (ACCESS_ACL, DEFAULT_ACL)

_Rows = dict[bytes, bytes]


async def get_xattr(attempt: Attempt, request: meta_pb2.GetXattrRequest) -> meta_pb2.GetXattrReply:
    """One value. Raises NO_DATA, RANGE (a name that cannot be), UNSUPPORTED (an unknown namespace), PERMISSION_DENIED."""
    name = request.name
    _check_name(name)
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    if name in _ACLS:
        return meta_pb2.GetXattrReply(value=_acl_value(inode, name))
    _require_read(inode, attempt.caller, name)
    value = None
    if inode.flags & inodes.XATTRS:
        value = await attempt.txn.get(keys.xattr_key(inode.id, name), snapshot=attempt.reading)
    if value is None:
        raise _absent(inode, name)
    return meta_pb2.GetXattrReply(value=value)


async def list_xattrs(attempt: Attempt, request: meta_pb2.ListXattrsRequest) -> meta_pb2.ListXattrsReply:
    """All names that the caller may know of."""
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    names = [name for name, there in zip(_ACLS, (inode.acl, inode.default_acl), strict=True) if there is not None]
    names += await _load(attempt, inode)
    if not attempt.caller.is_root:
        names = [name for name in names if not name.startswith(TRUSTED)]
    return meta_pb2.ListXattrsReply(names=names)


async def set_xattr(attempt: Attempt, request: meta_pb2.SetXattrRequest) -> meta_pb2.SetXattrReply:
    """Set a value. Raises EXISTS with the flag CREATE, NO_DATA with REPLACE, VALUE_TOO_LONG, NO_SPACE (too much on one inode),
    INVALID (not an ACL), NOT_PERMITTED, and as `get_xattr`."""
    name, value, flags = request.name, request.value, request.flags
    if flags & ~(CREATE | REPLACE):
        raise error(Status.INVALID, f"flags {flags} of an extended attribute: XATTR_CREATE (1), XATTR_REPLACE (2)")
    _check_name(name)
    if len(value) > VALUE_BYTES_MAX:
        raise error(
            Status.VALUE_TOO_LONG, f"a value of {len(value)} bytes for {_shown(name)}: at most {VALUE_BYTES_MAX}"
        )
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    if name in _ACLS:
        await _set_acl(attempt, inode, name, acls.from_kernel(value) if value else None)
    else:
        _require_write(inode, attempt.caller, name)
        rows = await _load(attempt, inode)
        _check_flags(rows, inode, name, flags)
        if rows.get(name) != value:  # as ext4: what changes nothing leaves no trace
            await _put(attempt, inode, rows, name, value)
    return meta_pb2.SetXattrReply(attributes=await attempt.visible_attributes(inode))


async def remove_xattr(attempt: Attempt, request: meta_pb2.RemoveXattrRequest) -> meta_pb2.RemoveXattrReply:
    """Remove one. Raises NO_DATA where there is none (of an ACL that is fine), and as `set_xattr`."""
    name = request.name
    _check_name(name)
    inode = await path.lookup(attempt, request.place, follow=request.follow)
    if name in _ACLS:
        await _set_acl(attempt, inode, name, None)
        return meta_pb2.RemoveXattrReply(attributes=await attempt.visible_attributes(inode))
    _require_write(inode, attempt.caller, name)
    rows = await _load(attempt, inode)
    if name not in rows:
        raise _absent(inode, name)
    await begin_change(attempt, inode)
    attempt.txn.delete(keys.xattr_key(inode.id, name))
    if len(rows) == 1:
        inode.flags &= ~inodes.XATTRS
    _changed(attempt, inode)
    return meta_pb2.RemoveXattrReply(attributes=await attempt.visible_attributes(inode))


# --- plain ones -------------------------------------------------------------------------------------------------------------------


async def _load(attempt: Attempt, inode: Inode) -> _Rows:
    if not inode.flags & inodes.XATTRS:
        return {}
    rows = await attempt.txn.scan(*keys.xattr_range(inode.id), COUNT_MAX, snapshot=attempt.reading)
    return {key[keys.XATTR_NAME_AT :]: value for key, value in rows}


def _check_flags(rows: _Rows, inode: Inode, name: bytes, flags: int) -> None:
    if flags & CREATE and name in rows:
        raise error(Status.EXISTS, f"inode {inode.id:x} has an attribute {_shown(name)}")
    if flags & REPLACE and name not in rows:
        raise _absent(inode, name)


async def _put(attempt: Attempt, inode: Inode, rows: _Rows, name: bytes, value: bytes) -> None:
    rows[name] = value
    names = sum(map(len, rows)) + len(rows)
    if names > NAMES_BYTES_MAX or names + sum(map(len, rows.values())) > INODE_BYTES_MAX:
        raise error(
            Status.NO_SPACE,
            f"inode {inode.id:x}: its extended attributes may have names of {NAMES_BYTES_MAX} bytes, {INODE_BYTES_MAX} in all",
        )
    await begin_change(attempt, inode)
    attempt.txn.put(keys.xattr_key(inode.id, name), value)
    if not inode.flags & inodes.XATTRS:
        inode.flags |= inodes.XATTRS
        if inode.is_directory:
            attempt.directory_changed()  # rmdir knows from memory what goes with a directory
    _changed(attempt, inode)


def _changed(attempt: Attempt, inode: Inode) -> None:
    end_change(attempt, inode)
    attempt.tell(CHANGED, inode.id)


def _check_name(name: bytes) -> None:
    if not 0 < len(name) <= NAME_BYTES_MAX:
        raise error(Status.RANGE, f"a name of {len(name)} bytes for an extended attribute: 1 to {NAME_BYTES_MAX}")
    if b"\0" in name:
        raise error(Status.INVALID, f"{name[:64]!r}: the name of an extended attribute contains a NUL byte")


def _require_read(inode: Inode, caller: Credentials, name: bytes) -> None:
    if name.startswith(TRUSTED):
        if not caller.is_root:
            raise _absent(inode, name)  # hidden, not forbidden
    elif not name.startswith((SECURITY, b"system.")):
        if name.startswith(USER) and not (inode.layout or inode.is_directory):
            raise _absent(inode, name)
        require(inode, caller, READ, is_directory=inode.is_directory)
    _check_namespace(name)


def _require_write(inode: Inode, caller: Credentials, name: bytes) -> None:
    if name.startswith(TRUSTED) and not caller.is_root:
        raise error(Status.NOT_PERMITTED, f"{_shown(name)}: only root changes trusted attributes")
    if name.startswith(USER):
        if not (inode.layout or inode.is_directory):
            raise error(Status.NOT_PERMITTED, f"inode {inode.id:x}: only files and directories have user attributes")
        if inode.is_directory and inode.mode & STICKY:
            require_owner(inode, caller, "change attributes of a sticky directory")
    if not name.startswith((TRUSTED, SECURITY, b"system.")):
        require(inode, caller, WRITE, is_directory=inode.is_directory)
    _check_namespace(name)
    if name.startswith(SECURITY) and not caller.is_root:
        raise error(Status.NOT_PERMITTED, f"{_shown(name)}: only root changes security attributes")


def _check_namespace(name: bytes) -> None:
    if name in _NAMESPACES:
        raise error(Status.INVALID, f"{_shown(name)}: a name must follow the namespace")
    if not name.startswith(_NAMESPACES):
        raise error(Status.UNSUPPORTED, f"{_shown(name)}: attributes begin with user., trusted. or security.")


def _absent(inode: Inode, name: bytes) -> StatusError:
    return error(Status.NO_DATA, f"inode {inode.id:x} has no attribute {_shown(name)}")


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


# --- access control lists ---------------------------------------------------------------------------------------------------------


def _acl_value(inode: Inode, name: bytes) -> bytes:
    if inode.type == inodes.SYMLINK:
        raise _no_acl(inode)
    if name == DEFAULT_ACL:
        if inode.default_acl is None:
            raise _absent(inode, name)
        return acls.to_kernel(inode.default_acl)
    if inode.acl is None:
        raise _absent(inode, name)
    return acls.to_kernel(inode.acl.shown(inode.mode))


def _no_acl(inode: Inode) -> StatusError:
    return error(Status.UNSUPPORTED, f"inode {inode.id:x} is a symlink, and nobody asks it for permissions")


async def _set_acl(attempt: Attempt, inode: Inode, name: bytes, acl: acls.Acl | None) -> None:
    if inode.type == inodes.SYMLINK:
        raise _no_acl(inode)
    if name == DEFAULT_ACL and not inode.is_directory:
        if acl is None:
            return
        raise error(Status.PERMISSION_DENIED, f"inode {inode.id:x}: only a directory has a default ACL")
    require_owner(inode, attempt.caller, "change its ACL")
    mode, before = inode.mode, inode.default_acl
    if name == ACCESS_ACL:
        before = inode.acl.shown(mode) if inode.acl is not None else None
        if acl is not None:
            mode, acl = _mode_of(attempt, inode, acl), acl if acl.says_more_than_mode else None
    if mode == inode.mode and acl == before:
        return  # as ext4: what changes nothing leaves no trace
    await begin_change(attempt, inode)
    if name == DEFAULT_ACL:
        extended.put_default_acl(attempt.txn, inode, acl)
    else:
        inode.mode = mode
        extended.put_acl(attempt.txn, inode, acl)
    _changed(attempt, inode)
    if inode.is_directory:
        attempt.directory_changed()


def _mode_of(attempt: Attempt, inode: Inode, acl: acls.Acl) -> int:
    """The mode says what the ACL says of owner, mask and others. Without an ACL it stays as it is."""
    mode = inode.mode & ~0o777 | acl.mode
    if mode & SGID and not attempt.caller.is_root and not attempt.caller.member_of(inode.gid):
        mode &= ~SGID
    return mode

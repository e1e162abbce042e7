"""What a change of our own touches, from its request and its reply: which inodes' attributes, and which names.

The server tells a client only what others have changed. One row of a table per operation; for one that is not in the table, or where it
cannot be told, everything counts as touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...proto.gen.common_pb2 import FILE_TYPE_DIRECTORY, Attributes
from ...proto.gen.meta_pb2 import REMOVE_KIND_RMDIR, REMOVE_KIND_TREE, REMOVE_KIND_UNLINK, Place
from ...proto.ids import ROOT_INODE

Name = tuple[int, bytes]  # directory, name

NOWHERE = 0  # where a name leads that does not exist
RENAME_EXCHANGE = 2
_DOTS = (b".", b"..")


class Touched(NamedTuple):
    """The effects of one change."""

    inodes: Sequence[int]
    names: Mapping[Name, int | None] = {}  # where they lead now (0: nowhere; None: that is not known)
    attributes: Sequence[Attributes] = ()  # of some of these inodes, as the change left them
    leased: bool = False  # the first of these attributes are leased,
    names_leased: bool = False  # and so are the names
    # of which only the times have moved, to this one (ns) at least, and the number of subdirectories by so many
    directories: Sequence[tuple[int, int, int]] = ()
    made: int = 0  # a directory that is new and empty, all of whose names are leased


def simple_name(place: Place) -> bytes | None:
    """The name that a place is in its directory; None for an inode itself, and for a path."""
    path = place.path
    return path if path and b"/" not in path and path not in _DOTS else None


def touched(method: str, request: Any, reply: Any) -> Touched | None:
    """What a change has touched; None: anything."""
    row = _TABLE.get(method)
    return row(request, reply) if row is not None else None


def _name(place: Place) -> Name | None:
    name = simple_name(place)
    return (place.parent or ROOT_INODE, name) if name is not None else None


def _open(request: Any, reply: Any) -> Touched | None:
    inode = reply.attributes.inode
    inodes = [inode, *request.ended.inodes]
    if not reply.created or request.unnamed:
        name = _name(request.place)
        if reply.leased and name is not None and request.flags & os.O_NOFOLLOW:
            return Touched(inodes, {name: inode}, (reply.attributes,), leased=True, names_leased=True)
        return Touched(inodes, {}, (reply.attributes,), reply.leased)
    name = _name(request.place)
    if name is None or request.parents:
        return None
    moved = ((name[0], reply.attributes.birth_ns, 0),)
    return Touched(inodes, {name: inode}, (reply.attributes,), reply.leased, reply.leased, moved)


def _create(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: dict[Name, int | None] = {}
    moved: list[tuple[int, int, int]] = []
    for entry, status, attributes in zip(request.entries, reply.statuses, reply.attributes, strict=True):
        if status:
            continue
        name = _name(entry.place)
        if name is None or request.parents:
            return None
        inodes.append(attributes.inode)
        if request.exist_ok:
            inodes.append(name[0])  # perhaps nothing was made
        else:
            moved.append((name[0], attributes.birth_ns, attributes.type == FILE_TYPE_DIRECTORY))
        names[name] = attributes.inode
    made = inodes[0] if reply.whole and inodes else 0
    return Touched(inodes, names, reply.attributes[:1], reply.leased, reply.leased, moved, made)


def _remove(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: dict[Name, int | None] = {}
    moved: list[tuple[int, int, int]] = []
    fewer = -1 if request.kind == REMOVE_KIND_RMDIR else 0
    for place, status, inode in zip(request.places, reply.statuses, reply.inodes, strict=True):
        if status:
            continue
        name = _name(place)
        if name is None or request.kind == REMOVE_KIND_TREE:
            return None
        inodes.append(inode)
        moved.append((name[0], reply.at_ns, fewer))
        names[name] = NOWHERE
    left = reply.attributes if request.kind == REMOVE_KIND_UNLINK else ()  # what has other names
    return Touched(inodes, names, left, directories=moved)


def _rename(request: Any, reply: Any) -> Touched | None:
    source, target = _name(request.source), _name(request.target)
    if request.sources or source is None or target is None:
        return None
    inode = reply.attributes.inode
    if reply.other == inode:
        return Touched((inode,), {source: None, target: None})  # two names of one inode: nothing has happened
    if request.flags == RENAME_EXCHANGE:
        inodes = (source[0], target[0], inode, reply.other)
        return Touched(inodes, {source: None, target: None}, (reply.attributes,))
    names: dict[Name, int | None] = {source: NOWHERE, target: inode}
    if reply.attributes.type == FILE_TYPE_DIRECTORY:
        return Touched((source[0], target[0], inode, reply.other), names, (reply.attributes,))
    when_ns = reply.attributes.ctime_ns
    moved = ((source[0], when_ns, 0), (target[0], when_ns, 0))
    return Touched((inode, reply.other), names, (reply.attributes,), directories=moved)


def _link(request: Any, reply: Any) -> Touched | None:
    target = _name(request.target)
    if target is None:
        return None
    inode = reply.attributes.inode
    moved = ((target[0], reply.attributes.ctime_ns, 0),)
    return Touched((inode,), {target: inode}, (reply.attributes,), directories=moved)


def _of_the_reply(request: Any, reply: Any) -> Touched:
    return Touched((reply.attributes.inode,), {}, (reply.attributes,))


def _of_the_request(request: Any, reply: Any) -> Touched:
    known = (reply.attributes,) if reply.attributes.inode == request.inode else ()
    return Touched((request.inode,), {}, known)


def _close(request: Any, reply: Any) -> Touched:
    inodes: Iterable[int] = (request.inode, *request.ended.inodes)
    return _of_the_request(request, reply)._replace(inodes=tuple(inodes))


_TABLE: dict[str, Callable[[Any, Any], Touched | None]] = {
    "Open": _open,
    "Close": _close,
    "SyncFile": _of_the_request,
    "Grow": _of_the_request,
    "Allocate": _of_the_request,
    "Append": _of_the_request,
    "Create": _create,
    "Remove": _remove,
    "Rename": _rename,
    "Link": _link,
    "SetAttributes": _of_the_reply,
    "Truncate": _of_the_reply,
    "SetXattr": _of_the_reply,
    "RemoveXattr": _of_the_reply,
    "Clone": lambda request, reply: Touched((request.source, request.target)),
    "Lock": lambda request, reply: Touched(()),
}

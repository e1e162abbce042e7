"""What a change of our own touches, from its request and its reply: which inodes' attributes, and which names.

The server tells a client only what others have changed. One row of a table per operation; for one that is not in the table, or where it
cannot be told, everything counts as touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ...proto.gen.common_pb2 import FILE_TYPE_DIRECTORY, Attributes
from ...proto.gen.meta_pb2 import REMOVE_KIND_TREE, REMOVE_KIND_UNLINK, Place
from ...proto.ids import ROOT_INODE

Name = tuple[int, bytes]  # directory, name

_DOTS = (b".", b"..")


class Touched(NamedTuple):
    """The effects of one change."""

    inodes: Sequence[int]
    names: Sequence[Name] = ()
    attributes: Sequence[Attributes] = ()  # of some of these inodes, as the change left them
    leased: bool = False  # the first of these attributes are leased,
    leased_name: Name | None = None  # and so is this name, which leads there
    directories: Sequence[tuple[int, int]] = ()  # of which only the times have moved, to this one (ns) at least


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
    inodes = [reply.attributes.inode, *request.ended.inodes]
    name = _name(request.place)
    leased_name = name if reply.leased and (reply.created or request.flags & os.O_NOFOLLOW) else None
    if reply.created and not request.unnamed:
        if name is None or request.parents:
            return None
        moved = ((name[0], reply.attributes.birth_ns),)
        return Touched(inodes, (name,), (reply.attributes,), reply.leased, leased_name, moved)
    return Touched(inodes, (), (reply.attributes,), reply.leased, leased_name)


def _create(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: list[Name] = []
    moved: list[tuple[int, int]] = []
    for entry, status, attributes in zip(request.entries, reply.statuses, reply.attributes, strict=True):
        if status:
            continue
        name = _name(entry.place)
        if name is None or request.parents:
            return None
        inodes.append(attributes.inode)
        if attributes.type == FILE_TYPE_DIRECTORY:
            inodes.append(name[0])  # it has one more subdirectory
        else:
            moved.append((name[0], attributes.birth_ns))
        names.append(name)
    leased_name = names[0] if reply.leased and names else None
    return Touched(inodes, names, reply.attributes[:1], reply.leased, leased_name, moved)


def _remove(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: list[Name] = []
    moved: list[tuple[int, int]] = []
    for place, status, inode in zip(request.places, reply.statuses, reply.inodes, strict=True):
        if status:
            continue
        name = _name(place)
        if name is None or request.kind == REMOVE_KIND_TREE:
            return None
        inodes.append(inode)
        if request.kind == REMOVE_KIND_UNLINK:
            moved.append((name[0], reply.at_ns))
        else:
            inodes.append(name[0])
        names.append(name)
    return Touched(inodes, names, directories=moved)


def _rename(request: Any, reply: Any) -> Touched | None:
    source, target = _name(request.source), _name(request.target)
    if request.sources or source is None or target is None:
        return None
    if reply.other == reply.attributes.inode:
        return Touched((reply.other,), (source, target))  # two names of one inode: nothing has happened
    if request.flags or reply.attributes.type == FILE_TYPE_DIRECTORY:
        inodes = (source[0], target[0], reply.attributes.inode, reply.other)
        return Touched(inodes, (source, target), (reply.attributes,))
    when_ns = reply.attributes.ctime_ns
    moved = ((source[0], when_ns), (target[0], when_ns))
    return Touched((reply.attributes.inode, reply.other), (source, target), (reply.attributes,), directories=moved)


def _link(request: Any, reply: Any) -> Touched | None:
    target = _name(request.target)
    if target is None:
        return None
    moved = ((target[0], reply.attributes.ctime_ns),)
    return Touched((reply.attributes.inode,), (target,), (reply.attributes,), directories=moved)


def _of_the_reply(request: Any, reply: Any) -> Touched:
    return Touched((reply.attributes.inode,), (), (reply.attributes,))


def _of_the_request(request: Any, reply: Any) -> Touched:
    known = (reply.attributes,) if reply.attributes.inode == request.inode else ()
    return Touched((request.inode,), (), known)


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

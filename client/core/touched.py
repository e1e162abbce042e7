"""What a change of our own touches, from its request and its reply: which inodes' attributes, and which names.

The server tells a client only what others have changed. One row of a table per operation; for one that is not in the table, or where it
cannot be told, everything counts as touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ...proto.gen.common_pb2 import Attributes
from ...proto.gen.meta_pb2 import REMOVE_KIND_TREE, Place
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
        return Touched([*inodes, name[0]], (name,), (reply.attributes,), reply.leased, leased_name)
    return Touched(inodes, (), (reply.attributes,), reply.leased, leased_name)


def _create(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: list[Name] = []
    for entry, status, attributes in zip(request.entries, reply.statuses, reply.attributes, strict=True):
        if status:
            continue
        name = _name(entry.place)
        if name is None or request.parents:
            return None
        inodes += (attributes.inode, name[0])
        names.append(name)
    return Touched(inodes, names, reply.attributes[:1], reply.leased, names[0] if reply.leased and names else None)


def _remove(request: Any, reply: Any) -> Touched | None:
    inodes: list[int] = []
    names: list[Name] = []
    for place, status, inode in zip(request.places, reply.statuses, reply.inodes, strict=True):
        if status:
            continue
        name = _name(place)
        if name is None or request.kind == REMOVE_KIND_TREE:
            return None
        inodes += (inode, name[0])
        names.append(name)
    return Touched(inodes, names)


def _rename(request: Any, reply: Any) -> Touched | None:
    source, target = _name(request.source), _name(request.target)
    if request.sources or source is None or target is None:
        return None
    inodes = (source[0], target[0], reply.attributes.inode, reply.other)
    return Touched(inodes, (source, target), (reply.attributes,))


def _link(request: Any, reply: Any) -> Touched | None:
    target = _name(request.target)
    if target is None:
        return None
    return Touched((target[0], reply.attributes.inode), (target,), (reply.attributes,))


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

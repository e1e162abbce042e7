"""Paths of directories, for people: found from below, name by name."""

from __future__ import annotations

from ...proto.errors import StatusError
from .. import keys
from . import dentry as dentries
from . import path
from .attempt import Attempt

NAMES_MAX = 4096  # of a directory that are looked through for a name,
NAMES_OF_REQUEST = 65_536  # and for all paths of one request: about 0.1 s in which the server answers nobody


class Ways:
    """The paths of one request: what they have in common is looked for once."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._known: dict[int, bytes] = {path.ROOT: b""}
        self._names_left = NAMES_OF_REQUEST

    async def to(self, number: int) -> bytes:
        """The path of a directory. Where a name is not found within the limits, its number stands for it, and so does that of a directory
        whose path would be too long for a request."""
        names: list[tuple[int, bytes]] = []
        while number not in self._known:
            try:
                parent = (await self._attempt.inode(number)).parent
            except StatusError:
                parent = 0
            if not parent:
                self._known[number] = b"(removed directory %x)" % number
                break
            names.append((number, await self._name_of(number, parent)))
            number = parent
        for below, name in reversed(names):
            way = self._known[number] + b"/" + name
            self._known[below] = way if len(way) <= path.PATH_BYTES_MAX else b"(%x)" % below
            number = below
        return self._known[number] or b"/"

    async def _name_of(self, number: int, parent: int) -> bytes:
        if not (limit := min(NAMES_MAX, self._names_left)):
            return b"(%x)" % number
        page = await self._attempt.txn.scan(*keys.dentry_range(parent), limit, snapshot=True)
        self._names_left -= len(page)
        for key, value in page:
            if dentries.unpack(value).inode == number:
                return key[keys.DENTRY_NAME_AT :]
        return b"(%x)" % number

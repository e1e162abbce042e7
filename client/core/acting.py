"""A client that serves many users, as a mount does: one view per user over the same connections, inodes and buffers.

Only root and the metadata server's own user may name somebody else; the server refuses others with NOT_PERMITTED. What a handle may do
was decided when it was opened, so reading and writing need no view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...proto.gen.common_pb2 import Caller
from .attributes import Stat
from .file import Handle
from .namespace import Namespace
from .options import Mode
from .paths import PathLike

if TYPE_CHECKING:
    from .client import Core


class Acting(Namespace):
    """Names, permissions and opening, as one user with one umask sees them. Cheap to make: one per request is fine."""

    def __init__(self, core: Core, uid: int, gid: int, groups: Sequence[int] = (), umask: int = 0) -> None:
        self._core = core
        self.cluster = core.cluster
        self.umask = umask
        self.caller = Caller(uid=uid, gid=gid, groups=groups)

    def seen(self, stat: Stat) -> Stat:
        return self._core.seen(stat)

    async def open(self, path: PathLike, mode: Mode, **options: Any) -> Handle:
        """As `Core.open`."""
        return await self._core.open(path, mode, acting=self, **options)

    async def truncate(self, path: PathLike, length: int) -> Stat:
        """As `Core.truncate`."""
        return await self._core.truncate(path, length, acting=self)

"""Which files were read, so that their access times can follow by the rule of relatime: told in batches, in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...proto.errors import StatusError
from ...proto.gen.meta_pb2 import ReadTimesRequest
from ...proto.rpc import META
from .inode import Inode

if TYPE_CHECKING:
    from .client import Core

TELL_SECONDS = 10.0  # so old the news may be
PATIENCE_SECONDS = 2.0
BATCH_FILES = 500  # in one transaction
FILES_MAX = 100_000  # what is read beyond that, before the next telling, keeps its old time


class ReadTimes:
    """Of one identity of a client. Any thread notes, the keeper's worker tells: each step here is safe by itself."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._files: set[int] = set()
        self._told = core.env.now()

    def note(self, file: Inode) -> None:
        """The file is being read. The server said with the open whether that is news."""
        if file.atime_due:
            file.atime_due = False
            if len(self._files) < FILES_MAX:
                self._files.add(file.id)

    @property
    def due(self) -> bool:
        return bool(self._files) and self._core.env.now() - self._told >= self._core.options.scaled(TELL_SECONDS)

    async def tell(self) -> None:
        """Tell all of it. What the server does not take now is forgotten: it is only a time."""
        self._told = self._core.env.now()
        while self._files:
            batch = [self._files.pop() for _ in range(min(BATCH_FILES, len(self._files)))]
            try:
                patience = self._core.cluster.patience(PATIENCE_SECONDS)
                await self._core.cluster.meta(META.ReadTimes, ReadTimesRequest(inodes=batch), patience)
            except StatusError:
                self._files.clear()
            if (leases := self._core.cluster.leases) is not None:
                leases.forget(batch)

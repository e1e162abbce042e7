"""A checkpoint: the blocking middle part, between what the engine decides before and after.

Bytes and rows become durable at the same time, where a second thread is at hand: that is one wait for the disk, not two. The index then
does not say yet that this checkpoint has passed, only that the one before has. After a power loss the states in between are compared
with their checksums, which they match; the next checkpoint makes up for it. Without a second thread it is one after the other, and all
that is covered is trusted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from .disk import Disk
from .index import Index
from .recovery import CHECKPOINT_KEY, doubted, pack_number
from .space import Space

# Begins work in another thread; what it returns waits for the end of that.
Beside = Callable[..., Callable[[], object]]


@dataclass(slots=True, eq=False)
class Checkpoint:
    """Made by `ChunkEngine.begin_checkpoint`. `failed` says why, when `run` did not make it."""

    number: int
    handles: list[int]  # block files written since the one before
    names: bool  # block files were made
    trims: list[tuple[int, int]]  # free slots whose disk space goes back
    space: Space
    disk: Disk
    index: Index
    before: int  # the last checkpoint that passed
    failed: str = ""
    kept: bool = False  # the trims still have disk space, or some do: to give it back took some, and there was none

    def run(self, beside: Beside | None = None) -> None:
        """Make it durable, with the index in another thread by `beside`. Blocking, in any thread. An error is kept for
        `finish_checkpoint`: after a failed fdatasync the kernel has dropped the dirty pages, and trying again would succeed."""
        if beside is None or not (self.handles or self.names):
            self._sync_files()
            if not self.failed:
                self._sync_index(self.number)
        else:
            finished = beside(self._sync_index, self.before)
            self._sync_files()
            finished()
        if not self.failed:
            self._punch()

    def _sync_files(self) -> None:
        try:
            for handle in self.handles:
                self.disk.fdatasync(handle)
            if self.names:
                self.disk.sync_names()
        except Exception as failed:
            self._fail(failed)
            doubted(self.index)

    def _sync_index(self, passed: int) -> None:
        """Make the rows durable, and that this checkpoint has `passed`: the one before, while nobody knows what becomes of the bytes."""
        try:
            self.index.write([(CHECKPOINT_KEY, pack_number(passed))], sync=True)
        except Exception as failed:  # rocksdict raises bare Exceptions
            self._fail(failed)
            doubted(self.index)

    def _punch(self) -> None:
        try:
            self.space.punch(self.trims)
        except Exception as failed:
            self.kept = True
            if not isinstance(failed, OSError) or failed.errno not in (errno.ENOSPC, errno.EDQUOT):
                self._fail(failed)  # otherwise everything is durable all the same

    def _fail(self, failed: Exception) -> None:
        self.failed = self.failed or f"checkpoint {self.number}: {failed}"

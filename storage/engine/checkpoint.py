"""A checkpoint: the blocking middle part, between what the engine decides before and after.

There are two ways. `run` syncs the block files, then the index with the checkpoint's number: after a power loss all that it covers is
trusted. Whoever waits need not wait for one after the other: `sync_files` and `sync_index` may run at the same time, in two threads, and
after both everything is durable as well. The number is then not recorded, and after a power loss the states since the last one that
was are compared with their checksums, which they match; the next checkpoint of either kind makes up for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .disk import Disk
from .index import Index
from .recovery import CHECKPOINT_KEY, pack_number
from .space import Space


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
    recorded: int = 0  # the number that the index has, durably, after it
    failed: str = ""

    def run(self) -> None:
        """Sync the block files, then the index's log with this checkpoint's number at its end. Blocking, in any thread. An error is kept
        for `finish_checkpoint`: after a failed fdatasync the kernel has dropped the dirty pages, and trying again would succeed."""
        self.sync_files()
        if not self.failed:
            self._record(self.number)
        if not self.failed:
            self.punch()

    def sync_files(self) -> None:
        """The bytes are durable. Blocking; errors as in `run`."""
        try:
            for handle in self.handles:
                self.disk.fdatasync(handle)
            if self.names:
                self.disk.sync_names()
        except Exception as failed:
            self._fail(failed)

    def sync_index(self) -> None:
        """The rows are durable, whatever becomes of the bytes: so the number that goes along is that of the checkpoint before. Blocking;
        errors as in `run`."""
        self._record(self.before)

    def punch(self) -> None:
        """Give disk space of free slots back, once the rest is done. Blocking; errors as in `run`."""
        try:
            self.space.punch(self.trims)
        except Exception as failed:
            self._fail(failed)

    def _record(self, number: int) -> None:
        try:
            self.index.write([(CHECKPOINT_KEY, pack_number(number))], sync=True)
            self.recorded = number
        except Exception as failed:  # rocksdict raises bare Exceptions
            self._fail(failed)

    def _fail(self, failed: Exception) -> None:
        self.failed = self.failed or f"checkpoint {self.number}: {failed}"

"""A checkpoint: the blocking middle part, between what the engine decides before and after."""

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
    failed: str = ""

    def run(self) -> None:
        """Sync the block files, then the index's log with this checkpoint's number at its end. Blocking, in any thread. An error is kept
        for `finish_checkpoint`: after a failed fdatasync the kernel has dropped the dirty pages, and trying again would succeed."""
        try:
            for handle in self.handles:
                self.disk.fdatasync(handle)
            if self.names:
                self.disk.sync_names()
            self.index.write([(CHECKPOINT_KEY, pack_number(self.number))], sync=True)
            self.space.punch(self.trims)
        except Exception as failed:  # rocksdict raises bare Exceptions
            self.failed = f"checkpoint {self.number}: {failed}"

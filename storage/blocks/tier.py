"""The tier in memory: the page cache, held to a budget, so that blocks never push out what files and programs have there.

Blocks are read from the page cache straight into the client's memory, and written through it; so what was put or read lately is in
memory already, and nothing is copied to keep it there. What this module adds is who leaves: blocks that were neither read nor written
for longest give their pages back when all together take more than the budget. Only reads are cached so: what is acknowledged is in
the files, and the pages of a block that no checkpoint has covered yet stay until one has.

Two chances: a block that was read since it last stood at the end of the queue goes round once more.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..engine.disk import PAGE_BYTES

if TYPE_CHECKING:
    from ..engine.engine import ChunkEngine
    from .directory import Directory, Numbers

TRIMS_MAX = 4096  # blocks that one pass takes out of memory
QUEUE_SLACK = 1024  # places in the queue of blocks that are gone, before they are forgotten
SLACK_PART = 32  # of the budget, over which it goes before pages are given back

_COLD, _WARM, _READ = 0, 1, 2

Range = tuple[int, int, int]  # handle, offset, length


class Tier:
    """Of one target. It follows the directory."""

    def __init__(self, directory: Directory, engine: ChunkEngine, budget: int = 0) -> None:
        self.budget = budget  # bytes; 0: no limit
        self.used = 0  # bytes of blocks that are in memory, as far as is known here
        self._directory = directory
        self._engine = engine
        self._state = bytearray()
        self._epoch: Numbers = array("I")  # the checkpoint that covers what was written, by slot
        self._queue: deque[int] = deque()  # slots that came into memory, oldest first; some of them have left since
        directory.followers.append(self)

    # --- what the directory and readers tell ---

    def inserted(self, blocks: Sequence[int]) -> None:
        """They were written."""
        self._enter(blocks, self._engine.epoch)

    def removed(self, block: int) -> None:
        """Its pages are left to whoever takes its slot next."""
        if block < len(self._state) and self._state[block]:
            self._state[block] = _COLD
            self.used -= self._pages(block)

    def read(self, blocks: Sequence[int]) -> None:
        """They were read, or are about to be."""
        state = self._state
        try:
            cold = [block for block in blocks if not state[block]]
        except IndexError:  # blocks that were found when the target was opened
            self._grow()
            cold = [block for block in blocks if not state[block]]
        for block in blocks:
            state[block] = _READ
        if cold:
            for block in cold:
                state[block] = _COLD
            self._enter(cold, 0)

    def _enter(self, blocks: Sequence[int], epoch: int) -> None:
        if len(self._state) < len(self._directory.state):
            self._grow()
        state, epochs, length = self._state, self._epoch, self._directory.length
        pages = 0
        for block in blocks:
            state[block] = _WARM
            epochs[block] = epoch
            pages += -(-length[block] // PAGE_BYTES)
        self.used += pages * PAGE_BYTES
        self._queue.extend(blocks)
        if len(self._queue) > 2 * len(state) + QUEUE_SLACK:
            self._forget_gone()

    def _forget_gone(self) -> None:
        """Blocks that came and went stand in the queue until something leaves memory, which may be never."""
        seen: set[int] = set()
        kept: list[int] = []
        for block in reversed(self._queue):  # where one stands twice, it came back: the younger place is its own
            if self._state[block] and block not in seen:
                seen.add(block)
                kept.append(block)
        kept.reverse()
        self._queue = deque(kept)

    def _grow(self) -> None:
        more = len(self._directory.state) - len(self._state)
        self._state += bytes(more)
        self._epoch.frombytes(bytes(more * self._epoch.itemsize))

    def _pages(self, block: int) -> int:
        return -(-self._directory.length[block] // PAGE_BYTES) * PAGE_BYTES

    # --- what leaves ---

    @property
    def is_over(self) -> bool:
        """Whether pages should be given back."""
        return 0 < self.budget < self.used - self.budget // SLACK_PART

    def leaving(self) -> list[Range]:
        """Blocks that leave memory now: where they lie. Those that no checkpoint has covered stay, and all behind them."""
        ranges: list[Range] = []
        state, epoch, queue, directory = self._state, self._epoch, self._queue, self._directory
        looks = 2 * len(queue)
        while self.used > self.budget and looks and queue and len(ranges) < TRIMS_MAX:
            looks -= 1
            block = queue.popleft()
            if state[block] == _READ:
                state[block] = _WARM
                queue.append(block)
            elif state[block] == _WARM:
                if epoch[block] > self._engine.checkpointed:
                    queue.appendleft(block)
                    break
                state[block] = _COLD
                self.used -= self._pages(block)
                ranges.append((directory.handle[block], directory.offset[block], directory.length[block]))
        return ranges

    def coming(self, blocks: Sequence[int]) -> list[Range]:
        """Blocks that are to be read ahead: where they lie."""
        if len(self._state) < len(self._directory.state):
            self._grow()
        cold = [block for block in blocks if not self._state[block]]
        directory = self._directory
        self.read(cold)
        return [(directory.handle[block], directory.offset[block], directory.length[block]) for block in cold]

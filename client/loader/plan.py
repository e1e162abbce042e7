"""Which samples this process reads in an epoch, in which order, batch by batch.

The samples of an epoch stand in one order, shuffled or not. Step t of a rank is the rank's part of the next `ranks * batch_size` of them;
worker w of a rank takes the steps w, w + workers, … So who reads what follows from numbers alone: nobody tells anybody, each sample comes
exactly once, and any step can be begun with. What is left for the last step is divided evenly among the ranks: all of them take the same
number of steps (as long as there is a sample for each).

A state is the position in that order. It may be loaded by another number of ranks, or with another size of batches, where all ranks had
taken equally many steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from .permutation import Permutation

BATCH_MAX = 1 << 20  # samples
AHEAD = 8192  # so many samples are looked up at once: a permutation costs some calls of numpy whatever its size

State = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """Which part of an epoch is this process's."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.ranks and 0 <= self.worker < self.workers):
            raise ValueError(f"rank {self.rank} of {self.ranks}, worker {self.worker} of {self.workers}")


class Order(TypedDict, total=False):
    """What whoever reads epochs says of their order: handed through to `Plan`, which has the defaults. All ranks of a run say the same."""

    seed: int
    shuffle: bool
    drop_last: bool  # leave the last step out, where it has fewer samples than the others


class Plan:
    """`take` gives batch after batch, None at the end of an epoch; then `next_epoch`."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        share: Share | None = None,
    ) -> None:
        if not 0 < batch_size <= BATCH_MAX:
            raise ValueError(f"a batch of {batch_size} samples: 1 to {BATCH_MAX}")
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.share = share or Share()
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """From its beginning."""
        self.epoch = epoch
        self._begin = 0  # samples of this epoch that were read before, perhaps by other ranks in other batches
        self.step = self.share.worker
        self._ahead: deque[NDArray[np.int64]] = deque()  # of the steps that come next
        self._permutation = Permutation(self.count, self.seed, epoch) if self.shuffle and self.count else None

    def next_epoch(self) -> None:
        self.begin_epoch(self.epoch + 1)

    @property
    def steps(self) -> int:
        """How many steps this epoch has, from its beginning or from where it was taken up with other ranks."""
        full, rest = divmod(self.count - self._begin, self._width)
        return full + (rest > 0 and not self.drop_last)

    @property
    def steps_of_worker(self) -> int:
        """How many of them are this worker's."""
        return max(0, (self.steps - self.share.worker + self.share.workers - 1) // self.share.workers)

    def take(self) -> NDArray[np.int64] | None:
        """The samples of the next step, which may be none in the last one; None when the epoch is over."""
        if self.step >= self.steps:
            return None
        if not self._ahead:
            self._look_ahead()
        self.step += self.share.workers
        return self._ahead.popleft()

    def _look_ahead(self) -> None:
        """The samples of some steps from this one on."""
        workers, count = self.share.workers, max(1, AHEAD // self.batch_size)
        steps = range(self.step, min(self.steps, self.step + count * workers), workers)
        spans = [np.arange(*self._positions(step), dtype=np.int64) for step in steps]
        if self._permutation is None:
            self._ahead.extend(spans)
            return
        samples = self._permutation(np.concatenate(spans)).astype(np.int64)
        self._ahead.extend(np.split(samples, np.cumsum([span.size for span in spans[:-1]])))

    @property
    def _width(self) -> int:
        return self.batch_size * self.share.ranks

    def _positions(self, step: int) -> tuple[int, int]:
        first = self._begin + step * self._width
        rest = self.count - first
        if rest >= self._width:
            first += self.share.rank * self.batch_size
            return first, first + self.batch_size
        rank, ranks = self.share.rank, self.share.ranks
        return first + rest * rank // ranks, first + rest * (rank + 1) // ranks

    # --- states -------------------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Where this process is. Plain numbers, as JSON takes them."""
        return {
            "version": 1,
            "count": self.count,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "epoch": self.epoch,
            "begin": self._begin,
            "step": self.step,
            "batch_size": self.batch_size,
            "ranks": self.share.ranks,
            "worker": self.share.worker,
            "workers": self.share.workers,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on there. Raises ValueError for another data set, and for a state that does not say where the others are."""
        if state.get("version") != 1:
            raise ValueError(f"a loader's state of version {state.get('version')}: this is version 1")
        if state["count"] != self.count:
            raise ValueError(f"the state is of {state['count']} samples, the data set has {self.count}")
        self.seed, self.shuffle = state["seed"], state["shuffle"]
        self.begin_epoch(state["epoch"])
        self._begin = state["begin"]
        mine = (self.batch_size, self.share.ranks, self.share.worker, self.share.workers)
        if (state["batch_size"], state["ranks"], state["worker"], state["workers"]) == mine:
            self.step = state["step"]
            return
        if state["workers"] != 1:
            raise ValueError(
                f"the state is of worker {state['worker']} of {state['workers']}; this is {self.share.worker} of {self.share.workers}. "
                "Go on with as many workers, ranks and samples in a batch"
            )
        done = state["step"] * state["ranks"] * state["batch_size"]
        self._begin = min(self.count, self._begin + done)

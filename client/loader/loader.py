"""An epoch of batches, asked for before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Unpack

from .plan import Order, Plan, Share, State
from .samples import Reading, Samples

PREFETCH_MAX = 64


class Loader:
    """Iterate over it for the batches of one epoch, again for the next one. While a batch is used, servers move the next `prefetch` ones.

    Batches are `Batch`es, or lists of what the data set's `decode` makes of the samples. Every process of a training run makes one, with
    its `share`; all samples then come exactly once an epoch. `order`: seed, shuffle, drop_last (see `Plan`). `state_dict` says where the
    epoch is, as of the last batch that was given out; `load_state_dict` goes on there, in this or another process. One thread iterates;
    more of them take a loader each, which may share the samples.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        share: Share | None = None,
        prefetch: int = 1,
        **order: Unpack[Order],
    ) -> None:
        if not 0 <= prefetch <= PREFETCH_MAX:
            raise ValueError(f"prefetch={prefetch}: 0 to {PREFETCH_MAX} batches")
        self.samples = samples
        self.prefetch = prefetch
        self.plan = Plan(len(samples), batch_size, share=share, **order)
        self._state = self.plan.state_dict()
        self._run = 0  # iterations so far; only the newest goes on

    def __len__(self) -> int:
        """How many steps of this epoch are this worker's."""
        return self.plan.steps_of_worker

    @property
    def epoch(self) -> int:
        return int(self._state["epoch"])

    def set_epoch(self, epoch: int) -> None:
        """The next iteration begins this epoch. For those whose processes begin anew with each."""
        self._run += 1
        self.plan.begin_epoch(epoch)
        self._state = self.plan.state_dict()

    def state_dict(self) -> State:
        return dict(self._state)

    def load_state_dict(self, state: State) -> None:
        self._run += 1
        self.plan.load_state_dict(state)
        self._state = self.plan.state_dict()

    def __iter__(self) -> Iterator[Any]:
        self._run += 1
        return self._batches(self._run)

    def _batches(self, run: int) -> Iterator[Any]:
        plan, samples = self.plan, self.samples
        plan.load_state_dict(self._state)  # what another iteration had asked for and not given out is to be read again
        ahead = self.prefetch + samples.index.slow  # places are looked up a batch earlier
        flying: deque[tuple[Reading, State]] = deque()
        try:
            while True:
                while len(flying) <= ahead and (numbers := plan.take()) is not None:
                    if numbers.size:
                        flying.append((samples.begin(numbers), plan.state_dict()))
                for reading, _ in list(flying)[: self.prefetch + 1]:
                    reading.advance()
                if not flying:
                    break
                reading, state = flying.popleft()
                batch = samples.decoded(reading.finish())
                if self._run != run:
                    raise RuntimeError("another iteration over this loader has begun, or its state was loaded")
                self._state = state
                yield batch
                del batch, reading
            plan.next_epoch()
            self._state = plan.state_dict()
        finally:
            while flying:
                flying.popleft()[0].cancel()

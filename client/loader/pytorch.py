"""The data sets as torch's `DataLoader` and torchdata's `StatefulDataLoader` want them. This module is for torch alone.

    from emberfs.client.loader import open_samples
    from emberfs.client.loader.pytorch import EpochBatches, as_is

    batches = EpochBatches(open_samples("ember:///data/train"), batch_size=256, seed=1)
    loader = StatefulDataLoader(batches, batch_size=None, num_workers=4)      # or DataLoader

`EpochBatches` (iterable) makes batches itself: one read each, sharded over ranks and workers, resumable. `SampleMap` (map-style) is for
those who bring a sampler: DataLoader asks it for a batch at once, which is one read, too. Rank and number of ranks are torch.distributed's
where that was initialized.

What comes through worker processes is moved into torch's shared memory once, in the worker, a whole batch as one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from .loader import Loader
from .plan import Order, Plan, Share, State
from .samples import Samples


def share_of(rank: int | None = None, ranks: int | None = None) -> Share:
    """Of a rank's process, whatever its workers; what is not said is as torch.distributed says."""
    from torch import distributed

    own = Share()
    if distributed.is_available() and distributed.is_initialized():
        own = Share(distributed.get_rank(), distributed.get_world_size())
    return Share(own.rank if rank is None else rank, own.ranks if ranks is None else ranks)


def as_is(batch: Any) -> Any:
    """For `collate_fn`, where a batch is to stay what the data set gives: nothing is stacked, nothing copied."""
    return batch


class EpochBatches(IterableDataset[Any]):  # type: ignore[misc]
    """Batches of one epoch; give it to a DataLoader with `batch_size=None`. The arguments are those of `Loader`. `rank` and `ranks`: where
    torch.distributed does not say.

    Call `set_epoch` before each epoch, as with torch's DistributedSampler, unless workers are persistent or there are none: workers that
    begin anew know nothing of the epoch before. `state_dict` and `load_state_dict` are for StatefulDataLoader, which calls them in the
    workers; without workers anybody may.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        prefetch: int = 1,
        **order: Unpack[Order],
    ) -> None:
        super().__init__()
        self.samples = samples
        self._batch_size = batch_size
        self._share = share_of(rank, ranks)
        self._prefetch = prefetch
        self._order = order
        self._steps = Plan(len(samples), batch_size, share=self._share, **order).steps
        self._epoch = 0
        self._loader: Loader | None = None  # of this process, made when it is needed: a worker's has another share

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loader": None}

    def _own(self) -> Loader:
        info = get_worker_info()
        share = self._share if info is None else replace(self._share, worker=info.id, workers=info.num_workers)
        if self._loader is None or self._loader.plan.share != share:
            self._loader = Loader(self.samples, self._batch_size, share=share, prefetch=self._prefetch, **self._order)
            self._loader.set_epoch(self._epoch)
        return self._loader

    def set_epoch(self, epoch: int) -> None:
        """The next iteration begins this epoch."""
        self._epoch = epoch
        if self._loader is not None:
            self._loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._own())

    def __len__(self) -> int:
        """Steps of a rank in a whole epoch, whatever the workers."""
        return self._steps

    def state_dict(self) -> State:
        return self._own().state_dict()

    def load_state_dict(self, state: State) -> None:
        self._own().load_state_dict(state)


class SampleMap(Dataset[Any]):  # type: ignore[misc]
    """Samples by number: numpy views of their bytes, or what `decode` makes of them. A DataLoader's batch is one read."""

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> Any:
        return self.samples[number]

    def __getitems__(self, numbers: Sequence[int]) -> Any:
        return self.samples.decoded(self.samples.read(numbers))


class EpochSampler:
    """For `DataLoader(SampleMap(…), batch_sampler=EpochSampler(…))`: the numbers of each batch, in the order that `EpochBatches` has,
    without memory for all of them. It has a state, too."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        **order: Unpack[Order],
    ) -> None:
        self._plan = Plan(count, batch_size, share=share_of(rank, ranks), **order)

    def set_epoch(self, epoch: int) -> None:
        self._plan.begin_epoch(epoch)

    def __len__(self) -> int:
        return self._plan.steps

    def __iter__(self) -> Iterator[list[int]]:
        while (numbers := self._plan.take()) is not None:
            if numbers.size:
                yield numbers.tolist()
        self._plan.next_epoch()

    def state_dict(self) -> State:
        return self._plan.state_dict()

    def load_state_dict(self, state: State) -> None:
        self._plan.load_state_dict(state)


__all__ = ["EpochBatches", "EpochSampler", "SampleMap", "as_is", "share_of"]

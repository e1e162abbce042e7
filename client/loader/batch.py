"""Samples that were read together: views of one piece of memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .memory import Bytes


class Batch:
    """`batch[i]` is a numpy view of the bytes of sample `numbers[i]`; `data` is all of them, one after the other. Nothing is copied. The
    memory is used again when the batch and all views of it are gone: what is to stay for long is to be copied.

    It has what a sequence has, but does not say that it is one: torch's DataLoader takes sequences apart.
    """

    __slots__ = ("data", "ends", "numbers")

    def __init__(self, numbers: NDArray[np.int64], data: Bytes, lengths: NDArray[np.int64]) -> None:
        self.numbers = numbers
        self.data = data
        self.ends = np.concatenate([[0], np.cumsum(lengths)])  # sample i is data[ends[i]:ends[i + 1]]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each sample."""
        return np.diff(self.ends)

    @overload
    def __getitem__(self, place: int) -> Bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[Bytes]: ...
    def __getitem__(self, place: int | slice) -> Bytes | list[Bytes]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"sample {place} of a batch of {len(self)}")
        place %= len(self)
        return self.data[self.ends[place] : self.ends[place + 1]]

    def __iter__(self) -> Iterator[Bytes]:
        ends, data = self.ends.tolist(), self.data
        return (data[ends[i] : ends[i + 1]] for i in range(len(self)))

    def stacked(self, dtype: DTypeLike = np.uint8, shape: Sequence[int] = (-1,)) -> NDArray[Any]:
        """Samples of one size as one array of (samples, *shape), without a copy. Raises ValueError where their sizes differ."""
        lengths = self.lengths
        if lengths.size and (lengths != lengths[0]).any():
            raise ValueError("the samples of this batch differ in size: use them one by one")
        return self.data.view(dtype).reshape(len(self), *shape)

    def tensor(self, dtype: Any = None, shape: Sequence[int] = (-1,)) -> Any:
        """`stacked` as a torch tensor over the same memory; `dtype` is torch's (bytes without one). Raises ImportError without torch."""
        import torch

        made = torch.from_numpy(self.data)
        made = made if dtype is None else made.view(dtype)
        if self.lengths.size and (self.lengths != self.lengths[0]).any():
            raise ValueError("the samples of this batch differ in size: use `tensors`")
        return made.reshape(len(self), *shape)

    def tensors(self) -> list[Any]:
        """A torch tensor of bytes for each sample, over the same memory. Raises ImportError without torch."""
        import torch

        return list(torch.split(torch.from_numpy(self.data), self.lengths.tolist()))

    def pin_memory(self) -> Batch:
        """For DataLoader(pin_memory=True), which calls it: the same in pinned memory."""
        import torch

        data = torch.from_numpy(self.data)
        return self if data.is_pinned() else Batch(self.numbers, data.pin_memory().numpy(), self.lengths)

    def __reduce__(self) -> Any:
        # A batch that a worker sends is one piece, not one for each sample.
        return _made, (self.numbers, _sendable(self.data), self.lengths)

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} samples, {self.data.nbytes} bytes>"


def _sendable(data: Bytes) -> Any:
    """torch sends its tensors between processes through shared memory, numpy's arrays go through a pipe."""
    import sys

    torch = sys.modules.get("torch")
    return data if torch is None else torch.from_numpy(data)


def _made(numbers: NDArray[np.int64], data: Any, lengths: NDArray[np.int64]) -> Batch:
    return Batch(numbers, data if isinstance(data, np.ndarray) else data.numpy(), lengths)

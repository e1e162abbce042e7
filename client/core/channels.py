"""Channels: the numbers under which this client's chunk writes count exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...proto.env import Environment
from ...proto.ids import CHANNELS

if TYPE_CHECKING:
    from .batches import UpdateBatch


class Channels:
    """Which batch occupies each channel, and the last sequence number on it."""

    def __init__(self, env: Environment) -> None:
        self._lock = env.lock()
        self._owner: list[UpdateBatch[Any] | None] = [None] * CHANNELS
        self._sequence = [0] * CHANNELS

    def begin(self, number: int) -> None:
        """All sequences go on beyond this number."""
        self._sequence = [number] * CHANNELS

    async def take(self, batch: UpdateBatch[Any], channels: Sequence[int]) -> list[int]:
        """Occupy these channels (distinct ones), all or none at a time, and number one update on each."""
        while True:
            async with self._lock:
                others = {owner for c in channels if (owner := self._owner[c]) is not None and owner is not batch}
                if not others:
                    for channel in channels:
                        self._owner[channel] = batch
                    return [self.next(channel) for channel in channels]
            for other in others:
                await other.settle()

    def next(self, channel: int) -> int:
        """The next sequence number on a channel that the caller occupies."""
        self._sequence[channel] += 1
        return self._sequence[channel]

    def release(self, batch: UpdateBatch[Any], channels: Sequence[int]) -> None:
        """Leave the channels that the batch occupies."""
        for channel in channels:
            if self._owner[channel] is batch:
                self._owner[channel] = None

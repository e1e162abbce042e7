"""A target that is full: what it says of itself, and how long it leaves its place in a chain to others.

A member that has no room for an update which others can take gives its place away, so that no write fails for its sake. Each way back costs
the chain two changes and a sync, so it comes back once it has room again, not as soon as one more chunk would fit. What fills it may
have been removed by the others meanwhile, of which it hears only from the sync: so after a while it comes back without room, too.
"""

from __future__ import annotations

from ..proto.settings import time_scale
from .engine.engine import ChunkEngine

FULL_PART = 32  # of the capacity: with less left, new chunks had better go elsewhere
ROOMY_PART = 16  # of the capacity: with so much left, it is worth coming back
AWAY_SECONDS_MIN = (
    30.0  # scaled; a disk whose statistics promise more than it gives must not change the chain all the time
)
AWAY_SECONDS_MAX = 120.0  # scaled; without room
LOOK_SECONDS = 1.0  # between two looks whether there is room; scaled


class Fullness:
    """Of one target."""

    def __init__(self, engine: ChunkEngine) -> None:
        self._engine = engine
        self._since: float | None = None
        self._look_at = 0.0

    @property
    def is_aside(self) -> bool:
        """Whether others shall have its place."""
        return self._since is not None

    def step_aside(self, now: float) -> bool:
        """There was no room for an update. Whether that is news."""
        if self._since is not None:
            return False
        self._since = now
        self._look_at = now + AWAY_SECONDS_MIN * time_scale()
        return True

    def come_back(self, now: float) -> bool:
        """Whether it comes back now; to be asked now and then."""
        if self._since is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_SECONDS * time_scale()
        if not self._has_left(ROOMY_PART) and now - self._since < AWAY_SECONDS_MAX * time_scale():
            return False
        self._since = None
        return True

    @property
    def is_full(self) -> bool:
        """Whether new files had better not be laid out over it."""
        return not self._has_left(FULL_PART)

    def _has_left(self, part: int) -> bool:
        """Whether 1/part of what it was made for is free."""
        space = self._engine.space_info()
        return (self._engine.space.capacity_now() - space.used + space.reclaimable) * part >= space.capacity

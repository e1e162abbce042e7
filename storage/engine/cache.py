"""A bounded cache that costs one dictionary look-up per hit: two generations instead of a list of uses.

What is used lives in the young generation. When that holds half of the budget, it becomes the old one and the old one is dropped; what is
asked for again moves back. So an entry leaves after half of the budget was filled with others while nobody asked for it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Cache(Generic[_Value]):
    """Values by key. Costs are bytes, as the caller reckons them; both generations together hold about `cost_max`."""

    __slots__ = ("_cost", "_half", "_old", "young")

    def __init__(self, cost_max: int) -> None:
        self.young: dict[bytes, _Value] = {}  # hot paths look here first, then call `get`
        self._old: dict[bytes, _Value] = {}
        self._half = cost_max // 2
        self._cost = 0

    def get(self, key: bytes, cost: int) -> _Value | None:
        """The value, or None. `cost` is charged when it comes back from the old generation."""
        found = self.young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found, cost)
        return found

    def put(self, key: bytes, value: _Value, cost: int) -> None:
        self.young[key] = value
        self._old.pop(key, None)
        self.charge(cost)

    def charge(self, cost: int) -> None:
        """An entry has grown by so much."""
        self._cost += cost
        if self._cost > self._half:
            self._old = self.young
            self.young = {}
            self._cost = 0

    def drop(self, key: bytes) -> None:
        self.young.pop(key, None)
        self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self.young) + len(self._old)

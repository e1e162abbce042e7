"""Weak sets that several threads use."""

from __future__ import annotations

import weakref
from typing import TypeVar

_Item = TypeVar("_Item")


def living(found: weakref.WeakSet[_Item]) -> list[_Item]:
    """What is in it now. Other threads may put more in meanwhile: an iteration alone would raise RuntimeError then, because a WeakSet
    iterates in Python, which a plain set does not."""
    while True:
        try:
            return list(found)
        except RuntimeError:  # it changed its size
            continue

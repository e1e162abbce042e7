"""A folder that says before each call that changes something, its drafts' too, how many there were."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

CHANGES = ("make", "draft", "publish", "remove", "sync", "write", "fsync")


class Stepping:
    """`before(number)` is called with 0, 1, … and may raise."""

    def __init__(self, real: Any, before: Callable[[int], object], numbers: Iterator[int] | None = None) -> None:
        self._real, self._before = real, before
        self._numbers = numbers or itertools.count()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name not in CHANGES:
            return value

        def step(*args: Any, **more: Any) -> Any:
            self._before(next(self._numbers))
            if name == "publish":
                args = ([draft._real for draft in args[0]], args[1])
            made = value(*args, **more)
            return Stepping(made, self._before, self._numbers) if name == "draft" else made

        return step

"""What holds only while nothing stops for a second (leases run out) and memory is not short (the kernel drops pages) is tried again."""

from __future__ import annotations

from collections.abc import Callable

ATTEMPTS_MAX = 10


def holds(attempt: Callable[[int], bool]) -> bool:
    """Whether one of some attempts is as it should be; each gets its number, for names of its own. Where the code is wrong none is."""
    return any(attempt(number) for number in range(ATTEMPTS_MAX))

"""What holds only while nothing stops for a second (leases run out) and nobody takes memory back (the kernel's pages) is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

ATTEMPTS_MIN = 10
SECONDS_MIN = 20.0  # longer than anything disturbs


def holds(attempt: Callable[[int], bool]) -> bool:
    """Whether one of some attempts is as it should be; each gets its number, for names of its own. Where the code is wrong none is."""
    end = time.monotonic() + SECONDS_MIN
    for number in count():
        if attempt(number):
            return True
        if number + 1 >= ATTEMPTS_MIN and time.monotonic() > end:
            return False
    raise AssertionError("numbers do not end")

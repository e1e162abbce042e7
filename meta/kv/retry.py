"""The one retry loop around transactions.

Only CONFLICT is tried again: then nothing has happened, and the work is done anew on a new snapshot. MAYBE_COMMITTED is passed
on, because a repetition could happen twice: the operations of the namespace write an idempotency record (client, request
id) in the same transaction, so whoever sent the request repeats it and gets the first one's reply.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from prometheus_client import Counter

from ...proto.errors import Status, StatusError, error
from .engine import Engine, Transaction

ATTEMPTS_MAX = 30
BACK_OFF_SECONDS_MIN = 0.001  # upper bound of the first pause; it doubles up to
BACK_OFF_SECONDS_MAX = 0.1

# Not in a registry by itself: a server puts them into its own.
RETRIES = Counter("emberfs_kv_retries", "Transactions that were done again after a conflict", registry=None)
GIVEN_UP = Counter(
    "emberfs_kv_conflicts", "Transactions that conflicted until their attempts or time ran out", registry=None
)

_Result = TypeVar("_Result")


class Clock(Protocol):
    """Time and chance; every `proto.env.Environment` is one."""

    async def sleep(self, seconds: float) -> None: ...

    def now(self) -> float:
        """Seconds, monotonic."""

    def random(self) -> float:
        """[0, 1)"""


class _RealClock:
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def now(self) -> float:
        return time.monotonic()

    def random(self) -> float:
        return random.random()  # noqa: S311


REAL_CLOCK: Clock = _RealClock()


async def run(
    engine: Engine,
    work: Callable[[Transaction], Awaitable[_Result]],
    clock: Clock = REAL_CLOCK,
    *,
    durable: bool = False,
    attempts_max: int = ATTEMPTS_MAX,
    deadline: float | None = None,
) -> _Result:
    """Do `work(transaction)` and commit; again on CONFLICT, after a pause of random length. Returns what `work` returned last.

    `work` may run several times, so all it does is to the transaction. Raises what `work` raises, CONFLICT after `attempts_max`
    attempts or when `deadline` (in seconds of `clock.now()`) has passed, and what `commit` raises otherwise.
    """
    bound = BACK_OFF_SECONDS_MIN
    for attempt in range(1, attempts_max + 1):
        transaction = engine.begin()
        try:
            result = await work(transaction)
            await transaction.commit(durable=durable)
            return result
        except StatusError as failure:
            if failure.status is not Status.CONFLICT:
                raise
            if attempt == attempts_max or (deadline is not None and clock.now() >= deadline):
                GIVEN_UP.inc()
                raise error(Status.CONFLICT, f"gave up after {attempt} attempts: {failure.strerror}") from failure
        RETRIES.inc()
        # The first repetition comes at once: the other transaction is over by now.
        pause = bound * clock.random() if attempt > 1 else 0.0
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - clock.now()))
        await clock.sleep(pause)
        bound = min(2 * bound, BACK_OFF_SECONDS_MAX)
    raise error(Status.INVALID, f"attempts_max is {attempts_max}: at least 1")

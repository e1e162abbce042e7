"""The one retry policy: what is tried again, how soon, and when an operation gives up.

Every request of a client may be repeated: reads change nothing, metadata changes carry a request id, chunk writes carry a channel and
sequence. So whatever the status table calls retryable is tried again until the operation's deadline, and so is an attempt that got no
answer in time: its server may be stopped while another one lives.
"""

from __future__ import annotations

from ...proto.env import Environment
from ...proto.errors import Status, StatusError, error

ATTEMPT_SECONDS = 10.0  # one request waits at most so long for its answer before it is sent again
DELAY_SECONDS_MIN = 0.002
DELAY_SECONDS_MAX = (
    0.2  # a chain without a head gets one within the manager's time; whoever waits for that should notice soon
)

# What a fresh look at the routing cures: no reason to wait before the first retry.
_AT_ONCE = frozenset(
    {Status.STALE_CHAIN_VERSION, Status.STALE_ROUTING, Status.NOT_PRIMARY, Status.STALE_TRUNCATE_VERSION}
)


class Patience:
    """How long one operation still waits. `again` is called after each failed attempt."""

    __slots__ = ("attempt_max", "deadline", "env", "failures", "total", "uncertain")

    def __init__(self, env: Environment, seconds: float, attempt_max: float = ATTEMPT_SECONDS) -> None:
        self.env = env
        self.total = seconds
        self.deadline = env.now() + seconds
        self.attempt_max = attempt_max
        self.failures = 0
        self.uncertain = False  # whether an attempt that has failed may still be carried out

    def remaining(self) -> float:
        """Seconds to the deadline, never negative."""
        return max(0.0, self.deadline - self.env.now())

    def attempt(self) -> float:
        """The time-out of the next request, in seconds."""
        return min(self.attempt_max, max(0.001, self.deadline - self.env.now()))

    async def again(self, failure: StatusError) -> None:
        """Wait before the next attempt. Raises `failure` if no retry can help, DEADLINE when the time is used up."""
        if not failure.retryable and failure.status is not Status.DEADLINE:
            raise failure
        self.failures += 1
        self.uncertain = self.uncertain or failure.maybe_committed
        delay = self._delay(failure)
        if delay >= self.remaining():
            raise self.exhausted(failure) from failure
        if delay:
            await self.env.sleep(delay)

    def exhausted(self, failure: StatusError) -> StatusError:
        """The error of an operation whose time is used up; it says what stood in the way last."""
        seen = f"{failure.status.name}: {failure.strerror}"
        return error(
            Status.DEADLINE,
            f"gave up after {self.total:.3g} s and {self.failures} attempts; the last failed with {seen}",
        )

    def _delay(self, failure: StatusError) -> float:
        if self.failures == 1 and failure.status in _AT_ONCE:
            return 0.0
        full = min(DELAY_SECONDS_MAX, DELAY_SECONDS_MIN * 2.0 ** min(self.failures, 20))
        return full * (0.5 + 0.5 * self.env.random())  # jitter: clients that failed together do not come back together

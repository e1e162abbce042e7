"""Which of a node's addresses a client uses: the best one, and another for a while after it failed."""

from __future__ import annotations

from typing import NamedTuple

from ...proto.env import Environment
from .options import Options

TURN_SECONDS_MIN = 2.0  # another address is used for so long; doubling when the best one fails again
TURN_SECONDS_MAX = 256.0


class _Turn(NamedTuple):
    steps: int  # behind the best address
    until: float
    seconds: float


class Turns:
    """The best address is several times as fast as the others (shared memory): no failure of a moment is a reason to leave it for good."""

    def __init__(self, env: Environment, options: Options) -> None:
        self._env = env
        self._shortest = options.scaled(TURN_SECONDS_MIN)
        self._longest = options.scaled(TURN_SECONDS_MAX)
        self._turns: dict[int, _Turn] = {}

    def of(self, node: int) -> int:
        """How many addresses to go on from the best one."""
        turn = self._turns.get(node)
        return turn.steps if turn is not None and self._env.now() < turn.until else 0

    def failed(self, node: int) -> None:
        """The address in use did."""
        now, last = self._env.now(), self._turns.get(node)
        if last is not None and now < last.until:
            self._turns[node] = last._replace(steps=last.steps + 1)
            return
        is_new = last is None or now - last.until > last.seconds
        seconds = self._shortest if last is None or is_new else min(2 * last.seconds, self._longest)
        self._turns[node] = _Turn(1, now + seconds, seconds)

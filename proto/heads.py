"""Waiting for the head of a chain, which may stop leading it meanwhile.

A request to a head may take long for good reasons: its successors have not acknowledged yet. But a head that is stopped or cut off
never answers, and its successor, which the manager makes after its lease, would. So whoever waits looks at the routing now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from .env import Ticket
from .errors import Status, error
from .routing import RoutingTable

LOOK_SECONDS = 0.25  # without an answer for so long, look who leads; scaled by the caller


class Waiting(Protocol):
    """The part of an `Environment` that is used here."""

    async def collect(self, ticket: Any) -> Any: ...

    async def collect_any(self, tickets: Sequence[Any], seconds: float) -> Any: ...

    def abandon(self, ticket: Any) -> None: ...


def is_head(table: RoutingTable, node: int, chains: Sequence[int]) -> bool:
    """False when another node leads one of these chains; a chain that nobody leads says nothing."""
    return all(not (serving := table.route(chain).serving) or serving[0].node == node for chain in chains)


async def answer_of_head(
    env: Waiting,
    table: RoutingTable,
    ticket: Ticket,
    node: int,
    chains: Sequence[int],
    seconds: float,
    look: Callable[[], None],
) -> Any:
    """The reply of a request that `node` got as the head of `chains`. Without an answer, `look` is called every so many seconds (to get
    news into the table). Raises as `collect` does, and MAYBE_COMMITTED when another node leads by now: ask that one."""
    if not any(table.route(chain).several for chain in chains):
        return await env.collect(ticket)  # nobody could take its place
    try:
        while await env.collect_any((ticket,), seconds) is None:
            if not is_head(table, node, chains):
                raise error(Status.MAYBE_COMMITTED, f"node {node} did not answer, and no longer leads the chain")
            look()
    except BaseException:
        env.abandon(ticket)
        raise
    return await env.collect(ticket)

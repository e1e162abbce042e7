"""One question to the head of each of several chains: all at once, one request per storage process, again where that can help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from ...proto.errors import Status, StatusError, error, status_of
from ...proto.rpc import Method
from .cluster import Cluster
from .retry import Patience

Build = Callable[[Sequence[int], Sequence[int]], Message]  # (chains, their versions) -> the request, chain i in row i
Cure = Callable[[Status], Awaitable[bool]]  # does what a refusal asks for; whether it knew what
Beside = Callable[[], Awaitable[None]]  # something else to do while the servers are at work


async def ask_heads(
    cluster: Cluster,
    method: Method,
    chains: Iterable[int],
    build: Build,
    what: str,
    cure: Cure | None = None,
    beside: Beside | None = None,
    patience: Patience | None = None,
) -> dict[int, tuple[Any, int]]:
    """Per chain the reply that answers for it, and the row in it. The replies have the columns `status` and `chains`. `what` is being done
    says the error; `beside` is done once, after the first requests were sent, unless they could not be, and must not raise StatusError.
    Raises StatusError."""
    patience = patience or cluster.patience()
    answers: dict[int, tuple[Any, int]] = {}
    left = sorted(set(chains))
    while left:
        nodes: dict[int, list[int]] = {}
        failure: StatusError | None = None
        try:
            for chain in left:
                nodes.setdefault(cluster.table.head(chain).node, []).append(chain)
            replies = await _ask(cluster, method, nodes, build, beside)
            beside = None
        except StatusError as broken:
            failure = broken
            await cluster.recover(broken)
        else:
            left = []
            for (node, chosen), reply in zip(nodes.items(), replies, strict=True):
                refused, why = await _take(cluster, node, chosen, reply, answers, what, cure)
                left += refused
                failure = why or failure
        if failure is not None:
            await patience.again(failure)
    return answers


async def _ask(
    cluster: Cluster, method: Method, nodes: dict[int, list[int]], build: Build, beside: Beside | None
) -> list[Any]:
    """Per node its reply or its StatusError."""
    calls = []
    for node, chains in nodes.items():
        versions = [cluster.table.route(chain).version for chain in chains]
        calls.append((node, chains, cluster.head_call(node, method, build(chains, versions), chains)))
    tickets = [cluster.env.start(call) for _, _, call in calls]
    replies: list[Any] = []
    try:
        if beside is not None:
            await beside()
        for (node, chains, _), ticket in zip(calls, tickets, strict=True):
            try:
                replies.append(await cluster.answer_of_head(ticket, node, chains))
            except StatusError as failure:
                replies.append(failure)
    except BaseException:
        for ticket in tickets[len(replies) :]:
            cluster.env.abandon(ticket)
        raise
    return replies


async def _take(
    cluster: Cluster,
    node: int,
    chains: list[int],
    reply: Any,
    answers: dict[int, tuple[Any, int]],
    what: str,
    cure: Cure | None,
) -> tuple[list[int], StatusError | None]:
    """Keep what a node answered; the chains that it did not answer for, and why."""
    if isinstance(reply, StatusError):
        await cluster.recover(reply, node)
        return chains, reply
    cluster.learn_chains(reply.chains)
    refused: list[int] = []
    failure: StatusError | None = None
    for row, (chain, code) in enumerate(zip(chains, reply.status, strict=True)):
        if not code:
            answers[chain] = (reply, row)
            continue
        refused.append(chain)
        status = status_of(code)
        if cure is not None and await cure(status):
            status = Status.BUSY
        failure = failure or error(status, f"{what} chain {chain}: {status.name}")
    return refused, failure

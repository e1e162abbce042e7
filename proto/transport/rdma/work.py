"""Work requests to send: what an endpoint queues, and the objects of pyverbs that describe it to the device.

Those are made once and used again, by one endpoint after the other: each costs more than the request that it describes, and leaks its
scatter list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .memory import abandon

BATCH = 32  # of one post

Done = Callable[[bool], None]  # called once: whether the work request was carried out


class Work(NamedTuple):
    """One, not yet posted."""

    opcode: int
    address: int  # here
    length: int
    local_key: int
    remote: int  # address there
    key: int
    flags: int
    slots: int  # to send from, that it takes
    done: Done | None
    awaited: bool  # somebody waits for `done`, who is to be woken


Chain = list[tuple[Any, Any]]  # send work requests, each with its scatter entry and linked to the next
_chains: list[Chain] = []  # of endpoints that are gone, for the next


def take_chain(verbs: Any) -> Chain:
    """BATCH of them; for a post of fewer the first are skipped."""
    try:
        return _chains.pop()
    except IndexError:
        return _make(verbs)


def give_chain(chain: Chain) -> None:
    """Nobody posts it any more."""
    _chains.append(chain)


def _make(verbs: Any) -> Chain:
    chain = []
    for _ in range(BATCH):
        entry = verbs.SGE(0, 0, 0)
        request = verbs.SendWR(num_sge=1, sg=[entry])
        request.sg_list = entry
        abandon(entry, request)  # both would free the entry
        chain.append((request, entry))
    for i in range(BATCH - 1):
        chain[i][0].next_wr = chain[i + 1][0]
    return chain


# ibv_wc_status, as far as it says something to people.
WHY = {
    1: "a work request was longer than the queue pair takes",
    2: "the queue pair met an inconsistency",
    4: "memory of this process is not registered as it should be",
    5: "the queue pair was moved to the error state",
    9: "the peer refused a work request",
    10: "the peer does not let us at that memory: it was unregistered",
    11: "the peer could not carry a work request out",
    12: "the peer does not answer: is its link up?",
    13: "the peer posted no receive",
}

"""Going on as the client that a process was which has died.

What that one had sent and was not answered may lie in the socket of a storage server that stands still. Nobody waits for it, it counts as
lost, and another client may have written to the same chunk when it is read at last. So before anything else storage is told that all of
it comes too late: updates with numbers up to the last one that the dead process can have used (a fence). Chains that do not answer
for so long are told in the background, as soon as they do.

Then the sessions that it had for writing end: the chunks say how long its files are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...proto.blocks import TABLE_OF_FILES
from ...proto.errors import Status, StatusError
from ...proto.gen.meta_pb2 import SettleSessionsRequest
from ...proto.gen.storage_pb2 import FenceRequest
from ...proto.rpc import META, STORAGE
from .cluster import Cluster
from .heads import ask_heads

if TYPE_CHECKING:
    from .client import Core

FENCE_SECONDS = 8.0  # before scaling: for all chains together, and then for the sessions; programs wait meanwhile
FENCE_PAUSE_SECONDS = 1.0  # before scaling: between two tries in the background


async def settle_predecessor(core: Core, number: int, keep: Sequence[int]) -> None:
    """Fence off all updates up to this number, and end the sessions but these, which are ours. Raises DEADLINE when storage does not
    answer for so long."""
    try:
        await _fence(core.cluster, number)
    except StatusError as failure:
        if not _goes_on(failure):
            raise
        core.env.spawn(lambda: _keep_fencing(core, number), "fence")
    request = SettleSessionsRequest(keep=keep)
    await core.cluster.meta(META.SettleSessions, request, core.cluster.patience(FENCE_SECONDS))


def chains_of_files(cluster: Cluster) -> list[int]:
    """All chains that files may lie on."""
    tables = cluster.table.tables.items()
    return sorted({chain for (table, _), placed in tables if table == TABLE_OF_FILES for chain in placed})


async def _fence(cluster: Cluster, number: int) -> None:
    """Raises why a chain has not taken it. One that has needs not take it again after a change of its members: what is late names the
    version of the chain under which it was sent."""

    def build(chains: Sequence[int], versions: Sequence[int]) -> FenceRequest:
        return FenceRequest(chain=chains, chain_version=versions, sequence=number)

    try:
        patience = cluster.patience(FENCE_SECONDS)
        await ask_heads(cluster, STORAGE.Fence, chains_of_files(cluster), build, "fencing", patience=patience)
    except StatusError as failure:
        if failure.status is not Status.UNSUPPORTED:  # a server of before there were fences
            raise


async def _keep_fencing(core: Core, number: int) -> None:
    while not core.closed:
        try:
            await _fence(core.cluster, number)
            return
        except StatusError as failure:
            if not _goes_on(failure):
                return  # this client is over, and everything of it is refused
        await core.env.sleep(core.options.scaled(FENCE_PAUSE_SECONDS))


def _goes_on(failure: StatusError) -> bool:
    return failure.retryable or failure.status is Status.DEADLINE

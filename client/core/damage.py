"""Damage that a reader has met, told to the server of the target, whose scrubber looks at the chunk and repairs it."""

from __future__ import annotations

from contextlib import suppress

from ...proto.env import Call
from ...proto.errors import StatusError
from ...proto.gen.storage_pb2 import ReportCorruptionRequest
from ...proto.rpc import STORAGE
from .cluster import Cluster
from .columns import Columns

REPORT_SECONDS = 2.0  # a report waits at most so long; the error that follows matters more


async def report_damage(cluster: Cluster, columns: Columns, row: int, target: int) -> None:
    """Tell a target's server that a chunk there is damaged or missing, so that the scrubber looks at it. Best effort."""
    request = ReportCorruptionRequest(
        chain=[columns.chain(row)], target=[target], inode=[columns.inode(row).id], index=[columns.index[row]]
    )
    nodes = [r.node for r in cluster.table.route(columns.chain(row)).serving if r.target == target]
    with suppress(StatusError):
        for node in nodes:
            timeout = cluster.options.scaled(REPORT_SECONDS)
            await cluster.env.call(Call(cluster.node_address(node), STORAGE.ReportCorruption, request, timeout))

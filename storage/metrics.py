"""What the process tells Prometheus of its targets: `emberfs_target_NAME{target="7"}`, read when somebody asks.

Numbers that only rise are since the start of the process. Replication is watched by four of them: `updates_under_way` that does not fall,
`forwards_unanswered` that rises, `sync_done` that does not approach `sync_total`, `chunks_damaged` that stays.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge

from ..proto.gen.common_pb2 import Chain
from .repair import Repairer
from .target import Target


class Watched(NamedTuple):
    target: Target
    repairer: Repairer


VALUES: dict[tuple[str, str], Callable[[Watched], float]] = {
    ("bytes_used", "Bytes in slots"): lambda w: w.target.engine.space_info().used,
    ("bytes_capacity", "Bytes that the target may take"): lambda w: w.target.engine.space_info().capacity,
    ("chunks", "Chunks"): lambda w: w.target.engine.space_info().chunks,
    ("online", "1 unless the disk has taken the target out"): lambda w: not w.target.engine.failed,
    ("read_only", "1 after a write to the disk failed"): lambda w: bool(w.target.read_only),
    ("bytes_read", "Served to clients since the start"): lambda w: w.target.counters.bytes_read,
    ("bytes_written", "Taken from clients since the start"): lambda w: w.target.counters.bytes_written,
    ("reads", "Read operations since the start"): lambda w: w.target.counters.reads,
    ("reads_missed", "Read operations that had to wait for the disk"): lambda w: w.target.counters.reads_missed,
    ("writes", "Updates since the start"): lambda w: w.target.counters.writes,
    ("checksum_errors", "Damaged chunks met since the start"): lambda w: w.target.counters.checksum_errors,
    ("io_errors", "Errors of the disk since the start"): lambda w: w.target.counters.io_errors,
    ("chain", "The chain that it is a member of; 0: none"): lambda w: chain.id if (chain := _chain(w)) else 0,
    ("chain_version", "The version of the chain that it works under"): lambda w: c.version if (c := _chain(w)) else 0,
    ("serving", "1 while it is a SERVING member"): lambda w: w.target.replica.serving,
    ("updates_under_way", "Batches of updates not answered yet"): lambda w: w.target.replica.in_flight,
    ("forwards", "Batches that the successor has answered"): lambda w: w.target.counters.forwards,
    ("forwards_unanswered", "Forwards without an answer; each is tried again"): lambda w: (
        w.target.counters.forwards_unanswered
    ),
    ("bytes_forwarded", "Sent to the successor"): lambda w: w.target.counters.bytes_forwarded,
    ("bytes_copied", "Of these, whole chunks for one that is synced or differs"): lambda w: (
        w.target.counters.bytes_copied
    ),
    ("sync_done", "Chunks compared by the sync of the successor"): lambda w: (
        sync.done if (sync := w.target.syncing) else 0
    ),
    ("sync_total", "Chunks that this sync has to compare; 0: none runs"): lambda w: (
        max(sync.done, sync.total) if (sync := w.target.syncing) else 0
    ),
    ("chunks_damaged", "Chunks known to be damaged now"): lambda w: len(w.target.damaged),
    ("chunks_repaired", "Chunks brought back from another member"): lambda w: w.repairer.repaired,
}


def _chain(watched: Watched) -> Chain | None:
    return watched.target.replica.chain


class TargetMetrics:
    """Gauges with a row for each target that is hosted now."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauges = [
            (Gauge(f"emberfs_target_{name}", text, ["target"], registry=registry), read)
            for (name, text), read in VALUES.items()
        ]

    def watch(self, target: Target, repairer: Repairer) -> None:
        watched = Watched(target, repairer)
        for gauge, read in self._gauges:
            gauge.labels(target=str(target.id)).set_function(partial(read, watched))

    def forget(self, target: Target) -> None:
        for gauge, _ in self._gauges:
            gauge.remove(str(target.id))

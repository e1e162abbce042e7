"""What the process tells Prometheus of blocks: `emberfs_kv_NAME{namespace="…",tenant="…"}`, read when somebody asks.

The hit ratio of a namespace is hits / (hits + misses) of an interval; both only rise since the start of the process. `puts_refused` that
rises says that eviction, checkpoints or a quota hold puts up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from .service import KvCacheService

LABELS = ("namespace", "tenant")
GAUGES = {
    "blocks": "Blocks that are here",
    "bytes": "Bytes in them",
    "pinned_bytes": "Of these, in pinned blocks",
}
COUNTERS = {
    "hits": "Keys of gets that were here",
    "misses": "Keys of gets that were not",
    "puts": "Blocks put",
    "puts_existing": "Puts of blocks that were here",
    "puts_refused": "Puts refused: no room, over a quota, or damaged on their way",
    "evictions": "Blocks evicted",
    "expired": "Blocks whose time was over",
    "bytes_read": "Bytes that gets returned",
    "bytes_written": "Bytes of blocks put",
}
SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class BlockMetrics:
    """A collector, and the latencies of requests."""

    def __init__(self, service: KvCacheService, registry: CollectorRegistry) -> None:
        self._service = service
        latency = Histogram(
            "emberfs_kv_seconds",
            "From a request's arrival to its answer",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        service.observers = {name: latency.labels(method=name).observe for name in ("match", "get", "put")}
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        used, budget = self._service.memory
        yield GaugeMetricFamily("emberfs_kv_memory_bytes", "Of blocks in memory, as far as known", value=used)
        yield GaugeMetricFamily("emberfs_kv_memory_budget_bytes", "That blocks may take of memory", value=budget)
        capacity, held = self._service.space
        yield GaugeMetricFamily("emberfs_kv_capacity_bytes", "Of the targets for blocks", value=capacity)
        yield GaugeMetricFamily("emberfs_kv_used_bytes", "Of these, in slots of blocks", value=held)
        rows = self._service.rows()
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"emberfs_kv_{name}", text, labels=LABELS)
            for labels, row in rows:
                gauge.add_metric(labels, row[name])
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"emberfs_kv_{name}", text, labels=LABELS)
            for labels, row in rows:
                counter.add_metric(labels, row[name])
            yield counter

"""vLLM's side of its tiers, on a machine without a GPU: the primary tier's shared memory, the tiering manager, the scheduler's steps."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .parts import enter, stand_in

CONNECTORS = "vllm.distributed.kv_transfer.kv_connector"

enter("vllm", "vllm.distributed", "vllm.distributed.kv_transfer", CONNECTORS, f"{CONNECTORS}.v1")
stand_in("vllm.config", VllmConfig=object, KVTransferConfig=object)
stand_in(f"{CONNECTORS}.factory", KVConnectorFactory=object)
stand_in(f"{CONNECTORS}.v1.offloading.canonical_mapping", canonical_format_id=str)
stand_in(
    "vllm.distributed.parallel_state", is_local_first_rank=lambda: True, is_global_first_rank=lambda: True
)  # its logger asks
stand_in("vllm.distributed.device_communicators.shm_broadcast", check_shm_free_space=lambda *_, **__: None)
stand_in("vllm.v1.kv_offload.cpu.host_register", host_unregister=lambda _: None)  # of pages pinned for the GPU

from vllm.v1.kv_offload import config as offloading  # noqa: E402
from vllm.v1.kv_offload.base import (  # noqa: E402
    LookupResult,
    OffloadingSpec,
    ReqContext,
    ScheduleEndContext,
    make_offload_key,
)
from vllm.v1.kv_offload.cpu import shared_offload_region  # noqa: E402
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion  # noqa: E402
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob  # noqa: E402
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: E402
from vllm.v1.kv_offload.tiering.manager import (  # noqa: E402
    CPUPrimaryTierOffloadingManager,
    TieringOffloadingManager,
)

__all__ = ["JobResult", "LookupResult", "ReqContext", "TransferJob", "make_offload_key", "shared_offload_region"]

STEP = ScheduleEndContext(new_req_ids=(), preempted_req_ids=())
STEPS_MAX = 5000
STEP_SECONDS = 0.001  # a scheduler's step


class Spec(OffloadingSpec):
    """The engine's description of what is offloaded; its workers' half is never asked for."""

    get_manager = get_worker = None  # type: ignore[assignment]


def spec(chunk_bytes: int, **changed: Any) -> Spec:
    """`changed`: model, dtype, tp, tokens, layout, blocks, layers, events, portable."""
    tp = changed.get("tp", 1)
    group = offloading.OffloadingGroupConfig(
        tokens_per_block=changed.get("tokens", 16), layer_names=tuple(changed.get("layers", ("layer.0", "layer.1"))), group_id=0
    )  # fmt: skip
    parallel = offloading.OffloadingParallelConfig(
        rank=0, world_size=tp, tp_size=tp, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0, data_parallel_size=1,
        data_parallel_rank_local=None, is_parallelism_agnostic=changed.get("portable", False),
    )  # fmt: skip
    return Spec(
        offloading.OffloadingConfig(
            groups=(group,), worker_kv_bytes_per_block=chunk_bytes // tp, enable_kv_cache_events=changed.get("events", False),
            extra_config={}, engine_id="test", parallel=parallel, kv_cache_layout=changed.get("layout", "NHD"),
            model=offloading.OffloadingModelConfig(changed.get("model", "org/model"), changed.get("dtype", "bfloat16")),
            cache=offloading.OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=changed.get("blocks", 1)),
        )
    )  # fmt: skip


def keys(count: int, first: int = 0, group: int = 0) -> list[Any]:
    return [make_offload_key((first + i + 1).to_bytes(32, "big"), group) for i in range(count)]


def make_tier(url: str, view: memoryview, settings: dict[str, Any], **changed: Any) -> Any:
    """Our tier as the engine's factory loads it, by the path of its module."""
    said = {"type": "EmberTier", "module_path": "emberfs.kvcache.adapters.vllm", "url": url, **settings}
    return SecondaryTierFactory.create_secondary_tier(said, view, spec(view.strides[0], **changed))  # type: ignore[index]


def private_view(chunks: int, chunk_bytes: int) -> memoryview:
    """Host memory that nobody else can map."""
    return memoryview(np.frombuffer(mmap.mmap(-1, chunks * chunk_bytes, mmap.MAP_PRIVATE), np.int8).reshape(chunks, -1))


@contextmanager
def primary(chunks: int, chunk_bytes: int, segments: int = 1) -> Iterator[CPUPrimaryTierOffloadingManager]:
    """The engine's primary tier, in a region on tmpfs as its workers share it; unlinked, as it is once they all have it."""
    region = SharedOffloadRegion(
        f"test-{time.time_ns()}", chunks, 0, chunk_bytes, chunk_bytes, barrier=lambda: None, num_segments=segments
    )
    assert not Path(region.mmap_path).exists()
    tier = CPUPrimaryTierOffloadingManager(chunks, region)
    try:
        yield tier
    finally:
        tier.shutdown()


def settle(ask: Callable[[], bool], step: Callable[[], None]) -> int:
    """Scheduler steps until something is so; how many."""
    for turn in range(STEPS_MAX):
        if ask():
            return turn
        step()
        time.sleep(STEP_SECONDS)
    raise AssertionError(f"not within {STEPS_MAX} steps")


def lookup_all(tier: Any, wanted: Sequence[Any], request: ReqContext) -> list[LookupResult]:
    """What a tier says of keys, once it has an answer for each."""
    answers: list[LookupResult] = []

    def answered() -> bool:
        answers[:] = [tier.lookup(key, request) for key in wanted]
        return LookupResult.RETRY not in answers

    settle(answered, lambda: tier.on_schedule_end(STEP))
    return answers


def carry_out(tier: Any, job: TransferJob) -> JobResult:
    """Submit a job, and step until it has ended."""
    (tier.submit_load if job.is_promotion else tier.submit_store)(job)
    ended: list[JobResult] = []

    def done() -> bool:
        ended.extend(tier.get_finished_jobs())
        return bool(ended)

    settle(done, lambda: tier.on_schedule_end(STEP))
    assert [result.job_id for result in ended] == [job.job_id]
    return ended[0]


@contextmanager
def managed(primary_tier: CPUPrimaryTierOffloadingManager, tier: Any) -> Iterator[TieringOffloadingManager]:
    """The engine's manager over both tiers; it shuts them down."""
    manager = TieringOffloadingManager(primary_tier, [tier])
    try:
        yield manager
    finally:
        manager.shutdown()

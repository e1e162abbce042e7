"""vLLM's KV offloading: emberfs as a secondary tier behind the engine's pool of host memory (`TieringOffloadingSpec`).

The engine's scheduler asks for blocks by hash, copies between GPU and its pool itself, and has us move chunks between the pool and
storage. Every call here runs in the scheduler under its lock, so none of them waits: lookups are answered by a thread that asks for
a step's keys at once, transfers are tickets that are polled.

A chunk is one block. Its namespace says what the engine's own file tier puts into its paths: model, dtype, tokens, groups of layers,
parallelism (unless the bytes do not depend on it) and layout.

Written for vLLM 0.33.0, whose interface for tiers is experimental; needs its package. Configuration: README.md beside this file.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import threading
import time
from array import array
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple

from vllm.v1.kv_offload.base import (
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadKey,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    get_offload_block_hash,
    get_offload_group_idx,
)
from vllm.v1.kv_offload.tiering.async_lookup import AsyncLookupManager
from vllm.v1.kv_offload.tiering.base import JobId, JobResult, SecondaryTierManager, TransferJob

from ..blocking import KVCache
from ..namespace import Namespace, NamespaceSpec
from .arena import Arena
from .settings import AdapterSettings, key_of, logger, succeeded

TOUCHES_MAX = 4096  # keys that wait to be touched; of more only the first are


def block_key(key: OffloadKey) -> bytes:
    """Our key of a chunk: the engine's hash itself for the first group of layers, else a hash of hash and group."""
    return key_of(get_offload_block_hash(key)) if get_offload_group_idx(key) == 0 else key_of(bytes(key))


def describe(config: Any, chunk_bytes: int, settings: AdapterSettings) -> NamespaceSpec:
    """The namespace of an engine's chunks."""
    parallel = config.parallel
    portable = parallel.is_parallelism_agnostic or config.replicated_layout
    said = {
        "groups": [[group.tokens_per_block, list(group.layer_names)] for group in config.groups],
        "tokens_per_hash": config.cache.tokens_per_hash,
        "parallel": None if portable else [parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size],
        "replicated": config.replicated_layout,
        "layout": config.kv_cache_layout,
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]
    kind = f"canonical-{config.kv_cache_layout}" if config.canonical_layout else "direct"
    return NamespaceSpec(
        engine="vllm", model=config.model.name, revision=settings.revision, dtype=str(config.model.dtype),
        page_tokens=config.groups[0].tokens_per_block * config.cache.blocks_per_chunk, layout=f"{kind}/{digest}",
        object_bytes=chunk_bytes, salt=settings.salt, tenant=settings.tenant,
    )  # fmt: skip


class _Probe(AsyncLookupManager):
    """Asks which of a step's keys are stored."""

    def __init__(self, kv: KVCache, namespace: Namespace, tier_type: str, deadline_ms: int | None) -> None:
        super().__init__(tier_type=tier_type)
        self._kv, self._namespace, self._deadline_ms = kv, namespace, deadline_ms

    def batch_lookup(self, keys: list[OffloadKey], req_context: ReqContext) -> Iterable[bool]:
        names = [block_key(key) for key in keys]
        return [bool(here) for here in self._kv.exists(self._namespace, names, deadline_ms=self._deadline_ms)]


class _Transfer(NamedTuple):
    job: TransferJob
    keys: list[OffloadKey]
    ticket: Any
    began: float


def _statuses(transfer: _Transfer) -> Sequence[int]:
    """What has become of a transfer's keys, waited for. Never raises: that would end the scheduler."""
    try:
        found: Sequence[int] = transfer.ticket.result(None)
    except Exception:
        logger.exception("a transfer of %d chunks broke", len(transfer.keys))
        found = [-errno.EIO] * len(transfer.keys)
    return found


class EmberTier(SecondaryTierManager):
    """The tier that vLLM's factory makes in the scheduler process. Beside our settings it takes `locality` ("LOCAL" or "REMOTE")
    and `enable_kv_events` like the engine's own tiers. Raises only here: a cluster that is not there, unknown settings."""

    medium: ClassVar[Medium] = Medium.STORAGE

    def __init__(
        self,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
        locality: str | None = None,
        enable_kv_events: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type, backpressure_detector)
        self.locality = Locality(locality) if locality is not None else None
        self._settings = AdapterSettings.of(settings)
        if self._settings.kv_events:
            raise ValueError("vLLM publishes KV events itself: enable_kv_events here, and kv_events_config there")
        self._kv = KVCache(self._settings.url)
        spec = describe(offloading_spec.config, self.block_size_bytes, self._settings)
        try:
            self._namespace = self._kv.namespace(spec, ttl_s=self._settings.ttl_s, mode=self._settings.mode)
            self._base = ctypes.addressof(ctypes.c_char.from_buffer(primary_kv_view.cast("B")))
            self._arena = Arena(self._kv)
            self.shared = self._arena.add(self._base, primary_kv_view.nbytes, "vLLM's primary tier")
        except BaseException:
            self._kv.close()
            raise
        self._tokens = spec.page_tokens
        self._probe = _Probe(self._kv, self._namespace, tier_type, self._settings.deadline_ms)
        self._transfers: dict[JobId, _Transfer] = {}
        self._touches: dict[OffloadKey, None] = {}
        self._touching = threading.Lock()
        self._background = ThreadPoolExecutor(1, f"{tier_type}-touch")
        self._events: list[OffloadingEvent] | None = None
        if enable_kv_events and offloading_spec.kv_events_config.enable_kv_cache_events:
            self._events = []
        elif enable_kv_events:
            logger.warning("enable_kv_events does nothing: KV cache events are switched off in vLLM (kv_events_config)")
        self._closed = False

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """RETRY until this step's probe is back, then HIT or MISS for as long as the request lives."""
        found = self._probe.lookup(key, req_context)
        if found is None:
            return LookupResult.RETRY
        return LookupResult.HIT if found else LookupResult.MISS

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._probe.cleanup(req_context.req_id)

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Send what a step has gathered: lookups, and hits of the tiers above."""
        self._probe.flush()
        if self._touches and self._touching.acquire(blocking=False):
            keys, self._touches = list(self._touches), {}
            self._background.submit(self._touch_now, keys)

    # --- moving ---------------------------------------------------------------------------------------------------------------------

    def submit_store(self, job_metadata: TransferJob) -> None:
        """Begin to store chunks of the primary tier. What is stored already costs one entry of a request."""
        keys = list(job_metadata.keys)
        ticket = self._kv.submit_put(
            self._namespace, [block_key(key) for key in keys], self._places(job_metadata),
            depth=self._depths(keys, job_metadata.req_context), ack="durable" if self._settings.durable else "replicated",
            deadline_ms=self._settings.deadline_ms,
        )  # fmt: skip
        self._transfers[job_metadata.job_id] = _Transfer(job_metadata, keys, ticket, time.monotonic())

    def submit_load(self, job_metadata: TransferJob) -> None:
        """Begin to read chunks into the primary tier."""
        keys = list(job_metadata.keys)
        ticket = self._kv.submit_get(
            self._namespace, [block_key(key) for key in keys], self._places(job_metadata), deadline_ms=self._settings.deadline_ms
        )  # fmt: skip
        self._transfers[job_metadata.job_id] = _Transfer(job_metadata, keys, ticket, time.monotonic())

    def _places(self, job: TransferJob) -> Any:
        size = self.block_size_bytes
        addresses = [self._base + int(chunk) * size for chunk in job.chunk_ids]
        return self._arena.places(addresses, [size] * len(addresses), 1)

    def _depths(self, keys: list[OffloadKey], request: ReqContext) -> array[int]:
        """How many chunks of the prefix stand before each, as far as the engine says."""
        ends = [request.get_offload_key_position(key) for key in keys]
        return array("I", [i if end is None else max(0, end // self._tokens - 1) for i, end in enumerate(ends)])

    def get_finished_jobs(self) -> Iterable[JobResult]:
        """Transfers that have ended. Of a load that failed in part the good chunks stay; for the others lookups now say MISS, or the
        scheduler would ask for the same chunks for ever."""
        self._kv.completed()  # the same, without their jobs: not kept
        ended = [job_id for job_id, transfer in self._transfers.items() if transfer.ticket.done()]
        return [self._result(self._transfers.pop(job_id)) for job_id in ended]

    def _result(self, transfer: _Transfer) -> JobResult:
        job, keys = transfer.job, transfer.keys
        doing = "reading chunks for vLLM" if job.is_promotion else "storing chunks of vLLM"
        good = succeeded(_statuses(transfer), doing)
        kept = [key for key, ok in zip(keys, good, strict=True) if ok]
        whole = len(kept) == len(keys)
        if job.is_promotion and not whole:
            self._probe.mark_miss([key for key, ok in zip(keys, good, strict=True) if not ok])
        if not job.is_promotion and kept and self._events is not None:
            self._events.append(OffloadingEvent(keys=kept, medium=self.medium, removed=False, locality=self.locality))
        return JobResult(
            job_id=job.job_id, success=whole, successful_keys=tuple(kept) if job.is_promotion and kept and not whole else None,
            transfer_time=time.monotonic() - transfer.began, transfer_bytes=len(kept) * self.block_size_bytes,
        )  # fmt: skip

    def has_pending_work(self) -> bool:
        return bool(self._transfers)

    def drain_jobs(self) -> None:
        """Wait until nothing touches the primary tier any more; the results wait for `get_finished_jobs`."""
        for transfer in self._transfers.values():
            _statuses(transfer)

    # --- the rest -------------------------------------------------------------------------------------------------------------------

    def touch(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Hits of the tiers above, so that eviction here knows of them: sent once a step, in the background."""
        for key in keys:
            if len(self._touches) >= TOUCHES_MAX:
                return
            self._touches[key] = None

    def _touch_now(self, keys: list[OffloadKey]) -> None:
        try:
            names = [block_key(key) for key in keys]
            self._kv.touch(self._namespace, names, deadline_ms=self._settings.deadline_ms)
        finally:
            self._touching.release()

    def take_events(self) -> Iterable[OffloadingEvent]:
        taken, events = self._events or [], self._events
        if events is not None:
            self._events = []
        return taken

    def shutdown(self) -> None:
        """Wait for transfers, and let go of the primary tier. A second time it does nothing."""
        if self._closed:
            return
        self._closed = True
        self._probe.shutdown()
        self.drain_jobs()
        self._background.shutdown()
        self._arena.close()
        self._kv.close()

"""SGLang's side of its storage interface, on a machine without a GPU: host pools, the factory, and the controller's threads.

`HiCacheController` is the engine's own, with only its storage half brought to life: no device pool, one rank. The host pool stands for the
engine's (whose classes need a GPU's kernels): its pages lie as in the page_first layout, in memory that the engine's own allocator made.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch

from .parts import enter, stand_in


@dataclass
class StorageMetrics:
    """As the engine's, which lies in a module full of collectors."""

    prefetch_pgs: list[int] = field(default_factory=list)
    backup_pgs: list[int] = field(default_factory=list)
    prefetch_bandwidth: list[float] = field(default_factory=list)
    backup_bandwidth: list[float] = field(default_factory=list)


def _page_hashes(tokens: Any, prior: str | None, page_size: int) -> list[str]:
    """Chained page hashes, where no compiler is there for the engine's own."""
    found, before = [], bytes.fromhex(prior) if prior else b""
    for start in range(0, len(tokens) - page_size + 1, page_size):
        content = b"".join(int(token).to_bytes(4, "little") for token in tokens[start : start + page_size])
        before = sha256(before + content).digest()
        found.append(before.hex())
    return found


enter("sglang", "sglang.srt.utils")
stand_in("sglang.srt.utils", get_device_module=lambda: torch.cpu, is_hip=lambda: False)
stand_in("sglang.srt.utils.common", human_readable_int=int)
stand_in("sglang.srt.layers.dp_attention", is_dp_attention_enabled=lambda: False)
stand_in("sglang.srt.mem_cache.l2_transfer", L2Transfer=object, L2TransferEngine=object)
stand_in("sglang.srt.mem_cache.memory_pool", MLATokenToKVPool=type("MLATokenToKVPool", (), {}))
stand_in("sglang.srt.mem_cache.pool_host", HostKVCache=object)
stand_in("sglang.srt.observability.metrics_collector", StorageMetrics=StorageMetrics)
stand_in("sglang.srt.runtime_context", get_parallel=None, get_memory=None)
stand_in("sglang.kernels.ops.kvcache.mla_buffer").__getattr__ = lambda name: None  # type: ignore[method-assign]
if shutil.which("ninja") is None or shutil.which("g++") is None:
    stand_in("sglang.srt.mem_cache.cpp_utils.native_hash", get_native_hash=_page_hashes)

from sglang.srt.managers.cache_controller import HiCacheController  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import (  # noqa: E402
    HiCacheStorageConfig,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.storage import StorageBackendFactory  # noqa: E402
from sglang.srt.mem_cache.storage.mmap.mmap_allocator import alloc_shm  # noqa: E402
from sglang.srt.mem_cache.utils import get_storage_hash_str  # noqa: E402

__all__ = [
    "LAYERS",
    "PAGE_TOKENS",
    "Engine",
    "HostPool",
    "PoolHitPolicy",
    "PoolName",
    "PoolTransfer",
    "attach",
    "engine",
]

WAIT_SECONDS = 60.0
PAGE_TOKENS = 64
LAYERS = 2


class HostPool:
    """Pages of attention state on the host: one piece each for MLA; K and V, half a pool apart, otherwise."""

    layout, device, storage_format_tag = "page_first", "cpu", None
    start_layer, end_layer, layer_num, head_num = 0, LAYERS, LAYERS, 2

    def __init__(
        self,
        pages: int,
        *,
        mla: bool,
        shared: bool = True,
        dtype: torch.dtype = torch.bfloat16,
        page_tokens: int = PAGE_TOKENS,
    ) -> None:
        self.page_size = page_tokens
        self.mla, self.dtype, self.size = mla, dtype, pages * page_tokens
        row = (LAYERS, 1, 576) if mla else (LAYERS, self.head_num, 64)
        shape = (self.size, *row) if mla else (2, self.size, *row)
        if shared:
            self.kv_buffer, self.fd, self._memory = alloc_shm(shape, dtype)
        else:
            self.kv_buffer, self.fd = torch.empty(shape, dtype=dtype), None
        self.bytes = self.kv_buffer.view(torch.uint8).flatten()
        self.fill()
        self.piece_bytes = self.kv_buffer[0, 0].nbytes if not mla else self.kv_buffer[0].nbytes  # of a token

    def fill(self) -> None:
        self.bytes.random_(0, 256, generator=torch.Generator().manual_seed(1))

    @property
    def parts(self) -> int:
        return 1 if self.mla else 2

    @property
    def page_bytes(self) -> int:
        return self.piece_bytes * self.page_size * self.parts

    def get_size_per_token(self) -> int:
        return self.piece_bytes * self.parts

    def get_ksize_per_token(self) -> int:
        return self.piece_bytes

    def get_page_buffer_meta(self, indices: torch.Tensor) -> tuple[list[int], list[int]]:
        pointers = []
        for first in indices.tolist()[:: self.page_size]:
            for part in range(self.parts):
                pointers.append(self.kv_buffer.data_ptr() + (part * self.size + first) * self.piece_bytes)
        return pointers, [self.piece_bytes * self.page_size] * len(pointers)

    def page(self, number: int) -> torch.Tensor:
        """A page's bytes, as a copy (bytes, because NaN is not equal to itself)."""
        return self.get_data_page(number * self.page_size).contiguous().view(torch.uint8).clone()

    def get_data_page(self, index: int, flat: bool = True) -> torch.Tensor:
        slots = slice(int(index), int(index) + self.page_size)
        page = self.kv_buffer[slots] if self.mla else self.kv_buffer[:, slots]
        return page.flatten() if flat else page

    def get_dummy_flat_data_page(self) -> torch.Tensor:
        return torch.zeros(self.page_bytes // self.dtype.itemsize, dtype=self.dtype)

    def set_from_flat_data_page(self, index: int, page: torch.Tensor) -> None:
        place = self.get_data_page(index, flat=False)
        place.copy_(page.view(place.shape))


def storage_config(pool: HostPool, **changed: Any) -> HiCacheStorageConfig:
    """What the engine tells a backend. `extra`: the user's JSON."""
    extra = changed.pop("extra", {})
    said = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1, "is_mla_model": pool.mla,
        "enable_storage_metrics": True, "is_page_first_layout": True, "model_name": "org/model", **changed,
    }  # fmt: skip
    return HiCacheStorageConfig(**said, extra_config=extra)


def attach(backend: str, pool: HostPool, **changed: Any) -> Any:
    """Make a backend, in the order in which the engine does."""
    made = StorageBackendFactory.create_backend(backend, storage_config(pool, **changed), pool)
    made.register_mem_pool_host(pool)
    made.on_host_pools_registered()
    return made


class Engine:
    """One scheduler rank: the controller's four storage threads, and the scheduler's part played here."""

    def __init__(self, backend: Any, pool: HostPool) -> None:
        self.pool, self.backend = pool, backend
        controller = HiCacheController.__new__(HiCacheController)
        controller.page_size = pool.page_size
        controller.mem_pool_host = controller.storage_host_pool = pool
        controller.storage_backend, controller.storage_config = backend, storage_config(pool)
        controller.page_get_func = controller._page_get_zero_copy
        controller.page_set_func = controller._page_set_zero_copy
        controller.prefetch_hits_sync_groups, controller.prefetch_completion_sync_groups = [], []
        controller.enable_storage, controller.storage_stop_event = True, threading.Event()
        controller._start_storage_threads()
        self.controller = controller

    def slots(self, pages: list[int]) -> torch.Tensor:
        """Pool slots of pages, wherever these lie."""
        return torch.cat([torch.arange(page * self.pool.page_size, (page + 1) * self.pool.page_size) for page in pages])

    def hashes(self, tokens: list[int]) -> list[str]:
        return list(get_storage_hash_str(tokens, None, page_size=self.pool.page_size))

    def back_up(self, pages: list[int], tokens: list[int]) -> None:
        """Have pages stored, in the background."""
        self.controller.write_storage(self.slots(pages), tokens, self.hashes(tokens))

    def backed_up(self) -> int:
        """Pages of the next backup that ended."""
        ended = self.controller.ack_backup_queue.get(timeout=WAIT_SECONDS)
        return int(ended.completed_tokens) // self.pool.page_size

    def query(self, request: str, tokens: list[int]) -> Any:
        """Begin to bring a request's pages back: what is stored of them."""
        self.controller.prefetch(request, tokens)
        return self.controller.prefetch_hit_queue.get(timeout=WAIT_SECONDS)

    def fetch(self, operation: Any, pages: list[int]) -> int:
        """Read what a query has found into these pages of the pool; how many came."""
        operation.host_indices = self.slots(pages)[: operation.storage_hit_count]
        self.controller.prefetch_buffer.put(operation)
        done = 0
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=WAIT_SECONDS)
            if ack.completed_tokens is not None:
                done = max(done, ack.completed_tokens)
            if ack.completed_req:
                return int(done) // self.pool.page_size

    def stop(self) -> None:
        self.controller._stop_storage_threads()


@contextmanager
def engine(backend: Any, pool: HostPool) -> Iterator[Engine]:
    running = Engine(backend, pool)
    try:
        yield running
    finally:
        running.stop()

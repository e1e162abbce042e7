"""SGLang's HiCache: emberfs as its third level (`--hicache-storage-backend dynamic`).

The engine keeps pages of attention state in a host pool and names them by a hash of all tokens up to their end. Its threads ask us which
leading run of pages is stored, have pages read straight into the pool, and have pages of the pool stored; three calls at a time, each
blocking, and never an exception: what fails is a miss, or a backup that stops.

One page is one block, whatever pieces it has in the pool (K and V, layers). Its namespace says everything that the bytes depend on:
model, revision, dtype, page size, layout, which layers, which heads. A side pool (Mamba state, sliding window, indexer) has a namespace
of its own. So ranks and deployments share what is equal and never see what is not.

Written for SGLang 0.5.23; needs its package. Configuration: README.md beside this file.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
    PoolTransferResult,
)

from ...proto.blocks import KEYS_MAX
from ..blocking import KVCache
from ..namespace import NamespaceSpec
from .arena import Arena, view_of
from .settings import AdapterSettings, key_of, logger, succeeded

# In the same JSON as our settings, for the engine itself.
_ENGINE_KEYS = (
    "backend_name", "module_path", "class_name", "interface_v1", "allocator", "prefetch_threshold", "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token", "hicache_storage_pass_prefix_keys", "tp_lcm_size",
)  # fmt: skip


def _dtype_of(pool: Any) -> str:
    """The logical one: float8_e4m3fn and float8_e5m2 are both stored as uint8, and must not be mixed up."""
    logical = getattr(getattr(pool, "device_pool", None), "dtype", None)
    return str(logical if isinstance(logical, torch.dtype) else pool.dtype).removeprefix("torch.")


def _is_replicated(name: str, config: HiCacheStorageConfig) -> bool:
    """Whether every rank's pages hold the same. Not the state of linear attention: it is sharded also where the rest is MLA's."""
    return bool(config.is_mla_model) and name != PoolName.MAMBA.value


def _heads_of(pool: Any, name: str, config: HiCacheStorageConfig) -> tuple[int, int] | None:
    """Which heads this rank's pages hold; None where every rank holds all."""
    if _is_replicated(name, config):
        return None
    count = int(getattr(pool, "head_num", 0) or 1)
    return config.tp_rank * count, (config.tp_rank + 1) * count


def _layout_of(pool: Any, name: str, config: HiCacheStorageConfig) -> str:
    """Everything else that decides which bytes stand where in a page."""
    said = [name, str(pool.layout)]
    if getattr(pool, "storage_format_tag", None):
        said.append(str(pool.storage_format_tag))
    if not _is_replicated(name, config):
        said.append(f"tp{config.tp_size}")
    if config.attn_cp_size > 1:
        said.append(f"cp{config.attn_cp_rank}of{config.attn_cp_size}")
    if config.dcp_size > 1:
        said.append(f"dcp{config.dcp_rank}of{config.dcp_size}")
    return "/".join(said)


def _layers_of(pool: Any, config: HiCacheStorageConfig) -> tuple[int, int]:
    start, end = getattr(pool, "start_layer", None), getattr(pool, "end_layer", None)
    if start is not None and end is not None:
        return int(start), int(end)
    count = int(getattr(pool, "layer_num", 0) or 1)
    return config.pp_rank * count, (config.pp_rank + 1) * count


class _Pool:
    """One host pool of the engine: where its pages lie, and the namespace that they are stored in."""

    def __init__(
        self, kv: KVCache, arena: Arena, pool: Any, name: str, config: HiCacheStorageConfig, settings: AdapterSettings
    ) -> None:
        self.pool = pool
        self.page_size = int(getattr(pool, "page_size", 1) or 1)
        self._arena = arena
        self.parts = self._pieces_of_a_page()
        if self.parts:
            pointers, sizes = pool.get_page_buffer_meta(torch.arange(self.page_size))
            self.page_bytes = sum(sizes)
            shared = [self._share(pointer, name) for pointer in pointers]  # all of them, also behind one that is not
            self.shared = all(shared)
        else:
            self.page_bytes = pool.get_dummy_flat_data_page().nbytes
            self.shared = False
            logger.warning(
                "SGLang's %s pool does not say where its pages lie (layout %s): they are copied one by one", name, pool.layout
            )  # fmt: skip
        spec = NamespaceSpec(
            engine="sglang", model=config.model_name or "", revision=settings.revision, dtype=_dtype_of(pool),
            page_tokens=self.page_size, layout=_layout_of(pool, name, config), layers=_layers_of(pool, config),
            heads=_heads_of(pool, name, config), object_bytes=self.page_bytes, salt=settings.salt, tenant=settings.tenant,
        )  # fmt: skip
        self.namespace = kv.namespace(spec, ttl_s=settings.ttl_s, mode=settings.mode)

    def _pieces_of_a_page(self) -> int:
        """How many pieces of memory a page has; 0: the pool cannot say where."""
        try:
            pointers, _ = self.pool.get_page_buffer_meta(torch.arange(self.page_size))
        except (AttributeError, NotImplementedError, ValueError):
            return 0
        return len(pointers)

    def _share(self, pointer: int, name: str) -> bool:
        """Register the tensor that an address lies in."""
        for value in list(vars(self.pool).values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
                    continue
                storage = tensor.untyped_storage()
                if storage.data_ptr() <= pointer < storage.data_ptr() + storage.nbytes():
                    return self._arena.add(storage.data_ptr(), storage.nbytes(), f"SGLang's {name} pool")
        return False

    def places(self, host_indices: torch.Tensor) -> Any:
        """Where pages lie, for KVCache. Pool slots: `page_size` of them for each page."""
        pointers, sizes = self.pool.get_page_buffer_meta(host_indices)
        return self._arena.places(pointers, sizes, self.parts)

    def first_slots(self, host_indices: torch.Tensor) -> list[int]:
        return [int(slot) for slot in host_indices[:: self.page_size].tolist()]


@dataclass(slots=True)
class _Traffic:
    """Pages and GB/s of each batch since the engine last asked."""

    pages: list[int]
    bandwidth: list[float]

    def note(self, count: int, page_bytes: int, seconds: float) -> None:
        if count:
            self.pages.append(count)
            self.bandwidth.append(count * page_bytes / max(seconds, 1e-9) / 1e9)


class EmberStorage(HiCacheStorage):
    """The backend that SGLang's factory makes, once for each rank. Thread-safe. Raises only while it is attached: a cluster that is not
    there, a namespace that this user may not use, settings that nobody knows; and where it was not cleared."""

    def __init__(self, storage_config: HiCacheStorageConfig, options: dict[str, Any] | None = None) -> None:
        self.config = storage_config
        self.settings = AdapterSettings.of(storage_config.extra_config or {}, ignore=_ENGINE_KEYS)
        self.kv = KVCache(self.settings.url)
        self._arena = Arena(self.kv)
        self._pools: dict[str, _Pool] = {}
        self._lock = threading.Lock()
        self._reads, self._writes = _Traffic([], []), _Traffic([], [])
        self._closed = False
        try:
            self._relay = self._publish()
        except BaseException:
            self.kv.close()
            raise

    # --- attaching ------------------------------------------------------------------------------------------------------------------

    def _publish(self) -> Any:
        """KV events, of one rank: all store pages of the same hashes."""
        config = self.config
        if not self.settings.kv_events or config.tp_rank or config.pp_rank or config.attn_cp_rank:
            return None
        from .events import Relay

        return Relay.of(self.kv, self.settings)

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        """The anchor pool. One without memory of its own (only its side pools have any) stores nothing here."""
        super().register_mem_pool_host(mem_pool_host)
        if getattr(mem_pool_host, "kv_buffer", None) is not None or hasattr(mem_pool_host, "k_buffer"):
            self._pools[PoolName.KV.value] = self._make(mem_pool_host, PoolName.KV.value)
            if not self._pools[PoolName.KV.value].shared:
                logger.warning('to share SGLang\'s pool say "allocator": "shm" in the extra config, as inline JSON')

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: str) -> None:
        """A side pool; the anchor pool comes here, too, and is known already."""
        if host_pool_name == PoolName.KV:
            return
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        self._pools[str(host_pool_name)] = self._make(host_pool, str(host_pool_name))

    def _make(self, pool: Any, name: str) -> _Pool:
        return _Pool(self.kv, self._arena, pool, name, self.config, self.settings)

    # --- which pages are there ------------------------------------------------------------------------------------------------------

    def _leading(self, keys: Sequence[str]) -> int:
        anchor = self._pools.get(PoolName.KV.value)
        if anchor is None or not keys:
            return len(keys)
        names = [key_of(key) for key in keys]
        return int(self.kv.match(anchor.namespace, names, deadline_ms=self.settings.deadline_ms).n)

    def batch_exists(self, keys: list[str], extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        """How many pages from the first on are stored, in one request to each server."""
        return self._leading(keys)

    def exists(self, key: str) -> bool:
        return self._leading([key]) == 1

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: list[PoolTransfer] | None = None,
        extra_info: HiCacheStorageExtraInfo | None = None,
    ) -> PoolTransferResult:
        """The prefix that can be restored: pages that the anchor pool has, and every side pool at that length by its policy."""
        pages = self._leading(keys)
        hits: dict[str, int] = {PoolName.KV: pages} if pages else {}
        restorable = set(range(1, pages + 1))
        for transfer in pool_transfers or []:
            if not restorable:
                break
            lengths, boundary, gates = self._restorable(transfer, keys[:pages])
            if boundary:
                hits[transfer.name] = boundary
            if gates:
                restorable &= lengths
        return PoolTransferResult(max(restorable, default=0), hits, sorted(restorable))

    def _restorable(self, transfer: PoolTransfer, keys: list[str]) -> tuple[set[int], int, bool]:
        """Of a side pool: the prefix lengths that it can serve, the longest, and whether the others have to keep to these."""
        pool = self._pools.get(str(transfer.name))
        if pool is None:
            return set(), 0, True
        asked = transfer.keys or keys if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS else keys
        names = [key_of(key) for key in asked]
        there = self.kv.exists(pool.namespace, names, deadline_ms=self.settings.deadline_ms) if names else ()
        here = [bool(found) for found in there]
        leading = here.index(False) if False in here else len(here)
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
            return set(range(1, leading + 1)), leading, True
        if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
            window = max(1, len(transfer.keys or ()))
            good = {n for n in range(1, len(here) + 1) if all(here[max(0, n - window) : n])}
            return good, max(good, default=0), True
        groups = leading // max(1, transfer.group_pages)
        return set(), groups * transfer.block_pages, False

    # --- moving pages -----------------------------------------------------------------------------------------------------------------

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Read pages into the pool; per page whether all of it is there, verified."""
        return self._read(self._pools[PoolName.KV.value], keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> list[bool]:
        """Store pages of the pool; per page whether it is stored, by us now or by anybody before."""
        return self._write(self._pools[PoolName.KV.value], keys, host_indices, extra_info)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return self._each(transfers, self._read)

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: HiCacheStorageExtraInfo | None = None
    ) -> dict[str, list[bool]]:
        return self._each(transfers, lambda pool, keys, slots: self._write(pool, keys, slots, extra_info))

    def _each(
        self, transfers: list[PoolTransfer], move: Callable[[_Pool, list[str], torch.Tensor], list[bool]]
    ) -> dict[str, list[bool]]:
        results = {}
        for transfer in transfers:
            keys, pool = transfer.keys or [], self._pools.get(str(transfer.name))
            slots = transfer.host_indices
            if pool is None or slots is None or slots.numel() != len(keys) * pool.page_size:
                logger.error("SGLang asks for %d pages of the pool %s and names other memory", len(keys), transfer.name)
                results[transfer.name] = [False] * len(keys)
            else:
                results[transfer.name] = move(pool, keys, slots)
        return results

    def _read(self, pool: _Pool, keys: list[str], host_indices: torch.Tensor) -> list[bool]:
        if not keys:
            return []
        began = time.perf_counter()
        names = [key_of(key) for key in keys]
        if pool.parts:
            found = self.kv.get_into(
                pool.namespace, names, pool.places(host_indices), deadline_ms=self.settings.deadline_ms
            )
            good = succeeded(found, "reading pages for SGLang")
        else:
            pages = [pool.pool.get_dummy_flat_data_page() for _ in keys]
            targets = [_bytes_of(page) for page in pages]
            found = self.kv.get_into(pool.namespace, names, targets, deadline_ms=self.settings.deadline_ms)
            good = succeeded(found, "reading pages for SGLang")
            for slot, page, ok in zip(pool.first_slots(host_indices), pages, good, strict=True):
                if ok:
                    pool.pool.set_from_flat_data_page(slot, page)
        self._note(self._reads, sum(good), pool, began)
        return good

    def _write(
        self, pool: _Pool, keys: list[str], host_indices: torch.Tensor, extra_info: HiCacheStorageExtraInfo | None
    ) -> list[bool]:
        if not keys:
            return []
        began = time.perf_counter()
        if pool.parts:
            sources = pool.places(host_indices)
        else:
            pages = [pool.pool.get_data_page(slot, flat=True).contiguous() for slot in pool.first_slots(host_indices)]
            sources = [_bytes_of(page) for page in pages]
        good = succeeded(self._put(pool, keys, sources, extra_info), "storing pages of SGLang")
        self._note(self._writes, sum(good), pool, began)
        return good

    def _put(
        self, pool: _Pool, keys: list[str], sources: Any, extra_info: HiCacheStorageExtraInfo | None = None
    ) -> Sequence[int]:
        depth = len(extra_info.prefix_keys) if extra_info is not None and extra_info.prefix_keys else 0
        statuses: Sequence[int] = self.kv.put_from(
            pool.namespace, [key_of(key) for key in keys], sources, depth=depth,
            ack="durable" if self.settings.durable else "replicated", deadline_ms=self.settings.deadline_ms,
        )  # fmt: skip
        return statuses

    def _note(self, traffic: _Traffic, count: int, pool: _Pool, began: float) -> None:
        if self.config.enable_storage_metrics:
            with self._lock:
                traffic.note(count, pool.page_bytes, time.perf_counter() - began)

    # --- the older interface: whole pages in memory of their own ----------------------------------------------------------------------

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> torch.Tensor | None:
        return self.batch_get([key], None if target_location is None else [target_location])[0]

    def batch_get(
        self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
    ) -> list[torch.Tensor | None]:
        """Fill flat pages that the engine gives (or new ones); None for each that is not stored."""
        pool = self._pools[PoolName.KV.value]
        pages = target_locations or [pool.pool.get_dummy_flat_data_page() for _ in keys]
        statuses = self.kv.get_into(
            pool.namespace, [key_of(key) for key in keys], [_bytes_of(page) for page in pages], deadline_ms=self.settings.deadline_ms
        )  # fmt: skip
        return [page if ok else None for page, ok in zip(pages, succeeded(statuses), strict=True)]

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        """Store flat pages; whether all are stored."""
        pool = self._pools[PoolName.KV.value]
        if values is None or any(value is None or value.nbytes != pool.page_bytes for value in values):
            return False
        pages = [value.contiguous() for value in values]
        return all(succeeded(self._put(pool, keys, [_bytes_of(page) for page in pages])))

    # --- the rest -----------------------------------------------------------------------------------------------------------------------

    def get_stats(self) -> Any:
        """What was moved since the last call, for the engine's metrics; None unless it wants any."""
        if not self.config.enable_storage_metrics:
            return None
        from sglang.srt.observability.metrics_collector import StorageMetrics

        with self._lock:
            taken = StorageMetrics(self._reads.pages, self._writes.pages, self._reads.bandwidth, self._writes.bandwidth)
            self._reads, self._writes = _Traffic([], []), _Traffic([], [])
        return taken

    def clear(self) -> bool:
        """Delete all blocks of this deployment's namespaces, for everybody who shares them. The namespaces stay: others go on with them.
        Raises OSError when some may be left: the engine takes every answer for success."""
        left = 0
        for pool in self._pools.values():
            keys = [block.key for block in self.kv.list(pool.namespace)]
            for i in range(0, len(keys), KEYS_MAX):
                statuses = self.kv.delete(pool.namespace, keys[i : i + KEYS_MAX], deadline_ms=self.settings.deadline_ms)
                left += sum(1 for status in statuses if status < 0 and status != -errno.ENOENT)
        if left:
            raise OSError(errno.EBUSY, f"{left} blocks could not be deleted: the cache is not clear")
        return True

    def close(self) -> None:
        """Give everything back. The engine calls it when it detaches; a second time does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._relay is not None:
            self._relay.close()
        self._arena.close()
        self.kv.close()


def _bytes_of(page: torch.Tensor) -> memoryview:
    """A contiguous CPU tensor's memory."""
    return view_of(page.data_ptr(), page.nbytes)

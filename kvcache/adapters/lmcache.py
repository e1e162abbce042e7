"""LMCache's multi-process server: emberfs as its second level (`--l2-adapter '{"type": "plugin", ...}'`).

Its controllers hand us batches of objects in one big arena, which is registered once, and poll three event descriptors. Lookups lock
what they find: here a lease, which keeps blocks from being evicted and ends by itself, so an LMCache that dies locks nothing for ever.

Written for LMCache 0.5.6; needs its package. Configuration: README.md beside this file.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import L2AdapterInterface
from lmcache.v1.distributed.l2_adapters.config import L2AdapterConfigBase
from lmcache.v1.platform import create_event_notifier

from ..blocking import KVCache
from ..core.results import Lease
from .arena import Arena
from .events import Relay
from .lmcache_native import CHUNK_TOKENS, Spaces
from .settings import AdapterSettings, logger, succeeded

OBJECTS_MAX = 1 << 20  # whose sizes are remembered for LMCache's accounting
LOCK_MS = 30_000  # a lookup's lease: longer than a load may take, short enough not to be in the way
STORE_THREADS, LOOKUP_THREADS, LOAD_THREADS = 1, 1, 2  # batches at once; stores must not keep loads waiting


class EmberL2AdapterConfig(L2AdapterConfigBase):
    """`adapter_params`. LMCache finds this class by its name."""

    def __init__(self, dtype: str, layout: str, chunk_tokens: int, max_capacity_gb: float, settings: AdapterSettings) -> None:  # fmt: skip
        self.dtype, self.layout, self.chunk_tokens = dtype, layout, chunk_tokens
        self.max_capacity_gb = max_capacity_gb
        self.settings = settings

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> EmberL2AdapterConfig:
        """Raises ValueError for settings that nobody knows."""
        own = ("dtype", "layout", "chunk_tokens", "max_capacity_gb")
        return cls(
            str(d.get("dtype", "")), str(d.get("layout", "")), int(d.get("chunk_tokens", CHUNK_TOKENS)),
            float(d.get("max_capacity_gb", 0)), AdapterSettings.of(d, ignore=own),
        )  # fmt: skip

    @classmethod
    def help(cls) -> str:
        return (
            "emberfs: dtype (of the KV cache, required), url, tenant, revision, salt, layout, chunk_tokens (256), ttl_s, mode, durable, "
            "deadline_ms, max_capacity_gb (0: emberfs evicts by its own capacity)"
        )


@dataclass(slots=True, eq=False)
class _Held:
    """What one lookup locked: given back when all of its keys are unlocked."""

    lease: Lease
    keys: int
    locked: list[ObjectKey]
    until: float  # on the clock of the process: the lease ends by itself


class _Tasks:
    """What was submitted of one kind: threads, results to be taken once, and LMCache's notifier."""

    def __init__(self, kind: str, threads: int) -> None:
        self.notifier = create_event_notifier()
        self._threads = ThreadPoolExecutor(threads, f"emberfs-{kind}")
        self._done: dict[int, Any] = {}
        self._lock = threading.Lock()

    def submit(self, task: int, work: Callable[[], Any], failed: Any) -> None:
        try:
            self._threads.submit(self._run, task, work, failed)
        except RuntimeError:  # closed meanwhile: no reason to break a thread of LMCache's
            with self._lock:
                self._done[task] = failed

    def _run(self, task: int, work: Callable[[], Any], failed: Any) -> None:
        """Always posts a result: LMCache would wait for it until its time is out."""
        try:
            result = work()
        except Exception as broken:
            logger.warning("a batch for LMCache failed: %s", broken)
            result = failed
        with self._lock:
            self._done[task] = result
        self.notifier.notify()

    def aside(self, work: Callable[[], None]) -> Future[None]:
        """Without a result for LMCache."""
        return self._threads.submit(work)

    def take(self, task: int) -> Any:
        with self._lock:
            return self._done.pop(task, None)

    def take_all(self) -> dict[int, Any]:
        with self._lock:
            taken, self._done = self._done, {}
        return taken

    def stop(self) -> None:
        self._threads.shutdown()

    def close(self) -> None:
        self.notifier.close()


def _named(key: ObjectKey) -> tuple[str, str]:
    """Model and rest of the name, as the string keys of `native_plugin`: both plug-ins see the same objects."""
    rest = f"{key.kv_rank:08x}@{key.object_group_id:x}@{key.chunk_hash.hex()}"
    return key.model_name, f"{rest}@{key.cache_salt}" if key.cache_salt else rest


class EmberL2Adapter(L2AdapterInterface):
    """The adapter that LMCache makes. Thread-safe. Raises only here."""

    def __init__(self, config: EmberL2AdapterConfig, l1_memory_desc: Any = None) -> None:
        super().__init__(max_capacity_bytes=int(config.max_capacity_gb * 2**30))
        self._settings = config.settings
        self._kv = KVCache(self._settings.url)
        try:
            self._spaces = Spaces(self._kv, self._settings, config.dtype, config.layout, config.chunk_tokens)
            self._arena = Arena(self._kv)
            self.shared = l1_memory_desc is not None and self._register(l1_memory_desc)
            self._relay = Relay.of(self._kv, self._settings)
        except BaseException:
            self._kv.close()
            raise
        self._task = itertools.count(1)
        self._stores = _Tasks("store", STORE_THREADS)
        self._lookups = _Tasks("lookup", LOOKUP_THREADS)
        self._loads = _Tasks("load", LOAD_THREADS)
        self._lock = threading.Lock()
        self._held: dict[ObjectKey, list[_Held]] = {}  # locked keys -> by which lookups
        self._locks: deque[_Held] = deque()  # in the order in which they end
        self._sizes: dict[ObjectKey, int] = {}  # what we stored and have not seen gone, for LMCache's accounting
        self._closed = False

    def _register(self, memory: Any) -> bool:
        """LMCache's arena. One that still grows is registered as far as it is stable."""
        size = memory.stable_registration_size or memory.size
        return size > 0 and self._arena.add(memory.ptr, size, "LMCache's L1 arena")

    def get_store_event_fd(self) -> int:
        return int(self._stores.notifier.fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        return int(self._lookups.notifier.fileno())

    def get_load_event_fd(self) -> int:
        return int(self._loads.notifier.fileno())

    # --- storing --------------------------------------------------------------------------------------------------------------------

    def submit_store_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        task = next(self._task)
        self._stores.submit(task, lambda: self._store(keys, objects), L2StoreResult(False, 0))
        return task

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        return self._stores.take_all()

    def _store(self, keys: list[ObjectKey], objects: list[Any]) -> L2StoreResult:
        buffers = [memoryview(one.byte_array).cast("B") for one in objects]
        good = [False] * len(keys)
        ack = "durable" if self._settings.durable else "replicated"
        for namespace, rows, names in self._spaces.batches([_named(key) for key in keys]):
            statuses = self._kv.put_from(
                namespace, names, [buffers[i] for i in rows], ack=ack, deadline_ms=self._settings.deadline_ms
            )
            for row, ok in zip(rows, succeeded(statuses, "storing objects of LMCache"), strict=True):
                good[row] = ok
        stored = [i for i, ok in enumerate(good) if ok]
        with self._lock:
            sizes = [0 if keys[i] in self._sizes else buffers[i].nbytes for i in stored]
            self._sizes.update((keys[i], buffers[i].nbytes) for i in stored)
            oldest = list(itertools.islice(self._sizes, max(0, len(self._sizes) - OBJECTS_MAX)))
        self._notify_keys_stored([keys[i] for i in stored], sizes)
        self._forget(oldest)  # emberfs evicts without telling us: what was stored long ago may be gone
        return L2StoreResult(len(stored) == len(keys), sum(sizes))

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def submit_lookup_and_lock_task(self, keys: list[ObjectKey], group_layout_descs: dict[int, Any]) -> int:
        task = next(self._task)
        self._lookups.submit(task, lambda: self._lookup(keys), Bitmap(len(keys)))
        return task

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        return self._lookups.take(task_id)

    def _lookup(self, keys: list[ObjectKey]) -> Bitmap:
        found = Bitmap(len(keys))
        self._forget_ended()
        until = time.monotonic() + LOCK_MS / 1000
        for namespace, rows, names in self._spaces.batches([_named(key) for key in keys]):
            match = self._kv.match(namespace, names, lease_ms=LOCK_MS, deadline_ms=self._settings.deadline_ms)
            here = [row for row, present in zip(rows, match.present, strict=True) if present]
            found.batched_set(here)
            if match.lease is not None and here:
                held = _Held(match.lease, len(here), [keys[row] for row in here], until)
                with self._lock:
                    self._locks.append(held)
                    for key in held.locked:
                        self._held.setdefault(key, []).append(held)
        return found

    def _forget_ended(self) -> None:
        """Locks that nobody gave back in time (an LMCache that stopped waiting for a lookup does not): their leases are over."""
        now = time.monotonic()
        with self._lock:
            while self._locks and (self._locks[0].until < now or not self._locks[0].keys):
                ended = self._locks.popleft()
                for key in ended.locked if ended.keys else ():
                    holders = self._held.get(key, [])
                    if ended in holders:
                        holders.remove(ended)
                    if not holders:
                        self._held.pop(key, None)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Leases whose keys are all unlocked are given back, in the background; should that fail, they end by themselves."""
        ended = []
        with self._lock:
            for key in keys:
                holders = self._held.get(key)
                if not holders:
                    continue
                held = holders.pop(0)
                if not holders:
                    del self._held[key]
                held.keys -= 1
                if held.keys == 0:
                    ended.append(held.lease)
        if ended and not self._closed:
            self._lookups.aside(lambda: self._release(ended))

    def _release(self, leases: list[Lease]) -> None:
        for lease in leases:
            self._kv.release(lease)

    # --- loading --------------------------------------------------------------------------------------------------------------------

    def submit_load_task(self, keys: list[ObjectKey], objects: list[Any]) -> int:
        task = next(self._task)
        self._loads.submit(task, lambda: self._load(keys, objects), Bitmap(len(keys)))
        return task

    def query_load_result(self, task_id: int) -> Bitmap | None:
        return self._loads.take(task_id)

    def _load(self, keys: list[ObjectKey], objects: list[Any]) -> Bitmap:
        buffers = [memoryview(one.byte_array).cast("B") for one in objects]
        loaded = Bitmap(len(keys))
        here: list[int] = []
        for namespace, rows, names in self._spaces.batches([_named(key) for key in keys]):
            statuses = self._kv.get_into(
                namespace, names, [buffers[i] for i in rows], deadline_ms=self._settings.deadline_ms
            )
            good = succeeded(statuses, "reading objects for LMCache")
            here += [row for row, ok in zip(rows, good, strict=True) if ok]
        loaded.batched_set(here)
        self._notify_keys_accessed([keys[i] for i in here])
        if len(here) < len(keys):
            self._forget([keys[i] for i in set(range(len(keys))).difference(here)])
        return loaded

    # --- deleting, accounting -------------------------------------------------------------------------------------------------------

    def delete(self, keys: list[ObjectKey]) -> None:
        """Delete objects that nobody has locked. Behind the lookups and unlocks that came before, which one thread carries out."""
        if keys and not self._closed:
            self._lookups.aside(lambda: self._delete(keys)).result()

    def _delete(self, keys: list[ObjectKey]) -> None:
        self._forget_ended()
        with self._lock:
            free = [key for key in keys if key not in self._held]
        try:
            self._delete_free(free)
        except OSError as failure:  # its eviction comes again
            logger.warning("%d objects of LMCache were not deleted: %s", len(free), failure)

    def _delete_free(self, free: list[ObjectKey]) -> None:
        for namespace, rows, names in self._spaces.batches([_named(key) for key in free]):
            gone = succeeded(self._kv.delete(namespace, names, deadline_ms=self._settings.deadline_ms))
            self._forget([free[row] for row, ok in zip(rows, gone, strict=True) if ok])

    def _forget(self, keys: list[ObjectKey]) -> None:
        """Objects that are not there any more: deleted, or evicted by emberfs."""
        with self._lock:
            gone = [(key, self._sizes.pop(key)) for key in keys if key in self._sizes]
        if gone:
            self._notify_keys_deleted([key for key, _ in gone], [size for _, size in gone])

    def report_status(self) -> dict[str, Any]:
        with self._lock:
            locked, stored = len(self._held), len(self._sizes)
        return {
            "is_healthy": not self._closed, "type": "emberfs", "url": self._settings.url, "objects_stored": stored,
            "objects_locked": locked, "arena_is_shared": self.shared,
        }  # fmt: skip

    def close(self) -> None:
        """Wait for what is on its way, and give everything back. A second time it does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        kinds = (self._stores, self._lookups, self._loads)
        for tasks in kinds:
            tasks.stop()
        for tasks in kinds:
            tasks.close()
        if self._relay is not None:
            self._relay.close()
        self._arena.close()
        self._kv.close()

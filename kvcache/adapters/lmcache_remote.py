"""LMCache inside an engine's process: emberfs as a `RemoteConnector` (`remote_storage_plugins`).

An object is one block: LMCache's small header (what shape the tensor has), and then the tensor. A full chunk is read straight into
memory of LMCache's pool; one of another shape (the last, short chunk of a prompt) goes through a copy, because its shape is known only
when it is read. Keys are LMCache's own strings, hashed: they name model, ranks, content, dtype and tags.

Written for LMCache 0.5.6; needs its package. Configuration: README.md beside this file.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lmcache.utils import CacheEngineKey
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.protocol import RemoteMetadata
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector

from ..aio import until_done
from ..blocking import KVCache
from ..namespace import NamespaceSpec
from .settings import AdapterSettings, key_of, logger, succeeded

PREFIX = "emberfs."  # of our settings in LMCache's extra_config
THREADS = 4  # batches that are moved at once


def _bytes_of(one: MemoryObj) -> memoryview:
    return memoryview(one.byte_array).cast("B")


def _let_go(work: asyncio.Future[list[MemoryObj | None]]) -> None:
    """Objects that were read for nobody."""
    if not work.cancelled() and work.exception() is None:
        for one in work.result():
            if one is not None:
                one.ref_count_down()


class EmberConnector(RemoteConnector):
    """What LMCache makes for `plugin://NAME`. Raises only here; what fails later is a miss."""

    def __init__(self, loop: asyncio.AbstractEventLoop, local_cpu_backend: Any, config: Any) -> None:
        super().__init__(config, local_cpu_backend.metadata)
        extra = config.extra_config or {}
        settings = AdapterSettings.of({
            name.removeprefix(PREFIX): value for name, value in extra.items() if name.startswith(PREFIX)
        })  # fmt: skip
        self._pool = local_cpu_backend
        self._settings = settings
        self._kv = KVCache(settings.url)
        self._threads = ThreadPoolExecutor(THREADS, "emberfs-lmcache")
        metadata = local_cpu_backend.metadata
        # Its shapes do not tell few large heads from many small ones.
        shapes = "+".join("x".join(str(size) for size in shape) for shape in [*self.meta_shapes, metadata.kv_shape])
        spec = NamespaceSpec(
            engine="lmcache-remote", model=metadata.model_name, revision=settings.revision,
            dtype="+".join(str(dtype).removeprefix("torch.") for dtype in self.meta_dtypes),
            page_tokens=metadata.chunk_size, layout=f"{self.meta_fmt.name}/{shapes}", salt=settings.salt, tenant=settings.tenant,
        )  # fmt: skip
        try:
            self._namespace = self._kv.namespace(spec, ttl_s=settings.ttl_s, mode=settings.mode)
        except BaseException:
            self._kv.close()  # LMCache tries again every few seconds, for as long as it runs
            raise
        self._closed = False

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def _leading(self, keys: list[CacheEngineKey]) -> int:
        names = [key_of(key.to_string()) for key in keys]
        return int(self._kv.match(self._namespace, names, deadline_ms=self._settings.deadline_ms).n) if names else 0

    def exists_sync(self, key: CacheEngineKey) -> bool:
        return self._leading([key]) == 1

    async def exists(self, key: CacheEngineKey) -> bool:
        return bool(await self._aside(lambda: self._leading([key])))

    def support_batched_contains(self) -> bool:
        return True

    def batched_contains(self, keys: list[CacheEngineKey]) -> int:
        """How many from the first on are stored, in one request to each server."""
        return self._leading(keys)

    async def batched_async_contains(self, lookup_id: str, keys: list[CacheEngineKey], pin: bool = False) -> int:
        return int(await self._aside(lambda: self._leading(keys)))

    # --- reading --------------------------------------------------------------------------------------------------------------------

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        return (await self.batched_get([key]))[0]

    def support_batched_get(self) -> bool:
        return True

    async def batched_get(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """The objects that are stored, in memory of LMCache's pool; None for the others."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, self._read, keys)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_let_go)  # not before: bytes may still arrive there
            raise

    async def batched_get_non_blocking(self, lookup_id: str, keys: list[CacheEngineKey]) -> list[MemoryObj]:
        """The objects up to the first that is missing."""
        found = await self.batched_get(keys)
        leading = next((i for i, one in enumerate(found) if one is None), len(found))
        for one in found[leading:]:
            if one is not None:
                one.ref_count_down()
        return [one for one in found[:leading] if one is not None]

    def _read(self, keys: list[CacheEngineKey]) -> list[MemoryObj | None]:
        """The objects, full chunks in place."""
        names = [key_of(key.to_string()) for key in keys]
        # Memory only for what is there: the pool evicts, or waits, to give any.
        there = self._kv.exists(self._namespace, names, deadline_ms=self._settings.deadline_ms)
        targets = [
            self._pool.allocate(self.meta_shapes, self.meta_dtypes, self.meta_fmt) if here else None for here in there
        ]
        rows = [row for row, target in enumerate(targets) if target is not None]
        headers = [bytearray(self.remote_metadata_bytes) for _ in keys]
        statuses = [-errno.ENOENT] * len(keys)
        if rows:
            try:
                places = [[headers[row], _bytes_of(targets[row])] for row in rows]
                answers = self._kv.get_into(
                    self._namespace, [names[row] for row in rows], places, deadline_ms=self._settings.deadline_ms
                )
            except BaseException:
                for target in targets:
                    if target is not None:
                        target.ref_count_down()
                raise
            for row, status in zip(rows, answers, strict=True):
                statuses[row] = int(status)
        return [
            self._settled(name, target, header, status)
            for name, target, header, status in zip(names, targets, headers, statuses, strict=True)
        ]

    def _settled(self, name: bytes, target: MemoryObj | None, header: bytearray, status: int) -> MemoryObj | None:
        """The object in memory, once its read has ended."""
        if target is not None and status >= 0 and header == self._header(target):
            return target
        if target is not None:
            target.ref_count_down()
        # Of another length, or as long but of another shape.
        return self._read_other(name) if status >= 0 or status == -errno.EMSGSIZE else None

    def _read_other(self, name: bytes) -> MemoryObj | None:
        """An object that is no full chunk: its header says what to allocate."""
        data = self._kv.get(self._namespace, name, deadline_ms=self._settings.deadline_ms)
        if data is None or len(data) < self.remote_metadata_bytes:
            return None
        try:
            header = RemoteMetadata.deserialize(bytes(data[: self.remote_metadata_bytes]))
            target = self._pool.allocate(header.shapes, header.dtypes, header.fmt)
        except Exception as strange:  # of another version of LMCache: a miss, and none for the rest of the batch
            logger.warning("an object of LMCache has a header that cannot be read: %s", strange)
            return None
        if target is None:
            return None
        memory = _bytes_of(target)
        if memory.nbytes != len(data) - self.remote_metadata_bytes:
            target.ref_count_down()
            return None
        memory[:] = memoryview(data)[self.remote_metadata_bytes :]
        return target

    # --- writing --------------------------------------------------------------------------------------------------------------------

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        await self.batched_put([key], [memory_obj])

    def support_batched_put(self) -> bool:
        return True

    async def batched_put(self, keys: list[CacheEngineKey], memory_objs: list[MemoryObj]) -> None:
        """Store objects; LMCache keeps them until this ends. Raises OSError if any was not stored, so that LMCache counts it."""
        await self._aside(lambda: self._write(keys, memory_objs))

    def _write(self, keys: list[CacheEngineKey], objects: list[MemoryObj]) -> None:
        sources = [[self._header(one), _bytes_of(one)] for one in objects]
        statuses = self._kv.put_from(
            self._namespace, [key_of(key.to_string()) for key in keys], sources,
            ack="durable" if self._settings.durable else "replicated", deadline_ms=self._settings.deadline_ms,
        )  # fmt: skip
        failed = [int(status) for status in statuses if status < 0]
        if failed:
            raise OSError(-failed[0], f"{len(failed)} of {len(keys)} objects were not stored")

    def _header(self, one: MemoryObj) -> bytes:
        return bytes(
            RemoteMetadata(
                _bytes_of(one).nbytes, one.get_shapes(), one.get_dtypes(), one.get_memory_format()
            ).serialize()
        )

    # --- the rest -------------------------------------------------------------------------------------------------------------------

    async def _aside(self, work: Callable[[], Any]) -> Any:
        """In a thread, and to its end also when whoever waits is cancelled: LMCache has its memory back as soon as this ends."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await until_done(running)
            raise

    def remove_sync(self, key: CacheEngineKey) -> bool:
        names = [key_of(key.to_string())]
        return all(succeeded(self._kv.delete(self._namespace, names, deadline_ms=self._settings.deadline_ms)))

    async def list(self) -> list[str]:
        """What is stored, by the hashes of LMCache's keys."""
        names: list[str] = await self._aside(lambda: [block.key.hex() for block in self._kv.list(self._namespace)])
        return names

    def support_ping(self) -> bool:
        return True

    async def ping(self) -> int:
        """0 while the cluster answers."""
        try:
            await self._aside(self._kv.usage)
        except OSError as failure:
            return failure.errno or 1
        return 0

    async def close(self) -> None:
        """Wait for what is on its way, and give everything back. A second time it does nothing."""
        if self._closed:
            return
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        self._kv.close()

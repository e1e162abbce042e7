"""The asyncio face: the names of `KVCache` as coroutines, over the same core.

    async with AsyncKVCache("ember:///") as kv:
        ns = await kv.namespace(spec)
        statuses = await kv.get_into(ns, keys, dsts)

Many batches may be under way at once, on one connection per server. A cache belongs to the loop on which it was connected, and does not
survive `os.fork()`. A task that is cancelled ends when what is on its way has ended: until then its memory is not its own. What each method
does is said in `blocking`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from ..client import process
from ..client.core.options import Options
from ..proto.drivers.aio import AioEnvironment
from ..proto.errors import Status, error
from ..proto.settings import parse_url, time_scale
from .buffers import Buffer
from .core.batch import Stop
from .core.core import OPERATION_SECONDS, KvCore
from .core.results import BlockInfo, Counters, Lease, Match, Usage
from .core.statuses import as_array
from .events import WATCH_SECONDS, Event, Events, watched
from .namespace import MODE_DEFAULT, Namespace, NamespaceSpec
from .tickets import CLOSE_SECONDS

_Result = TypeVar("_Result")

Statuses = Any  # int32 for each key, as in `blocking`


class AsyncKVCache:
    """A client of the KV cache on a loop."""

    def __init__(self, url: str = "ember:///", **options: Any) -> None:
        self._location = parse_url(url)
        self._options = Options.of({"name": process.name(), "timeout": OPERATION_SECONDS, **options})
        self._core: KvCore | None = None
        self._running: dict[asyncio.Future[Any], Stop] = {}  # what moves blocks

    async def connect(self) -> AsyncKVCache:
        """Connect, once; returns the cache itself. Raises UNAVAILABLE, WRONG_CLUSTER, UNAUTHENTICATED."""
        if self._core is None:
            location, options = self._location, self._options
            env = AioEnvironment(cluster=location.cluster, secret_file=location.secret_file, pool_bytes=options.memory)
            core = KvCore(env, location.addresses, options)
            try:
                await core.connect()
            except BaseException:
                await core.close()
                raise
            self._core = core
        return self

    @property
    def core(self) -> KvCore:
        if self._core is None:
            raise error(Status.INVALID, "not connected: await connect() first, or use 'async with'")
        return self._core

    # --- namespaces -------------------------------------------------------------------------------------------------------------------

    async def namespace(self, spec: NamespaceSpec, *, ttl_s: int = 0, mode: int = MODE_DEFAULT) -> Namespace:
        return await self.core.namespace(spec, ttl_s=ttl_s, mode=mode)

    async def namespaces(self) -> Sequence[Namespace]:
        return await self.core.namespaces()

    async def drop(self, namespace: Namespace) -> None:
        await self.core.drop(namespace)

    async def set_quota(
        self, tenant: str, bytes_max: int, *, users: Sequence[int] = (), groups: Sequence[int] = ()
    ) -> None:
        await self.core.set_quota(tenant, bytes_max, users=users, groups=groups)

    # --- memory -----------------------------------------------------------------------------------------------------------------------

    def register(self, memory: Any) -> Buffer:
        return self.core.registry.register(memory)

    def allocate(self, nbytes: int) -> Buffer:
        return self.core.registry.allocate(nbytes)

    def unregister(self, buffer: Buffer) -> None:
        self.core.registry.unregister(buffer)

    # --- blocks -----------------------------------------------------------------------------------------------------------------------

    async def match(self, namespace: Namespace, keys: Any, **how: Any) -> Match:
        stop = Stop()
        return await self._to_its_end(self.core.match(namespace, keys, stop=stop, **how), stop)

    async def exists(self, namespace: Namespace, keys: Any, **how: Any) -> Any:
        return (await self.match(namespace, keys, **how)).present

    async def get_into(self, namespace: Namespace, keys: Any, dsts: Any, **how: Any) -> Statuses:
        stop = Stop()
        return as_array(await self._to_its_end(self.core.get_into(namespace, keys, dsts, stop=stop, **how), stop))

    async def put_from(self, namespace: Namespace, keys: Any, srcs: Any, **how: Any) -> Statuses:
        stop = Stop()
        return as_array(await self._to_its_end(self.core.put_from(namespace, keys, srcs, stop=stop, **how), stop))

    async def get(self, namespace: Namespace, key: Any, *, deadline_ms: float | None = None) -> bytes | None:
        return await self._to_its_end(self.core.get(namespace, key, deadline_ms=deadline_ms), Stop())

    async def put(self, namespace: Namespace, key: Any, data: Any, **how: Any) -> int:
        return int((await self.put_from(namespace, [key], [data], **how))[0])

    async def touch(self, namespace: Namespace, keys: Any, **how: Any) -> Statuses:
        return as_array(await self.core.touch(namespace, keys, **how))

    async def pin(self, namespace: Namespace, keys: Any, seconds: int | None = None, **how: Any) -> Statuses:
        return as_array(await self.core.pin(namespace, keys, seconds, **how))

    async def unpin(self, namespace: Namespace, keys: Any, **how: Any) -> Statuses:
        return as_array(await self.core.unpin(namespace, keys, **how))

    async def set_ttl(self, namespace: Namespace, keys: Any, seconds: int, **how: Any) -> Statuses:
        return as_array(await self.core.set_ttl(namespace, keys, seconds, **how))

    async def prefetch(self, namespace: Namespace, keys: Any, **how: Any) -> Statuses:
        return as_array(await self.core.prefetch(namespace, keys, **how))

    async def delete(self, namespace: Namespace, keys: Any, **how: Any) -> Statuses:
        return as_array(await self.core.delete(namespace, keys, **how))

    async def renew(self, lease: Lease, lease_ms: int) -> bool:
        return await self.core.renew(lease, lease_ms)

    async def release(self, lease: Lease) -> None:
        await self.core.release(lease)

    # --- looking ----------------------------------------------------------------------------------------------------------------------

    async def list(self, namespace: Namespace) -> AsyncIterator[BlockInfo]:
        for chain in await self.core.chains_of(namespace):
            after: bytes | None = b""
            while after is not None:
                page, after = await self.core.list_page(namespace, chain, after)
                for block in page:
                    yield block

    async def usage(self) -> Usage:
        return await self.core.usage()

    def stats(self) -> Counters:
        return replace(self.core.counters)

    def events(self) -> Events:
        """As `KVCache.events`: `next(0)` asks without waiting, and iterating it waits in the caller's thread."""
        return Events(self.core)

    async def watch(self, namespace: Namespace, *, wait: float = 20.0) -> AsyncIterator[Event | None]:
        seen: dict[int, int] = {}
        await self.core.block_events(namespace, seen)
        quiet_since = self.core.env.now()
        while True:
            found, lost = await self.core.block_events(namespace, seen)
            for event in (events := watched(namespace, found, lost=lost)):
                yield event
            if events:
                quiet_since = self.core.env.now()
            elif self.core.env.now() - quiet_since >= wait:
                yield None
                quiet_since = self.core.env.now()
            else:
                await self.core.env.sleep(min(WATCH_SECONDS, wait))

    async def close(self) -> None:
        """As `KVCache.close`: of what is under way nothing more is sent, and what is on its way ends first."""
        for stop in self._running.values():
            stop.wanted = True
        if self._running:
            await asyncio.wait(list(self._running), timeout=CLOSE_SECONDS * time_scale())
        if self._core is not None:
            await self._core.close()

    async def _to_its_end(self, work: Coroutine[Any, Any, _Result], stop: Stop) -> _Result:
        """Wait for it, also when we are cancelled, however often: then nothing more is sent, and what is on its way ends first."""
        task = asyncio.ensure_future(work)
        self._running[task] = stop
        task.add_done_callback(self._running.pop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            stop.wanted = True
            await until_done(task)
            raise

    async def __aenter__(self) -> AsyncKVCache:
        return await self.connect()

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, where: TracebackType | None
    ) -> None:
        await self.close()


async def until_done(work: asyncio.Future[Any]) -> None:
    """Wait for its end for one who was cancelled, and may be again, as by a time-out and by whoever set it. What came of it counts as
    seen."""
    while not work.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([work])
    if not work.cancelled():
        work.exception()

"""The faces of the API, each called as if it blocked: one suite for all of them."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from emberfs.kvcache import AsyncKVCache, KVCache, Namespace, NamespaceSpec

PATIENCE_SECONDS = 60.0  # of clients; an engine's are impatient, and take a machine that stops for a moment for a miss
SECONDS_MAX = 90.0
FACES = ("blocking", "asyncio", "tickets")
SUBMITTED = {"match": "submit_match", "get_into": "submit_get", "put_from": "submit_put"}


class Face:
    """`face.get_into(...)` and so on; what a face has no way of its own for goes the blocking way."""

    def __init__(self, kv: Any) -> None:
        self.kv = kv

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kv, name)


class TicketFace(Face):
    """Batches are submitted, and found among those that are completed."""

    def __getattr__(self, name: str) -> Any:
        if name not in SUBMITTED:
            return getattr(self.kv, name)

        def submit(*args: Any, **how: Any) -> Any:
            ticket = getattr(self.kv, SUBMITTED[name])(*args, **how)
            return ticket.result(SECONDS_MAX)

        return submit


class AioFace(Face):
    """Coroutines, on a loop in another thread."""

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        super().__init__(self._run(_connected(url, options)))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS_MAX)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.kv, name)
        if not asyncio.iscoroutinefunction(found):
            return found
        return lambda *args, **how: self._run(found(*args, **how))

    def list(self, namespace: Namespace) -> list[Any]:
        async def everything() -> list[Any]:
            return [block async for block in self.kv.list(namespace)]

        return self._run(everything())  # type: ignore[no-any-return]

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS_MAX)
        self._loop.close()


async def _connected(url: str, options: dict[str, Any]) -> AsyncKVCache:
    return await AsyncKVCache(url, **options).connect()


@contextmanager
def opened(kind: str, url: str, **options: Any) -> Iterator[Any]:
    """A face of this kind, closed at the end."""
    options = {"timeout": PATIENCE_SECONDS, **options}
    face = (
        AioFace(url, **options) if kind == "asyncio" else (Face, TicketFace)[kind == "tickets"](KVCache(url, **options))
    )
    try:
        yield face
    finally:
        face.close()
        if isinstance(face, AioFace):
            face.end()


def spec_of(block_bytes: int | None = 65536, **changed: Any) -> NamespaceSpec:
    """A namespace of a test's own, unless it says otherwise."""
    fields: dict[str, Any] = {
        "engine": "test",
        "model": "llama-3.1-8b",
        "revision": "1",
        "dtype": "bf16",
        "page_tokens": 16,
        "layout": "page_first",
        "object_bytes": block_bytes,
        "salt": random.randbytes(8).hex(),
    }
    return NamespaceSpec(**{**fields, **changed})


def usage_of_all(face: Any) -> Any:
    """What all servers say of themselves; one that takes seconds to answer is asked again."""
    deadline = time.monotonic() + SECONDS_MAX
    while (usage := face.usage()).servers_silent:
        assert time.monotonic() < deadline, usage
    return usage


def keys_of(count: int) -> list[bytes]:
    return [random.randbytes(32) for _ in range(count)]


def blocks_of(keys: list[bytes], length: int) -> list[bytes]:
    """Each block says whose it is, from its first byte to its last."""
    return [random.Random(key).randbytes(length) for key in keys]
